/* What an operation needs of the request that began it, and how the floors below tell it their progress. */
#pragma once

#include "api/operation.h"
#include "control/instance.h"
#include "image/image.h"

struct work {
    struct platform *platform;
    char params[ROUTE_PARAMS][ROUTE_PARAM_MAX];
    json_t *query, *body;
};

/* Begins an operation on `target` with a copy of the request's parameters and body; its function gets a struct work. */
must_check int work_begin(struct request *request, const char *kind, operation_fn *fn, struct err *err, const char *target, ...)
    __attribute__((format(printf, 5, 6)));
const char *work_member(const struct work *work, const char *name);
bool work_flag(const struct work *work, const char *name);
int64_t work_integer(const struct work *work, const char *name, int64_t otherwise);

/* They borrow the operation. */
struct image_progress work_image_progress(struct operation *operation);
struct instance_call work_call(struct operation *operation);
/* Of a request that is answered at once. Borrows the request. */
struct instance_call request_call(const struct request *request);
