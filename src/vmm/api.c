/* The API without its socket: takes a request through route, parse, phase and handler, and makes the answer.
 *
 * api->lock is held from the phase check to the end of the handler, so that the phase cannot change in
 * between. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"

static int open_output(const char *path)
{
    int mode = fdname_parse(path) < 0 ? O_RDWR : O_WRONLY;
    /* O_RDWR: a named pipe without a reader opens too; O_NONBLOCK: a full one loses lines, and never stops
     * the machine. */
    int fd = fdname_open(path, mode | O_CREAT | O_APPEND | O_NONBLOCK, 0600);
    return fd < 0 ? -errno : fd;
}

int api_create(struct vm_config *config, const struct api_vm_ops *ops, void *arg, struct api **ret_api,
               struct err *err)
{
    struct api *api = calloc(1, sizeof *api);
    if (!api)
        return err_set(err, ENOMEM, "API");
    api->config = config;
    api->ops = ops;
    api->arg = arg;
    api->log_fd = -1;
    api->open_output = open_output;
    pthread_mutex_init(&api->lock, NULL);
    *ret_api = api;
    return 0;
}

void api_free(struct api *api)
{
    if (!api)
        return;
    api_server_stop(api->server);
    metrics_free(api->metrics);
    /* log_fd stays open: the program logs until it ends. */
    pthread_mutex_destroy(&api->lock);
    free(api);
}

/* ---- metrics ---- */

static const char *const metric_groups[] = {
    [API_GET] = "get_api_requests", [API_PUT] = "put_api_requests", [API_PATCH] = "patch_api_requests"};

/* Several operations may share a name in a group (hinting start and stop): their sum is one metric, at the
 * first of them. */
static void emit_operation(struct api *api, unsigned index, metrics_emit_fn *emit, void *emit_arg)
{
    const struct api_operation *operation = &api_operations[index];
    unsigned long long count = 0, fails = 0;
    for (unsigned i = 0; i < API_OPERATIONS; i++) {
        if (api_operations[i].method != operation->method ||
            strcmp(api_operations[i].metric, operation->metric))
            continue;
        if (i < index)
            return;
        count += atomic_load(&api->counters[i].count);
        fails += atomic_load(&api->counters[i].fails);
    }
    char name[64];
    snprintf(name, sizeof name, "%s_count", operation->metric);
    emit(emit_arg, METRICS_COUNTER, metric_groups[operation->method], name, count);
    snprintf(name, sizeof name, "%s_fails", operation->metric);
    emit(emit_arg, METRICS_COUNTER, metric_groups[operation->method], name, fails);
}

static void collect_metrics(void *arg, metrics_emit_fn *emit, void *emit_arg)
{
    struct api *api = arg;
    for (unsigned i = 0; i < API_OPERATIONS; i++)
        emit_operation(api, i, emit, emit_arg);
    emit(emit_arg, METRICS_COUNTER, "deprecated_api", "deprecated_http_api_calls",
         atomic_load(&api->deprecated_calls));
    if (api->ops->metrics)
        api->ops->metrics(api->arg, emit, emit_arg);
}

static int open_metrics_locked(struct api *api, const char *path, struct err *err)
{
    if (api->metrics)
        return err_say(err, EALREADY, "the metrics file is chosen already");
    int fd = api->open_output(path);
    if (fd < 0)
        return err_set(err, -fd, "metrics file '%s'", path);
    int ret = metrics_create(fd, collect_metrics, api, &api->metrics, err);
    if (ret < 0)
        return ret;
    ret = vm_config_set(&api->config->metrics_path, path, err);
    return ret;
}

int api_open_metrics(struct api *api, const char *path, struct err *err)
{
    pthread_mutex_lock(&api->lock);
    int ret = open_metrics_locked(api, path, err);
    pthread_mutex_unlock(&api->lock);
    return ret;
}

/* With the lock held by api_run. */
int api_put_metrics(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    int ret = open_metrics_locked(api, api_string(request->body, "metrics_path"), err);
    return ret < 0 ? err_ctx(err, "Metrics error") : 0;
}

static void emit_json(void *arg, enum metrics_kind kind, const char *group, const char *name, uint64_t value)
{
    json_t *root = arg, *object = json_object_get(root, group);
    (void)kind;
    if (!object)
        json_object_set_new(root, group, object = json_object());
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

int api_get_metrics(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)request;
    *ret_answer = json_object();
    if (!*ret_answer)
        return err_set(err, ENOMEM, "Metrics error");
    collect_metrics(api, emit_json, *ret_answer);
    return 0;
}

/* ---- requests ---- */

static int check_phase(const struct api *api, enum api_phase phase, struct err *err)
{
    bool started = api->ops->state(api->arg) != API_VM_NOT_STARTED;
    if (phase == API_BEFORE_START && started)
        return err_say(err, EBUSY, "The requested operation is not supported after starting the microVM.");
    if (phase == API_AFTER_START && !started)
        return err_say(err, EBUSY, "The requested operation is not supported before starting the microVM.");
    return 0;
}

/* The id that a request is about: the path's, which the body's must match, or without a path the body's own.
 */
