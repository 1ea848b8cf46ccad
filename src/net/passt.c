/* `user`: networking without privileges, by a passt process of our own that speaks frames with a 32-bit big-endian
 * length in front over a unix stream socket. It ends when the socket closes; we reap it.
 * One that ends before is started again by reopen. Where a listening socket is given instead, whoever connects to it is passt,
 * and after it the next one: so goes a machine whose sandbox lets it start nothing.
 * A frame from the guest goes out whole or, when the socket is full, its rest waits in `rest` and more is refused. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/own.h"
#include "net/net.h"

#define LENGTH_SIZE 4u
#define FRAME_MAX (NET_FRAME_MAX - NET_HEADER_SIZE)
#define STREAM_SIZE (256u * 1024)
#define IOV_MAX_COUNT 300u
#define CHILD_FD 3
#define EXIT_WAIT_MS 1000

extern char **environ;

struct passt {
    struct net_backend backend; /* first */
    pid_t pid;                  /* 0: none */
    int log_fd;                 /* what passt says, for the line when it fails */
    char *forward;              /* as in net_options */
    int listen_fd;              /* that was given; -1: none */
    bool ours, gone;            /* ours: started here, not a socket that was given */
    uint8_t *stream; /* bytes received, [start, end) */
    size_t start, end;
    uint64_t skip; /* bytes of an oversized frame still to drop */
    uint8_t *rest; /* unsent tail of a frame */
    size_t rest_len;
};

/* ---- the process ---- */

static int spawn_with(const struct passt *p, posix_spawn_file_actions_t *actions, pid_t *ret_pid)
{
    char *argv[] = {"passt", "--foreground", "--quiet", "--fd", "3", NULL, NULL, NULL};
    if (p->forward) {
        argv[5] = "--tcp-ports";
        argv[6] = p->forward;
    }
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setpgroup(&attr, 0); /* a terminal's Ctrl-C is not for it */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    int r = posix_spawnp(ret_pid, "passt", actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    return -r;
}

static int spawn(struct passt *p, int child_fd, struct err *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, p->log_fd, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, p->log_fd, STDERR_FILENO);
    posix_spawn_file_actions_adddup2(&actions, child_fd, CHILD_FD);
    int r = spawn_with(p, &actions, &p->pid);
    posix_spawn_file_actions_destroy(&actions);
    if (r == 0)
        return 0;
    p->pid = 0;
    if (r == -ENOENT)
        return err_say(err, ENOENT, "net 'user' needs passt, which is not installed: apt install passt");
    return err_set(err, -r, "net 'user': passt");
}

/* The last thing passt said that is about itself. */
static void last_words(const struct passt *p, char *ret_line, size_t size)
{
    char text[4096];
    ssize_t n = pread(p->log_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    snprintf(ret_line, size, "no reason given");
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "Failed to send", 14) != 0)
            snprintf(ret_line, size, "%s", line);
    }
}

static void reap(struct passt *p)
{
    if (p->pid <= 0)
        return;
    for (int waited = 0; waitpid(p->pid, NULL, WNOHANG) == 0; waited += 5) {
        if (waited == EXIT_WAIT_MS)
            kill(p->pid, SIGKILL);
        poll(NULL, 0, 5);
    }
    p->pid = 0;
}

static ssize_t lost(struct passt *p)
{
    if (!p->gone) {
        char words[160];
        p->gone = true;
        last_words(p, words, sizeof words);
        log_error("net 'user': passt has ended: %s", words);
    }
    return -EPIPE;
}

/* ---- frames ---- */

