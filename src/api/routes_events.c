/* GET /v1/events: server-sent events (the HTML standard's text/event-stream), one JSON object a line of data.
 *
 * The first thing that a stream sends is a comment, so that a client knows that it is listening; then, without `since`,
 * whatever changes from now on. What a document's change means (started, stopped) is told from the state that the
 * stream knew before; after `since` of an older time the first change of each may only be called "updated". */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/events_impl.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "base/own.h"

#define HEARTBEAT_MS 15000
#define POLL_MS 1000
#define TOKEN "token" /* for admins, as is their list */

struct reader {
    struct platform *platform;
    struct event_stream stream;
    char kind[32]; /* empty: all */
    bool follow, admin;
    json_t *states; /* key: status.state as last seen */
    char *line;     /* being sent */
    size_t len, sent;
    time_t last;
};

static void reader_free(void *arg)
{
    struct reader *reader = arg;
    events_leave(reader->platform->events, &reader->stream);
    store_watch_close(reader->stream.watch);
    json_decref(reader->states);
    free(reader->line);
    free(reader);
}

/* "instances/web" -> "instance", "web"; false for what is no event for clients. */
static bool split_key(const char *key, const char **ret_kind, const char **ret_name)
{
    static const struct {
        const char *prefix, *kind;
    } kinds[] = {{"instances/", "instance"}, {"networks/", "network"}, {"volumes/", "volume"}, {"tokens/", TOKEN}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t len = strlen(kinds[i].prefix);
        if (strncmp(key, kinds[i].prefix, len) != 0 || strchr(key + len, '/'))
            continue;
        *ret_kind = kinds[i].kind;
        *ret_name = key + len;
        return true;
    }
    return false;
}

static const char *state_of(const json_t *document)
{
    return json_string_value(json_object_get(json_object_get(document, "status"), "state"));
}

/* What a change is called; remembers the state. */
static const char *action_of(struct reader *reader, const struct store_event *event)
{
    static const struct {
        const char *state, *action;
    } names[] = {{"running", "started"}, {"paused", "paused"}, {"stopped", "stopped"}, {"failed", "failed"}};
    const char *key = event->doc.key, *state = state_of(event->doc.value), *action = "updated";
    if (event->kind == STORE_EVENT_DELETE) {
        json_object_del(reader->states, key);
        return "removed";
    }
    const char *before = json_string_value(json_object_get(reader->states, key));
    if (event->doc.created == event->doc.revision)
        action = "created";
    for (size_t i = 0; before && state && strcmp(before, state) != 0 && i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].state, state))
            action = !strcmp(state, "running") && !strcmp(before, "paused") ? "resumed" : names[i].action;
    if (state)
        json_object_set_new(reader->states, key, json_string(state));
    return action;
}

static void set_line(struct reader *reader, char *text)
{
    free(reader->line);
    reader->line = text;
    reader->len = text ? strlen(text) : 0;
    reader->sent = 0;
    reader->last = time(NULL);
}

static void set_event(struct reader *reader, const char *json)
{
    char *text = NULL;
    set_line(reader, json && asprintf(&text, "data: %s\n\n", json) >= 0 ? text : NULL);
}

static void take_store_event(struct reader *reader, const struct store_event *event)
{
    struct event out = {.revision = event->doc.revision};
    events_note_revision(reader->platform->events, out.revision);
    if (!split_key(event->doc.key, &out.kind, &out.name) || (!reader->admin && !strcmp(out.kind, TOKEN)))
        return;
    out.action = action_of(reader, event);
    if (reader->kind[0] && strcmp(reader->kind, out.kind) != 0)
        return;
    out.object = event->doc.value;
    json_object_del(out.object, "hash"); /* of a token */
    own_free char *text = event_text(&out);
    set_event(reader, text);
}

/* 1: a line is to be sent, 0: nothing for now, negative: the end. */
static int next_published(struct reader *reader)
{
    own_free char *text = NULL;
    int r = events_take(reader->platform->events, &reader->stream, &text);
    if (r <= 0)
        return r;
    if (reader->kind[0]) {
        json_t *event = json_loads(text, 0, NULL);
        const char *kind = json_string_value(json_object_get(event, "kind"));
        bool skip = !kind || strcmp(kind, reader->kind) != 0;
        json_decref(event);
        if (skip)
            return 1;
    }
    set_event(reader, text);
    return 1;
}

