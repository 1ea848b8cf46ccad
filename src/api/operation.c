/* Operations and the threads that run them. One lock covers all; what an operation does runs without it.
 *
 * Threads are made as work comes, at most WORKERS, and end when they had none for a while. */
#include "api/operation.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/timestamp.h"
#include "base/log.h"

#define WORKERS 16
#define QUEUE_MAX 256
#define KEEP 1000
#define KEEP_S 3600
#define IDLE_S 10
#define WORKER_STACK (512u << 10)
#define PROGRESS_GAP_NS INT64_C(100000000)

enum operation_state { QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED };
static const char *const state_names[] = {"queued", "running", "succeeded", "failed", "cancelled"};

struct operation {
    struct operations *operations;
    struct operation *next; /* older first */
    char id[17], kind[32];
    struct request_audit audit;
    enum operation_state state;
    uint64_t revision; /* how often it has changed */
    atomic_bool cancelled;
    char what[160];
    uint64_t done, total;
    struct timespec created, ended, published;
    struct err err;
    json_t *result;
    operation_fn *run;
    void *arg;
    void (*free_arg)(void *arg);
};

struct operations {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* work came, or an operation changed */
    struct operation *first, *last;
    unsigned count, queued, workers, idle;
    unsigned in_requests; /* run by the threads of requests that wait for them */
    bool stopping;
    struct events *events;
    struct metrics *metrics;
};

static int64_t elapsed_ns(struct timespec from, struct timespec to)
{
    return (int64_t)(to.tv_sec - from.tv_sec) * 1000000000 + (to.tv_nsec - from.tv_nsec);
}

static struct timespec now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t;
}

int operations_create(struct events *events, struct metrics *metrics, struct operations **ret_operations, struct err *err)
{
    struct operations *operations = calloc(1, sizeof *operations);
    if (!operations)
        return err_set(err, ENOMEM, "operations");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&operations->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&operations->lock, NULL);
    operations->events = events;
    operations->metrics = metrics;
    *ret_operations = operations;
    return 0;
}

static void operation_free(struct operation *op)
{
    if (op->free_arg)
        op->free_arg(op->arg);
    json_decref(op->result);
    free(op);
}

void operations_free(struct operations *operations)
{
    if (!operations)
        return;
    for (struct operation *op = operations->first, *next; op; op = next) {
        next = op->next;
        operation_free(op);
    }
    pthread_cond_destroy(&operations->changed);
    pthread_mutex_destroy(&operations->lock);
    free(operations);
}

static bool has_ended(const struct operation *op)
{
    return op->state > RUNNING;
}

/* ---- documents; with the lock held ---- */

static json_t *describe(const struct operation *op)
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
        json_object_set(out, "result", op->result);
    if (has_ended(op))
        json_object_set_new(out, "ended_at", json_string(ended));
    return out;
}

/* It has changed: tells those that wait for that, and all that follow events. */
static void publish(struct operation *op, const char *action)
{
    op->revision++;
    json_t *document = describe(op);
    events_publish(op->operations->events, "operation", op->id, action, document);
    json_decref(document);
    pthread_cond_broadcast(&op->operations->changed);
}

/* Forgets what ended long ago, and the oldest that ended when there are too many. */
static void forget(struct operations *operations)
{
    time_t limit = time(NULL) - KEEP_S;
    operations->last = NULL;
    for (struct operation **at = &operations->first; *at;) {
        struct operation *op = *at;
        if (has_ended(op) && (op->ended.tv_sec < limit || operations->count > KEEP)) {
            *at = op->next;
            operations->count--;
            operation_free(op);
            continue;
        }
        operations->last = op;
        at = &op->next;
    }
}

static struct operation *find(const struct operations *operations, const char *id)
{
    for (struct operation *op = operations->first; op; op = op->next)
        if (!strcmp(op->id, id))
            return op;
    return NULL;
}

/* ---- running ---- */

