/* The main process and who hears of it. */
#include "agent/primary.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent/child.h"
#include "agent/exec.h"
#include "agent/power.h"
#include "agent/process_spec.h"
#include "base/bytes.h"

#define STALL_NS 10000000000u /* a reader that takes nothing for so long no longer holds up the main process */

struct primary {
    struct agent *agent;
    struct child *child;
    struct session *starter; /* waits for the reply to `start` */
    json_t *env;
    bool is_running;
    int code;
    struct queue history; /* frames */
    struct queue console;
    struct loop_source *console_source; /* while output waits for the console */
    bool console_lags;
    struct loop_source *stall_timer;
    bool is_stalled;
};

static bool is_room(struct primary *p)
{
    if (!p->console_lags && !queue_has_room(&p->console))
        return false;
    for (struct session *s = p->agent->sessions; s; s = s->next)
        if (s->is_attached && !s->is_lagging && !session_has_room(s))
            return false;
    return true;
}

static bool has_room(void *arg)
{
    struct primary *p = arg;
    bool room = is_room(p);
    if (room == p->is_stalled) {
        p->is_stalled = !room;
        loop_timer_set(p->stall_timer, room ? 0 : STALL_NS);
    }
    return room;
}

static void resume(struct primary *p)
{
    if (p->is_stalled && p->child) {
        loop_timer_set(p->stall_timer, STALL_NS); /* someone took something */
        child_resume(p->child);
    }
}

static void on_stall(void *arg)
{
    struct primary *p = arg;
    p->console_lags = !queue_has_room(&p->console);
    for (struct session *s = p->agent->sessions; s; s = s->next)
        if (s->is_attached && !session_has_room(s))
            s->is_lagging = true;
    p->is_stalled = false;
    child_resume(p->child);
}

static void flush_console(struct primary *p);

static void on_console(void *arg, int fd, uint32_t events)
{
    (void)fd;
    (void)events;
    struct primary *p = arg;
    flush_console(p);
    if (queue_has_room(&p->console)) {
        p->console_lags = false;
        resume(p);
    }
}

static void flush_console(struct primary *p)
{
    int fd = p->agent->console_fd;
    int r = queue_flush(&p->console, fd);
    if (r == -EAGAIN && !p->console_source)
        p->console_source = loop_add_fd(p->agent->loop, fd, EPOLLOUT, on_console, p);
    if (r == -EAGAIN)
        return;
    loop_remove(p->console_source);
    p->console_source = NULL;
    if (r < 0)
        queue_clear(&p->console); /* nobody has a console there */
}

static void keep_history(struct primary *p, const struct iovec *iov)
{
    size_t len = iov[0].iov_len + iov[1].iov_len;
    while (queue_used(&p->history) && queue_used(&p->history) + len > AGENT_HISTORY_MAX)
        queue_drop(&p->history, sizeof(struct agent_header) + load_le32(p->history.bytes + p->history.start));
    if (queue_append(&p->history, iov, 2) < 0)
        queue_clear(&p->history); /* memory is out: later readers see less */
}

static void on_output(void *arg, enum agent_frame_type stream, const uint8_t *data, size_t len)
{
    struct primary *p = arg;
    struct agent_header header;
    agent_header_encode(&header, stream, len);
    union {
        const uint8_t *in;
        void *iov;
    } payload = {data};
    struct iovec iov[] = {{&header, sizeof header}, {payload.iov, len}};
    keep_history(p, iov);
    if (p->agent->console_fd >= 0 && !p->console_lags && queue_append(&p->console, iov + 1, 1) == 0)
        flush_console(p);
    for (struct session *s = p->agent->sessions; s; s = s->next) {
        if (s->is_attached && s->is_lagging)
            s->lost_bytes += len;
        else if (s->is_attached)
            session_send(s, stream, data, len);
    }
}

static void on_start(void *arg, const char *error, int code)
{
    struct primary *p = arg;
    agent_moment(p->agent, MOMENT_MAIN);
    if (!error && p->starter) {
        session_reply(p->starter, json_pack("{s:i}", "pid", (int)child_pid(p->child)));
        session_finish(p->starter);
    } else if (p->starter) {
        session_refuse(p->starter, error, code);
    }
    p->starter = NULL;
    if (!error)
        return;
    child_free(p->child);
    p->child = NULL;
    p->is_running = false;
}

static void on_input_room(void *arg)
{
    struct primary *p = arg;
    for (struct session *s = p->agent->sessions; s; s = s->next)
        if (s->is_attached)
            session_resume(s);
}

