/* A request's way from libmicrohttpd's callbacks to its handler: who, which route, parameters, body.
 *
 * The first callback decides all that needs no body. What is refused is answered when the body has come, so that the client
 * reads the answer; except where that would be long. */
#include "api/server_impl.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/metrics.h"

void connection_expect_bytes(struct MHD_Connection *connection, bool expect)
{
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, expect ? (unsigned)SERVER_STALL_S : 0u);
}

/* ---- parameters ---- */

static enum MHD_Result add_query(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size, const char *value,
                                 size_t value_size)
{
    struct exchange *exchange = arg;
    (void)kind;
    if (strlen(name) != name_size || (value && strlen(value) != value_size))
        err_say(&exchange->err, EINVAL, "parameter with a NUL in it");
    else if (request_add_query(&exchange->request, name, value ? value : "", &exchange->err) == 0)
        return MHD_YES;
    return MHD_NO;
}

static int take_query(struct exchange *exchange)
{
    MHD_get_connection_values_n(exchange->connection, MHD_GET_ARGUMENT_KIND, add_query, exchange);
    return exchange->err.code ? -exchange->err.code : request_check_query(&exchange->request, &exchange->err);
}

/* ---- the first callback ---- */

static int refuse(struct exchange *exchange, unsigned status)
{
    exchange->status = status;
    return -1;
}

static int find_route(struct exchange *exchange, const char *method, const char *url)
{
    int r = route_find(method, url, &exchange->request.route, exchange->request.params, exchange->allow, &exchange->err);
    if (r < 0)
        return refuse(exchange, r == -ENOTSUP ? 405 : r == -ENOENT ? 404 : 400);
    return 0;
}

static int authorize(struct exchange *exchange)
{
    const struct request *request = &exchange->request;
    if (exchange_check_origin(exchange, &exchange->err) < 0)
        return refuse(exchange, 403);
    if (request->actor.role >= request->route->role)
        return 0;
    err_say(&exchange->err, EACCES, "%s is %s; this needs the role %s", request->actor.name, role_name(request->actor.role),
            role_name(request->route->role));
    return refuse(exchange, 403);
}

static bool too_long(struct exchange *exchange)
{
    const char *length = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, "Content-Length");
    return length && strtoull(length, NULL, 10) > SERVER_BODY_MAX;
}

static int too_large(struct exchange *exchange)
{
    err_say(&exchange->err, E2BIG, "the body is larger than %u bytes", SERVER_BODY_MAX);
    return refuse(exchange, 413);
}

static int check_head(struct exchange *exchange, const char *method, const char *url)
{
    if (exchange_authenticate(exchange, &exchange->err) < 0)
        return refuse(exchange, exchange->err.code != EACCES ? 503 : exchange->peer && exchange->peer->tls ? 401 : 403);
    if (find_route(exchange, method, url) < 0 || authorize(exchange) < 0)
        return -1;
    if (take_query(exchange) < 0)
        return refuse(exchange, 400);
    const struct route *route = exchange->request.route;
    if (route->answer == ANSWER_WEBSOCKET && exchange_check_upgrade(exchange, &exchange->err) < 0)
        return refuse(exchange, 400);
    return route->body != BODY_STREAM && too_long(exchange) ? too_large(exchange) : 0;
}

/* ---- bodies of any length: the handler reads one end of a socket pair while the body comes ---- */

static void *handle_stream(void *arg)
{
    struct exchange *exchange = arg;
    exchange->result = exchange->request.route->handler(&exchange->request, &exchange->err);
    close(exchange->request.body_fd); /* what still comes has no reader */
    exchange->request.body_fd = -1;
    return NULL;
}

/* The byte that waits at the client's end makes a close without shutdown an error for the handler, not an end. */
static int begin_stream(struct exchange *exchange)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        err_set(&exchange->err, errno, "socket pair");
        return refuse(exchange, 503);
    }
    exchange->request.body_fd = pair[0];
    exchange->body_fd = pair[1];
    int r = send(pair[0], "", 1, MSG_NOSIGNAL) == 1 ? pthread_create(&exchange->handler, NULL, handle_stream, exchange) : EIO;
    if (r != 0) {
        err_set(&exchange->err, r, "thread");
        return refuse(exchange, 503);
    }
    exchange->running = true;
    return 0;
}

