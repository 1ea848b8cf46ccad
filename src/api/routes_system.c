/* What the platform is and how it is. */
#include <errno.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "api/metrics.h"
#include "api/prune.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/system.h"
#include "api/timestamp.h"
#include "api/work.h"
#include "control/instance.h"

static int get_system(struct request *request, struct err *err)
{
    const struct platform *platform = request->platform;
    struct utsname host;
    struct sysinfo info;
    char started[TIMESTAMP_SIZE];
    timestamp_format(started, (struct timespec){.tv_sec = platform->started_at});
    json_t *admission = NULL;
    uname(&host);
    sysinfo(&info);
    if (instances_admission(platform->instances, &admission, err) < 0)
        return -err->code;
    return request_reply(
        request, json_pack("{s:s, s:s, s:s, s:s, s:i, s:I, s:i, s:b, s:s, s:s, s:s*, s:s, s:o, s:o}", "version", POLDER_VERSION,
                           "hostname", host.nodename, "kernel", host.release, "architecture", host.machine, "cpus",
                           (int)sysconf(_SC_NPROCESSORS_ONLN), "memory_bytes", (json_int_t)info.totalram * info.mem_unit,
                           "uid", (int)geteuid(), "rootless", geteuid() != 0, "state_dir", platform->state_dir, "run_dir",
                           platform->run_dir, "guest_dir", platform->guest_dir, "started_at", started,
                           "engine", system_engine(), "admission", admission));
}

static int get_openapi(struct request *request, struct err *err)
{
    (void)err;
    return request_reply(request, openapi_document());
}

static int get_metrics(struct request *request, struct err *err)
{
    (void)err;
    return request_reply_text(request, "text/plain; version=0.0.4; charset=utf-8", metrics_text(request->platform));
}

static int get_df(struct request *request, struct err *err)
{
    json_t *df;
    int r = system_df(request->platform, &df, err);
    return r < 0 ? r : request_reply(request, df);
}

static int get_doctor(struct request *request, struct err *err)
{
    (void)err;
    return request_reply(request, system_doctor(request->platform));
}

static int run_prune(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    json_t *images;
    int r = images_prune(work->platform, operation_audit(operation), &images, err);
    if (r == 0)
        *ret_result = json_pack("{s:o}", "images", images);
    return r;
}

static int prune(struct request *request, struct err *err)
{
    return work_begin(request, "system.prune", run_prune, err, "system");
}

const struct route routes_system[] = {
    {.method = "GET", .path = "/v1/system", .role = ROLE_VIEWER, .handler = get_system, .answer = ANSWER_JSON,
     .answer_schema = &schema_object, .text = "Versions, the host, the engine and why it was chosen."},
    {.method = "GET", .path = "/v1/system/df", .role = ROLE_VIEWER, .handler = get_df, .answer_schema = &schema_object,
     .text = "What takes the space."},
    {.method = "POST", .path = "/v1/system/prune", .role = ROLE_OPERATOR, .handler = prune, .answer = ANSWER_OPERATION,
     .text = "Removes what nobody needs any more."},
    {.method = "GET", .path = "/v1/system/doctor", .role = ROLE_VIEWER, .handler = get_doctor, .answer = ANSWER_LIST,
     .answer_schema = &schema_object, .text = "Checks of the host: {name, ok, detail, cure}."},
    {.method = "GET", .path = "/v1/openapi.json", .role = ROLE_VIEWER, .handler = get_openapi, .answer = ANSWER_JSON,
     .answer_schema = &schema_object, .text = "This document."},
    {.method = "GET", .path = "/metrics", .role = ROLE_VIEWER, .handler = get_metrics, .answer = ANSWER_STREAM,
     .media = "text/plain", .text = "Counters in Prometheus' text format."},
    {0},
};