static void on_exit_of_main(void *arg, int code)
{
    struct primary *p = arg;
    p->is_running = false;
    p->code = code;
    if (p->agent->mode == AGENT_INIT)
        sync(); /* who hears of the end may remove the machine at once, but not what it wrote to volumes */
    for (struct session *s = p->agent->sessions; s; s = s->next)
        if (s->is_attached || s->is_waiting)
            session_exit(s, code);
    power_main_ended(p->agent, code);
}

static const struct child_owner owner = {on_start, has_room, on_output, on_input_room, on_exit_of_main};

/* What is typed on the console is the main process's input where that is a terminal. */
static void on_typed(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct primary *p = arg;
    uint8_t typed[512];
    ssize_t n = read(fd, typed, sizeof typed);
    if (n > 0 && p->child && p->is_running)
        (void)child_input(p->child, typed, (size_t)n);
}

int primary_create(struct agent *agent, struct err *err)
{
    struct primary *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ENOMEM, "agent");
    *p = (struct primary){.agent = agent, .code = -1};
    p->stall_timer = loop_add_timer(agent->loop, on_stall, p);
    agent->primary = p;
    return p->stall_timer ? 0 : err_set(err, ENOMEM, "agent");
}

/* The console for typing is a second descriptor: one is watched at most once. */
static void watch_typing(struct primary *p)
{
    int fd = p->agent->console_fd;
    fd = fd >= 0 && isatty(fd) ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd >= 0 && !loop_add_fd(p->agent->loop, fd, EPOLLIN, on_typed, p))
        close(fd);
}

int primary_start(struct session *s, const json_t *process, struct err *err)
{
    struct primary *p = s->agent->primary;
    if (p->child)
        return err_say(err, EEXIST, "the main process was started already");
    struct process_spec spec;
    int r = process_spec_load(process, NULL, &spec, err);
    if (r < 0)
        return r;
    r = child_start(s->agent->loop, &spec.child, &owner, p, &p->child, err);
    bool is_tty = spec.child.tty;
    process_spec_free(&spec);
    if (r < 0)
        return r;
    if (is_tty)
        watch_typing(p);
    json_decref(p->env);
    p->env = json_deep_copy(json_object_get(process, "env"));
    p->starter = s;
    p->is_running = true;
    return 0;
}

void primary_forget(struct session *s)
{
    if (s->agent->primary->starter == s)
        s->agent->primary->starter = NULL;
}

bool primary_is_running(const struct primary *p)
{
    return p->is_running;
}

int primary_code(const struct primary *p)
{
    return p->code;
}

const json_t *primary_env(const struct primary *p)
{
    return p->env;
}

pid_t primary_pid(const struct primary *p)
{
    return p->child ? child_pid(p->child) : 0;
}

void primary_signal(struct primary *p, int signal)
{
    if (p->child)
        child_signal(p->child, signal);
}

static void send_history(struct session *s, const struct queue *history)
{
    for (size_t at = history->start; at < history->end;) {
        const uint8_t *frame = history->bytes + at;
        uint32_t len = load_le32(frame);
        enum agent_frame_type type = (enum agent_frame_type)frame[offsetof(struct agent_header, type)];
        session_send(s, type, frame + sizeof(struct agent_header), len);
        at += sizeof(struct agent_header) + len;
    }
}

static void wait_for_end(struct session *s)
{
    s->is_waiting = true;
    if (primary_code(s->agent->primary) >= 0)
        session_exit(s, primary_code(s->agent->primary));
}

int attach_open(struct session *s, const json_t *request, struct err *err)
{
    (void)err;
    session_reply(s, NULL);
    if (json_is_true(json_object_get(request, "history")))
        send_history(s, &s->agent->primary->history);
    s->takes_input = json_is_true(json_object_get(request, "stdin"));
    s->is_attached = true;
    wait_for_end(s);
    return 0;
}

bool attach_on_frame(struct session *s, const struct agent_frame *frame)
{
    struct primary *p = s->agent->primary;
    bool is_data = frame->type == AGENT_DATA_IN || frame->type == AGENT_CLOSE_IN;
    if (!p->child || (is_data && !s->takes_input))
        return true;
    return child_on_frame(p->child, frame);
}

void attach_on_room(struct session *s)
{
    s->is_lagging = false;
    resume(s->agent->primary);
}

void attach_close(struct session *s)
{
    resume(s->agent->primary);
}

int wait_open(struct session *s, const json_t *request, struct err *err)
{
    (void)request;
    (void)err;
    session_reply(s, NULL);
    wait_for_end(s);
    return 0;
}
