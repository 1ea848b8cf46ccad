/* Requests: what they carry is checked here, before any handler sees it. */
#include "api/request.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool request_flag(const struct request *request, const char *parameter)
{
    return json_is_true(json_object_get(request->query, parameter));
}

int64_t request_integer(const struct request *request, const char *parameter, int64_t otherwise)
{
    const json_t *value = json_object_get(request->query, parameter);
    return value ? json_integer_value(value) : otherwise;
}

const char *request_text(const struct request *request, const char *parameter)
{
    return json_string_value(json_object_get(request->query, parameter));
}

const char *request_member(const struct request *request, const char *name)
{
    return json_string_value(json_object_get(request->body, name));
}

void request_audit(const struct request *request, struct request_audit *ret_audit, const char *action, const char *target, ...)
{
    va_list args;
    va_start(args, target);
    vsnprintf(ret_audit->target, sizeof ret_audit->target, target, args);
    va_end(args);
    snprintf(ret_audit->actor, sizeof ret_audit->actor, "%s", request->actor.name);
    snprintf(ret_audit->origin, sizeof ret_audit->origin, "%s", request->actor.origin);
    snprintf(ret_audit->action, sizeof ret_audit->action, "%s", action);
    ret_audit->audit = (struct store_audit){.actor = ret_audit->actor, .origin = ret_audit->origin,
                                            .action = ret_audit->action, .target = ret_audit->target};
}

bool request_is_over(const struct platform *platform, int peer_fd)
{
    struct pollfd peer = {.fd = peer_fd, .events = POLLRDHUP};
    return platform_stopping(platform) || (poll(&peer, 1, 0) > 0 && (peer.revents & (POLLRDHUP | POLLHUP | POLLERR)));
}

/* ---- answers ---- */

int request_reply(struct request *request, json_t *document)
{
    request->answer.json = document;
    return document ? 0 : -ENOMEM;
}

int request_reply_text(struct request *request, const char *media, char *text)
{
    request->answer.media = media;
    request->answer.text = text;
    return text ? 0 : -ENOMEM;
}

int request_reply_stream(struct request *request, stream_fn *stream, void *arg, void (*free_arg)(void *arg))
{
    request->answer.media = request->route->media;
    request->answer.stream = stream;
    request->answer.arg = arg;
    request->answer.free_arg = free_arg;
    return 0;
}

int request_reply_websocket(struct request *request, websocket_fn *fn, void *arg, void (*free_arg)(void *arg))
{
    request->answer.websocket = fn;
    request->answer.arg = arg;
    request->answer.free_arg = free_arg;
    return 0;
}

void request_clear(struct request *request)
{
    struct answer *answer = &request->answer;
    json_decref(request->query);
    json_decref(request->body);
    json_decref(answer->json);
    free(answer->text);
    if (answer->free_arg)
        answer->free_arg(answer->arg);
    if (request->body_fd >= 0)
        close(request->body_fd);
    *request = (struct request){.body_fd = -1, .peer_fd = -1};
}

/* ---- the client's bytes ---- */

int request_add_query(struct request *request, const char *name, const char *value, struct err *err)
{
    const struct schema_field *field = schema_find(request->route->query, name);
    json_t *parsed;
    if (!field)
        return err_say(err, EINVAL, "unknown parameter '%.64s', see /v1/openapi.json", name);
    if (json_object_get(request->query, name))
        return err_say(err, EINVAL, "parameter '%s' is there twice", name);
    int r = schema_parse(field, value, &parsed, err);
    if (r < 0)
        return err_ctx(err, "parameter");
    if (!request->query)
        request->query = json_object();
    return json_object_set_new(request->query, name, parsed) == 0 ? 0 : err_set(err, ENOMEM, "parameters");
}

int request_check_query(const struct request *request, struct err *err)
{
    for (const struct schema_field *f = request->route->query; f && f->name; f++)
        if (f->required && !json_object_get(request->query, f->name))
            return err_say(err, EINVAL, "parameter '%s' is missing", f->name);
    return 0;
}

int request_set_body(struct request *request, const char *text, size_t len, struct err *err)
{
    json_error_t error;
    const struct route *route = request->route;
    if (!len && route->body != BODY_JSON)
        return 0;
    if (!len)
        return err_say(err, EINVAL, "a body is missing: a JSON object (%s), see /v1/openapi.json", route->schema->name);
    if (route->body == BODY_NONE)
        return err_say(err, EINVAL, "%s %s takes no body", route->method, route->path);
    request->body = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!request->body)
        return err_say(err, EINVAL, "body is not JSON: %.120s (line %d, column %d)", error.text, error.line, error.column);
    return schema_check(route->schema, request->body, err);
}

/* ---- errors ---- */

unsigned status_of_error(int error)
{
    switch (error < 0 ? -error : error) {
    case ENOENT:
        return 404;
    case EEXIST:
    case EBUSY:
    case EAGAIN:
    case ESTALE:
        return 409;
    case EINVAL:
    case ERANGE:
    case ENAMETOOLONG:
    case E2BIG:
    case EFBIG:
    case EBADMSG:
    case EILSEQ:
        return 400;
    case EACCES:
    case EPERM:
        return 403;
    case ENOTSUP:
    case ENOSYS:
    case ETIMEDOUT:
    case ENOSPC:
    case EDQUOT:
    case ECANCELED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EPROTO:
    case EREMOTEIO:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EIO: /* a program of the host has failed */
        return 503;
    default:
        return 500;
    }
}

const char *code_of_status(unsigned status)
{
    switch (status) {
    case 404:
        return "not_found";
    case 409:
        return "conflict";
    case 401:
    case 403:
        return "denied";
    case 500:
        return "internal";
    case 503:
        return "unavailable";
    default:
        return "invalid";
    }
}

json_t *error_document(unsigned status, const struct err *err)
{
    json_t *text = json_string(err->message);
    if (!text)
        text = json_string("the reason is not UTF-8, see polderd's log");
    json_t *error = json_pack("{s:s, s:o}", "code", code_of_status(status), "message", text);
    if (error && err->exit_code)
        json_object_set_new(error, "exit_code", json_integer(err->exit_code));
    return json_pack("{s:o}", "error", error);
}
