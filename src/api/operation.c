/* Operations and the threads that run them. One lock covers all; what an operation does runs without it.
 *
 * Threads are made as work comes, at most WORKERS, and end when they had none for a while. */
#include "api/operation_impl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "api/metrics.h"
#include "base/log.h"

#define WORKERS 16
#define QUEUE_MAX 256
#define IDLE_S 10
#define WORKER_STACK (512u << 10)
#define PROGRESS_GAP_NS INT64_C(100000000)

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

/* ---- running ---- */

static void end(struct operation *op, int r, const struct err *err, json_t *result)
{
    op->ended = now();
    op->err = *err;
    if (r < 0 && !op->err.code)
        err_set(&op->err, -r, "%s", op->kind);
    if (op->free_arg)
        op->free_arg(op->arg);
    op->free_arg = NULL;
    operation_set_end(op, r == 0 ? SUCCEEDED : r == -ECANCELED && atomic_load(&op->cancelled) ? CANCELLED : FAILED, result);
}

static void run(struct operations *operations, struct operation *op)
{
    struct err err = {0};
    json_t *result = NULL;
    op->state = RUNNING;
    operation_publish(op, "running");
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

static void *worker(void *arg)
{
    struct operations *operations = arg;
    struct timespec until = operation_after_ms(IDLE_S * 1000);
    pthread_mutex_lock(&operations->lock);
    for (;;) {
        struct operation *op = next_queued(operations);
        if (op) {
            run(operations, op);
            until = operation_after_ms(IDLE_S * 1000);
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

static int enqueue(struct operations *operations, struct operation *op, json_t **ret_document, struct err *err)
{
    pthread_mutex_lock(&operations->lock);
    int r = check_room(operations, err);
    if (r == 0)
        r = need_worker(operations, err);
    if (r == 0) {
        operation_append(operations, op);
        operation_publish(op, "queued");
        *ret_document = operation_describe(op);
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
        operation_append(operations, op);
        operations->in_requests++;
        run(operations, op);
        operations->in_requests--;
        r = op->state == SUCCEEDED ? 0 : -op->err.code;
        *err = op->err;
        *ret_result = operation_result(op);
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
        operation_publish(op, "progress");
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

bool operations_stop(struct operations *operations, unsigned timeout_ms)
{
    struct timespec until = operation_after_ms(timeout_ms);
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
