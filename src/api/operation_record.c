/* What is known of operations: kept, described, told. */
#include "api/operation_impl.h"

#include <errno.h>
#include <stdlib.h>

#include "api/events.h"
#include "api/timestamp.h"

#define KEEP 1000
#define KEEP_BYTES (4u << 20)
#define KEEP_S 3600

static const char *const state_names[] = {"queued", "running", "succeeded", "failed", "cancelled"};

void operation_free(struct operation *op)
{
    if (op->free_arg)
        op->free_arg(op->arg);
    free(op->result);
    free(op);
}

json_t *operation_result(const struct operation *op)
{
    return op->result ? json_loads(op->result, JSON_DECODE_ANY, NULL) : NULL;
}

static size_t size_of(const struct operation *op)
{
    return sizeof *op + (op->result ? strlen(op->result) : 0);
}

void operation_set_end(struct operation *op, enum operation_state state, json_t *result)
{
    op->state = state;
    op->operations->queued--;
    op->result = result ? json_dumps(result, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    op->operations->bytes += op->result ? strlen(op->result) : 0;
    json_decref(result);
    operation_publish(op, state_names[state]);
}

json_t *operation_describe(const struct operation *op)
{
    char created[TIMESTAMP_SIZE], ended[TIMESTAMP_SIZE];
    timestamp_format(created, op->created);
    timestamp_format(ended, op->ended);
    json_t *out = json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s}", "id", op->id, "kind", op->kind, "target", op->audit.target,
                            "state", state_names[op->state], "revision", (json_int_t)op->revision, "actor", op->audit.actor,
                            "created_at", created);
    if (op->what[0])
        json_object_set_new(out, "progress", json_pack("{s:s, s:I, s:I}", "what", op->what, "done", (json_int_t)op->done,
                                                       "total", (json_int_t)op->total));
    if (op->state == FAILED || op->state == CANCELLED) {
        json_t *error = error_document(status_of_error(op->err.code), &op->err);
        json_object_set(out, "error", json_object_get(error, "error"));
        json_decref(error);
    }
    if (op->result)
        json_object_set_new(out, "result", operation_result(op));
    if (operation_has_ended(op))
        json_object_set_new(out, "ended_at", json_string(ended));
    return out;
}

void operation_publish(struct operation *op, const char *action)
{
    op->revision++;
    json_t *document = operation_describe(op);
    events_publish(op->operations->events, "operation", op->id, action, document);
    json_decref(document);
    pthread_cond_broadcast(&op->operations->changed);
}

/* Forgets what ended long ago, and the oldest that ended when they are too many or take too much. */
static void forget(struct operations *operations)
{
    time_t limit = time(NULL) - KEEP_S;
    operations->last = NULL;
    for (struct operation **at = &operations->first; *at;) {
        struct operation *op = *at;
        if (operation_has_ended(op) && (op->ended.tv_sec < limit || operations->count > KEEP || operations->bytes > KEEP_BYTES)) {
            *at = op->next;
            operations->count--;
            operations->bytes -= size_of(op);
            operation_free(op);
            continue;
        }
        operations->last = op;
        at = &op->next;
    }
}

void operation_append(struct operations *operations, struct operation *op)
{
    forget(operations);
    *(operations->last ? &operations->last->next : &operations->first) = op;
    operations->last = op;
    operations->count++;
    operations->queued++;
    operations->bytes += size_of(op);
}

static struct operation *find(const struct operations *operations, const char *id)
{
    for (struct operation *op = operations->first; op; op = op->next)
        if (!strcmp(op->id, id))
            return op;
    return NULL;
}

struct timespec operation_after_ms(unsigned ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

/* ---- for clients ---- */

json_t *operations_list(struct operations *operations)
{
    json_t *list = json_array();
    pthread_mutex_lock(&operations->lock);
    forget(operations);
    for (const struct operation *op = operations->first; op; op = op->next)
        json_array_append_new(list, operation_describe(op));
    pthread_mutex_unlock(&operations->lock);
    return list;
}

static int no_such(const char *id, struct err *err)
{
    return err_say(err, ENOENT, "there is no operation '%s'; those that ended are kept for an hour", id);
}

int operations_get(struct operations *operations, const char *id, uint64_t revision, unsigned wait_ms, json_t **ret_document,
                   struct err *err)
{
    struct timespec until = operation_after_ms(wait_ms);
    pthread_mutex_lock(&operations->lock);
    struct operation *op = find(operations, id);
    while (op && !operation_has_ended(op) && op->revision <= revision && wait_ms && !operations->stopping) {
        if (pthread_cond_timedwait(&operations->changed, &operations->lock, &until) != 0)
            wait_ms = 0;
        op = find(operations, id);
    }
    int r = op ? 0 : no_such(id, err);
    if (op)
        *ret_document = operation_describe(op);
    pthread_mutex_unlock(&operations->lock);
    return r;
}

int operations_cancel(struct operations *operations, const char *id, json_t **ret_document, struct err *err)
{
    pthread_mutex_lock(&operations->lock);
    struct operation *op = find(operations, id);
    int r = op ? 0 : no_such(id, err);
    if (op) {
        atomic_store(&op->cancelled, true);
        *ret_document = operation_describe(op);
    }
    pthread_mutex_unlock(&operations->lock);
    return r;
}
