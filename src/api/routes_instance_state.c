/* What instances do: start, stop and the like, snapshots, statistics, waiting. */
#include <errno.h>
#include <string.h>

#include "api/routes.h"
#include "api/schemas.h"
#include "api/work.h"

/* ---- state: one function for all; which one is the last part of the operation's kind ---- */

enum verb { START, STOP, RESTART, KILL, PAUSE, RESUME };

static int apply(enum verb verb, const struct work *work, const struct instance_call *call, struct err *err)
{
    struct instances *instances = work->platform->instances;
    const char *name = work->params[0];
    int timeout_s = (int)work_integer(work, "timeout_s", -1);
    switch (verb) {
    case START:
        return instance_start(instances, name, call, err);
    case STOP:
        return instance_stop(instances, name, timeout_s, call, err);
    case RESTART:
        return instance_restart(instances, name, timeout_s, call, err);
    case KILL:
        return instance_kill(instances, name, work_member(work, "signal"), call, err);
    case PAUSE:
        return instance_pause(instances, name, call, err);
    case RESUME:
        return instance_resume(instances, name, call, err);
    }
    return err_set(err, EINVAL, "instance");
}

/* An instance that removes itself may be gone when its stop is done. */
static int run_verb(enum verb verb, struct operation *operation, const struct work *work, json_t **ret_result, struct err *err)
{
    const struct instance_call call = work_call(operation);
    int r = apply(verb, work, &call, err);
    if (r == 0 && instance_get(work->platform->instances, work->params[0], ret_result, NULL) < 0)
        *ret_result = NULL;
    return r;
}

static int begin_verb(struct request *request, const char *kind, operation_fn *fn, struct err *err)
{
    json_t *instance;
    int r = instance_get(request->platform->instances, request->params[0], &instance, err);
    if (r < 0)
        return r;
    json_decref(instance);
    return work_begin(request, kind, fn, err, "instances/%s", request->params[0]);
}

