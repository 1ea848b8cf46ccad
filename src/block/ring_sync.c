/* Operations run one after the other in wait(); their callbacks in dispatch(), as the contract says. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "block/ring_impl.h"

struct sync_ring {
    struct block_ring ring; /* first */
    struct block_io *todo, **todo_end;
    struct block_io *finished, **finished_end;
};

static void append(struct block_io ***end, struct block_io *io)
{
    io->next = NULL;
    **end = io;
    *end = &io->next;
}

static int sync_create(struct block_ring **ret_ring, struct err *err)
{
    struct sync_ring *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ENOMEM, "I/O engine");
    s->todo_end = &s->todo;
    s->finished_end = &s->finished;
    *ret_ring = &s->ring;
    return 0;
}

static void sync_free(struct block_ring *ring)
{
    free(ring);
}

static int sync_start(struct block_ring *ring, struct err *err)
{
    (void)ring;
    (void)err;
    return 0;
}

static void sync_submit(struct block_ring *ring, struct block_io *io)
{
    append(&((struct sync_ring *)ring)->todo_end, io);
}

static int run(const struct block_io *io)
{
    ssize_t r = -1;
    switch (io->kind) {
    case BLOCK_IO_READ:
        r = preadv2(io->fd, io->iov, (int)io->iov_count, (off_t)io->offset, io->flags);
        break;
    case BLOCK_IO_WRITE:
        r = pwritev2(io->fd, io->iov, (int)io->iov_count, (off_t)io->offset, io->flags);
        break;
    case BLOCK_IO_SYNC:
        r = fdatasync(io->fd);
        break;
    case BLOCK_IO_FALLOCATE:
        r = fallocate(io->fd, io->flags, (off_t)io->offset, (off_t)io->len);
        break;
    }
    return r < 0 ? -errno : (int)r;
}

/* A poll timeout that is never shorter than asked. */
static int poll_timeout(const struct sync_ring *s, uint64_t timeout_ns)
{
    if (s->finished)
        return 0;
    if (timeout_ns == UINT64_MAX)
        return -1;
    uint64_t ms = (timeout_ns + 999999u) / 1000000u;
    return ms > 1000000 ? 1000000 : (int)ms;
}

static void sync_wait(struct block_ring *ring, uint64_t timeout_ns)
{
    struct sync_ring *s = (struct sync_ring *)ring;
    while (s->todo) {
        struct block_io *io = s->todo;
        s->todo = io->next;
        io->result = run(io);
        append(&s->finished_end, io);
    }
    s->todo_end = &s->todo;
    struct pollfd fds[RING_WATCHES_MAX];
    for (unsigned i = 0; i < ring->watch_count; i++)
        fds[i] = (struct pollfd){.fd = ring->watches[i].fd, .events = POLLIN};
    if (poll(fds, ring->watch_count, poll_timeout(s, timeout_ns)) <= 0)
        return;
    for (unsigned i = 0; i < ring->watch_count; i++)
        ring->watches[i].ready = fds[i].revents != 0;
}

static void sync_dispatch(struct block_ring *ring)
{
    struct sync_ring *s = (struct sync_ring *)ring;
    struct block_io *io = s->finished;
    s->finished = NULL;
    s->finished_end = &s->finished;
    while (io) {
        struct block_io *next = io->next;
        io->done(io, io->result);
        io = next;
    }
    for (unsigned i = 0; i < ring->watch_count; i++) {
        if (!ring->watches[i].ready)
            continue;
        ring->watches[i].ready = false;
        ring_watch_fire(&ring->watches[i]);
    }
}

const struct ring_engine ring_sync = {
    .name = "sync",
    .create = sync_create,
    .free = sync_free,
    .start = sync_start,
    .submit = sync_submit,
    .wait = sync_wait,
    .dispatch = sync_dispatch,
};
