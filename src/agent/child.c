/* The streams of a process and its end. The list of children is the loop thread's. */
#include "agent/child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/child_impl.h"
#include "base/own.h"

#define DRAIN_NS 100000000u /* how long a terminal may take to hand on what was written before the end */
#define READ_BYTES 32768

struct stream {
    struct child *child;
    int fd;
    enum agent_frame_type type;
    struct loop_source *source; /* NULL while there is no room */
};

struct child {
    struct child *next;
    struct loop *loop;
    const struct child_owner *owner;
    void *arg;
    pid_t pid;
    bool tty;
    bool exited, drained, ended; /* the process; its output; on_exit was called */
    int code;
    int report_fd;
    struct loop_source *report_source;
    struct stream out[2];
    int in_fd;
    struct loop_source *in_source;
    bool in_close; /* once all is written */
    bool in_full;  /* the owner was told to wait */
    struct queue in;
    struct loop_source *drain_timer;
};

static struct child *children;

static void stream_close(struct stream *s)
{
    loop_remove(s->source);
    s->source = NULL;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

static void close_input(struct child *c)
{
    loop_remove(c->in_source);
    c->in_source = NULL;
    if (c->in_fd >= 0)
        close(c->in_fd);
    c->in_fd = -1;
    queue_clear(&c->in);
}

/* Reports the end when nothing is left to be handed on. */
static void check_end(struct child *c)
{
    bool is_open = c->out[0].fd >= 0 || c->out[1].fd >= 0;
    if (!c->exited || is_open || c->ended || c->report_fd >= 0)
        return;
    c->ended = true;
    close_input(c);
    c->owner->on_exit(c->arg, c->code);
}

static void on_readable(void *arg, int fd, uint32_t events);

/* Watches for output, or stops to: a descriptor at its end would be reported for ever. */
static void stream_watch(struct stream *s, bool is_on)
{
    if (is_on && !s->source && s->fd >= 0)
        s->source = loop_add_fd(s->child->loop, s->fd, EPOLLIN, on_readable, s);
    if (is_on)
        return;
    loop_remove(s->source);
    s->source = NULL;
}

/* Reads once; false when there is nothing more now. */
static bool stream_read(struct stream *s)
{
    static uint8_t buffer[READ_BYTES];
    ssize_t n = read(s->fd, buffer, sizeof buffer);
    if (n > 0) {
        s->child->owner->on_output(s->child->arg, s->type, buffer, (size_t)n);
        return true;
    }
    if (n < 0 && errno == EINTR)
        return true;
    bool is_empty = n < 0 && errno == EAGAIN;
    if (!is_empty || (s->child->exited && (!s->child->tty || s->child->drained)))
        stream_close(s);
    return false;
}

static void stream_pump(struct stream *s)
{
    while (s->fd >= 0) {
        if (!s->child->owner->has_room(s->child->arg)) {
            stream_watch(s, false);
            return;
        }
        if (!stream_read(s))
            break;
    }
    stream_watch(s, true);
}

static void on_readable(void *arg, int fd, uint32_t events)
{
    (void)fd;
    (void)events;
    struct stream *s = arg;
    stream_pump(s);
    check_end(s->child);
}

void child_resume(struct child *c)
{
    if (c->report_fd >= 0)
        return;
    stream_pump(&c->out[0]);
    stream_pump(&c->out[1]);
    check_end(c);
}

static void on_drained(void *arg)
{
    struct child *c = arg;
    c->drained = true;
    child_resume(c);
}

static void on_writable(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct child *c = arg;
    int r = queue_flush(&c->in, fd);
    if (r == -EAGAIN)
        return;
    if (r < 0 || c->in_close) {
        close_input(c);
    } else {
        loop_remove(c->in_source);
        c->in_source = NULL;
    }
    if (c->in_full) {
        c->in_full = false;
        c->owner->on_input_room(c->arg);
    }
}

bool child_input(struct child *c, const uint8_t *data, size_t len)
{
    if (c->in_fd < 0 || c->in_close)
        return true; /* nobody reads it: as a write to a closed pipe */
    union {
        const uint8_t *in;
        void *iov;
    } payload = {data};
    if (queue_append(&c->in, &(struct iovec){payload.iov, len}, 1) < 0)
        close_input(c);
    if (c->in_fd >= 0 && !c->in_source)
        c->in_source = loop_add_fd(c->loop, c->in_fd, EPOLLOUT, on_writable, c);
    c->in_full = c->in_source && !queue_has_room(&c->in);
    return !c->in_full;
}

void child_close_input(struct child *c)
{
    static const uint8_t end_of_file = 4; /* ^D: what a terminal calls the end */
    if (c->tty)
        (void)child_input(c, &end_of_file, 1);
    else if (c->in_source)
        c->in_close = true;
    else
        close_input(c);
}

void child_resize(struct child *c, unsigned rows, unsigned cols)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    if (c->tty && c->in_fd >= 0)
        ioctl(c->in_fd, TIOCSWINSZ, &size);
}

