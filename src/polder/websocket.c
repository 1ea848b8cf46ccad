#include "polder/websocket.h"

#include <errno.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>
#include <wslay/wslay.h>

#include "base/own.h"
#include "polder/client.h"

#define HEAD_MAX 16384
#define HANDSHAKE_TIMEOUT_MS 60000
#define SEND_CHUNK 65536

struct websocket {
    CURL *connection;
    wslay_event_context_ptr events;
    websocket_message_fn *fn;
    void *arg;
    int fd;
    bool lost;
    char head[HEAD_MAX + 1]; /* the handshake's answer; then what came behind it */
    size_t head_len, head_at;
};

/* ---- wslay's callbacks ---- */

static ssize_t on_recv(wslay_event_context_ptr events, uint8_t *data, size_t len, int flags, void *arg)
{
    struct websocket *w = arg;
    size_t n = 0;
    (void)flags;
    if (w->head_at < w->head_len) {
        n = w->head_len - w->head_at < len ? w->head_len - w->head_at : len;
        memcpy(data, w->head + w->head_at, n);
        w->head_at += n;
        return (ssize_t)n;
    }
    CURLcode code = curl_easy_recv(w->connection, data, len, &n);
    if (code == CURLE_OK && n)
        return (ssize_t)n;
    w->lost = code != CURLE_AGAIN;
    wslay_event_set_error(events, w->lost ? WSLAY_ERR_CALLBACK_FAILURE : WSLAY_ERR_WOULDBLOCK);
    return -1;
}

static ssize_t on_send(wslay_event_context_ptr events, const uint8_t *data, size_t len, int flags, void *arg)
{
    struct websocket *w = arg;
    size_t n = 0;
    (void)flags;
    CURLcode code = curl_easy_send(w->connection, data, len, &n);
    if (code == CURLE_OK)
        return (ssize_t)n;
    w->lost = code != CURLE_AGAIN;
    wslay_event_set_error(events, w->lost ? WSLAY_ERR_CALLBACK_FAILURE : WSLAY_ERR_WOULDBLOCK);
    return -1;
}

static int on_mask(wslay_event_context_ptr events, uint8_t *data, size_t len, void *arg)
{
    (void)events;
    (void)arg;
    return getrandom(data, len, 0) == (ssize_t)len ? 0 : -1;
}

static void on_message(wslay_event_context_ptr events, const struct wslay_event_on_msg_recv_arg *message, void *arg)
{
    struct websocket *w = arg;
    (void)events;
    if (message->opcode != WSLAY_BINARY_FRAME || !message->msg_length || message->msg[0] > STREAM_CONTROL)
        return;
    w->fn(w->arg, (enum websocket_stream)message->msg[0], (const char *)message->msg + 1, message->msg_length - 1);
}

/* ---- the handshake ---- */

static int wait_for(const struct websocket *w, short events, int64_t deadline_ms, struct err *err)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t left = deadline_ms - (now.tv_sec * 1000 + now.tv_nsec / 1000000);
    struct pollfd fd = {w->fd, events, 0};
    int r = left > 0 ? poll(&fd, 1, (int)left) : 0;
    if (r < 0 && errno != EINTR)
        return err_set(err, errno, "poll");
    return r == 0 ? err_say(err, ETIMEDOUT, "polderd does not answer in time") : 0;
}

static int send_all(const struct websocket *w, const char *data, size_t len, int64_t deadline_ms, struct err *err)
{
    while (len) {
        size_t n = 0;
        CURLcode code = curl_easy_send(w->connection, data, len, &n);
        if (code == CURLE_AGAIN) {
            int r = wait_for(w, POLLOUT, deadline_ms, err);
            if (r < 0)
                return r;
        } else if (code != CURLE_OK) {
            return err_say(err, EPIPE, "polderd broke the connection off: %s", curl_easy_strerror(code));
        }
        data += n;
        len -= n;
    }
    return 0;
}

/* Where the head ends; NULL: not yet. */
static char *head_end(struct websocket *w)
{
    char *end = strstr(w->head, "\r\n\r\n");
    return end ? end + 4 : NULL;
}

static int receive_head(struct websocket *w, int64_t deadline_ms, struct err *err)
{
    while (!head_end(w)) {
        size_t n = 0;
        if (w->head_len == HEAD_MAX)
            return err_say(err, EPROTO, "the server's answer is too long: is it a polderd?");
        CURLcode code = curl_easy_recv(w->connection, w->head + w->head_len, HEAD_MAX - w->head_len, &n);
        if (code == CURLE_AGAIN) {
            int r = wait_for(w, POLLIN, deadline_ms, err);
            if (r < 0)
                return r;
        } else if (code != CURLE_OK || !n) {
            return err_say(err, EPIPE, "polderd broke the connection off");
        }
        w->head_len += n;
        w->head[w->head_len] = '\0';
    }
    return 0;
}

/* A refusal's body, of which as much is read as comes soon. */
static int refused(struct websocket *w, long status, struct err *err)
{
    char *body = head_end(w);
    struct pollfd fd = {w->fd, POLLIN, 0};
    const char *length = strcasestr(w->head, "\r\ncontent-length:");
    size_t wanted = length ? strtoul(length + strlen("\r\ncontent-length:"), NULL, 10) : 0;
    while (w->head_len < HEAD_MAX && strlen(body) < wanted && poll(&fd, 1, 1000) == 1) {
        size_t n = 0;
        CURLcode code = curl_easy_recv(w->connection, w->head + w->head_len, HEAD_MAX - w->head_len, &n);
        if (code != CURLE_AGAIN && (code != CURLE_OK || !n))
            break;
        w->head_len += n;
        w->head[w->head_len] = '\0';
    }
    return client_refused(status, body, strlen(body), err);
}

