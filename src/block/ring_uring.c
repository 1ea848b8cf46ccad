/* io_uring: operations gather in the submission queue and enter the kernel together with the wait, one system call for
 * a whole batch. What finds the queue full waits in `backlog`.
 *
 * Small writes to the page cache are done right here, behind the submission: several file systems (ext4 among them) have no
 * asynchronous buffered write, so the kernel would hand each to a worker thread, which takes a hundred times longer
 * than the copy. When one is slow all the same (the host throttles writers), the next ones go to the workers for a while.
 *
 * A sleeping thread has to be woken by whoever sends to it, which costs a busy peer a third of its time. So when the last
 * wait for a socket was short, the next one begins with trying its receives for SPIN_NS. */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "block/ring_impl.h"
#include "base/clock.h"

#define ENTRIES 256
#define QUICK_MAX (128u * 1024)
#define SLOW_NS UINT64_C(2000000)
#define SLOW_PAUSE_NS UINT64_C(100000000)
#define SPIN_NS UINT64_C(50000)
#define WATCH_TAG 1u /* low bit of user_data: a watch's poll rather than an operation */

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif

struct uring {
    struct block_ring ring; /* first */
    struct io_uring uring;
    bool disabled; /* created so that the starting thread becomes the only issuer */
    struct io_list backlog;
    struct io_list quick, finished; /* writes to do here; done, callbacks pending */
    uint64_t slow_until_ns;         /* no quick writes before this time */
    struct io_list receives;        /* not yet submitted */
    bool spins;                     /* the last wait was shorter than SPIN_NS */
};

static int uring_create(struct block_ring **ret_ring, struct err *err)
{
    struct uring *u = calloc(1, sizeof *u);
    if (!u)
        return err_set(err, ENOMEM, "io_uring");
    struct io_uring_params best = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED};
    u->disabled = true;
    int r = io_uring_queue_init_params(ENTRIES, &u->uring, &best);
    if (r == -EINVAL) { /* before Linux 6.1 */
        u->disabled = false;
        r = io_uring_queue_init(ENTRIES, &u->uring, 0);
    }
    if (r < 0) {
        free(u);
        return err_set(err, -r, "io_uring (the I/O engine 'sync' works on every host)");
    }
    io_list_init(&u->backlog);
    io_list_init(&u->quick);
    io_list_init(&u->finished);
    io_list_init(&u->receives);
    *ret_ring = &u->ring;
    return 0;
}

static void uring_free(struct block_ring *ring)
{
    struct uring *u = (struct uring *)ring;
    io_uring_queue_exit(&u->uring);
    free(u);
}

static int uring_start(struct block_ring *ring, struct err *err)
{
    struct uring *u = (struct uring *)ring;
    /* liburing 2.3 forgot to export io_uring_enable_rings */
    if (u->disabled && syscall(SYS_io_uring_register, u->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return err_set(err, errno, "io_uring");
    return 0;
}

static struct io_uring_sqe *take_entry(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->uring);
    if (sqe)
        return sqe;
    io_uring_submit(&u->uring);
    return io_uring_get_sqe(&u->uring);
}

static void prepare(struct io_uring_sqe *sqe, struct block_io *io)
{
    switch (io->kind) {
    case BLOCK_IO_READ:
        io_uring_prep_readv2(sqe, io->fd, io->iov, io->iov_count, io->offset, io->flags);
        break;
    case BLOCK_IO_WRITE:
        io_uring_prep_writev2(sqe, io->fd, io->iov, io->iov_count, io->offset, io->flags);
        break;
    case BLOCK_IO_SYNC:
        io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC);
        break;
    case BLOCK_IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, io->fd, io->flags, (off_t)io->offset, (off_t)io->len);
        break;
    case BLOCK_IO_RECEIVE:
        ring_prepare_message(io);
        io_uring_prep_recvmsg(sqe, io->fd, &io->message, 0);
        break;
    case BLOCK_IO_SEND:
        ring_prepare_message(io);
        io_uring_prep_sendmsg(sqe, io->fd, &io->message, MSG_NOSIGNAL);
        break;
    case BLOCK_IO_ACCEPT:
        io_uring_prep_accept(sqe, io->fd, NULL, NULL, SOCK_CLOEXEC);
        break;
    case BLOCK_IO_POLL:
        io_uring_prep_poll_add(sqe, io->fd, (unsigned)io->flags);
        break;
    }
    io_uring_sqe_set_data(sqe, io);
}

static bool is_quick(const struct uring *u, const struct block_io *io)
{
    return io->cached && io->kind == BLOCK_IO_WRITE && io->len <= QUICK_MAX &&
           (!u->slow_until_ns || clock_now_ns() >= u->slow_until_ns);
}

static void uring_submit(struct block_ring *ring, struct block_io *io)
{
    struct uring *u = (struct uring *)ring;
    if (ring_is_socket(io) && ring->socket_count > BLOCK_RING_SOCKETS_MAX) {
        io->result = -EBUSY;
        io_list_append(&u->finished, io);
        return;
    }
    if (io->kind == BLOCK_IO_RECEIVE) {
        io_list_append(&u->receives, io);
        return;
    }
    if (is_quick(u, io)) {
        io_list_append(&u->quick, io);
        return;
    }
    struct io_uring_sqe *sqe = u->backlog.first ? NULL : take_entry(u);
    if (sqe)
        prepare(sqe, io);
    else
        io_list_append(&u->backlog, io);
}

