/* Private to nbd*.c: exports of NBD servers as nodes, by libnbd, whose sockets the ring polls.
 *
 * A node has a few connections (links) where the server allows that. What was in flight on one that breaks goes to another,
 * or waits until there is one again; whoever asks knows nothing of it, until nothing came back in TRIES tries. Writes that
 * were done and not flushed may be lost with a server: the next flush then fails. Only while there are requests is anything
 * polled. */
#pragma once

#include <libnbd.h>
#include "base/library.h"
#include "block/block.h"

#define LIBNBD_FUNCTIONS(X) \
    X(nbd_add_meta_context) X(nbd_aio_block_status) X(nbd_aio_connect_uri) X(nbd_aio_flush) X(nbd_aio_get_direction) \
    X(nbd_aio_get_fd) X(nbd_aio_in_flight) X(nbd_aio_is_closed) X(nbd_aio_is_dead) X(nbd_aio_is_ready) \
    X(nbd_aio_notify_read) X(nbd_aio_notify_write) X(nbd_aio_pread) X(nbd_aio_pwrite) X(nbd_aio_trim) X(nbd_aio_zero) \
    X(nbd_can_fast_zero) X(nbd_can_fua) X(nbd_can_meta_context) X(nbd_can_multi_conn) X(nbd_can_trim) X(nbd_can_zero) \
    X(nbd_close) X(nbd_create) X(nbd_get_block_size) X(nbd_get_errno) X(nbd_get_error) X(nbd_get_size) \
    X(nbd_is_read_only) X(nbd_poll) X(nbd_set_uri_allow_local_file) X(nbd_shutdown)

/* Set once nbd_library_load has succeeded. */
extern struct nbd_library {
    LIBNBD_FUNCTIONS(LIBRARY_MEMBER)
} nbd_lib;

#define NBD_LINKS_MAX 4u
#define NBD_TRIES 60u
#define NBD_PAUSE_MS 250u
#define NBD_CONNECT_MS 10000
#define NBD_PART_MAX (UINT64_C(16) << 20)    /* bytes of data in a command */
#define NBD_RANGE_MAX (UINT64_C(1) << 30)    /* of a command without */

struct nbd_node;

struct nbd_link {
    struct nbd_node *n;
    struct nbd_handle *h; /* NULL: there is no connection */
    struct block_io in, out;
    bool polls_in, polls_out;
    bool broken; /* to be closed once nothing polls it */
    bool up;
    unsigned tries; /* ticks since it began to connect */
};

struct nbd_queue {
    struct block_request *first, **end;
};

struct nbd_node {
    struct block_node node; /* first */
    struct nbd_link links[NBD_LINKS_MAX];
    unsigned link_count, next_link;
    unsigned in_flight;          /* requests on links */
    struct nbd_queue waiting;    /* for a link */
    struct nbd_queue finished;   /* parts are done; callers are not told from inside of libnbd */
    bool finishing;
    int timer_fd;
    struct block_io timer;
    bool timing;
    unsigned tries;
    bool has_extents;
    bool unflushed, lost; /* writes are done for which no flush was sent; ... and the server is gone */
    unsigned flushing;    /* flushes on their way with writes to make stable */
};

/* ---- nbd.c ---- */
/* Requests whose parts are done end, or wait to be sent again. */
void nbd_finish(struct nbd_node *n);
/* There is a link again. */
void nbd_resend(struct nbd_node *n);
/* There will be none. */
void nbd_give_up(struct nbd_node *n);

/* ---- nbd_link.c ---- */
must_check int nbd_library_load(struct err *err);
bool nbd_link_is_dead(const struct nbd_link *link);
/* Waits until it is up. */
int nbd_link_open(struct nbd_link *link, struct err *err);
void nbd_link_close(struct nbd_link *link);
/* Polls what is to be polled; finds out that it is broken. */
void nbd_link_drive(struct nbd_link *link);
/* Tries to get links again, from now on. */
void nbd_reconnect(struct nbd_node *n);
