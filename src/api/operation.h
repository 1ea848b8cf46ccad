/* Long work on behalf of a client: run by a bounded pool of threads, watched, waited for, cancelled.
 *
 * Those that ended are kept for an hour, the last 1000 of them and 4 MiB. Every change is an event of kind "operation". Operations
 * live in memory: they end with polderd, and what they worked on is finished by the controllers that own it.
 * Any thread. */
#pragma once

#include "api/request.h"

struct operation;

/* Does the work. May set *ret_result (a new reference). Looks at operation_cancelled() where it can stop: -ECANCELED. */
typedef int operation_fn(struct operation *operation, void *arg, json_t **ret_result, struct err *err);

must_check int operations_create(struct events *events, struct metrics *metrics, struct operations **ret_operations, struct err *err);
/* Cancels what is under way, waits up to `timeout_ms` for it. True when all ended; otherwise their threads still run and
 * nothing that they use may be freed. */
bool operations_stop(struct operations *operations, unsigned timeout_ms);
void operations_free(struct operations *operations);

/* Queues the work that the request asks for and answers it with the operation. `arg` is taken, also on failure; freed by
 * `free_arg` when done. `kind`: "instance.start"; `target` as printf: "instances/web". -ENOTSUP (503) when too much is queued. */
must_check int request_reply_operation(struct request *request, const char *kind, operation_fn *fn, void *arg,
                                       void (*free_arg)(void *arg), struct err *err, const char *target, ...)
    __attribute__((format(printf, 7, 8)));

/* Runs work that needs the request itself (its body) here and now, as an operation that others see and may cancel.
 * *ret_result: as `fn` has set it. */
must_check int request_run_operation(struct request *request, const char *kind, const char *target, operation_fn *fn,
                                     void *arg, json_t **ret_result, struct err *err);

/* ---- within the work ---- */

/* "pulling layer 2/5", 10 MiB of 30. total 0: not known. Told at most ten times a second. */
void operation_progress(struct operation *operation, const char *what, uint64_t done, uint64_t total);
bool operation_cancelled(const struct operation *operation);
/* The record for changes that the work makes; lives as long as the operation. */
const struct store_audit *operation_audit(const struct operation *operation);

/* ---- for clients ---- */

json_t *operations_list(struct operations *operations);
/* The operation `id`; waits up to `wait_ms` for its end, or until its "revision" is above `revision`. -ENOENT. */
must_check int operations_get(struct operations *operations, const char *id, uint64_t revision, unsigned wait_ms,
                              json_t **ret_document, struct err *err);
/* -ENOENT; one that has ended stays as it is. */
must_check int operations_cancel(struct operations *operations, const char *id, json_t **ret_document, struct err *err);