static void flush_backlog(struct uring *u)
{
    struct io_uring_sqe *sqe;
    while (u->backlog.first && (sqe = take_entry(u)))
        prepare(sqe, io_list_take(&u->backlog));
}

/* How often this thread has slept in the kernel; unlike the clock, blind to a busy host that lets it wait for a CPU. */
static long sleeps(void)
{
    struct rusage usage = {0};
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static void run_quick(struct uring *u)
{
    uint64_t before = clock_now_ns();
    long slept = sleeps();
    u->slow_until_ns = 0;
    for (struct block_io *io; (io = io_list_take(&u->quick));) {
        io->result = ring_run(io);
        io_list_append(&u->finished, io);
        uint64_t after = clock_now_ns();
        if (after - before > SLOW_NS && sleeps() != slept)
            u->slow_until_ns = after + SLOW_PAUSE_NS;
        before = after;
    }
}

static void arm_watches(struct uring *u)
{
    for (unsigned i = 0; i < u->ring.watch_count; i++) {
        struct ring_watch *w = &u->ring.watches[i];
        struct io_uring_sqe *sqe = w->armed ? NULL : take_entry(u);
        if (!sqe)
            continue;
        io_uring_prep_poll_add(sqe, w->fd, POLLIN);
        io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)w | WATCH_TAG);
        w->armed = true;
    }
}

/* Moves what has come to `finished`. */
static void try_receives(struct uring *u)
{
    struct io_list rest;
    io_list_init(&rest);
    for (struct block_io *io; (io = io_list_take(&u->receives));) {
        io->result = ring_run(io);
        io_list_append(io->result == -EAGAIN ? &rest : &u->finished, io);
    }
    while (rest.first)
        io_list_append(&u->receives, io_list_take(&rest));
}

static bool has_events(const struct uring *u)
{
    return u->finished.first || io_uring_cq_ready(&u->uring) ||
           __atomic_load_n(u->uring.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN;
}

static void spin(struct uring *u)
{
    uint64_t end = clock_now_ns() + SPIN_NS;
    do
        try_receives(u);
    while (!has_events(u) && clock_now_ns() < end);
}

/* Hands over what was submitted and sleeps. */
static void enter(struct uring *u, uint64_t timeout_ns)
{
    struct __kernel_timespec limit = {.tv_sec = (int64_t)(timeout_ns / 1000000000u),
                                      .tv_nsec = (long long)(timeout_ns % 1000000000u)};
    struct io_uring_cqe *cqe;
    if (u->finished.first)
        io_uring_submit_and_get_events(&u->uring);
    else if (timeout_ns == UINT64_MAX)
        io_uring_submit_and_wait(&u->uring, 1);
    else
        io_uring_submit_and_wait_timeout(&u->uring, &cqe, 1, &limit, NULL);
}

static void uring_wait(struct block_ring *ring, uint64_t timeout_ns)
{
    struct uring *u = (struct uring *)ring;
    bool receives = u->receives.first;
    uint64_t before = receives ? clock_now_ns() : 0;
    flush_backlog(u);
    arm_watches(u);
    if (u->quick.first) {
        io_uring_submit(&u->uring);
        run_quick(u);
    }
    if (u->spins && receives && !u->finished.first && timeout_ns > SPIN_NS) {
        io_uring_submit(&u->uring);
        spin(u);
        if (has_events(u)) {
            io_uring_get_events(&u->uring);
            return;
        }
    }
    while (u->receives.first)
        io_list_append(&u->backlog, io_list_take(&u->receives));
    flush_backlog(u);
    enter(u, timeout_ns);
    if (receives)
        u->spins = clock_now_ns() - before < SPIN_NS;
}

static void complete(struct block_ring *ring, uint64_t data, int result)
{
    if (data & WATCH_TAG) {
        struct ring_watch *w = (struct ring_watch *)(uintptr_t)(data & ~(uint64_t)WATCH_TAG);
        w->armed = false;
        if (result > 0)
            ring_watch_fire(w);
    } else if (data) {
        ring_complete(ring, (struct block_io *)(uintptr_t)data, result);
    }
}

static void uring_dispatch(struct block_ring *ring)
{
    struct uring *u = (struct uring *)ring;
    struct io_uring_cqe *cqe;
    for (struct block_io *io; (io = io_list_take(&u->finished));)
        ring_complete(ring, io, io->result);
    while (io_uring_peek_cqe(&u->uring, &cqe) == 0) {
        uint64_t data = cqe->user_data;
        int result = cqe->res;
        io_uring_cqe_seen(&u->uring, cqe);
        if (data != LIBURING_UDATA_TIMEOUT)
            complete(ring, data, result);
    }
}

const struct ring_engine ring_uring = {
    .name = "io_uring",
    .create = uring_create,
    .free = uring_free,
    .start = uring_start,
    .submit = uring_submit,
    .wait = uring_wait,
    .dispatch = uring_dispatch,
};
