/* A WebSocket (RFC 6455) to polderd, as client: binary messages whose first byte names a stream. Text that the server sends is
 * bounded. One thread, which polls websocket_fd(). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

#define WEBSOCKET_MESSAGE_MAX (1u << 20) /* bytes of one from the server */

enum websocket_stream { STREAM_IN, STREAM_OUT, STREAM_ERR, STREAM_CONTROL };

struct client;
struct websocket;

/* Takes a message without its first byte. */
typedef void websocket_message_fn(void *arg, enum websocket_stream stream, const char *data, size_t len);

/* Connects and shakes hands; polderd's refusal is an error as client_call()'s. */
must_check int websocket_open(struct client *client, const char *path, websocket_message_fn *fn, void *arg,
                              struct websocket **ret_websocket, struct err *err);
/* Closes politely if it is still open. NULL is fine. */
void websocket_close(struct websocket *websocket);

int websocket_fd(const struct websocket *websocket);
/* Events to poll for. 0: it is over. */
short websocket_events(const struct websocket *websocket);
/* Bytes that wait to be sent. */
size_t websocket_queued(const struct websocket *websocket);
must_check int websocket_send(struct websocket *websocket, enum websocket_stream stream, const void *data, size_t len, struct err *err);
/* Sends and receives what it can without waiting; calls the message function. -EPIPE: the connection is lost; 0 also when
 * it was closed, which websocket_events() tells. */
must_check int websocket_step(struct websocket *websocket, struct err *err);
