/* Connections: accepting, frames in, bounded output, the end. A session is freed by the loop, never under a caller's feet. */
#include "agent/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"

#define LINGER_NS 5000000000u /* for the host to read the end and close */

static void session_free(struct session *s)
{
    if (s->op && s->op->close)
        s->op->close(s);
    loop_remove(s->linger_timer);
    loop_remove(s->source);
    close(s->fd);
    queue_clear(&s->out);
    s->agent->session_count--;
    free(s);
}

static void sweep(void *arg)
{
    struct agent *agent = arg;
    for (struct session **at = &agent->sessions; *at;) {
        struct session *s = *at;
        if (s->dead) {
            *at = s->next;
            session_free(s);
        } else {
            at = &s->next;
        }
    }
}

static void kill_session(struct session *s)
{
    if (s->dead)
        return;
    s->dead = true;
    loop_remove(s->source);
    s->source = NULL;
    loop_call(s->agent->loop, sweep, s->agent);
}

static void watch(struct session *s)
{
    uint32_t events = EPOLLRDHUP | (s->paused ? 0 : EPOLLIN) | (queue_used(&s->out) ? EPOLLOUT : 0);
    if (s->dead || events == s->events)
        return;
    s->events = events;
    loop_source_set_events(s->source, events);
}

static void on_linger(void *arg)
{
    kill_session(arg);
}

static void flush(struct session *s)
{
    int r = queue_flush(&s->out, s->fd);
    if (r < 0 && r != -EAGAIN)
        kill_session(s);
}

void session_send(struct session *s, enum agent_frame_type type, const void *data, size_t len_bytes)
{
    if (s->dead || s->finishing)
        return;
    struct agent_header header;
    agent_header_encode(&header, type, len_bytes);
    union {
        const void *in;
        void *iov;
    } payload = {data};
    bool was_empty = !queue_used(&s->out);
    if (queue_append(&s->out, (struct iovec[]){{&header, sizeof header}, {payload.iov, len_bytes}}, 2) < 0) {
        kill_session(s);
        return;
    }
    if (was_empty)
        flush(s);
    watch(s);
}

static void send_json(struct session *s, enum agent_frame_type type, json_t *json)
{
    own_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    size_t len = text ? strlen(text) : 0;
    if (text && len <= AGENT_PAYLOAD_MAX)
        session_send(s, type, text, len);
    else
        kill_session(s);
}

void session_reply(struct session *s, json_t *extra)
{
    json_t *reply = extra ? extra : json_object();
    if (reply)
        json_object_set_new(reply, "ok", json_true());
    send_json(s, AGENT_REPLY, reply);
}

void session_refuse(struct session *s, const char *text, int code)
{
    json_t *reply = json_pack("{s:s%}", "error", text, strnlen(text, 1000));
    if (reply && code)
        json_object_set_new(reply, "code", json_integer(code));
    send_json(s, AGENT_REPLY, reply ? reply : json_pack("{s:s}", "error", "the text of the error is not UTF-8"));
    session_finish(s);
}

void session_exit(struct session *s, int code)
{
    json_t *json = json_pack("{s:i}", "code", code);
    if (json && s->lost_bytes)
        json_object_set_new(json, "lost_bytes", json_integer((json_int_t)s->lost_bytes));
    send_json(s, AGENT_EXIT, json);
    session_finish(s);
}

void session_finish(struct session *s)
{
    s->finishing = true;
    s->paused = false; /* what still comes is dropped, so that the host is not stuck sending */
    if (!s->linger_timer)
        s->linger_timer = loop_add_timer(s->agent->loop, on_linger, s);
    if (s->linger_timer)
        loop_timer_set(s->linger_timer, LINGER_NS);
    watch(s);
}

bool session_has_room(const struct session *s)
{
    return s->dead || s->finishing || queue_has_room(&s->out);
}

