/* A bounded queue of bytes: what is to be written to a descriptor that takes it in its own time. Grows up to the most that
 * was ever queued; whoever fills it stops at queue_has_room(). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include "base/err.h"

#define QUEUE_ROOM (2 * 65536u) /* bytes queued beyond which a queue is full */

struct queue {
    uint8_t *bytes;
    size_t start, end, capacity;
};

static inline size_t queue_used(const struct queue *q)
{
    return q->end - q->start;
}

static inline bool queue_has_room(const struct queue *q)
{
    return queue_used(q) < QUEUE_ROOM;
}

/* Appends all or, when memory is out, nothing (-ENOMEM). */
must_check int queue_append(struct queue *q, const struct iovec *iov, unsigned count);
void queue_drop(struct queue *q, size_t len);
/* Writes as much as `fd` takes without blocking: 0 or -errno; -EAGAIN when some is left. */
must_check int queue_flush(struct queue *q, int fd);
void queue_clear(struct queue *q);