static void end(struct operation *op, int r, const struct err *err, json_t *result)
{
    op->ended = now();
    op->state = r == 0 ? SUCCEEDED : r == -ECANCELED && atomic_load(&op->cancelled) ? CANCELLED : FAILED;
    op->err = *err;
    if (r < 0 && !op->err.code)
        err_set(&op->err, -r, "%s", op->kind);
    op->result = result;
    if (op->free_arg)
        op->free_arg(op->arg);
    op->free_arg = NULL;
    op->operations->queued--;
    publish(op, state_names[op->state]);
}

static void run(struct operations *operations, struct operation *op)
{
    struct err err = {0};
    json_t *result = NULL;
    op->state = RUNNING;
    publish(op, "running");
    pthread_mutex_unlock(&operations->lock);
    int r = atomic_load(&op->cancelled) ? err_say(&err, ECANCELED, "cancelled before it began")
                                        : op->run(op, op->arg, &result, &err);
    if (r < 0)
        log_warn("%s of %s for %s failed: %s", op->kind, op->audit.target, op->audit.actor, err.message);
    metrics_count_operation(operations->metrics, op->kind, r == 0, elapsed_ns(op->created, now()));
    pthread_mutex_lock(&operations->lock);
    end(op, r, &err, result);
}

static struct operation *next_queued(const struct operations *operations)
{
    for (struct operation *op = operations->first; op; op = op->next)
        if (op->state == QUEUED)
            return op;
    return NULL;
}

static struct timespec after_ms(unsigned ms)
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

static void *worker(void *arg)
{
    struct operations *operations = arg;
    struct timespec until = after_ms(IDLE_S * 1000);
    pthread_mutex_lock(&operations->lock);
    for (;;) {
        struct operation *op = next_queued(operations);
        if (op) {
            run(operations, op);
            until = after_ms(IDLE_S * 1000);
            continue;
        }
        operations->idle++;
        bool timed_out = operations->stopping || pthread_cond_timedwait(&operations->changed, &operations->lock, &until) != 0;
        operations->idle--;
        if (timed_out && !next_queued(operations))
            break;
    }
    operations->workers--;
    pthread_cond_broadcast(&operations->changed);
    pthread_mutex_unlock(&operations->lock);
    return NULL;
}

/* A thread more, if none is free and there may be one. -ENOTSUP: there is none at all. */
static int need_worker(struct operations *operations, struct err *err)
{
    if (operations->idle || operations->workers == WORKERS)
        return 0;
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, WORKER_STACK);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int r = pthread_create(&thread, &attr, worker, operations);
    pthread_attr_destroy(&attr);
    if (r == 0)
        operations->workers++;
    else if (!operations->workers)
        return err_set(err, r, "thread for operations");
    return 0;
}

static void fill_id(char id[17])
{
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        random = (uint64_t)now().tv_nsec * UINT64_C(0x9e3779b97f4a7c15);
    snprintf(id, 17, "%016llx", (unsigned long long)random);
}

/* With the lock held. */
static int check_room(const struct operations *operations, struct err *err)
{
    if (operations->stopping)
        return err_say(err, ENOTSUP, "polderd is stopping");
    if (operations->queued == QUEUE_MAX)
        return err_say(err, ENOTSUP, "%u operations are under way already; try again later", QUEUE_MAX);
    return 0;
}

static void append(struct operations *operations, struct operation *op)
{
    forget(operations);
    *(operations->last ? &operations->last->next : &operations->first) = op;
    operations->last = op;
    operations->count++;
    operations->queued++;
}

static int enqueue(struct operations *operations, struct operation *op, json_t **ret_document, struct err *err)
{
    pthread_mutex_lock(&operations->lock);
    int r = check_room(operations, err);
    if (r == 0)
        r = need_worker(operations, err);
    if (r == 0) {
        append(operations, op);
        publish(op, "queued");
        *ret_document = describe(op);
    }
    pthread_mutex_unlock(&operations->lock);
    return r;
}

static int operation_new(struct request *request, const char *kind, const char *target, struct operation **ret_operation,
                         struct err *err)
{
    struct operation *op = calloc(1, sizeof *op);
    if (!op)
        return err_set(err, ENOMEM, "operation");
    *op = (struct operation){.operations = request->platform->operations, .created = now()};
    fill_id(op->id);
    snprintf(op->kind, sizeof op->kind, "%s", kind);
    request_audit(request, &op->audit, kind, "%s", target);
    *ret_operation = op;
    return 0;
}