/* What the handler does not want any more is dropped: the client reads the answer behind its body. */
static void feed_stream(struct exchange *exchange, const char *data, size_t size)
{
    connection_expect_bytes(exchange->connection, false);
    while (size && exchange->body_fd >= 0) {
        ssize_t n = send(exchange->body_fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            close(exchange->body_fd);
            exchange->body_fd = -1;
        }
        data += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    connection_expect_bytes(exchange->connection, true);
}

static void end_stream(struct exchange *exchange, bool whole)
{
    if (whole && exchange->body_fd >= 0)
        shutdown(exchange->body_fd, SHUT_WR);
    else if (exchange->body_fd >= 0)
        close(exchange->body_fd);
    if (!whole)
        exchange->body_fd = -1;
    if (exchange->running)
        pthread_join(exchange->handler, NULL);
    exchange->running = false;
    if (exchange->body_fd >= 0)
        close(exchange->body_fd);
    exchange->body_fd = -1;
}

/* ---- JSON bodies ---- */

static void append_body(struct exchange *exchange, const char *data, size_t size)
{
    if (exchange->status)
        return;
    if (exchange->len + size > SERVER_BODY_MAX) {
        too_large(exchange);
        return;
    }
    if (exchange->len + size > exchange->size) {
        size_t wanted = (exchange->len + size) * 2;
        char *grown = realloc(exchange->body, wanted);
        if (!grown) {
            err_set(&exchange->err, ENOMEM, "body");
            refuse(exchange, 503);
            return;
        }
        exchange->body = grown;
        exchange->size = wanted;
    }
    memcpy(exchange->body + exchange->len, data, size);
    exchange->len += size;
}

/* ---- callbacks ---- */

static void note_failure(struct exchange *exchange, int r)
{
    if (r >= 0)
        return;
    if (!exchange->err.code)
        err_set(&exchange->err, -r, "request");
    exchange->status = status_of_error(r);
}

static void handle(struct exchange *exchange)
{
    struct request *request = &exchange->request;
    if (request_set_body(request, exchange->body, exchange->len, &exchange->err) < 0) {
        refuse(exchange, 400);
        return;
    }
    note_failure(exchange, request->route->handler(request, &exchange->err));
}

static enum MHD_Result finish(struct exchange *exchange)
{
    peer_set_deadline(exchange->server, exchange->peer, 0);
    connection_expect_bytes(exchange->connection, false);
    if (exchange->running) {
        end_stream(exchange, true);
        note_failure(exchange, exchange->result);
    } else if (!exchange->status) {
        handle(exchange);
    }
    connection_expect_bytes(exchange->connection, true);
    return exchange_answer(exchange);
}

static enum MHD_Result begin(struct server *server, struct MHD_Connection *connection, const char *url, const char *method,
                             void **context)
{
    struct exchange *exchange = calloc(1, sizeof *exchange);
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (!exchange)
        return MHD_NO;
    *exchange = (struct exchange){.server = server, .connection = connection, .peer = info ? info->socket_context : NULL,
                                  .body_fd = -1,
                                  .request = {.platform = server->config.platform, .body_fd = -1, .peer_fd = -1}};
    if (exchange->peer)
        exchange->request.peer_fd = exchange->peer->fd;
    *context = exchange;
    bool stream = check_head(exchange, method, url) == 0 && exchange->request.route->body == BODY_STREAM;
    peer_set_deadline(server, exchange->peer, stream ? 0 : SERVER_BODY_S);
    if (stream)
        begin_stream(exchange);
    bool long_body = (exchange->request.route && exchange->request.route->body == BODY_STREAM) || too_long(exchange);
    return exchange->status && long_body ? finish(exchange) : MHD_YES;
}

enum MHD_Result server_on_request(void *arg, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *data_size, void **context)
{
    struct exchange *exchange = *context;
    (void)version;
    if (!exchange)
        return begin(arg, connection, url, method, context);
    if (!*data_size)
        return finish(exchange);
    if (exchange->running)
        feed_stream(exchange, data, *data_size);
    else
        append_body(exchange, data, *data_size);
    *data_size = 0;
    return MHD_YES;
}

void server_on_completed(void *arg, struct MHD_Connection *connection, void **context, enum MHD_RequestTerminationCode code)
{
    struct exchange *exchange = *context;
    (void)connection;
    (void)code;
    if (!exchange)
        return;
    end_stream(exchange, false);
    peer_set_deadline(arg, exchange->peer, exchange->upgraded ? 0 : SERVER_HEAD_S);
    request_clear(&exchange->request);
    free(exchange->body);
    free(exchange);
    *context = NULL;
}
