#include "agent/queue.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/iov.h"

static int make_room(struct queue *q, size_t len)
{
    if (q->start) {
        memmove(q->bytes, q->bytes + q->start, queue_used(q));
        q->end -= q->start;
        q->start = 0;
    }
    if (q->end + len <= q->capacity)
        return 0;
    size_t capacity = q->capacity ? q->capacity : 4096;
    while (capacity < q->end + len)
        capacity *= 2;
    uint8_t *bytes = realloc(q->bytes, capacity);
    if (!bytes)
        return -ENOMEM;
    q->bytes = bytes;
    q->capacity = capacity;
    return 0;
}

int queue_append(struct queue *q, const struct iovec *iov, unsigned count)
{
    size_t len = iov_total(iov, count);
    if (q->end + len > q->capacity) {
        int r = make_room(q, len);
        if (r < 0)
            return r;
    }
    q->end += iov_read(iov, count, 0, q->bytes + q->end, len);
    return 0;
}

void queue_drop(struct queue *q, size_t len)
{
    assert(len <= queue_used(q));
    q->start += len;
    if (q->start == q->end)
        q->start = q->end = 0;
}

int queue_flush(struct queue *q, int fd)
{
    while (queue_used(q)) {
        ssize_t n = write(fd, q->bytes + q->start, queue_used(q));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        queue_drop(q, (size_t)n);
    }
    return 0;
}

void queue_clear(struct queue *q)
{
    free(q->bytes);
    *q = (struct queue){0};
}
