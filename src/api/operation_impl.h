/* Operations as they are kept (operation_record.c), for the threads that run them (operation.c). */
#pragma once

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "api/operation.h"

enum operation_state { QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED };

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
    char *result; /* as JSON: a tenth of what it takes parsed; NULL: none */
    operation_fn *run;
    void *arg;
    void (*free_arg)(void *arg);
};

struct operations {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* work came, or an operation changed */
    struct operation *first, *last;
    unsigned count, queued, workers, idle;
    size_t bytes; /* of all that are kept */
    unsigned in_requests; /* run by the threads of requests that wait for them */
    bool stopping;
    struct events *events;
    struct metrics *metrics;
};

static inline bool operation_has_ended(const struct operation *op)
{
    return op->state > RUNNING;
}

struct timespec operation_after_ms(unsigned ms);
/* Sets what it has come to. `result` is taken; NULL: none. With the lock held. */
void operation_set_end(struct operation *op, enum operation_state state, json_t *result);
/* What it has come to, parsed; NULL: nothing. */
json_t *operation_result(const struct operation *op);
void operation_free(struct operation *op);

/* With the lock held: */

json_t *operation_describe(const struct operation *op);
/* It has changed: tells those that wait for that, and all that follow events. */
void operation_publish(struct operation *op, const char *action);
/* Takes it in as the youngest; forgets those whose time is over. */
void operation_append(struct operations *operations, struct operation *op);
