/* From HTTP to WebSocket: the handshake (RFC 6455 §4.2), and the thread that serves the socket afterwards, because
 * libmicrohttpd's callback must not wait. */
#include "api/server_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/websocket.h"
#include "base/log.h"

#define GOODBYE_MS 2000

struct upgrade {
    struct server *server;
    struct answer answer;
    struct websocket *websocket;
    struct MHD_UpgradeResponseHandle *handle;
};

static const char *header(const struct exchange *exchange, const char *name)
{
    const char *value = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
    return value ? value : "";
}

int exchange_check_upgrade(const struct exchange *exchange, struct err *err)
{
    char accept[32];
    if (strcasecmp(header(exchange, "Upgrade"), "websocket") != 0 || !strcasestr(header(exchange, "Connection"), "upgrade"))
        return err_say(err, EINVAL, "this is a WebSocket: ask with 'Connection: Upgrade' and 'Upgrade: websocket'");
    if (strcmp(header(exchange, "Sec-WebSocket-Version"), "13") != 0)
        return err_say(err, EINVAL, "Sec-WebSocket-Version must be 13");
    if (!websocket_accept(header(exchange, "Sec-WebSocket-Key"), accept))
        return err_say(err, EINVAL, "Sec-WebSocket-Key must be 16 bytes in base64");
    return 0;
}

static void upgrade_free(struct upgrade *upgrade)
{
    if (upgrade->answer.free_arg)
        upgrade->answer.free_arg(upgrade->answer.arg);
    websocket_free(upgrade->websocket);
    free(upgrade);
}

static void *serve(void *arg)
{
    struct upgrade *upgrade = arg;
    struct server *server = upgrade->server;
    upgrade->answer.websocket(upgrade->answer.arg, upgrade->websocket);
    websocket_close(upgrade->websocket, GOODBYE_MS);
    MHD_upgrade_action(upgrade->handle, MHD_UPGRADE_ACTION_CLOSE);
    upgrade_free(upgrade);
    pthread_mutex_lock(&server->lock);
    server->websockets--;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

static int start_thread(struct upgrade *upgrade)
{
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, SERVER_STACK);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_mutex_lock(&upgrade->server->lock);
    int r = pthread_create(&thread, &attr, serve, upgrade);
    upgrade->server->websockets += r == 0;
    pthread_mutex_unlock(&upgrade->server->lock);
    pthread_attr_destroy(&attr);
    return r;
}

static void on_upgrade(void *arg, struct MHD_Connection *connection, void *context, const char *early, size_t early_len,
                       MHD_socket fd, struct MHD_UpgradeResponseHandle *handle)
{
    struct upgrade *upgrade = arg;
    struct err err = {0};
    (void)connection;
    (void)context;
    upgrade->handle = handle;
    int r = websocket_create(fd, early, early_len, &upgrade->websocket, &err);
    if (r == 0 && start_thread(upgrade) == 0)
        return;
    log_warn("WebSocket: %s", r < 0 ? err.message : "no thread for it");
    MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
    upgrade_free(upgrade);
}

enum MHD_Result exchange_upgrade(struct exchange *exchange)
{
    char accept[32];
    struct upgrade *upgrade = calloc(1, sizeof *upgrade);
    struct MHD_Response *response = upgrade ? MHD_create_response_for_upgrade(on_upgrade, upgrade) : NULL;
    if (!response || !websocket_accept(header(exchange, "Sec-WebSocket-Key"), accept)) {
        free(upgrade);
        return MHD_NO;
    }
    upgrade->server = exchange->server;
    upgrade->answer = exchange->request.answer;
    MHD_add_response_header(response, "Upgrade", "websocket");
    MHD_add_response_header(response, "Sec-WebSocket-Accept", accept);
    enum MHD_Result queued = MHD_queue_response(exchange->connection, 101, response);
    exchange->upgraded = queued == MHD_YES;
    if (exchange->upgraded)
        exchange->request.answer = (struct answer){0};
    else
        free(upgrade);
    MHD_destroy_response(response);
    return queued;
}
