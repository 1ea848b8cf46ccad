#include "block/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "block/ring_impl.h"

static const struct ring_engine *const engines[] = {&ring_uring, &ring_sync};
#define ENGINE_COUNT (sizeof engines / sizeof engines[0])

int block_ring_create(const char *engine, struct block_ring **ret_ring, struct err *err)
{
    for (unsigned i = 0; i < ENGINE_COUNT; i++) {
        if (engine && strcmp(engine, engines[i]->name) != 0)
            continue;
        bool last = engine || i + 1 == ENGINE_COUNT; /* that another one takes over is no error */
        int r = engines[i]->create(ret_ring, last ? err : NULL);
        if (r == 0) {
            (*ret_ring)->engine = engines[i];
            log_debug("block: I/O engine %s", engines[i]->name);
            return 0;
        }
        if (last)
            return r;
    }
    return err_say(err, EINVAL, "I/O engine '%s' is not known", engine);
}

void block_ring_free(struct block_ring *ring)
{
    if (!ring)
        return;
    block_workers_free(ring->workers);
    ring->engine->free(ring);
}

const char *block_ring_engine(const struct block_ring *ring)
{
    return ring->engine->name;
}

int block_ring_start(struct block_ring *ring, struct err *err)
{
    return ring->engine->start(ring, err);
}

int block_ring_watch(struct block_ring *ring, int event_fd, void (*fn)(void *arg), void *arg)
{
    if (ring->watch_count == RING_WATCHES_MAX)
        return -ENOSPC;
    ring->watches[ring->watch_count++] = (struct ring_watch){.fd = event_fd, .fn = fn, .arg = arg};
    return 0;
}

void block_ring_submit(struct block_ring *ring, struct block_io *io)
{
    ring->socket_count += ring_is_socket(io);
    ring->engine->submit(ring, io);
}

void block_ring_wait(struct block_ring *ring, uint64_t timeout_ns)
{
    ring->engine->wait(ring, timeout_ns);
}

void block_ring_dispatch(struct block_ring *ring)
{
    ring->engine->dispatch(ring);
}

void ring_watch_fire(struct ring_watch *watch)
{
    uint64_t count;
    ssize_t ignored = read(watch->fd, &count, sizeof count);
    (void)ignored;
    watch->fn(watch->arg);
}

short ring_socket_events(const struct block_io *io)
{
    if (io->kind == BLOCK_IO_POLL)
        return (short)io->flags;
    return io->kind == BLOCK_IO_SEND ? POLLOUT : POLLIN;
}

void ring_prepare_message(struct block_io *io)
{
    io->message = (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)io->iov, .msg_iovlen = io->iov_count};
}

void ring_complete(struct block_ring *ring, struct block_io *io, int result)
{
    ring->socket_count -= ring_is_socket(io);
    io->done(io, result);
}

static ssize_t poll_now(const struct block_io *io)
{
    struct pollfd fd = {.fd = io->fd, .events = ring_socket_events(io)};
    int r = poll(&fd, 1, 0);
    if (r == 0)
        errno = EAGAIN;
    return r > 0 ? fd.revents : -1;
}

int ring_run(struct block_io *io)
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
    case BLOCK_IO_RECEIVE:
        ring_prepare_message(io);
        r = recvmsg(io->fd, &io->message, MSG_DONTWAIT);
        break;
    case BLOCK_IO_SEND:
        ring_prepare_message(io);
        r = sendmsg(io->fd, &io->message, MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case BLOCK_IO_ACCEPT: /* a connection may be gone again: the poll first does not keep this from waiting */
        // cppcheck-suppress nullPointer ; nobody asks for the address
        r = poll_now(io) < 0 ? -1 : accept4(io->fd, NULL, NULL, SOCK_CLOEXEC);
        break;
    case BLOCK_IO_POLL:
        r = poll_now(io);
        break;
    }
    return r < 0 ? -errno : (int)r;
}

void io_list_init(struct io_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

void io_list_append(struct io_list *list, struct block_io *io)
{
    io->next = NULL;
    *list->end = io;
    list->end = &io->next;
}

struct block_io *io_list_take(struct io_list *list)
{
    struct block_io *io = list->first;
    if (!io)
        return NULL;
    list->first = io->next;
    if (!list->first)
        list->end = &list->first;
    return io;
}
