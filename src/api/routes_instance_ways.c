/* Ways into an instance: attach, exec and console by WebSocket, logs, files. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/relay.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/transfer.h"
#include "api/work.h"
#include "base/own.h"

#define FIRST_MESSAGE_MS 30000
#define FRAME_MS 60000

/* ---- WebSockets: the instance is looked up before, what fails later is {"error": ...} and the end ---- */

struct way {
    struct platform *platform;
    char name[ROUTE_PARAM_MAX];
    bool use_stdin, history;
};

static void refuse(struct websocket *websocket, const struct err *err)
{
    websocket_send_control(websocket, error_document(status_of_error(err->code), err));
}

/* Whoever types into an instance changes it. */
static int note(const struct request *request, const char *action, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, action, "instances/%s", request->params[0]);
    return store_commit(request->platform->store, NULL, 0, &audit.audit, NULL, err);
}

static int begin_way(struct request *request, const char *action, websocket_fn *fn, struct err *err)
{
    json_t *instance;
    int r = instance_get(request->platform->instances, request->params[0], &instance, err);
    if (r < 0)
        return r;
    json_decref(instance);
    r = note(request, action, err);
    struct way *way = r < 0 ? NULL : calloc(1, sizeof *way);
    if (!way)
        return r < 0 ? r : err_set(err, ENOMEM, "session");
    way->platform = request->platform;
    memcpy(way->name, request->params[0], sizeof way->name);
    way->use_stdin = request_flag(request, "stdin");
    way->history = request_flag(request, "history");
    return request_reply_websocket(request, fn, way, free);
}

static void serve_attach(void *arg, struct websocket *websocket)
{
    const struct way *way = arg;
    struct agent_session *session = NULL;
    struct err err = {0};
    if (instance_attach(way->platform->instances, way->name, way->use_stdin, way->history, &session, &err) < 0)
        refuse(websocket, &err);
    else
        relay_session(way->platform, websocket, session);
    agent_close(session);
}

static int attach_instance(struct request *request, struct err *err)
{
    return begin_way(request, "instance.attach", serve_attach, err);
}

static const struct schema_field exec_fields[] = {
    {.name = "args", .text = "The command.", .type = SCHEMA_LIST, .required = true},
    {.name = "env", .text = "Added to the main process's.", .type = SCHEMA_LIST, .format = SCHEMA_ENV},
    {.name = "user", .text = "The main process's, if left out.", .type = SCHEMA_STRING, .max = 255},
    {.name = "workdir", .text = "The main process's, if left out.", .type = SCHEMA_STRING},
    {.name = "tty", .text = "It gets a terminal.", .type = SCHEMA_BOOL},
    {.name = "stdin", .text = "It gets input; true, if left out.", .type = SCHEMA_BOOL},
    {.name = "rows", .text = "Of the terminal.", .type = SCHEMA_INTEGER, .min = 1, .max = 9999},
    {.name = "cols", .text = "Of the terminal.", .type = SCHEMA_INTEGER, .min = 1, .max = 9999},
    {0},
};
static const struct schema exec_schema = {"Exec", "First message of exec, on stream 3.", exec_fields, false};

/* As the agent calls it. */
static json_t *agent_request_of(json_t *message)
{
    json_t *workdir = json_object_get(message, "workdir");
    if (workdir)
        json_object_set(message, "cwd", workdir);
    json_object_del(message, "workdir");
    if (!json_object_get(message, "stdin"))
        json_object_set_new(message, "stdin", json_true());
    return message;
}

static void serve_exec(void *arg, struct websocket *websocket)
{
    const struct way *way = arg;
    struct agent_session *session = NULL;
    struct err err = {0};
    json_t *message = relay_first_message(way->platform, websocket, FIRST_MESSAGE_MS);
    int r = message ? schema_check(&exec_schema, message, &err)
                    : err_say(&err, EINVAL, "the first message must be JSON on stream 3: {\"args\": [...], ...}");
    if (r == 0)
        r = instance_exec(way->platform->instances, way->name, agent_request_of(message), &session, &err);
    json_decref(message);
    if (r < 0)
        refuse(websocket, &err);
    else
        relay_session(way->platform, websocket, session);
    agent_close(session);
}

static int exec_instance(struct request *request, struct err *err)
{
    return begin_way(request, "instance.exec", serve_exec, err);
}

static void serve_console(void *arg, struct websocket *websocket)
{
    const struct way *way = arg;
    own_fd int fd = -1;
    struct err err = {0};
    if (instance_console(way->platform->instances, way->name, &fd, &err) < 0)
        refuse(websocket, &err);
    else
        relay_bytes(way->platform, websocket, fd);
}

static int open_console(struct request *request, struct err *err)
{
    return begin_way(request, "instance.console", serve_console, err);
}

/* ---- logs ---- */

struct log_stream {
    struct platform *platform;
    int peer_fd;
    struct instance_log *log;
};

