/* Events for clients: changes in the store, and what happens outside of it (operations, images).
 *
 * The store keeps its history, so a stream can begin at any revision that it still knows; what is published here is kept in
 * a ring of the last 1024 and seen only by streams that are open. Any thread. */
#pragma once

#include "api/platform.h"
#include "api/request.h"

must_check int events_create(struct store *store, struct events **ret_events, struct err *err);
void events_free(struct events *events); /* no stream may be left */
/* `object` is borrowed. `kind`: "operation", "image". */
void events_publish(struct events *events, const char *kind, const char *name, const char *action, const json_t *object);
/* Ends all streams soon (platform.stopping is set). */
void events_wake(struct events *events);
