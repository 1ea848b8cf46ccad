/* What the platform is and how it is. */
#include <errno.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "api/metrics.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/request.h"
#include "api/timestamp.h"

static int get_system(struct request *request, struct err *err)
{
    (void)err;
    const struct platform *platform = request->platform;
    struct utsname host;
    struct sysinfo info;
    char started[TIMESTAMP_SIZE];
    timestamp_format(started, (struct timespec){.tv_sec = platform->started_at});
    uname(&host);
    sysinfo(&info);
    return request_reply(
        request, json_pack("{s:s, s:s, s:s, s:s, s:i, s:I, s:i, s:b, s:s, s:s, s:s*, s:s}", "version", POLDER_VERSION,
                           "hostname", host.nodename, "kernel", host.release, "architecture", host.machine, "cpus",
                           (int)sysconf(_SC_NPROCESSORS_ONLN), "memory_bytes", (json_int_t)info.totalram * info.mem_unit,
                           "uid", (int)geteuid(), "rootless", geteuid() != 0, "state_dir", platform->state_dir, "run_dir",
                           platform->run_dir, "guest_dir", platform->guest_dir, "started_at", started));
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

const struct route routes_system[] = {
    {.method = "GET", .path = "/v1/system", .role = ROLE_VIEWER, .handler = get_system, .answer = ANSWER_JSON,
     .answer_schema = &schema_object, .text = "Versions, the host, the engine and why it was chosen."},
    {.method = "GET", .path = "/v1/openapi.json", .role = ROLE_VIEWER, .handler = get_openapi, .answer = ANSWER_JSON,
     .answer_schema = &schema_object, .text = "This document."},
    {.method = "GET", .path = "/metrics", .role = ROLE_VIEWER, .handler = get_metrics, .answer = ANSWER_STREAM,
     .media = "text/plain", .text = "Counters in Prometheus' text format."},
    {0},
};
