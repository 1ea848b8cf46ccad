/* Private to events: the ring and the streams that read it. */
#pragma once

#include <pthread.h>

#include "api/events.h"

#define EVENTS_RING 1024u

struct event {
    uint64_t revision;
    const char *kind, *name, *action;
    json_t *object; /* borrowed; NULL: none */
};

struct event_stream {
    struct event_stream *next;
    struct store_watch *watch;
    uint64_t seen; /* of what was published */
};

struct events {
    struct store *store;
    pthread_mutex_t lock;
    char *ring[EVENTS_RING]; /* JSON */
    uint64_t published;      /* ever; the last one is at published - 1 */
    uint64_t revision;       /* the latest of the store that a stream has seen */
    struct event_stream *streams;
};

/* JSON of an event, with the time now. NULL when memory is out. */
char *event_text(const struct event *event);
void events_join(struct events *events, struct event_stream *stream);
void events_leave(struct events *events, struct event_stream *stream);
/* What was published and this stream has not seen: 1 and *ret_text (the caller frees it), 0, or -ERANGE when it was too slow. */
must_check int events_take(struct events *events, struct event_stream *stream, char **ret_text);
void events_note_revision(struct events *events, uint64_t revision);
