/* Framing by wslay's event interface over a non-blocking socket. */
#include "api/websocket.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <wslay/wslay.h>

#include "base/clock.h"
#include "base/own.h"

#define ACCEPT_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define UNSENT_BYTES (1u << 20) /* a client that takes no answers, of pings say, is not heard any more beyond this, */
#define UNSENT_COUNT 4096u      /* or beyond so many of them */

/* wslay reads ahead: messages behind the one that was handed out wait here. They are what its buffer held, so few. */
struct held {
    struct held *next;
    size_t len;
    uint8_t bytes[];
};

struct websocket {
    int fd;
    wslay_event_context_ptr context;
    uint8_t *early;
    size_t early_len, early_taken;
    bool ended;
    struct held *first, **last;
};

static bool is_full(const struct websocket *ws)
{
    return wslay_event_get_queued_msg_length(ws->context) > UNSENT_BYTES ||
           wslay_event_get_queued_msg_count(ws->context) > UNSENT_COUNT;
}

static ssize_t receive(wslay_event_context_ptr context, uint8_t *buffer, size_t len, int flags, void *arg)
{
    struct websocket *ws = arg;
    (void)flags;
    bool wait = ws->first || is_full(ws);
    if (!wait && ws->early_taken < ws->early_len) {
        size_t part = ws->early_len - ws->early_taken < len ? ws->early_len - ws->early_taken : len;
        memcpy(buffer, ws->early + ws->early_taken, part);
        ws->early_taken += part;
        return (ssize_t)part;
    }
    ssize_t n = wait ? -1 : recv(ws->fd, buffer, len, MSG_DONTWAIT);
    if (n > 0)
        return n;
    bool later = wait || (n < 0 && (errno == EAGAIN || errno == EINTR));
    if (!later)
        ws->ended = true;
    wslay_event_set_error(context, later ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

static ssize_t transmit(wslay_event_context_ptr context, const uint8_t *data, size_t len, int flags, void *arg)
{
    const struct websocket *ws = arg;
    ssize_t n = send(ws->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL | (flags & WSLAY_MSG_MORE ? MSG_MORE : 0));
    if (n >= 0)
        return n;
    bool later = errno == EAGAIN || errno == EINTR;
    wslay_event_set_error(context, later ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

static void on_message(wslay_event_context_ptr context, const struct wslay_event_on_msg_recv_arg *message, void *arg)
{
    struct websocket *ws = arg;
    if (wslay_is_ctrl_frame(message->opcode))
        return;
    if (message->opcode != WSLAY_BINARY_FRAME || !message->msg_length) {
        wslay_event_queue_close(context, WSLAY_CODE_UNSUPPORTED_DATA, NULL, 0);
        return;
    }
    struct held *held = malloc(sizeof *held + message->msg_length);
    if (!held) {
        wslay_event_queue_close(context, WSLAY_CODE_INTERNAL_SERVER_ERROR, NULL, 0);
        return;
    }
    *held = (struct held){.len = message->msg_length};
    memcpy(held->bytes, message->msg, message->msg_length);
    *ws->last = held;
    ws->last = &held->next;
}

static struct held *next_held(struct websocket *ws)
{
    struct held *held = ws->first;
    if (held && !(ws->first = held->next))
        ws->last = &ws->first;
    return held;
}

int websocket_create(int fd, const void *early, size_t early_len, struct websocket **ret_websocket, struct err *err)
{
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = receive, .send_callback = transmit, .on_msg_recv_callback = on_message};
    struct websocket *ws = calloc(1, sizeof *ws);
    if (!ws || (early_len && !(ws->early = malloc(early_len))) ||
        wslay_event_context_server_init(&ws->context, &callbacks, ws) != 0) {
        websocket_free(ws);
        return err_set(err, ENOMEM, "WebSocket");
    }
    if (early_len)
        memcpy(ws->early, early, early_len);
    ws->early_len = early_len;
    ws->fd = fd;
    ws->last = &ws->first;
    wslay_event_config_set_max_recv_msg_length(ws->context, WEBSOCKET_MESSAGE_MAX + 1);
    *ret_websocket = ws;
    return 0;
}

void websocket_free(struct websocket *ws)
{
    if (!ws)
        return;
    if (ws->context)
        wslay_event_context_free(ws->context);
    for (struct held *held; (held = next_held(ws)) != NULL;)
        free(held);
    free(ws->early);
    free(ws);
}

int websocket_fd(const struct websocket *ws)
{
    return ws->fd;
}

short websocket_events(const struct websocket *ws, bool receive_too)
{
    int events = receive_too && !is_full(ws) ? POLLIN : 0;
    if (wslay_event_want_write(ws->context))
        events |= POLLOUT;
    return (short)events;
}

int websocket_timeout(const struct websocket *ws, bool receive_too, int timeout_ms)
{
    return receive_too && ws->first ? 0 : timeout_ms;
}

bool websocket_pump(struct websocket *ws, bool receive_too, websocket_message_fn *fn, void *arg)
{
    if (receive_too && !ws->first && wslay_event_recv(ws->context) != 0)
        ws->ended = true;
    struct held *held = receive_too ? next_held(ws) : NULL;
    if (held)
        fn(arg, held->bytes[0], held->bytes + 1, held->len - 1);
    free(held);
    if (wslay_event_send(ws->context) != 0)
        ws->ended = true;
    if (!wslay_event_want_read(ws->context) && !wslay_event_want_write(ws->context))
        ws->ended = true;
    return !ws->ended || ws->first;
}

bool websocket_send(struct websocket *ws, enum websocket_stream stream, const void *data, size_t len)
{
    own_free uint8_t *bytes = malloc(len + 1);
    if (!bytes || ws->ended)
        return false;
    bytes[0] = (uint8_t)stream;
    if (len)
        memcpy(bytes + 1, data, len);
    const struct wslay_event_msg message = {.opcode = WSLAY_BINARY_FRAME, .msg = bytes, .msg_length = len + 1};
    return wslay_event_queue_msg(ws->context, &message) == 0;
}

bool websocket_send_control(struct websocket *ws, json_t *document)
{
    own_free char *text = json_dumps(document, JSON_COMPACT);
    json_decref(document);
    return text && websocket_send(ws, WEBSOCKET_CONTROL, text, strlen(text));
}

size_t websocket_queued(const struct websocket *ws)
{
    return wslay_event_get_queued_msg_length(ws->context);
}

static void ignore_message(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    (void)arg;
    (void)stream;
    (void)data;
    (void)len;
}

/* Until all is sent, or also the other side has closed; false when the time is over or the connection gone. */
static bool pump_until(struct websocket *ws, bool closed, int64_t end_ms)
{
    while (websocket_pump(ws, true, ignore_message, NULL)) {
        int64_t left_ms = end_ms - clock_now_ms();
        struct pollfd fd = {.fd = ws->fd, .events = websocket_events(ws, true)};
        if (!closed && !wslay_event_want_write(ws->context))
            return true;
        if (left_ms <= 0 || poll(&fd, 1, websocket_timeout(ws, true, (int)left_ms)) < 0)
            return false;
    }
    return false;
}

void websocket_close(struct websocket *ws, unsigned timeout_ms)
{
    int64_t end_ms = clock_now_ms() + timeout_ms;
    if (!pump_until(ws, false, end_ms)) /* a close overtakes messages that wait */
        return;
    wslay_event_queue_close(ws->context, WSLAY_CODE_NORMAL_CLOSURE, NULL, 0);
    (void)pump_until(ws, true, end_ms);
}

bool websocket_accept(const char *key, char ret_accept[static 32])
{
    unsigned char text[24 + sizeof ACCEPT_GUID - 1], digest[20];
    if (strlen(key) != 24)
        return false;
    memcpy(text, key, 24);
    memcpy(text + 24, ACCEPT_GUID, sizeof ACCEPT_GUID - 1);
    gnutls_datum_t out, in = {.data = digest, .size = sizeof digest};
    if (gnutls_hash_fast(GNUTLS_DIG_SHA1, text, sizeof text, digest) < 0 || gnutls_base64_encode2(&in, &out) < 0)
        return false;
    memcpy(ret_accept, out.data, out.size < 31 ? out.size : 31);
    ret_accept[out.size < 31 ? out.size : 31] = '\0';
    gnutls_free(out.data);
    return true;
}