static void open_op(struct session *s, const struct agent_frame *frame)
{
    struct err err = {0};
    json_t *request = agent_json_load(frame, &err);
    const char *name = json_string_value(json_object_get(request, "op"));
    for (s->op = session_ops; name && s->op->name && strcmp(name, s->op->name) != 0;)
        s->op++;
    if (!name || !s->op->name) {
        s->op = NULL;
        session_refuse(s, request ? "no such operation" : err.message, 0);
    } else if (s->op->open(s, request, &err) < 0) {
        session_refuse(s, err.message, 0);
    }
    json_decref(request);
}

static void on_frame(struct session *s, const struct agent_frame *frame)
{
    bool is_input = frame->type == AGENT_DATA_IN || frame->type == AGENT_CLOSE_IN || frame->type == AGENT_RESIZE ||
                    frame->type == AGENT_SIGNAL;
    if (s->finishing)
        return;
    if (!s->op && frame->type == AGENT_REQUEST)
        open_op(s, frame);
    else if (!s->op || !is_input)
        kill_session(s);
    else if (s->op->on_frame)
        s->paused = !s->op->on_frame(s, frame);
}

/* Takes what is there; false at the end of the stream. */
static bool take_frames(struct session *s)
{
    while (!s->dead && !s->paused) {
        struct agent_frame frame;
        struct err err;
        int r = agent_reader_next(&s->reader, &frame, &err);
        if (r > 0) {
            on_frame(s, &frame);
            continue;
        }
        if (r == 0)
            r = agent_reader_fill(&s->reader, s->fd);
        if (r == -EAGAIN)
            return true;
        if (r <= 0)
            return false;
    }
    return true;
}

static void on_event(void *arg, int fd, uint32_t events)
{
    (void)fd;
    struct session *s = arg;
    if (events & EPOLLOUT) {
        flush(s);
        if (!s->dead && s->op && s->op->on_room && queue_has_room(&s->out))
            s->op->on_room(s);
    }
    bool is_over = (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) && s->paused;
    if (is_over || !take_frames(s))
        kill_session(s);
    watch(s);
}

static void resume(void *arg)
{
    struct agent *agent = arg;
    for (struct session *s = agent->sessions; s; s = s->next) {
        if (!s->dead && !s->paused && s->reader.end > s->reader.start && !take_frames(s))
            kill_session(s);
        watch(s);
    }
}

void session_resume(struct session *s)
{
    if (!s->paused)
        return;
    s->paused = false;
    loop_call(s->agent->loop, resume, s->agent); /* frames that wait in the reader, not under the caller's feet */
}

/* Only the host may speak to the agent: a guest's program could connect too, over the loopback of virtio-vsock. */
static int accept_host(int listen_fd)
{
    struct sockaddr_vm peer = {0};
    socklen_t len = sizeof peer;
    own_fd int fd = accept4(listen_fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    bool is_host = peer.svm_family != AF_VSOCK || peer.svm_cid == VMADDR_CID_HOST;
    return is_host ? TAKE_FD(fd) : -1;
}

static void on_connection(void *arg, int listen_fd, uint32_t events)
{
    (void)events;
    struct agent *agent = arg;
    own_fd int fd = accept_host(listen_fd);
    if (fd < 0)
        return;
    struct session *s = calloc(1, sizeof *s);
    if (!s)
        return;
    *s = (struct session){.agent = agent, .fd = fd, .next = agent->sessions, .events = EPOLLIN | EPOLLRDHUP};
    s->source = loop_add_fd(agent->loop, fd, s->events, on_event, s);
    if (!s->source) {
        free(s);
        return;
    }
    TAKE_FD(fd);
    agent->sessions = s;
    agent->session_count++;
    if (agent->session_count > AGENT_SESSIONS_MAX)
        session_refuse(s, "too many sessions; close one first", 0);
    if (agent->session_count > 2 * AGENT_SESSIONS_MAX)
        kill_session(s);
}

int sessions_listen(struct agent *agent, int listen_fd, struct err *err)
{
    agent->listen_fd = listen_fd;
    if (!loop_add_fd(agent->loop, listen_fd, EPOLLIN, on_connection, agent))
        return err_set(err, ENOMEM, "watch the agent's socket");
    agent_moment(agent, MOMENT_LISTENING);
    return 0;
}