static int settle_id(const struct api_operation *operation, const json_t *body, const char **id,
                     struct err *err)
{
    const char *brace = strchr(operation->path, '{');
    if (!brace) {
        *id = "";
        return 0;
    }
    char member[32];
    snprintf(member, sizeof member, "%.*s", (int)strcspn(brace + 1, "}"), brace + 1);
    const char *own = api_string(body, member);
    if (!*id) {
        *id = own ? own : "";
        return api_check_id(*id, strlen(*id), err);
    }
    if (own && strcmp(own, *id))
        return err_say(err, EINVAL, "The id from the path [%s] does not match the id from the body [%.64s]!",
                       *id, own);
    return 0;
}

static int run_locked(struct api *api, const struct api_request *request, json_t **ret_answer,
                      struct err *err)
{
    const struct api_operation *operation = request->operation;
    int ret = check_phase(api, operation->phase, err);
    if (ret < 0)
        return ret;
    if (!operation->handler)
        return err_say(err, ENOTSUP, "The requested operation is not supported: %s is not there yet.",
                       operation->text);
    return operation->handler(api, request, ret_answer, err);
}

int api_run(struct api *api, const struct api_operation *operation, const char *id, json_t *body,
            json_t **ret_answer, struct err *err)
{
    int ret = settle_id(operation, body, &id, err);
    if (ret < 0)
        return ret;
    struct api_request request = {.operation = operation, .id = id, .body = body};
    pthread_mutex_lock(&api->lock);
    ret = run_locked(api, &request, ret_answer, err);
    pthread_mutex_unlock(&api->lock);
    return ret;
}

#define BODY_ERROR "An error occurred when deserializing the json body of a request"

/* Parses and checks the body that the operation wants; *ret_body stays NULL when there may be none and is
 * none. */
static int parse_body(const struct api_operation *operation, const char *text, size_t len, bool *deprecated,
                      json_t **ret_body, struct err *err)
{
    if (!operation->body)
        return len ? err_say(err, EINVAL, "GET request cannot have a body.") : 0;
    if (!len)
        return operation->body_optional
                   ? 0
                   : err_say(err, EINVAL, "Empty %s request.", api_method_name(operation->method));
    json_error_t error;
    json_t *body = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!body)
        return err_say(err, EINVAL, BODY_ERROR ": %.100s at line %d column %d.", error.text, error.line,
                       error.column);
    *ret_body = body;
    int ret = api_check(operation->body, body, operation->partial, deprecated, err);
    return ret < 0 ? err_ctx(err, BODY_ERROR) : 0;
}

/* What runs an operation on bytes; `operation` is found by the caller for its counters. */
static int handle_operation(struct api *api, const struct api_operation *operation, const char *id,
                            const char *text, size_t len, bool *deprecated, json_t **ret_answer,
                            struct err *err)
{
    json_t *body = NULL;
    int ret = parse_body(operation, text, len, deprecated, &body, err);
    if (ret == 0)
        ret = api_run(api, operation, id, body, ret_answer, err);
    json_decref(body);
    struct api_counter *counter = &api->counters[operation - api_operations];
    atomic_fetch_add(&counter->count, 1);
    if (ret < 0)
        atomic_fetch_add(&counter->fails, 1);
    if (*deprecated)
        atomic_fetch_add(&api->deprecated_calls, 1);
    return ret;
}

/* Copies what a client sent, cut anywhere, fit for one line of log and for JSON: what is not plain ASCII
 * becomes '?'. */
static void copy_plain(char *to, size_t size, const char *from)
{
    size_t i = 0;
    for (; i + 1 < size && from[i]; i++) {
        unsigned char c = (unsigned char)from[i];
        to[i] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    to[i] = '\0';
}

static char *fault_body(const char *message)
{
    json_t *root = json_object();
    json_object_set_new(root, "fault_message", json_string(message));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static int handle(struct api *api, const char *method, const char *path, const char *body, size_t len,
                  struct api_response *response, json_t **ret_answer, struct err *err)
{
    const struct api_operation *operation;
    char id[API_ID_MAX + 1];
    if (len > API_BODY_MAX)
        return err_say(err, EFBIG,
                       "Request payload with size %zu is larger than the limit of %d allowed by server.", len,
                       API_BODY_MAX);
    int ret = api_route(method, path, &operation, id, err);
    if (ret < 0)
        return ret;
    return handle_operation(api, operation, id, body, len, &response->deprecated, ret_answer, err);
}

void api_handle(struct api *api, const char *method, const char *path, const char *body, size_t len,
                struct api_response *ret_response)
{
    struct err err = {0};
    json_t *answer = NULL;
    char shown_method[16], shown_path[80], message[ERR_MESSAGE_SIZE];
    *ret_response = (struct api_response){0};
    int ret = handle(api, method, path, body, len, ret_response, &answer, &err);
    copy_plain(shown_method, sizeof shown_method, method);
    copy_plain(shown_path, sizeof shown_path, path);
    copy_plain(message, sizeof message, err.message);
    if (ret < 0) {
        ret_response->status = len > API_BODY_MAX ? 413 : 400;
        ret_response->body = fault_body(message);
    } else if (answer) {
        ret_response->status = 200;
        ret_response->body = json_dumps(answer, JSON_COMPACT);
    } else {
        ret_response->status = 204;
    }
    json_decref(answer);
    log_info("API: %s %s: %d%s%s", shown_method, shown_path, ret_response->status, ret < 0 ? ": " : "",
             ret < 0 ? message : "");
}