/* Makes at least `need` bytes of stream available; -EAGAIN when they have not come yet. */
static ssize_t gather(struct passt *p, size_t need)
{
    while (p->end - p->start < need) {
        if (p->start && p->start + need > STREAM_SIZE) {
            memmove(p->stream, p->stream + p->start, p->end - p->start);
            p->end -= p->start;
            p->start = 0;
        }
        ssize_t n = recv(p->backend.fd[0], p->stream + p->end, STREAM_SIZE - p->end, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return lost(p);
        if (n < 0)
            return -EAGAIN;
        p->end += (size_t)n;
    }
    return 0;
}

static void consume(struct passt *p, size_t n)
{
    p->start += n;
    if (p->start == p->end)
        p->start = p->end = 0;
}

static ssize_t drop_oversized(struct passt *p)
{
    while (p->skip) {
        ssize_t r = gather(p, 1);
        if (r < 0)
            return r;
        size_t here = p->end - p->start;
        size_t n = here < p->skip ? here : (size_t)p->skip;
        consume(p, n);
        p->skip -= n;
    }
    return -EMSGSIZE;
}

static ssize_t passt_receive(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    (void)queue;
    struct passt *p = (struct passt *)backend;
    static const uint8_t header[NET_HEADER_SIZE];
    if (p->gone)
        return -EPIPE;
    if (p->skip)
        return drop_oversized(p);
    ssize_t r = gather(p, LENGTH_SIZE);
    if (r < 0)
        return r;
    uint32_t len = load_be32(p->stream + p->start);
    if (len > FRAME_MAX) {
        p->skip = (uint64_t)len + LENGTH_SIZE;
        return drop_oversized(p);
    }
    r = gather(p, LENGTH_SIZE + len);
    if (r < 0)
        return r;
    size_t done = iov_write(iov, count, 0, header, sizeof header);
    done += iov_write(iov, count, sizeof header, p->stream + p->start + LENGTH_SIZE, len);
    consume(p, LENGTH_SIZE + len);
    return done == NET_HEADER_SIZE + len ? (ssize_t)done : -EMSGSIZE;
}

static void passt_writable(struct net_backend *backend, unsigned queue)
{
    (void)queue;
    struct passt *p = (struct passt *)backend;
    if (!p->rest_len || p->gone)
        return;
    ssize_t n = send(p->backend.fd[0], p->rest, p->rest_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        p->backend.backlog = false; /* a broken connection shows in receive */
    if (n <= 0)
        return;
    p->rest_len -= (size_t)n;
    memmove(p->rest, p->rest + n, p->rest_len);
    p->backend.backlog = p->rest_len;
}

/* What follows `sent` bytes of length word and frame. */
static void keep_rest(struct passt *p, const uint8_t *length, const struct iovec *iov, unsigned count, size_t total,
                      size_t sent)
{
    size_t from_length = sent < LENGTH_SIZE ? LENGTH_SIZE - sent : 0;
    memcpy(p->rest, length + LENGTH_SIZE - from_length, from_length);
    size_t skip = NET_HEADER_SIZE + (sent + from_length - LENGTH_SIZE);
    iov_read(iov, count, skip, p->rest + from_length, total - sent - from_length);
    p->rest_len = total - sent;
    p->backend.backlog = true;
}

static int passt_send(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    struct passt *p = (struct passt *)backend;
    size_t len = iov_total(iov, count);
    if (len < NET_HEADER_SIZE || len > NET_FRAME_MAX || count + 1 > IOV_MAX_COUNT)
        return -EMSGSIZE;
    if (p->gone)
        return -EPIPE;
    passt_writable(backend, queue);
    if (p->rest_len)
        return -EAGAIN;
    len -= NET_HEADER_SIZE;
    uint8_t length[LENGTH_SIZE];
    store_be32(length, (uint32_t)len);
    struct iovec parts[IOV_MAX_COUNT + 1];
    parts[0] = (struct iovec){length, LENGTH_SIZE};
    memcpy(parts + 1, iov, count * sizeof *iov);
    struct iovec *frame = parts + 1;
    unsigned frame_count = count;
    iov_advance(&frame, &frame_count, NET_HEADER_SIZE);
    frame[-1] = parts[0];
    struct msghdr message = {.msg_iov = frame - 1, .msg_iovlen = frame_count + 1u};
    ssize_t n = sendmsg(p->backend.fd[0], &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == ENOBUFS || errno == EINTR ? -EAGAIN : -errno;
    if ((size_t)n < LENGTH_SIZE + len)
        keep_rest(p, length, iov, count, LENGTH_SIZE + len, (size_t)n);
    return 0;
}

/* ---- open and close ---- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void end(struct passt *p)
{
    close_fd(&p->backend.fd[0]);
    reap(p);
    close_fd(&p->log_fd);
}

static void passt_close(struct net_backend *backend)
{
    struct passt *p = (struct passt *)backend;
    end(p);
    close_fd(&p->listen_fd);
    free(p->forward);
    free(p->stream);
    free(p->rest);
    free(p);
}

static int start(struct passt *p, struct err *err)
{
    int pair[2];
    p->log_fd = memfd_create("passt-log", MFD_CLOEXEC);
    if (p->log_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set(err, errno, "net 'user'");
    p->backend.fd[0] = pair[0];
    own_fd int child_fd = pair[1];
    int size = 4 << 20; /* as far as the host's limits allow */
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(child_fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    return spawn(p, child_fd, err);
}

/* -EAGAIN when nobody has connected yet. */
static int accept_next(struct passt *p, struct err *err)
{
    int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "net 'user': connection of a passt");
    int size = 4 << 20; /* as far as the host's limits allow */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    p->backend.fd[0] = fd;
    return 0;
}

/* With an empty stream on both sides. */
static int passt_reopen(struct net_backend *backend, struct err *err)
{
    struct passt *p = (struct passt *)backend;
    if (!p->ours && p->listen_fd < 0)
        return err_say(err, ENOTSUP, "net 'user': the socket was given, there is no process to start again");
    end(p);
    p->start = p->end = p->rest_len = 0;
    p->skip = 0;
    p->backend.backlog = false;
    int r = p->ours ? start(p, err) : accept_next(p, err);
    p->gone = r < 0;
    return r;
}

/* A socket that was given: connected, or listening with a passt that has connected to it. */
static int adopt(struct passt *p, int fd, struct err *err)
{
    int listens = 0;
    socklen_t size = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0)
        return err_set(err, errno, "net 'user': descriptor %d", fd);
    if (!listens) {
        p->backend.fd[0] = fd;
        return 0;
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(err, errno, "net 'user': descriptor %d", fd);
    p->listen_fd = fd;
    int r = accept_next(p, err);
    if (r < 0)
        p->listen_fd = -1; /* the caller's still */
    return r;
}

static int passt_open(const struct net_options *options, struct net_backend **ret_backend, struct err *err)
{
    struct passt *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ENOMEM, "net 'user'");
    *p = (struct passt){.backend = {.class = &net_user, .queues = 1, .fd = {-1}}, .log_fd = -1, .listen_fd = -1,
                        .ours = options->fd < 0};
    p->forward = options->forward ? strdup(options->forward) : NULL;
    p->stream = malloc(STREAM_SIZE);
    p->rest = malloc(LENGTH_SIZE + FRAME_MAX);
    int r = 0;
    if (!p->stream || !p->rest || (options->forward && !p->forward))
        r = err_set(err, ENOMEM, "net 'user'");
    else
        r = p->ours ? start(p, err) : adopt(p, options->fd, err);
    if (r < 0) {
        passt_close(&p->backend);
        return r;
    }
    *ret_backend = &p->backend;
    return 0;
}

const struct net_class net_user = {
    .name = "user",
    .open = passt_open,
    .close = passt_close,
    .receive = passt_receive,
    .send = passt_send,
    .writable = passt_writable,
    .reopen = passt_reopen,
};
