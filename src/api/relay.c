#include "api/relay.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

#define QUEUE_MAX (256u << 10) /* bytes for a client that does not read, before the guest has to wait */
#define TICK_MS 1000
#define SEND_MS 5000 /* for a frame that the socket has room for */

struct relay {
    struct websocket *websocket;
    struct agent_session *session; /* or: */
    int fd;
    bool broken;
    uint8_t pending[WEBSOCKET_MESSAGE_MAX]; /* bytes for `fd` that it did not take yet */
    size_t pending_len, pending_sent;
};

static bool client_has_room(const struct relay *relay)
{
    return websocket_queued(relay->websocket) < QUEUE_MAX;
}

/* ---- client to guest ---- */

static void take_resize(struct relay *relay, const json_t *size)
{
    json_int_t rows = json_integer_value(json_object_get(size, "rows")), cols = json_integer_value(json_object_get(size, "cols"));
    if (rows > 0 && rows < 10000 && cols > 0 && cols < 10000 &&
        agent_resize(relay->session, (unsigned)rows, (unsigned)cols, SEND_MS, NULL) < 0)
        relay->broken = true;
}

/* What is no control message is ignored: it may be of a later version. */
static void take_control(struct relay *relay, const uint8_t *data, size_t len)
{
    json_t *control = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, NULL);
    const char *signal = json_string_value(json_object_get(control, "signal"));
    if (json_is_object(json_object_get(control, "resize")))
        take_resize(relay, json_object_get(control, "resize"));
    if (signal && strlen(signal) <= 16 && agent_signal(relay->session, signal, SEND_MS, NULL) < 0)
        relay->broken = true;
    json_decref(control);
}

static void message_to_session(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    struct relay *relay = arg;
    int r = 0;
    if (stream == WEBSOCKET_CONTROL)
        take_control(relay, data, len);
    else if (stream == WEBSOCKET_STDIN && len)
        r = agent_send(relay->session, AGENT_DATA_IN, data, len, SEND_MS, NULL);
    else if (stream == WEBSOCKET_STDIN)
        r = agent_send(relay->session, AGENT_CLOSE_IN, NULL, 0, SEND_MS, NULL);
    if (r < 0)
        relay->broken = true;
}

/* ---- guest to client ---- */

static bool frame_to_client(struct relay *relay, const struct agent_frame *frame)
{
    int code;
    switch (frame->type) {
    case AGENT_DATA_OUT:
        return websocket_send(relay->websocket, WEBSOCKET_STDOUT, frame->data, frame->len_bytes);
    case AGENT_DATA_ERR:
        return websocket_send(relay->websocket, WEBSOCKET_STDERR, frame->data, frame->len_bytes);
    case AGENT_EXIT:
        if (agent_exit_code(frame, &code, NULL) == 0)
            websocket_send_control(relay->websocket, json_pack("{s:i}", "exit", code));
        return false;
    case AGENT_REQUEST:
    case AGENT_REPLY:
    case AGENT_DATA_IN:
    case AGENT_CLOSE_IN:
    case AGENT_RESIZE:
    case AGENT_SIGNAL:
    case AGENT_FRAME_TYPES:
        break;
    }
    return false; /* no agent of ours says that here */
}

/* All frames that are there, as long as the client takes them. False at the end. */
static bool frames_to_client(struct relay *relay)
{
    while (client_has_room(relay)) {
        struct agent_frame frame;
        struct err err = {0};
        int r = agent_receive(relay->session, &frame, 0, &err);
        if (r == -EAGAIN)
            return true;
        if (r <= 0 || !frame_to_client(relay, &frame))
            return false;
    }
    return true;
}

/* Waits for either side; false when waiting makes no sense any more. */
static bool wait_sides(const struct relay *relay, short guest_events, bool receive, short *ret_guest, short *ret_client)
{
    struct pollfd fds[2] = {
        {.fd = relay->session ? agent_fd(relay->session) : relay->fd, .events = guest_events},
        {.fd = websocket_fd(relay->websocket), .events = websocket_events(relay->websocket, receive)},
    };
    if (poll(fds, 2, websocket_timeout(relay->websocket, receive, TICK_MS)) < 0 && errno != EINTR)
        return false;
    *ret_guest = fds[0].revents;
    *ret_client = fds[1].revents;
    return true;
}