/* RFC 6455 section 4.2.2: proof that a WebSocket server answers. */
static void accept_of(const char *key, char accept[32])
{
    char text[96];
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    int n = snprintf(text, sizeof text, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    EVP_Digest(text, (size_t)n, digest, &len, EVP_sha1(), NULL);
    EVP_EncodeBlock((unsigned char *)accept, digest, (int)len);
}

static int check_head(struct websocket *w, const char *key, struct err *err)
{
    char accept[32], line[64];
    long status = strncmp(w->head, "HTTP/1.1 ", 9) == 0 ? strtol(w->head + 9, NULL, 10) : 0;
    if (status >= 400)
        return refused(w, status, err);
    accept_of(key, accept);
    const char *found = strcasestr(w->head, "\r\nsec-websocket-accept:");
    if (found) {
        found += strlen("\r\nsec-websocket-accept:");
        found += strspn(found, " \t");
    }
    snprintf(line, sizeof line, "%s\r\n", accept);
    if (status != 101 || !found || strncmp(found, line, strlen(line)) != 0)
        return err_say(err, EPROTO, "the server does not speak WebSocket: is it a polderd?");
    w->head_at = (size_t)(head_end(w) - w->head);
    return 0;
}

static int shake_hands(struct websocket *w, struct client *client, const char *path, struct err *err)
{
    unsigned char random[16];
    char key[32], request[CLIENT_URL_MAX + 8192];
    struct timespec now;
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return err_set(err, errno, "getrandom");
    EVP_EncodeBlock((unsigned char *)key, random, sizeof random);
    const char *authorization = client_authorization(client);
    int len = snprintf(request, sizeof request,
                       "GET %s HTTP/1.1\r\nHost: polder\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s%s\r\n",
                       path, key, authorization ? authorization : "", authorization ? "\r\n" : "");
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t deadline_ms = now.tv_sec * 1000 + now.tv_nsec / 1000000 + HANDSHAKE_TIMEOUT_MS;
    int r = send_all(w, request, (size_t)len, deadline_ms, err);
    explicit_bzero(request, sizeof request);
    if (r == 0)
        r = receive_head(w, deadline_ms, err);
    return r < 0 ? r : check_head(w, key, err);
}

/* ---- the session ---- */

int websocket_open(struct client *client, const char *path, websocket_message_fn *fn, void *arg, struct websocket **ret_websocket,
                   struct err *err)
{
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = on_recv, .send_callback = on_send, .genmask_callback = on_mask, .on_msg_recv_callback = on_message};
    curl_socket_t fd = -1;
    struct websocket *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(err, ENOMEM, "connection");
    w->fn = fn;
    w->arg = arg;
    int r = client_connect(client, &w->connection, err);
    if (r == 0) {
        curl_easy_getinfo(w->connection, CURLINFO_ACTIVESOCKET, &fd);
        w->fd = fd;
        r = shake_hands(w, client, path, err);
    }
    if (r == 0 && wslay_event_context_client_init(&w->events, &callbacks, w) != 0)
        r = err_set(err, ENOMEM, "connection");
    if (r < 0) {
        websocket_close(w);
        return r;
    }
    wslay_event_config_set_max_recv_msg_length(w->events, WEBSOCKET_MESSAGE_MAX);
    *ret_websocket = w;
    return 0;
}

void websocket_close(struct websocket *w)
{
    if (!w)
        return;
    if (w->events) {
        if (!w->lost && wslay_event_queue_close(w->events, WSLAY_CODE_NORMAL_CLOSURE, NULL, 0) == 0)
            (void)!wslay_event_send(w->events);
        wslay_event_context_free(w->events);
    }
    if (w->connection)
        curl_easy_cleanup(w->connection);
    free(w);
}

int websocket_fd(const struct websocket *w)
{
    return w->fd;
}

short websocket_events(const struct websocket *w)
{
    if (w->lost)
        return 0;
    return (short)((wslay_event_want_read(w->events) ? POLLIN : 0) | (wslay_event_want_write(w->events) ? POLLOUT : 0));
}

size_t websocket_queued(const struct websocket *w)
{
    return wslay_event_get_queued_msg_length(w->events);
}

int websocket_send(struct websocket *w, enum websocket_stream stream, const void *data, size_t len, struct err *err)
{
    uint8_t message[1 + SEND_CHUNK];
    if (len > SEND_CHUNK)
        return err_say(err, EMSGSIZE, "message of %zu bytes", len);
    message[0] = (uint8_t)stream;
    if (len)
        memcpy(message + 1, data, len);
    struct wslay_event_msg msg = {.opcode = WSLAY_BINARY_FRAME, .msg = message, .msg_length = len + 1};
    int r = wslay_event_queue_msg(w->events, &msg);
    return r == 0 || r == WSLAY_ERR_NO_MORE_MSG ? 0 : err_set(err, ENOMEM, "message");
}

int websocket_step(struct websocket *w, struct err *err)
{
    /* what it said before it went counts, also when it did not listen any more */
    bool sent = wslay_event_send(w->events) == 0, received = wslay_event_recv(w->events) == 0;
    if (sent && received && wslay_event_send(w->events) == 0 && !w->lost)
        return 0;
    return err_say(err, EPIPE, "the connection to polderd is lost");
}
