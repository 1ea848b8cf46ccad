/* Private to the API: the schema table's types, a request on its way, and the handlers.
 *
 * A request goes: api_http.c (bytes) -> api.c (route, parse, phase) -> api_schema.c (check against the table)
 * -> a handler (api_config.c before the start, api_runtime.c and api_disks.c after it, api_throttle.c both, api_show.c for questions). */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>

#include "vmm/api.h"

#define API_ID_MAX 63 /* characters; device ids are at most that long */
#define API_STRING_MAX 4095
#define API_OPERATIONS 47u

enum api_type {
    API_BOOL,
    API_INTEGER, /* min..max */
    API_STRING,  /* at most max bytes, API_STRING_MAX when 0; one of `values` if there are any */
    API_OBJECT,  /* of schema `object` */
    API_LIST,    /* of `object`s, or of strings when NULL */
};

struct api_field {
    const char *name;
    const char *text; /* one sentence for the reference */
    enum api_type type;
    bool required;
    bool deprecated;
    bool any_case; /* of `values` */
    int64_t min, max;
    const char *const *values; /* NULL-terminated */
    const struct api_object *object;
};

/* What a body may hold; other members are refused by name. */
struct api_object {
    const char *name;
    const char *text;
    const struct api_field *fields; /* ends with a NULL name */
    bool open;                      /* any member is fine (free-form JSON) */
};

enum api_method { API_GET, API_PUT, API_PATCH };
enum api_phase { API_ANY_TIME, API_BEFORE_START, API_AFTER_START };

struct api_request;

/* 0 with *ret_answer set (status 200) or left NULL (204), or -errno with a message that goes to the user as
 * it is. */
typedef int api_handler(struct api *api, const struct api_request *request, json_t **ret_answer,
                        struct err *err);

struct api_operation {
    enum api_method method;
    const char *path;   /* "/drives/{drive_id}/copy": one part may be an id, also a member of the body */
    const char *metric; /* counters METRIC_count and METRIC_fails */
    enum api_phase phase;
    const struct api_object *body; /* NULL: none allowed */
    bool body_optional;
    bool partial;                    /* no member is required: an update */
    const struct api_object *answer; /* NULL: status 204 */
    api_handler *handler;            /* NULL: not there yet */
    const char *text;                /* one sentence for the reference; of what is not there yet: its name */
};

extern const struct api_operation api_operations[API_OPERATIONS];

/* The operation for a method and path. `ret_id` gets the id in the path (at most API_ID_MAX characters,
 * checked), or "". */
must_check int api_route(const char *method, const char *path, const struct api_operation **ret_operation,
                         char ret_id[API_ID_MAX + 1], struct err *err);
/* 1 to API_ID_MAX letters, digits and underscores. */
must_check int api_check_id(const char *id, size_t len, struct err *err);
/* Checks a body; -EINVAL with the first thing wrong, named. */
must_check int api_check(const struct api_object *object, json_t *body, bool partial, bool *ret_deprecated,
                         struct err *err);
const char *api_method_name(enum api_method method);
/* "GET" and so on; false for others. */
bool api_method_parse(const char *name, enum api_method *ret_method);

struct api_request {
    const struct api_operation *operation;
    const char *id; /* from the path, "" when it has none */
    json_t *body;   /* checked against the schema; NULL only when it is optional */
};

struct api_counter {
    atomic_ullong count, fails;
};

struct api {
    struct vm_config *config;
    const struct api_vm_ops *ops;
    void *arg;
    pthread_mutex_t lock; /* one request at a time; covers the config and all below but the counters */
    struct api_counter counters[API_OPERATIONS]; /* by index in api_operations */
    atomic_ullong deprecated_calls;
    struct metrics *metrics;
    int log_fd; /* of PUT /logger; -1 while the log goes where it went before */
    struct api_server *server;
    /* Opens a file or named pipe for writing, appending; returns the fd or -errno. Tests put their own here.
     */
    int (*open_output)(const char *path);
};

/* Runs one operation on a checked body (borrowed; NULL only where it is optional or none): id, phase,
 * handler. Takes the lock. `id` as in the path; NULL takes the body's own. */
must_check int api_run(struct api *api, const struct api_operation *operation, const char *id, json_t *body,
                       json_t **ret_answer, struct err *err);
/* The operation of `method` on the path as written in the table; never NULL for those that exist. */
const struct api_operation *api_operation_find(enum api_method method, const char *path);
/* Applies a parsed config file. */
must_check int api_apply_config(struct api *api, json_t *root, struct err *err);

void api_server_stop(struct api_server *server);
/* -ENOTSUP: the machine has no such function (yet). */
int api_not_there(const char *what, struct err *err);

/* ---- members of a checked body; absent and null are the same ---- */

static inline const char *api_string(const json_t *body, const char *name)
{
    return json_string_value(json_object_get(body, name));
}
static inline bool api_has(const json_t *body, const char *name)
{
    const json_t *value = json_object_get(body, name);
    return value && !json_is_null(value);
}
static inline uint64_t api_integer(const json_t *body, const char *name, uint64_t absent)
{
    return api_has(body, name) ? (uint64_t)json_integer_value(json_object_get(body, name)) : absent;
}
static inline bool api_bool(const json_t *body, const char *name, bool absent)
{
    return api_has(body, name) ? json_is_true(json_object_get(body, name)) : absent;
}

/* Overrides the buckets of `limit` that the rate limiter `body` gives; NULL changes nothing. */
void api_rate_limit_update(struct vm_rate_limit *limit, const json_t *body);
struct vm_disk *api_disk_find(struct vm_config *config, const char *id);
/* A list of backing files that was given: as the disk, which runs, has them now. */
must_check int api_disk_update_backing(struct api *api, struct vm_disk *disk, struct err *err);
struct vm_net *api_net_find(struct vm_config *config, const char *id);
/* Overrides what the member throttle of a drive, `body`, gives of the disk's share, and sets its group; NULL changes nothing. */
must_check int api_share_update(struct vm_disk *disk, const json_t *body, struct err *err);
/* As such members; null for a disk in no group. */
json_t *api_share_json(const struct vm_disk *disk);
json_t *api_throttle_json(const struct vm_throttle *throttle);

/* ---- handlers ---- */

api_handler api_put_boot_source, api_put_machine_config, api_put_drive, api_put_net, api_put_vsock,
    api_put_balloon, api_put_entropy, api_put_serial, api_put_logger,
    api_put_metrics, api_get_metrics; /* api_config.c, api_config_devices.c; api.c */
api_handler api_patch_drive, api_put_drive_snapshot, api_patch_drive_snapshot, api_get_drive_snapshot, api_put_drive_copy,
    api_patch_drive_copy,
    api_get_drive_copy; /* api_disks.c */
api_handler api_put_throttle, api_patch_throttle; /* api_throttle.c */
api_handler api_put_actions, api_patch_vm, api_patch_net, api_patch_balloon,
    api_get_balloon_stats, api_patch_balloon_stats, api_patch_hinting_start, api_patch_hinting_stop,
    api_get_hinting; /* api_runtime.c */
api_handler api_get_instance, api_get_version, api_get_machine_config, api_get_balloon,
    api_get_vm_config; /* api_show.c */