void child_signal(struct child *c, int signal)
{
    if (!c->exited)
        kill(c->pid, signal);
}

pid_t child_pid(const struct child *c)
{
    return c->pid;
}

static void set_exit(struct child *c, int status)
{
    c->exited = true;
    c->code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (c->tty && c->drain_timer)
        loop_timer_set(c->drain_timer, DRAIN_NS);
    else
        c->drained = true;
    child_resume(c);
}

void child_reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct child *c = children;
        while (c && c->pid != pid)
            c = c->next;
        if (c)
            set_exit(c, status);
    }
}

/* The report: nothing when the program was executed, else why not. */
static void on_report(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct child *c = arg;
    struct child_report report = {0};
    ssize_t n = read(fd, &report, sizeof report);
    loop_remove(c->report_source);
    c->report_source = NULL;
    close(c->report_fd);
    c->report_fd = -1;
    if (n != sizeof report) {
        c->owner->on_start(c->arg, NULL, 0);
        child_resume(c);
        return;
    }
    report.text[sizeof report.text - 1] = 0;
    c->ended = true;
    c->owner->on_start(c->arg, report.text, report.code);
}

static void unlink_child(struct child *child)
{
    struct child **at = &children;
    while (*at && *at != child)
        at = &(*at)->next;
    if (*at)
        *at = child->next;
}

void child_free(struct child *c)
{
    if (!c)
        return;
    unlink_child(c);
    if (c->pid > 0 && !c->exited && kill(-c->pid, SIGHUP) < 0) /* its group: it leads one, unless it was just forked */
        kill(c->pid, SIGHUP);
    loop_remove(c->report_source);
    loop_remove(c->drain_timer);
    if (c->report_fd >= 0)
        close(c->report_fd);
    stream_close(&c->out[0]);
    stream_close(&c->out[1]);
    close_input(c);
    free(c);
}

static struct child *new_child(struct loop *loop, const struct child_owner *owner, void *arg)
{
    struct child *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    *c = (struct child){.loop = loop, .owner = owner, .arg = arg, .report_fd = -1, .in_fd = -1};
    c->out[0] = (struct stream){.child = c, .fd = -1, .type = AGENT_DATA_OUT};
    c->out[1] = (struct stream){.child = c, .fd = -1, .type = AGENT_DATA_ERR};
    return c;
}

int child_start(struct loop *loop, const struct child_spec *spec, const struct child_owner *owner, void *arg,
                struct child **ret_child, struct err *err)
{
    struct child *c = new_child(loop, owner, arg);
    if (!c)
        return err_set(err, ENOMEM, "start a process");
    struct child_ends ends;
    int r = child_fork(spec, &c->pid, &ends, err);
    if (r < 0) {
        child_free(c);
        return r;
    }
    c->tty = spec->tty;
    c->in_fd = ends.in;
    c->out[0].fd = ends.out;
    c->out[1].fd = ends.err;
    c->report_fd = ends.report;
    c->drain_timer = loop_add_timer(loop, on_drained, c);
    c->report_source = loop_add_fd(loop, c->report_fd, EPOLLIN, on_report, c);
    c->next = children;
    children = c;
    if (!c->report_source) {
        child_free(c);
        return err_set(err, ENOMEM, "start a process");
    }
    *ret_child = c;
    return 0;
}
