/* Connections to an NBD server: made, polled, found broken, made again. */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "block/nbd_impl.h"

static struct library libnbd = {
    .file = "libnbd.so.0",
    .package = "libnbd0",
    .needed_for = "NBD",
    .functions = (const char *const[]){LIBNBD_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &nbd_lib,
};
struct nbd_library nbd_lib;

int nbd_library_load(struct err *err)
{
    return library_load(&libnbd, err);
}

bool nbd_link_is_dead(const struct nbd_link *link)
{
    return nbd_lib.nbd_aio_is_dead(link->h) == 1 || nbd_lib.nbd_aio_is_closed(link->h) == 1;
}

static struct nbd_handle *new_handle(const struct nbd_node *n)
{
    struct nbd_handle *h = nbd_lib.nbd_create();
    if (h && nbd_lib.nbd_set_uri_allow_local_file(h, true) == 0 && nbd_lib.nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
        nbd_lib.nbd_aio_connect_uri(h, n->node.name) == 0)
        return h;
    nbd_lib.nbd_close(h);
    return NULL;
}

int nbd_link_open(struct nbd_link *link, struct err *err)
{
    int64_t end = clock_now_ms() + NBD_CONNECT_MS;
    int r = 0;
    link->h = new_handle(link->n);
    while (link->h && r >= 0 && nbd_lib.nbd_aio_is_ready(link->h) == 0 && !nbd_link_is_dead(link))
        r = clock_now_ms() > end ? -1 : nbd_lib.nbd_poll(link->h, 200);
    link->up = link->h && nbd_lib.nbd_aio_is_ready(link->h) == 1;
    if (link->up)
        return 0;
    const char *why = nbd_lib.nbd_get_error();
    r = err_say(err, ENOTCONN, "'%s': %s", link->n->node.name, clock_now_ms() > end ? "the server does not answer" : why ? why : "failed");
    nbd_lib.nbd_close(link->h);
    link->h = NULL;
    return r;
}

void nbd_link_close(struct nbd_link *link)
{
    if (link->up)
        nbd_lib.nbd_shutdown(link->h, LIBNBD_SHUTDOWN_ABANDON_PENDING);
    nbd_lib.nbd_close(link->h);
    link->h = NULL;
    link->up = false;
}

/* ---- polling ---- */

static void close_broken(struct nbd_link *link)
{
    if (!link->broken || link->polls_in || link->polls_out)
        return;
    nbd_lib.nbd_close(link->h); /* ends what is in flight there */
    link->h = NULL;
    link->broken = false;
    nbd_finish(link->n);
}

static void break_link(struct nbd_link *link)
{
    struct nbd_node *n = link->n;
    if (link->up)
        log_debug("'%s': connection lost", n->node.name);
    n->lost |= link->up && (n->unflushed || n->flushing);
    link->up = false;
    link->broken = true;
    shutdown(nbd_lib.nbd_aio_get_fd(link->h), SHUT_RDWR); /* ends the polls */
    nbd_reconnect(n);
}

static void polled(struct nbd_link *link, int events, int (*notify)(struct nbd_handle *h))
{
    unsigned direction = link->broken || events <= 0 ? 0 : nbd_lib.nbd_aio_get_direction(link->h);
    bool wanted = direction & (notify == nbd_lib.nbd_aio_notify_read ? LIBNBD_AIO_DIRECTION_READ : LIBNBD_AIO_DIRECTION_WRITE);
    if (wanted)
        notify(link->h); /* what goes wrong shows in the state */
    nbd_link_drive(link);
    nbd_finish(link->n);
}

static void in_polled(struct block_io *io, int events)
{
    struct nbd_link *link = (struct nbd_link *)(void *)((char *)io - offsetof(struct nbd_link, in));
    link->polls_in = false;
    polled(link, events, nbd_lib.nbd_aio_notify_read);
}

static void out_polled(struct block_io *io, int events)
{
    struct nbd_link *link = (struct nbd_link *)(void *)((char *)io - offsetof(struct nbd_link, out));
    link->polls_out = false;
    polled(link, events, nbd_lib.nbd_aio_notify_write);
}

static void start_poll(struct nbd_link *link, struct block_io *io, bool *polls, int events, void (*done)(struct block_io *, int))
{
    if (*polls)
        return;
    *polls = true;
    *io = (struct block_io){.kind = BLOCK_IO_POLL, .fd = nbd_lib.nbd_aio_get_fd(link->h), .flags = events, .done = done};
    block_ring_submit(link->n->node.ring, io);
}

void nbd_link_drive(struct nbd_link *link)
{
    if (!link->h)
        return;
    if (!link->broken && nbd_link_is_dead(link))
        break_link(link);
    if (link->broken) {
        close_broken(link);
        return;
    }
    if (!link->up && nbd_lib.nbd_aio_is_ready(link->h) == 1) {
        link->up = nbd_lib.nbd_get_size(link->h) == (int64_t)link->n->node.size;
        if (!link->up) { /* another disk: none of ours */
            break_link(link);
            close_broken(link);
            return;
        }
        nbd_resend(link->n);
    }
    unsigned direction = nbd_lib.nbd_aio_get_direction(link->h);
    bool asked = !link->up || nbd_lib.nbd_aio_in_flight(link->h) > 0;
    if (asked && direction & LIBNBD_AIO_DIRECTION_READ)
        start_poll(link, &link->in, &link->polls_in, POLLIN, in_polled);
    if (asked && direction & LIBNBD_AIO_DIRECTION_WRITE)
        start_poll(link, &link->out, &link->polls_out, POLLOUT, out_polled);
}

/* ---- again ---- */

static void try_link(struct nbd_link *link)
{
    if (link->h && !link->broken && !link->up && ++link->tries * NBD_PAUSE_MS > NBD_CONNECT_MS)
        break_link(link);
    if (!link->h) {
        link->tries = 0;
        link->h = new_handle(link->n);
    }
    nbd_link_drive(link);
}

static void tick(struct block_io *io, int events)
{
    struct nbd_node *n = (struct nbd_node *)(void *)((char *)io - offsetof(struct nbd_node, timer));
    (void)events;
    n->timing = false;
    bool up = false;
    for (unsigned i = 0; i < n->link_count; i++) {
        if (!n->links[i].up && (n->in_flight || n->waiting.first))
            try_link(&n->links[i]);
        up = up || n->links[i].up;
    }
    n->tries = up ? 0 : n->tries + 1;
    if (n->tries > NBD_TRIES) {
        n->tries = 0;
        nbd_give_up(n);
    }
    if (n->waiting.first)
        nbd_reconnect(n);
}

void nbd_reconnect(struct nbd_node *n)
{
    if (n->timing)
        return;
    struct itimerspec pause = {.it_value = {.tv_nsec = NBD_PAUSE_MS * 1000000L}};
    timerfd_settime(n->timer_fd, 0, &pause, NULL);
    n->timing = true;
    n->timer = (struct block_io){.kind = BLOCK_IO_POLL, .fd = n->timer_fd, .flags = POLLIN, .done = tick};
    block_ring_submit(n->node.ring, &n->timer);
}