#define VERB(verb, name)                                                                                     \
    static int run_##name(struct operation *operation, void *arg, json_t **ret_result, struct err *err)      \
    {                                                                                                        \
        return run_verb(verb, operation, arg, ret_result, err);                                              \
    }                                                                                                        \
    static int name##_instance(struct request *request, struct err *err)                                     \
    {                                                                                                        \
        return begin_verb(request, "instance." #name, run_##name, err);                                      \
    }

VERB(START, start)
VERB(STOP, stop)
VERB(RESTART, restart)
VERB(KILL, kill)
VERB(PAUSE, pause)
VERB(RESUME, resume)

/* ---- snapshots ---- */

static int list_snapshots(struct request *request, struct err *err)
{
    json_t *list;
    int r = instance_snapshot_list(request->platform->instances, request->params[0], &list, err);
    return r < 0 ? r : request_reply(request, list);
}

static int run_snapshot(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct instance_call call = work_call(operation);
    (void)ret_result;
    return instance_snapshot_create(work->platform->instances, work->params[0], work_member(work, "name"), &call, err);
}

static int create_snapshot(struct request *request, struct err *err)
{
    return begin_verb(request, "instance.snapshot", run_snapshot, err);
}

static int run_restore(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct instance_call call = work_call(operation);
    (void)ret_result;
    return instance_snapshot_restore(work->platform->instances, work->params[0], work->params[1], &call, err);
}

static int restore_snapshot(struct request *request, struct err *err)
{
    return begin_verb(request, "instance.restore", run_restore, err);
}

static int remove_snapshot(struct request *request, struct err *err)
{
    const struct instance_call call = request_call(request);
    return instance_snapshot_remove(request->platform->instances, request->params[0], request->params[1], &call, err);
}

/* ---- what it uses, when it ends ---- */

static int get_stats(struct request *request, struct err *err)
{
    json_t *stats;
    int r = instance_stats(request->platform->instances, request->params[0], true, &stats, err);
    return r < 0 ? r : request_reply(request, stats);
}

static int wait_instance(struct request *request, struct err *err)
{
    const struct instance_call call = request_call(request);
    int code;
    int r = instance_wait(request->platform->instances, request->params[0], &call, &code, err);
    return r < 0 ? r : request_reply(request, json_pack("{s:i}", "exit_code", code));
}

/* ---- the table ---- */

static const struct schema_field stop_fields[] = {
    {.name = "timeout_s", .text = "Until it is killed; 10 if left out.", .type = SCHEMA_INTEGER, .max = 3600},
    {0},
};
static const struct schema stop_schema = {"StopOptions", "How to stop.", stop_fields, false};
static const struct schema_field kill_fields[] = {
    {.name = "signal", .text = "KILL if left out.", .type = SCHEMA_STRING, .format = SCHEMA_SIGNAL},
    {0},
};
static const struct schema kill_schema = {"KillOptions", "Which signal.", kill_fields, false};
#define COUNTER(member, sentence) {.name = (member), .text = (sentence), .type = SCHEMA_INTEGER, .max = INT64_MAX}
static const struct schema_field stats_fields[] = {
    {.name = "state", .text = "How it stands.", .type = SCHEMA_STRING, .required = true},
    COUNTER("cpu_usage_ns", "Time of CPUs, since its start."),
    COUNTER("memory_bytes", "Of the host, now."),
    COUNTER("memory_limit_bytes", "The guest's memory."),
    COUNTER("net_rx_bytes", "Received by the guest, since its start."),
    COUNTER("net_tx_bytes", "Sent by the guest."),
    COUNTER("disk_read_bytes", "Read by the guest, since its start."),
    COUNTER("disk_write_bytes", "Written by the guest."),
    {.name = "guest", .text = "What the guest's agent says.", .type = SCHEMA_OBJECT, .object = &schema_object},
    {0},
};
static const struct schema stats_schema = {"InstanceStats", "What an instance uses; what cannot be had is left out.", stats_fields,
                                           false};
static const struct schema_field nothing[] = {{0}};
static const struct schema nothing_schema = {"Nothing", "No options.", nothing, false};

#define VERB_ROUTE(name, options, sentence)                                                                  \
    {.method = "POST", .path = "/v1/instances/{name}/" #name, .role = ROLE_OPERATOR, .handler = name##_instance, \
     .body = BODY_OPTIONAL, .schema = &(options), .answer = ANSWER_OPERATION, .text = (sentence)}

const struct route routes_instance_state[] = {
    VERB_ROUTE(start, nothing_schema, "Starts it."),
    VERB_ROUTE(stop, stop_schema, "Asks it to end, then kills it."),
    VERB_ROUTE(restart, stop_schema, "Stops it and starts it."),
    VERB_ROUTE(kill, kill_schema, "Sends a signal to its main process; KILL ends the machine."),
    VERB_ROUTE(pause, nothing_schema, "Its CPUs stand still."),
    VERB_ROUTE(resume, nothing_schema, "Its CPUs go on."),
    {.method = "GET", .path = "/v1/instances/{name}/snapshots", .role = ROLE_VIEWER, .handler = list_snapshots,
     .answer = ANSWER_LIST, .answer_schema = &schema_object, .text = "Snapshots of its root disk."},
    {.method = "POST", .path = "/v1/instances/{name}/snapshots", .role = ROLE_OPERATOR, .handler = create_snapshot,
     .body = BODY_JSON, .schema = &schema_new_name, .answer = ANSWER_OPERATION, .text = "Keeps its root disk as it is now."},
    {.method = "POST", .path = "/v1/instances/{name}/snapshots/{snapshot}/restore", .role = ROLE_OPERATOR,
     .handler = restore_snapshot, .body = BODY_OPTIONAL, .schema = &nothing_schema, .answer = ANSWER_OPERATION,
     .text = "The root disk of a stopped instance as it was."},
    {.method = "DELETE", .path = "/v1/instances/{name}/snapshots/{snapshot}", .role = ROLE_OPERATOR,
     .handler = remove_snapshot, .answer = ANSWER_NOTHING, .text = "Forgets a snapshot."},
    {.method = "GET", .path = "/v1/instances/{name}/stats", .role = ROLE_VIEWER, .handler = get_stats,
     .answer_schema = &stats_schema, .text = "CPU, memory, network and disk that it uses."},
    {.method = "GET", .path = "/v1/instances/{name}/wait", .role = ROLE_VIEWER, .handler = wait_instance,
     .answer_schema = &schema_object, .text = "Waits for its end: {exit_code}."},
    {0},
};
