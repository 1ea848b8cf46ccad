/* The event loop of one disk's I/O thread: file and socket operations with completions, and eventfds to watch.
 *
 * Two engines behind one contract: `io_uring`, and `sync` for hosts that forbid it (many containers): file operations then
 * run one after the other in the ring's thread, and sockets are polled. An operation on a socket that waits for its peer
 * is ended by shutdown(fd). Everything but create and free is for the ring's thread; it alternates
 * block_ring_wait (may sleep; runs no callback) and block_ring_dispatch (runs callbacks; never sleeps). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "base/err.h"

struct block_ring;

enum block_io_kind {
    BLOCK_IO_READ,
    BLOCK_IO_WRITE,
    BLOCK_IO_SYNC,
    BLOCK_IO_FALLOCATE,
    BLOCK_IO_RECEIVE, /* what there is, once there is something; 0: the peer is gone */
    BLOCK_IO_SEND,    /* what there is room for, once there is some */
    BLOCK_IO_ACCEPT,  /* the connection's fd, close-on-exec */
    BLOCK_IO_POLL,    /* one of the events in `flags` (POLLIN, POLLOUT) is there: those that are */
};

/* Operations on sockets that one ring takes at a time; one more ends with -EBUSY. */
#define BLOCK_RING_SOCKETS_MAX 256u

/* One operation on a file descriptor; the submitter keeps it alive until `done`. */
struct block_io {
    enum block_io_kind kind;
    int fd;
    int flags; /* READ, WRITE: RWF_*; FALLOCATE: FALLOC_FL_*; POLL: POLL* */
    bool cached; /* WRITE: ends in the page cache, as a rule without waiting for the disk */
    uint64_t offset, len;
    const struct iovec *iov;
    unsigned iov_count;
    void (*done)(struct block_io *io, int result); /* bytes or 0, or -errno */
    /* the ring's */
    struct block_io *next;
    struct msghdr message; /* RECEIVE, SEND */
    int result;
};

/* `engine`: "io_uring", "sync", or NULL for the first that this host allows. */
must_check int block_ring_create(const char *engine, struct block_ring **ret_ring, struct err *err);
/* No operation is in flight. NULL is fine. */
void block_ring_free(struct block_ring *ring);
const char *block_ring_engine(const struct block_ring *ring);

/* First call in the ring's thread. */
must_check int block_ring_start(struct block_ring *ring, struct err *err);
/* Calls fn(arg) from dispatch whenever the eventfd (not owned, non-blocking) was signalled; its count is read first.
 * Before block_ring_start. */
must_check int block_ring_watch(struct block_ring *ring, int event_fd, void (*fn)(void *arg), void *arg);
void block_ring_submit(struct block_ring *ring, struct block_io *io);
/* Hands over what was submitted and sleeps until something is done or watched, or `timeout_ns` passed (0: at once,
 * UINT64_MAX: never). */
void block_ring_wait(struct block_ring *ring, uint64_t timeout_ns);
void block_ring_dispatch(struct block_ring *ring);