static int next_stored(struct reader *reader)
{
    struct store_event event;
    struct err err = {0};
    int r = store_watch_next(reader->stream.watch, reader->follow ? POLL_MS : 0, &event, &err);
    if (r <= 0)
        return r;
    take_store_event(reader, &event);
    store_doc_clear(&event.doc);
    return 1;
}

/* Makes the next line; false at the end. */
static bool next_line(struct reader *reader)
{
    set_line(reader, NULL);
    while (!reader->line && !platform_stopping(reader->platform)) {
        int published = next_published(reader);
        int stored = published == 0 ? next_stored(reader) : 0;
        if (published < 0 || stored < 0) {
            set_line(reader, strdup("event: lost\ndata: {\"message\":\"events were forgotten before they were read; list anew\"}\n\n"));
            reader->follow = false;
            return reader->line;
        }
        if (published == 0 && stored == 0 && !reader->follow)
            return false;
        if (!reader->line && time(NULL) - reader->last >= HEARTBEAT_MS / 1000)
            set_line(reader, strdup(": heartbeat\n\n"));
    }
    return reader->line;
}

static ssize_t stream(void *arg, char *buffer, size_t size)
{
    struct reader *reader = arg;
    if (reader->sent == reader->len && !next_line(reader))
        return 0;
    size_t part = reader->len - reader->sent < size ? reader->len - reader->sent : size;
    memcpy(buffer, reader->line + reader->sent, part);
    reader->sent += part;
    return (ssize_t)part;
}

/* Without `since`: from now on, knowing the states that there are. */
static int begin_now(struct reader *reader, uint64_t *ret_since, struct err *err)
{
    struct store_list list;
    int r = store_list_prefix(reader->platform->store, "instances/", &list, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < list.count; i++) {
        const char *state = state_of(list.docs[i].value);
        if (state)
            json_object_set_new(reader->states, list.docs[i].key, json_string(state));
    }
    *ret_since = list.revision;
    store_list_clear(&list);
    return 0;
}

static int begin(struct reader *reader, int64_t since, struct err *err)
{
    uint64_t from = (uint64_t)since;
    int r = since < 0 ? begin_now(reader, &from, err) : 0;
    if (r == 0)
        r = store_watch_open(reader->platform->store, "", from, &reader->stream.watch, err);
    if (r == -ERANGE)
        return err_say(err, ERANGE, "changes since revision %llu are forgotten: list anew and follow without since",
                       (unsigned long long)from);
    return r;
}

static int get_events(struct request *request, struct err *err)
{
    const char *kind = request_text(request, "kind");
    bool admin = request->actor.role == ROLE_ADMIN;
    if (kind && !strcmp(kind, TOKEN) && !admin)
        return err_say(err, EACCES, "events of tokens need the role %s", role_name(ROLE_ADMIN));
    struct reader *reader = calloc(1, sizeof *reader);
    if (!reader || !(reader->states = json_object())) {
        free(reader);
        return err_set(err, ENOMEM, "events");
    }
    reader->platform = request->platform;
    reader->follow = request_flag(request, "follow");
    reader->admin = admin;
    snprintf(reader->kind, sizeof reader->kind, "%s", kind ? kind : "");
    int r = begin(reader, request_integer(request, "since", -1), err);
    if (r < 0) {
        json_decref(reader->states);
        free(reader);
        return r;
    }
    events_join(request->platform->events, &reader->stream);
    set_line(reader, strdup(": listening\n\n"));
    return request_reply_stream(request, stream, reader, reader_free);
}

static const char *const kinds[] = {"instance", "network", "volume", TOKEN, "image", "operation", NULL};
static const struct schema_field query[] = {
    {.name = "follow", .text = "Waits for more; otherwise the stream ends with what is there.", .type = SCHEMA_BOOL},
    {.name = "since", .text = "Changes of the store after this revision, too.", .type = SCHEMA_INTEGER, .max = INT64_MAX},
    {.name = "kind", .text = "Only events of this kind; those of tokens are for admins.", .type = SCHEMA_STRING, .values = kinds},
    {0},
};

const struct route routes_events[] = {
    {.method = "GET", .path = "/v1/events", .role = ROLE_VIEWER, .handler = get_events, .query = query,
     .answer = ANSWER_STREAM, .media = "text/event-stream",
     .text = "What happens: {revision, time, kind, name, action, object} as server-sent events."},
    {0},
};