/* A session's socket that polls as writable has room for a whole frame (the kernel says so only when a quarter of the send
 * buffer at most is used), so a message of the client is taken only then, and sending it does not wait. */
static bool session_takes(const struct relay *relay)
{
    struct pollfd fd = {.fd = agent_fd(relay->session), .events = POLLOUT};
    return poll(&fd, 1, 0) > 0 && (fd.revents & POLLOUT);
}

void relay_session(const struct platform *platform, struct websocket *websocket, struct agent_session *session)
{
    struct relay relay = {.websocket = websocket, .session = session};
    while (!platform_stopping(platform) && !relay.broken) {
        short guest = 0, client = 0;
        if (!frames_to_client(&relay))
            return;
        bool takes = session_takes(&relay);
        if (!websocket_pump(websocket, takes, message_to_session, &relay))
            return;
        short events = (short)((client_has_room(&relay) ? POLLIN : 0) | (takes ? 0 : POLLOUT));
        if (!wait_sides(&relay, events, takes, &guest, &client))
            return;
    }
}

/* ---- consoles ---- */

static void message_to_bytes(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    struct relay *relay = arg;
    if (stream != WEBSOCKET_STDIN || relay->pending_len + len > sizeof relay->pending)
        return; /* a console has nothing but bytes */
    memcpy(relay->pending + relay->pending_len, data, len);
    relay->pending_len += len;
}

static void send_pending(struct relay *relay)
{
    if (relay->pending_sent < relay->pending_len) {
        ssize_t n = send(relay->fd, relay->pending + relay->pending_sent, relay->pending_len - relay->pending_sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            relay->broken = true;
        relay->pending_sent += n > 0 ? (size_t)n : 0;
    }
    if (relay->pending_sent == relay->pending_len)
        relay->pending_sent = relay->pending_len = 0;
}

static bool bytes_to_client(struct relay *relay)
{
    char buffer[16384];
    if (!client_has_room(relay))
        return true;
    ssize_t n = recv(relay->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    return n > 0 && websocket_send(relay->websocket, WEBSOCKET_STDOUT, buffer, (size_t)n);
}

void relay_bytes(const struct platform *platform, struct websocket *websocket, int fd)
{
    struct relay relay = {.websocket = websocket, .fd = fd};
    while (!platform_stopping(platform) && !relay.broken) {
        short guest = 0, client = 0;
        if (!bytes_to_client(&relay))
            return;
        bool takes = !relay.pending_len;
        if (!websocket_pump(websocket, takes, message_to_bytes, &relay))
            return;
        send_pending(&relay);
        short events = (short)((client_has_room(&relay) ? POLLIN : 0) | (relay.pending_len ? POLLOUT : 0));
        if (!wait_sides(&relay, events, !relay.pending_len, &guest, &client))
            return;
    }
}

/* ---- the first message ---- */

static void keep_message(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    json_t **message = arg;
    if (!*message && stream == WEBSOCKET_CONTROL)
        *message = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, NULL);
    if (!*message)
        *message = json_null();
}

json_t *relay_first_message(const struct platform *platform, struct websocket *websocket, unsigned timeout_ms)
{
    json_t *message = NULL;
    for (unsigned waited = 0; waited < timeout_ms && !message && !platform_stopping(platform); waited += TICK_MS / 4) {
        if (!websocket_pump(websocket, true, keep_message, &message))
            break;
        struct pollfd fd = {.fd = websocket_fd(websocket), .events = websocket_events(websocket, true)};
        if (!message)
            poll(&fd, 1, TICK_MS / 4);
    }
    if (json_is_object(message))
        return message;
    json_decref(message);
    return NULL;
}
