/* Sessions with the agent in a guest: the handshake, frames with deadlines, requests. */
#include "control/agent.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

#include "base/clock.h"
#include "base/iov.h"
#include "base/own.h"

#define RETRY_MS 10 /* between attempts to reach an agent that does not listen yet */

struct agent_session {
    int fd; /* non-blocking */
    struct agent_reader reader;
};

static int wait_for(int fd, short events, int64_t deadline_ms, struct err *err)
{
    for (;;) {
        int64_t now = clock_now_ms();
        int64_t left = deadline_ms > now ? deadline_ms - now : 0;
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (n > 0)
            return 0;
        if (n == 0)
            return err_say(err, ETIMEDOUT, "the guest's agent does not answer in time");
        if (errno != EINTR)
            return err_set(err, errno, "wait for the guest's agent");
    }
}

static int send_all(int fd, struct iovec *iov, unsigned count, int64_t deadline_ms, struct err *err)
{
    while (count) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            iov_advance(&iov, &count, (size_t)n);
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return err_set(err, errno, "send to the guest's agent");
        int r = wait_for(fd, POLLOUT, deadline_ms, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The line "OK PORT\n" of the vmm, byte by byte: what follows is the session's. -ECONNREFUSED when it closes instead. */
static int read_ok(int fd, int64_t deadline_ms, struct err *err)
{
    char line[32];
    for (size_t len = 0; len < sizeof line; len++) {
        ssize_t n;
        while ((n = recv(fd, line + len, 1, MSG_DONTWAIT)) < 0 && (errno == EAGAIN || errno == EINTR)) {
            int r = wait_for(fd, POLLIN, deadline_ms, err);
            if (r < 0)
                return r;
        }
        if (n <= 0)
            return err_say(err, ECONNREFUSED, "the guest's agent does not listen");
        if (line[len] == '\n')
            return !strncmp(line, "OK ", 3) ? 0 : err_say(err, EPROTO, "the vsock socket did not answer OK");
    }
    return err_say(err, EPROTO, "the vsock socket's answer is too long");
}

static int handshake(const struct sockaddr_un *address, int64_t deadline_ms, int *ret_fd, struct err *err)
{
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, errno, "vsock socket");
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0)
        return err_set(err, errno == EAGAIN ? ECONNREFUSED : errno, "connect to '%s'", address->sun_path);
    char request[32];
    struct iovec iov = {request, (size_t)snprintf(request, sizeof request, "CONNECT %d\n", AGENT_PORT)};
    int r = send_all(fd, &iov, 1, deadline_ms, err);
    if (r == 0)
        r = read_ok(fd, deadline_ms, err);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* The guest may not have come so far: the vmm's socket is not there yet, or nobody listens behind it. */
static bool is_worth_retrying(int r)
{
    return r == -ECONNREFUSED || r == -ENOENT || r == -EPIPE || r == -ECONNRESET;
}

static int connect_until(const char *path, int64_t deadline_ms, struct agent_session **ret_session, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return err_say(err, ENAMETOOLONG, "the socket's path '%.100s...' is longer than %zu bytes", path,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    for (;;) {
        own_fd int fd = -1;
        int r = handshake(&address, deadline_ms, &fd, err);
        if (r == 0)
            return agent_adopt(TAKE_FD(fd), ret_session, err);
        if (!is_worth_retrying(r) || clock_now_ms() + RETRY_MS >= deadline_ms)
            return r;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

int agent_connect(const char *vsock_path, unsigned timeout_ms, struct agent_session **ret_session, struct err *err)
{
    return connect_until(vsock_path, clock_now_ms() + timeout_ms, ret_session, err);
}

int agent_adopt(int fd, struct agent_session **ret_session, struct err *err)
{
    own_fd int owned = fd;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(err, errno, "session of the guest's agent");
    struct agent_session *session = calloc(1, sizeof *session);
    if (!session)
        return err_set(err, ENOMEM, "session of the guest's agent");
    session->fd = TAKE_FD(owned);
    *ret_session = session;
    return 0;
}

void agent_close(struct agent_session *session)
{
    if (!session)
        return;
    close(session->fd);
    free(session);
}

int agent_fd(const struct agent_session *session)
{
    return session->fd;
}

static int send_until(struct agent_session *session, enum agent_frame_type type, const void *data, size_t len_bytes,
                      int64_t deadline_ms, struct err *err)
{
    if (len_bytes > AGENT_PAYLOAD_MAX)
        return err_say(err, EMSGSIZE, "%zu bytes are too much for the guest's agent; at most %u", len_bytes,
                       AGENT_PAYLOAD_MAX);
    struct agent_header header;
    agent_header_encode(&header, type, len_bytes);
    union {
        const void *in;
        void *iov;
    } payload = {data}; /* sendmsg only reads it */
    struct iovec iov[] = {{&header, sizeof header}, {payload.iov, len_bytes}};
    return send_all(session->fd, iov, 2, deadline_ms, err);
}

int agent_send(struct agent_session *session, enum agent_frame_type type, const void *data, size_t len_bytes,
               unsigned timeout_ms, struct err *err)
{
    return send_until(session, type, data, len_bytes, clock_now_ms() + timeout_ms, err);
}

/* Sends JSON; takes the reference. */
static int send_json(struct agent_session *session, enum agent_frame_type type, json_t *json, int64_t deadline_ms,
                     struct err *err)
{
    own_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!text)
        return err_set(err, ENOMEM, "request to the guest's agent");
    return send_until(session, type, text, strlen(text), deadline_ms, err);
}

int agent_resize(struct agent_session *session, unsigned rows, unsigned cols, unsigned timeout_ms, struct err *err)
{
    return send_json(session, AGENT_RESIZE, json_pack("{s:i, s:i}", "rows", (int)rows, "cols", (int)cols),
                     clock_now_ms() + timeout_ms, err);
}

int agent_signal(struct agent_session *session, const char *signal, unsigned timeout_ms, struct err *err)
{
    return send_json(session, AGENT_SIGNAL, json_pack("{s:s}", "signal", signal), clock_now_ms() + timeout_ms, err);
}

static bool is_from_guest(enum agent_frame_type type)
{
    return type == AGENT_REPLY || type == AGENT_DATA_OUT || type == AGENT_DATA_ERR || type == AGENT_EXIT;
}

static int receive_until(struct agent_session *session, struct agent_frame *ret_frame, int64_t deadline_ms,
                         bool is_try, struct err *err)
{
    for (;;) {
        int r = agent_reader_next(&session->reader, ret_frame, err);
        if (r > 0 && !is_from_guest(ret_frame->type))
            r = err_say(err, EPROTO, "a frame of type %d, which only the host sends", (int)ret_frame->type);
        if (r != 0)
            return r < 0 ? err_ctx(err, "the guest's agent") : r;
        r = agent_reader_fill(&session->reader, session->fd);
        if (r > 0)
            continue;
        if (r == 0 || r == -ECONNRESET)
            return 0;
        if (r != -EAGAIN)
            return err_set(err, -r, "receive from the guest's agent");
        if (is_try)
            return -EAGAIN;
        r = wait_for(session->fd, POLLIN, deadline_ms, err);
        if (r < 0)
            return r;
    }
}

int agent_receive(struct agent_session *session, struct agent_frame *ret_frame, unsigned timeout_ms, struct err *err)
{
    return receive_until(session, ret_frame, clock_now_ms() + timeout_ms, timeout_ms == 0, err);
}

int agent_exit_code(const struct agent_frame *frame, int *ret_code, struct err *err)
{
    json_t *json = agent_json_load(frame, err);
    if (!json)
        return err_ctx(err, "the guest's agent");
    const json_t *code = json_object_get(json, "code");
    json_int_t value = json_is_integer(code) ? json_integer_value(code) : -1;
    json_decref(json);
    if (value < 0 || value > 255)
        return err_say(err, EPROTO, "the guest's agent: an exit without a code of 0 to 255");
    *ret_code = (int)value;
    return 0;
}

/* Whether the reply is {"ok": true}; else -EREMOTEIO with the agent's words, as far as they are printable, and the exit code
 * of a command that is not there or cannot be run. */
static int check_reply(const json_t *reply, struct err *err)
{
    if (json_is_true(json_object_get(reply, "ok")))
        return 0;
    const char *text = json_string_value(json_object_get(reply, "error"));
    if (!text)
        return err_say(err, EPROTO, "the guest's agent: a reply without \"ok\" or \"error\"");
    char shown[161];
    snprintf(shown, sizeof shown, "%s", text);
    for (char *at = shown; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = '?';
    int r = err_say(err, EREMOTEIO, "%s", shown);
    json_int_t code = json_integer_value(json_object_get(reply, "code"));
    if (code == AGENT_NOT_RUNNABLE || code == AGENT_NOT_FOUND)
        err_set_exit_code(err, (int)code);
    return r;
}

static int receive_reply(struct agent_session *session, int64_t deadline_ms, json_t **ret_reply, struct err *err)
{
    struct agent_frame frame;
    int r = receive_until(session, &frame, deadline_ms, false, err);
    if (r < 0)
        return r;
    if (r == 0)
        return err_say(err, ECONNRESET, "the guest's agent closed the session");
    if (frame.type != AGENT_REPLY)
        return err_say(err, EPROTO, "the guest's agent: a frame of type %d instead of a reply", (int)frame.type);
    json_t *reply = agent_json_load(&frame, err);
    if (!reply)
        return err_ctx(err, "the guest's agent");
    r = check_reply(reply, err);
    if (ret_reply && (r == 0 || r == -EREMOTEIO))
        *ret_reply = reply;
    else
        json_decref(reply);
    return r;
}

static int request_until(struct agent_session *session, const char *op, const json_t *params, int64_t deadline_ms,
                         json_t **ret_reply, struct err *err)
{
    union {
        const json_t *in;
        json_t *json;
    } source = {params}; /* a copy takes references only */
    json_t *request = params ? json_copy(source.json) : json_object();
    if (!request || json_object_set_new(request, "op", json_string(op)) < 0) {
        json_decref(request);
        return err_set(err, ENOMEM, "request to the guest's agent");
    }
    int r = send_json(session, AGENT_REQUEST, request, deadline_ms, err);
    return r < 0 ? r : receive_reply(session, deadline_ms, ret_reply, err);
}

int agent_request(struct agent_session *session, const char *op, const json_t *params, unsigned timeout_ms,
                  json_t **ret_reply, struct err *err)
{
    return request_until(session, op, params, clock_now_ms() + timeout_ms, ret_reply, err);
}

int agent_open(const char *vsock_path, const char *op, const json_t *params, unsigned timeout_ms,
               struct agent_session **ret_session, json_t **ret_reply, struct err *err)
{
    int64_t deadline_ms = clock_now_ms() + timeout_ms;
    struct agent_session *session = NULL;
    int r = connect_until(vsock_path, deadline_ms, &session, err);
    if (r < 0)
        return r;
    r = request_until(session, op, params, deadline_ms, ret_reply, err);
    if (r < 0)
        agent_close(session);
    else
        *ret_session = session;
    return r;
}

int agent_call(const char *vsock_path, const char *op, const json_t *params, unsigned timeout_ms, json_t **ret_reply,
               struct err *err)
{
    struct agent_session *session = NULL;
    int r = agent_open(vsock_path, op, params, timeout_ms, &session, ret_reply, err);
    if (r == 0)
        agent_close(session);
    return r;
}

int agent_wait(struct agent_session *session, unsigned timeout_ms, int *ret_code, struct err *err)
{
    int64_t deadline_ms = clock_now_ms() + timeout_ms;
    while (clock_now_ms() <= deadline_ms) {
        struct agent_frame frame;
        int r = receive_until(session, &frame, deadline_ms, false, err);
        if (r <= 0)
            return r < 0 ? r : err_say(err, ECONNRESET, "the guest's agent closed the session");
        if (frame.type == AGENT_EXIT)
            return agent_exit_code(&frame, ret_code, err);
    }
    return err_say(err, ETIMEDOUT, "the guest's agent does not end in time");
}
