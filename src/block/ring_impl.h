/* Private to the ring's files: what an engine is. */
#pragma once

#include "block/ring.h"
#include "block/workers.h"

#define RING_WATCHES_MAX 40

struct ring_watch {
    int fd;
    void (*fn)(void *arg);
    void *arg;
    bool armed, ready;
};

struct ring_engine {
    const char *name;
    int (*create)(struct block_ring **ret_ring, struct err *err);
    void (*free)(struct block_ring *ring);
    int (*start)(struct block_ring *ring, struct err *err);
    void (*submit)(struct block_ring *ring, struct block_io *io);
    void (*wait)(struct block_ring *ring, uint64_t timeout_ns);
    void (*dispatch)(struct block_ring *ring);
};

/* First member of every engine's struct. */
struct block_ring {
    const struct ring_engine *engine;
    struct block_workers *workers; /* NULL: none */
    unsigned watch_count;
    unsigned socket_count; /* operations on sockets in flight */
    struct ring_watch watches[RING_WATCHES_MAX];
};

extern const struct ring_engine ring_uring, ring_sync;

/* Reads the eventfd's count and calls back. */
void ring_watch_fire(struct ring_watch *watch);
/* Does the operation in this thread: bytes or 0, or -errno. Never waits for a socket: -EAGAIN. */
int ring_run(struct block_io *io);
static inline bool ring_is_socket(const struct block_io *io)
{
    return io->kind >= BLOCK_IO_RECEIVE;
}
/* What a socket's operation waits for: POLL*. */
short ring_socket_events(const struct block_io *io);
void ring_prepare_message(struct block_io *io);
/* Calls `done`. */
void ring_complete(struct block_ring *ring, struct block_io *io, int result);

/* A queue of operations, linked through `next`. */
struct io_list {
    struct block_io *first, **end;
};
void io_list_init(struct io_list *list);
void io_list_append(struct io_list *list, struct block_io *io);
/* NULL when empty. */
struct block_io *io_list_take(struct io_list *list);
