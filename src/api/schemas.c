#include "api/schemas.h"

static const struct schema_field error_fields[] = {
    {.name = "code", .text = "What kind of error.", .type = SCHEMA_STRING, .required = true,
     .values = (const char *const[]){"not_found", "conflict", "invalid", "denied", "unavailable", "internal", NULL}},
    {.name = "message", .text = "One line that says what to do.", .type = SCHEMA_STRING, .required = true},
    {.name = "exit_code", .text = "Of a command that could not be run: 126, or 127 when it is not there.",
     .type = SCHEMA_INTEGER, .min = 126, .max = 127},
    {0},
};
static const struct schema error_object = {"ErrorBody", "Why a request was refused.", error_fields, false};
static const struct schema_field error_wrapper[] = {
    {.name = "error", .text = "The error.", .type = SCHEMA_OBJECT, .object = &error_object, .required = true},
    {0},
};
const struct schema schema_error = {"Error", "What every refused request gets.", error_wrapper, false};

static const struct schema_field progress_fields[] = {
    {.name = "what", .text = "What is being done.", .type = SCHEMA_STRING},
    {.name = "done", .text = "How much of it.", .type = SCHEMA_INTEGER, .max = INT64_MAX},
    {.name = "total", .text = "Of how much; 0: not known.", .type = SCHEMA_INTEGER, .max = INT64_MAX},
    {0},
};
static const struct schema progress = {"Progress", "How far an operation is.", progress_fields, false};
static const struct schema_field no_fields[] = {{0}};
const struct schema schema_object = {"Object", "A document.", no_fields, true};
static const struct schema_field operation_fields[] = {
    {.name = "id", .text = "For /v1/operations/ID.", .type = SCHEMA_STRING, .format = SCHEMA_ID, .required = true},
    {.name = "kind", .text = "Like 'instance.start'.", .type = SCHEMA_STRING, .required = true},
    {.name = "target", .text = "Like 'instances/web'.", .type = SCHEMA_STRING, .required = true},
    {.name = "state", .text = "How it stands.", .type = SCHEMA_STRING, .required = true,
     .values = (const char *const[]){"queued", "running", "succeeded", "failed", "cancelled", NULL}},
    {.name = "revision", .text = "How often it has changed.", .type = SCHEMA_INTEGER, .max = INT64_MAX, .required = true},
    {.name = "actor", .text = "Who asked for it.", .type = SCHEMA_STRING, .required = true},
    {.name = "progress", .text = "How far it is.", .type = SCHEMA_OBJECT, .object = &progress},
    {.name = "error", .text = "Why it failed.", .type = SCHEMA_OBJECT, .object = &error_object},
    {.name = "result", .text = "What came of it.", .type = SCHEMA_OBJECT, .object = &schema_object},
    {.name = "created_at", .text = "RFC 3339.", .type = SCHEMA_STRING, .required = true},
    {.name = "ended_at", .text = "RFC 3339.", .type = SCHEMA_STRING},
    {0},
};
const struct schema schema_operation = {"Operation", "Long work.", operation_fields, false};

static const struct schema_field new_name_fields[] = {
    {.name = "name", .text = "The new name.", .type = SCHEMA_STRING, .format = SCHEMA_NAME, .required = true},
    {0},
};
const struct schema schema_new_name = {"NewName", "How something shall be called.", new_name_fields, false};
