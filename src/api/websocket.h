/* A WebSocket (RFC 6455) to a client: messages whose first byte says what the rest is.
 *
 * The socket does not block; whoever uses it polls websocket_fd() for websocket_events() and calls websocket_pump(). A
 * message is at most WEBSOCKET_MESSAGE_MAX; larger ones, text and broken framing end the connection. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <jansson.h>
#include <sys/types.h>
#include "base/err.h"

#define WEBSOCKET_MESSAGE_MAX 65536u /* bytes behind the first */

enum websocket_stream { WEBSOCKET_STDIN, WEBSOCKET_STDOUT, WEBSOCKET_STDERR, WEBSOCKET_CONTROL };

struct websocket;

/* A message came: its first byte and the rest. Called within websocket_pump, at most once. */
typedef void websocket_message_fn(void *arg, uint8_t stream, const uint8_t *data, size_t len);

/* On a connected socket, which stays the caller's and is made non-blocking. `early`: bytes already read from it (copied). */
must_check int websocket_create(int fd, const void *early, size_t early_len, struct websocket **ret_websocket,
                                struct err *err);
void websocket_free(struct websocket *websocket); /* NULL is fine */
int websocket_fd(const struct websocket *websocket);
/* What to poll for. `receive`: whether the caller can take messages. */
short websocket_events(const struct websocket *websocket, bool receive);
/* How long to poll: `timeout_ms`, or 0 when a message is here already, which no poll would tell. */
int websocket_timeout(const struct websocket *websocket, bool receive, int timeout_ms);
/* Sends what waits and, with `receive`, takes the next message that came. False when the connection has ended. */
bool websocket_pump(struct websocket *websocket, bool receive, websocket_message_fn *fn, void *arg);
/* Queues a message (copied). False when it cannot be sent any more. */
bool websocket_send(struct websocket *websocket, enum websocket_stream stream, const void *data, size_t len);
/* The same with a document as control message; takes it. */
bool websocket_send_control(struct websocket *websocket, json_t *document);
/* Bytes queued and not sent. */
size_t websocket_queued(const struct websocket *websocket);
/* Says goodbye and sends what waits, for up to `timeout_ms`. */
void websocket_close(struct websocket *websocket, unsigned timeout_ms);
/* The answer to Sec-WebSocket-Key (RFC 6455 §4.2.2). `ret_accept` has 29 bytes at least. False when the key is none. */
bool websocket_accept(const char *key, char ret_accept[static 32]);
