/* A client's bytes as WebSocket frames: bounded messages, answers that do not pile up, never a wait. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/websocket.h"

static void take(void *arg, uint8_t stream, const uint8_t *data, size_t len)
{
    size_t *total = arg;
    if (len > WEBSOCKET_MESSAGE_MAX)
        abort();
    *total += len + stream;
    for (size_t i = 0; i < len; i++)
        *total += data[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct websocket *websocket;
    size_t total = 0;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return 0;
    size_t early = size ? data[0] % size : 0;
    if (websocket_create(pair[0], data, early, &websocket, NULL) == 0) {
        if (send(pair[1], data + early, size - early, MSG_NOSIGNAL) >= 0)
            for (int i = 0; i < 1000 && websocket_pump(websocket, true, take, &total); i++)
                websocket_send(websocket, WEBSOCKET_STDOUT, data, early);
        websocket_free(websocket);
    }
    close(pair[0]);
    close(pair[1]);
    return 0;
}
