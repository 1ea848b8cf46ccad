/* Operations: long work. */
#include "api/operation.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "base/log.h"

static int list_operations(struct request *request, struct err *err)
{
    (void)err;
    return request_reply(request, operations_list(request->platform->operations));
}

static int get_operation(struct request *request, struct err *err)
{
    json_t *document;
    unsigned wait_ms = (unsigned)request_integer(request, "wait", 0) * 1000;
    uint64_t revision = (uint64_t)request_integer(request, "revision", INT64_MAX);
    int r = operations_get(request->platform->operations, request->params[0], revision, wait_ms, &document, err);
    return r < 0 ? r : request_reply(request, document);
}

static int cancel_operation(struct request *request, struct err *err)
{
    json_t *document;
    struct request_audit audit;
    request_audit(request, &audit, "operation.cancel", "operations/%s", request->params[0]);
    int r = operations_cancel(request->platform->operations, request->params[0], &document, err);
    if (r < 0)
        return r;
    if (store_commit(request->platform->store, NULL, 0, &audit.audit, NULL, err) < 0)
        log_warn("audit of %s %s cannot be kept", audit.audit.action, audit.audit.target);
    return request_reply(request, document);
}

static const struct schema_field wait_query[] = {
    {.name = "wait", .text = "Seconds to wait for its end.", .type = SCHEMA_INTEGER, .max = 600},
    {.name = "revision", .text = "Waits only until it has a later one.", .type = SCHEMA_INTEGER, .max = INT64_MAX},
    {0},
};

const struct route routes_operations[] = {
    {.method = "GET", .path = "/v1/operations", .role = ROLE_VIEWER, .handler = list_operations, .answer = ANSWER_LIST,
     .answer_schema = &schema_operation, .text = "What is under way, and what ended within the hour."},
    {.method = "GET", .path = "/v1/operations/{id}", .role = ROLE_VIEWER, .handler = get_operation, .query = wait_query,
     .answer = ANSWER_JSON, .answer_schema = &schema_operation, .text = "One operation; waits for its end if asked."},
    {.method = "DELETE", .path = "/v1/operations/{id}", .role = ROLE_OPERATOR, .handler = cancel_operation,
     .answer = ANSWER_JSON, .answer_schema = &schema_operation, .text = "Asks an operation to end where it can."},
    {0},
};