int request_reply_operation(struct request *request, const char *kind, operation_fn *fn, void *arg,
                            void (*free_arg)(void *arg), struct err *err, const char *target, ...)
{
    char where[sizeof((struct request_audit *)0)->target];
    struct operation *op;
    json_t *document = NULL;
    va_list args;
    va_start(args, target);
    vsnprintf(where, sizeof where, target, args);
    va_end(args);
    int r = operation_new(request, kind, where, &op, err);
    if (r < 0) {
        if (free_arg)
            free_arg(arg);
        return r;
    }
    op->run = fn;
    op->arg = arg;
    op->free_arg = free_arg;
    r = enqueue(op->operations, op, &document, err);
    if (r < 0) {
        operation_free(op);
        return r;
    }
    return request_reply(request, document);
}

int request_run_operation(struct request *request, const char *kind, const char *target, operation_fn *fn, void *arg,
                          json_t **ret_result, struct err *err)
{
    struct operations *operations = request->platform->operations;
    struct operation *op;
    int r = operation_new(request, kind, target, &op, err);
    if (r < 0)
        return r;
    op->run = fn;
    op->arg = arg;
    op->state = RUNNING; /* no worker's */
    pthread_mutex_lock(&operations->lock);
    r = check_room(operations, err);
    if (r < 0) {
        operation_free(op);
    } else {
        append(operations, op);
        operations->in_requests++;
        run(operations, op);
        operations->in_requests--;
        r = op->state == SUCCEEDED ? 0 : -op->err.code;
        *err = op->err;
        *ret_result = json_incref(op->result);
    }
    pthread_mutex_unlock(&operations->lock);
    return r;
}

/* ---- within the work ---- */

void operation_progress(struct operation *op, const char *what, uint64_t done, uint64_t total)
{
    struct timespec t = now();
    pthread_mutex_lock(&op->operations->lock);
    bool other = strcmp(op->what, what) != 0;
    snprintf(op->what, sizeof op->what, "%s", what);
    op->done = done;
    op->total = total;
    if (other || done == total || elapsed_ns(op->published, t) >= PROGRESS_GAP_NS) {
        op->published = t;
        publish(op, "progress");
    }
    pthread_mutex_unlock(&op->operations->lock);
}

bool operation_cancelled(const struct operation *op)
{
    return atomic_load(&op->cancelled);
}

const struct store_audit *operation_audit(const struct operation *op)
{
    return &op->audit.audit;
}

/* ---- for clients ---- */

json_t *operations_list(struct operations *operations)
{
    json_t *list = json_array();
    pthread_mutex_lock(&operations->lock);
    forget(operations);
    for (const struct operation *op = operations->first; op; op = op->next)
        json_array_append_new(list, describe(op));
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
    struct timespec until = after_ms(wait_ms);
    pthread_mutex_lock(&operations->lock);
    struct operation *op = find(operations, id);
    while (op && !has_ended(op) && op->revision <= revision && wait_ms && !operations->stopping) {
        if (pthread_cond_timedwait(&operations->changed, &operations->lock, &until) != 0)
            wait_ms = 0;
        op = find(operations, id);
    }
    int r = op ? 0 : no_such(id, err);
    if (op)
        *ret_document = describe(op);
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
        *ret_document = describe(op);
    }
    pthread_mutex_unlock(&operations->lock);
    return r;
}

bool operations_stop(struct operations *operations, unsigned timeout_ms)
{
    struct timespec until = after_ms(timeout_ms);
    pthread_mutex_lock(&operations->lock);
    operations->stopping = true;
    for (struct operation *op = operations->first; op; op = op->next)
        atomic_store(&op->cancelled, true);
    pthread_cond_broadcast(&operations->changed);
    while ((operations->workers || operations->in_requests) &&
           pthread_cond_timedwait(&operations->changed, &operations->lock, &until) == 0)
        ;
    bool ended = !operations->workers && !operations->in_requests;
    pthread_mutex_unlock(&operations->lock);
    return ended;
}
