/* The API's HTTP server: libmicrohttpd on a unix socket, with one thread of its own for all connections.
 *
 * Bounds: API_CONNECTIONS connections, each with CONNECTION_MEMORY for headers and at most one body of
 * API_BODY_MAX bytes. A connection that says nothing for IDLE_S seconds is closed. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/library.h"
#include "base/log.h"
#include "base/own.h"

/* Loaded when there is an API: it brings nine libraries, three quarters of the time that the program takes to start. */
#define MICROHTTPD_FUNCTIONS(X) \
    X(MHD_add_response_header) X(MHD_create_response_from_buffer) X(MHD_destroy_response) X(MHD_lookup_connection_value) \
    X(MHD_queue_response) X(MHD_start_daemon) X(MHD_stop_daemon)

static struct {
    MICROHTTPD_FUNCTIONS(LIBRARY_MEMBER)
} mhd;

static struct library microhttpd = {
    .file = "libmicrohttpd.so.12",
    .package = "libmicrohttpd12",
    .needed_for = "the API",
    .functions = (const char *const[]){MICROHTTPD_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &mhd,
};

#define API_CONNECTIONS 16u
#define CONNECTION_MEMORY ((size_t)16 << 10)
#define IDLE_S 120u

struct api_server {
    struct MHD_Daemon *httpd;
    char *path;
};

int api_library_load(struct err *err)
{
    return library_load(&microhttpd, err);
}

/* A request's body as it comes in. */
struct upload {
    size_t len;
    char body[API_BODY_MAX];
};

static enum MHD_Result send_response(struct MHD_Connection *connection, const struct api_response *response)
{
    size_t len = response->body ? strlen(response->body) : 0;
    struct MHD_Response *reply = mhd.MHD_create_response_from_buffer(len, response->body, MHD_RESPMEM_MUST_FREE);
    if (!reply) {
        free(response->body);
        return MHD_NO;
    }
    mhd.MHD_add_response_header(reply, MHD_HTTP_HEADER_SERVER, "Polder API");
    if (len)
        mhd.MHD_add_response_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    if (response->deprecated)
        mhd.MHD_add_response_header(reply, "Deprecation", "true");
    enum MHD_Result ret = mhd.MHD_queue_response(connection, (unsigned)response->status, reply);
    mhd.MHD_destroy_response(reply);
    return ret;
}

/* The answer to a body beyond the limit, before any of it is read; libmicrohttpd then closes the connection.
 */
static enum MHD_Result refuse_large(struct api *api, struct MHD_Connection *connection, const char *method,
                                    const char *url, size_t announced)
{
    struct api_response response;
    api_handle(api, method, url, NULL, announced, &response);
    return send_response(connection, &response);
}

/* First call for a request: headers only. */
static enum MHD_Result begin_upload(struct api *api, struct MHD_Connection *connection, const char *method,
                                    const char *url, void **request)
{
    const char *length =
        mhd.MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    unsigned long long announced = length ? strtoull(length, NULL, 10) : 0;
    if (announced > API_BODY_MAX)
        return refuse_large(api, connection, method, url, (size_t)announced);
    struct upload *upload = malloc(sizeof *upload);
    if (!upload)
        return MHD_NO;
    upload->len = 0;
    *request = upload;
    return MHD_YES;
}

/* libmicrohttpd calls once with the headers, then with each piece of body, then with none left. */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data, size_t *data_len,
                                  void **request)
{
    (void)version;
    struct api *api = arg;
    struct upload *upload = *request;
    if (!upload)
        return begin_upload(api, connection, method, url, request);
    if (*data_len) {
        /* Only a body of unannounced length can come here too long: nobody knows its end, so the connection
         * ends. */
        if (*data_len > sizeof upload->body - upload->len)
            return MHD_NO;
        memcpy(upload->body + upload->len, data, *data_len);
        upload->len += *data_len;
        *data_len = 0;
        return MHD_YES;
    }
    struct api_response response;
    api_handle(api, method, url, upload->body, upload->len, &response);
    return send_response(connection, &response);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **request,
                         enum MHD_RequestTerminationCode why)
{
    (void)arg;
    (void)connection;
    (void)why;
    free(*request);
    *request = NULL;
}

/* Starts the HTTP thread with all signals blocked: they are for the program's own threads. */
static struct MHD_Daemon *daemon_start(struct api *api, int listen_fd)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    struct MHD_Daemon *httpd =
        mhd.MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD, 0, NULL, NULL, on_request, api,
                         MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL,
                         MHD_OPTION_CONNECTION_LIMIT, API_CONNECTIONS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                         CONNECTION_MEMORY, MHD_OPTION_CONNECTION_TIMEOUT, IDLE_S, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return httpd;
}

int api_listen(struct api *api, const char *path, struct err *err)
{
    own_free struct api_server *server = calloc(1, sizeof *server);
    own_free char *copy = strdup(path);
    int fd = -1;
    if (!server || !copy)
        return err_set(err, ENOMEM, "API");
    int ret = api_library_load(err);
    if (ret == 0)
        ret = fdname_listen(path, "API", (int)API_CONNECTIONS, &fd, err);
    if (ret < 0)
        return ret;
    /* From here on the socket is libmicrohttpd's, which closes it. */
    server->httpd = daemon_start(api, fd);
    if (!server->httpd) {
        if (fdname_parse(path) < 0)
            unlink(path);
        return err_say(err, EIO, "API socket '%s': the HTTP server does not start", path);
    }
    if (fdname_parse(path) < 0)
        server->path = TAKE(copy);
    api->server = TAKE(server);
    return 0;
}

void api_server_stop(struct api_server *server)
{
    if (!server)
        return;
    mhd.MHD_stop_daemon(server->httpd);
    if (server->path)
        unlink(server->path);
    free(server->path);
    free(server);
}
