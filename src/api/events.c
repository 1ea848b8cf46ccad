/* The ring of what happens outside of the store, and event streams, each with a watch on the store of its own.
 *
 * One lock covers the ring and the list of streams. A stream waits in its watch; who publishes wakes it. */
#include "api/events.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/events_impl.h"
#include "api/timestamp.h"

int events_create(struct store *store, struct events **ret_events, struct err *err)
{
    struct events *events = calloc(1, sizeof *events);
    if (!events)
        return err_set(err, ENOMEM, "events");
    events->store = store;
    pthread_mutex_init(&events->lock, NULL);
    *ret_events = events;
    return 0;
}

void events_free(struct events *events)
{
    if (!events)
        return;
    for (unsigned i = 0; i < EVENTS_RING; i++)
        free(events->ring[i]);
    pthread_mutex_destroy(&events->lock);
    free(events);
}

static void wake_all(struct events *events)
{
    for (struct event_stream *s = events->streams; s; s = s->next)
        store_watch_wake(s->watch);
}

void events_wake(struct events *events)
{
    pthread_mutex_lock(&events->lock);
    wake_all(events);
    pthread_mutex_unlock(&events->lock);
}

char *event_text(const struct event *event)
{
    char time[TIMESTAMP_SIZE];
    timestamp_now(time);
    json_t *out = json_pack("{s:I, s:s, s:s, s:s, s:s, s:O*}", "revision", (json_int_t)event->revision, "time", time, "kind",
                            event->kind, "name", event->name, "action", event->action, "object", event->object);
    char *text = out ? json_dumps(out, JSON_COMPACT) : NULL;
    json_decref(out);
    return text;
}

void events_publish(struct events *events, const char *kind, const char *name, const char *action, const json_t *object)
{
    if (!events)
        return;
    struct event event = {.kind = kind, .name = name, .action = action, .object = (json_t *)(uintptr_t)object};
    pthread_mutex_lock(&events->lock);
    event.revision = events->revision;
    char *text = event_text(&event);
    if (text) {
        char **slot = &events->ring[events->published++ % EVENTS_RING];
        free(*slot);
        *slot = text;
        wake_all(events);
    }
    pthread_mutex_unlock(&events->lock);
}

void events_join(struct events *events, struct event_stream *stream)
{
    pthread_mutex_lock(&events->lock);
    stream->seen = events->published;
    stream->next = events->streams;
    events->streams = stream;
    pthread_mutex_unlock(&events->lock);
}

void events_leave(struct events *events, struct event_stream *stream)
{
    pthread_mutex_lock(&events->lock);
    for (struct event_stream **at = &events->streams; *at; at = &(*at)->next)
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    pthread_mutex_unlock(&events->lock);
}

int events_take(struct events *events, struct event_stream *stream, char **ret_text)
{
    int r = 0;
    pthread_mutex_lock(&events->lock);
    if (events->published - stream->seen > EVENTS_RING)
        r = -ERANGE;
    else if (stream->seen < events->published) {
        *ret_text = strdup(events->ring[stream->seen++ % EVENTS_RING]);
        r = *ret_text ? 1 : -ENOMEM;
    }
    pthread_mutex_unlock(&events->lock);
    return r;
}

void events_note_revision(struct events *events, uint64_t revision)
{
    pthread_mutex_lock(&events->lock);
    if (revision > events->revision)
        events->revision = revision;
    pthread_mutex_unlock(&events->lock);
}
