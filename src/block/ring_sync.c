/* Operations run one after the other in wait(); their callbacks in dispatch(), as the contract says. Those on sockets are
 * tried, and again when poll says so. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "block/ring_impl.h"

struct sync_ring {
    struct block_ring ring; /* first */
    struct io_list todo, finished;
    struct io_list waiting; /* on sockets that are not ready */
};

static int sync_create(struct block_ring **ret_ring, struct err *err)
{
    struct sync_ring *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ENOMEM, "I/O engine");
    io_list_init(&s->todo);
    io_list_init(&s->finished);
    io_list_init(&s->waiting);
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
    io_list_append(&((struct sync_ring *)ring)->todo, io);
}

/* A poll timeout that is never shorter than asked. */
static int poll_timeout(const struct sync_ring *s, uint64_t timeout_ns)
{
    if (s->finished.first)
        return 0;
    if (timeout_ns == UINT64_MAX)
        return -1;
    uint64_t ms = (timeout_ns + 999999u) / 1000000u;
    return ms > 1000000 ? 1000000 : (int)ms;
}

static void run(struct sync_ring *s, struct block_io *io)
{
    io->result = s->ring.socket_count > BLOCK_RING_SOCKETS_MAX && ring_is_socket(io) ? -EBUSY : ring_run(io);
    io_list_append(io->result == -EAGAIN && ring_is_socket(io) ? &s->waiting : &s->finished, io);
}

/* Fills in what is watched and what is waited for. */
static nfds_t gather(const struct sync_ring *s, struct pollfd *fds)
{
    nfds_t count = 0;
    for (; count < s->ring.watch_count; count++)
        fds[count] = (struct pollfd){.fd = s->ring.watches[count].fd, .events = POLLIN};
    for (const struct block_io *io = s->waiting.first; io; io = io->next)
        fds[count++] = (struct pollfd){.fd = io->fd, .events = ring_socket_events(io)};
    return count;
}

static void sync_wait(struct block_ring *ring, uint64_t timeout_ns)
{
    struct sync_ring *s = (struct sync_ring *)ring;
    for (struct block_io *io; (io = io_list_take(&s->todo));)
        run(s, io);
    struct pollfd fds[RING_WATCHES_MAX + BLOCK_RING_SOCKETS_MAX];
    if (poll(fds, gather(s, fds), poll_timeout(s, timeout_ns)) <= 0)
        return;
    for (unsigned i = 0; i < ring->watch_count; i++)
        ring->watches[i].ready = fds[i].revents != 0;
    struct io_list waited = s->waiting;
    if (!waited.first)
        return;
    io_list_init(&s->waiting);
    const struct pollfd *fd = fds + ring->watch_count;
    for (struct block_io *io; (io = io_list_take(&waited)); fd++) {
        if (fd->revents)
            run(s, io);
        else
            io_list_append(&s->waiting, io);
    }
}

static void sync_dispatch(struct block_ring *ring)
{
    struct sync_ring *s = (struct sync_ring *)ring;
    for (struct block_io *io; (io = io_list_take(&s->finished));)
        ring_complete(ring, io, io->result);
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