static void log_stream_free(void *arg)
{
    struct log_stream *stream = arg;
    instance_log_close(stream->log);
    free(stream);
}

static ssize_t log_next(void *arg, char *buffer, size_t size)
{
    struct log_stream *stream = arg;
    ssize_t n;
    do
        n = instance_log_read(stream->log, buffer, size, 1000);
    while (n == -EAGAIN && !request_is_over(stream->platform, stream->peer_fd));
    return n == -EAGAIN ? 0 : n < 0 ? -1 : n;
}

static enum instance_log_source log_source(const char *text)
{
    if (text && !strcmp(text, "boot"))
        return INSTANCE_LOG_BOOT;
    return text && !strcmp(text, "vmm") ? INSTANCE_LOG_VMM : INSTANCE_LOG_MAIN;
}

static int get_logs(struct request *request, struct err *err)
{
    struct log_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return err_set(err, ENOMEM, "log");
    stream->platform = request->platform;
    stream->peer_fd = request->peer_fd;
    int r = instance_log_open(request->platform->instances, request->params[0], log_source(request_text(request, "source")),
                              request_integer(request, "tail", -1), request_flag(request, "follow"), &stream->log, err);
    if (r == 0)
        return request_reply_stream(request, log_next, stream, log_stream_free);
    free(stream);
    return r;
}

/* ---- files ---- */

static int send_files(const struct transfer *transfer, int fd, struct err *err)
{
    struct agent_session *session = NULL;
    int r = instance_files_get(transfer->platform->instances, transfer->name, transfer->detail, &session, err);
    if (r < 0)
        return r;
    r = agent_copy_out(session, fd, UINT64_MAX, FRAME_MS, err);
    agent_close(session);
    return r;
}

static int get_files(struct request *request, struct err *err)
{
    int r = note(request, "instance.files-get", err);
    return r < 0 ? r : request_reply_transfer(request, send_files, request->params[0], request_text(request, "path"), err);
}

static int put_files(struct request *request, struct err *err)
{
    struct agent_session *session = NULL;
    int r = note(request, "instance.files-put", err);
    if (r == 0)
        r = instance_files_put(request->platform->instances, request->params[0], request_text(request, "path"), &session, err);
    if (r < 0)
        return r;
    r = agent_copy_in(session, request->body_fd, FRAME_MS, err);
    agent_close(session);
    return r;
}

/* ---- the table ---- */

static const struct schema_field attach_query[] = {
    {.name = "stdin", .text = "The client's input goes to the main process.", .type = SCHEMA_BOOL},
    {.name = "history", .text = "First what it has printed so far.", .type = SCHEMA_BOOL},
    {.name = "tty", .text = "Ignored: the instance's own setting counts.", .type = SCHEMA_BOOL},
    {0},
};
static const struct schema_field logs_query[] = {
    {.name = "tail", .text = "Only the last lines.", .type = SCHEMA_INTEGER, .max = 1000000},
    {.name = "follow", .text = "Waits for more until the instance ends.", .type = SCHEMA_BOOL},
    {.name = "source", .text = "main if left out.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"main", "boot", "vmm", NULL}},
    {0},
};
static const struct schema_field path_query[] = {
    {.name = "path", .text = "In the instance.", .type = SCHEMA_STRING, .format = SCHEMA_PATH, .required = true, .max = 4000},
    {0},
};

const struct route routes_instance_ways[] = {
    {.method = "GET", .path = "/v1/instances/{name}/attach", .role = ROLE_OPERATOR, .handler = attach_instance,
     .query = attach_query, .answer = ANSWER_WEBSOCKET, .text = "Input and output of the main process."},
    {.method = "GET", .path = "/v1/instances/{name}/exec", .role = ROLE_OPERATOR, .handler = exec_instance,
     .answer = ANSWER_WEBSOCKET, .text = "A command in the instance; the first message says which."},
    {.method = "GET", .path = "/v1/instances/{name}/console", .role = ROLE_OPERATOR, .handler = open_console,
     .answer = ANSWER_WEBSOCKET, .text = "The serial console."},
    {.method = "GET", .path = "/v1/instances/{name}/logs", .role = ROLE_VIEWER, .handler = get_logs, .query = logs_query,
     .answer = ANSWER_STREAM, .media = "text/plain; charset=utf-8", .text = "What it has printed."},
    {.method = "GET", .path = "/v1/instances/{name}/files", .role = ROLE_OPERATOR, .handler = get_files,
     .query = path_query, .answer = ANSWER_STREAM, .media = "application/x-tar", .text = "A file or folder as tar."},
    {.method = "PUT", .path = "/v1/instances/{name}/files", .role = ROLE_OPERATOR, .handler = put_files,
     .query = path_query, .body = BODY_STREAM, .answer = ANSWER_NOTHING, .text = "Unpacks a tar into a folder."},
    {0},
};
