/* Counters of the API for GET /metrics, in Prometheus' text format (exposition format 0.0.4). Any thread. */
#pragma once

#include <stdint.h>

#include "api/platform.h"
#include "api/route.h"

must_check int metrics_create(struct metrics **ret_metrics, struct err *err);
void metrics_free(struct metrics *metrics);
/* A request to `route` (NULL: to none) was answered. */
void metrics_count_request(struct metrics *metrics, const struct route *route, unsigned status);
void metrics_count_operation(struct metrics *metrics, const char *kind, bool succeeded, int64_t duration_ns);
/* The text of all; the caller frees it. NULL when memory is out. */
char *metrics_text(struct platform *platform);
