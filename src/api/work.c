#include "api/work.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void work_free(void *arg)
{
    struct work *work = arg;
    json_decref(work->query);
    json_decref(work->body);
    free(work);
}

int work_begin(struct request *request, const char *kind, operation_fn *fn, struct err *err, const char *target, ...)
{
    char where[160];
    va_list args;
    va_start(args, target);
    vsnprintf(where, sizeof where, target, args);
    va_end(args);
    struct work *work = calloc(1, sizeof *work);
    if (!work)
        return err_set(err, ENOMEM, "operation");
    work->platform = request->platform;
    memcpy(work->params, request->params, sizeof work->params);
    work->query = json_incref(request->query);
    work->body = json_incref(request->body);
    return request_reply_operation(request, kind, fn, work, work_free, err, "%s", where);
}

const char *work_member(const struct work *work, const char *name)
{
    return json_string_value(json_object_get(work->body, name));
}

bool work_flag(const struct work *work, const char *name)
{
    return json_is_true(json_object_get(work->body, name));
}

int64_t work_integer(const struct work *work, const char *name, int64_t otherwise)
{
    const json_t *value = json_object_get(work->body, name);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static void report(void *operation, const char *what, uint64_t done, uint64_t total)
{
    operation_progress(operation, what, done, total);
}

static bool cancelled(void *operation)
{
    return operation_cancelled(operation);
}

struct image_progress work_image_progress(struct operation *operation)
{
    return (struct image_progress){.report = report, .cancelled = cancelled, .context = operation};
}

struct instance_call work_call(struct operation *operation)
{
    const struct store_audit *audit = operation_audit(operation);
    return (struct instance_call){.actor = audit->actor, .origin = audit->origin, .progress = report, .cancelled = cancelled,
                                  .arg = operation};
}

static bool is_over(void *request)
{
    const struct request *r = request;
    return request_is_over(r->platform, r->peer_fd);
}

struct instance_call request_call(const struct request *request)
{
    return (struct instance_call){.actor = request->actor.name, .origin = request->actor.origin, .cancelled = is_over,
                                  .arg = (void *)(uintptr_t)request};
}
