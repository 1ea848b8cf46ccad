/* Metrics file: one JSON object a line, every 60 s, on demand and at the end, in the manner of Firecracker's:
 * groups of named numbers. Counters are written as their growth since the line before, gauges as they are.
 * Any thread. */
#pragma once

#include <stdint.h>
#include "base/err.h"

struct metrics;

enum metrics_kind { METRICS_COUNTER, METRICS_GAUGE };

/* `group` and `name` are copied. */
typedef void metrics_emit_fn(void *arg, enum metrics_kind kind, const char *group, const char *name,
                             uint64_t value);
/* Calls emit(emit_arg, ...) for every metric; from the flushing thread, one at a time. */
typedef void metrics_collect_fn(void *arg, metrics_emit_fn *emit, void *emit_arg);

/* Writes to `fd`, which it takes over in any case. */
must_check int metrics_create(int fd, metrics_collect_fn *collect, void *arg, struct metrics **ret_metrics,
                              struct err *err);
/* Writes a last line and closes. NULL is fine. */
void metrics_free(struct metrics *metrics);
/* Writes a line now. A full pipe loses the line; its growth is in the next one. */
must_check int metrics_flush(struct metrics *metrics, struct err *err);
