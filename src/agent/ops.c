/* The operations of the protocol, one line each, and the small ones. */
#include <errno.h>
#include <time.h>

#include "agent/exec.h"
#include "agent/power.h"
#include "agent/primary.h"
#include "agent/process_spec.h"
#include "agent/session.h"
#include "agent/setup.h"
#include "agent/stats.h"

/* Most answer at once and are over. */
static int answer(struct session *s, json_t *reply)
{
    session_reply(s, reply);
    session_finish(s);
    return 0;
}

static json_t *moments_json(const struct agent *agent)
{
    static const char *const names[MOMENTS] = {"agent", "modules", "root", "listening", "start", "main"};
    json_t *json = json_object();
    for (int i = 0; i < MOMENTS; i++)
        if (agent->moments_us[i])
            json_object_set_new(json, names[i], json_integer((json_int_t)agent->moments_us[i]));
    return json;
}

static int ping_open(struct session *s, const json_t *request, struct err *err)
{
    (void)request;
    (void)err;
    const struct primary *p = s->agent->primary;
    bool has_ended = primary_code(p) >= 0;
    json_t *reply = json_pack("{s:s, s:b, s:s, s:o}", "version", POLDER_VERSION, "service",
                              s->agent->mode == AGENT_SERVICE, "state",
                              primary_is_running(p) ? "running" : has_ended ? "ended" : "waiting", "moments_us",
                              moments_json(s->agent));
    if (reply && primary_is_running(p))
        json_object_set_new(reply, "pid", json_integer(primary_pid(p)));
    if (reply && has_ended)
        json_object_set_new(reply, "code", json_integer(primary_code(p)));
    return answer(s, reply);
}

static int set_time(const json_t *request, struct err *err)
{
    const json_t *ns = json_object_get(request, "time_ns");
    json_int_t value = json_is_integer(ns) ? json_integer_value(ns) : -1;
    if (value < 0)
        return err_say(err, EINVAL, "\"time_ns\" is not the time since 1970");
    struct timespec now = {.tv_sec = value / 1000000000, .tv_nsec = value % 1000000000};
    return clock_settime(CLOCK_REALTIME, &now) < 0 ? err_set(err, errno, "set the clock") : 0;
}

static int time_open(struct session *s, const json_t *request, struct err *err)
{
    int r = set_time(request, err);
    return r < 0 ? r : answer(s, NULL);
}

static int start_open(struct session *s, const json_t *request, struct err *err)
{
    if (s->agent->mode == AGENT_SERVICE)
        return err_say(err, ENOTSUP, "this machine has its own init: there is no main process to start");
    agent_moment(s->agent, MOMENT_START);
    int r = 0;
    if (json_object_get(request, "time_ns"))
        r = set_time(request, err);
    if (r == 0 && s->agent->mode == AGENT_INIT)
        r = setup_apply(request, err);
    return r < 0 ? r : primary_start(s, json_object_get(request, "process"), err);
}

static void start_close(struct session *s)
{
    primary_forget(s);
}

static int signal_open(struct session *s, const json_t *request, struct err *err)
{
    int number;
    int r = process_signal(json_object_get(request, "signal"), &number, err);
    if (r < 0)
        return r;
    if (!primary_is_running(s->agent->primary))
        return err_say(err, ESRCH, "the main process does not run");
    primary_signal(s->agent->primary, number);
    return answer(s, NULL);
}

static int stats_open(struct session *s, const json_t *request, struct err *err)
{
    (void)request;
    (void)err;
    return answer(s, stats_json());
}

const struct session_op session_ops[] = {
    {"ping", ping_open, NULL, NULL, NULL},
    {"start", start_open, NULL, NULL, start_close},
    {"attach", attach_open, attach_on_frame, attach_on_room, attach_close},
    {"exec", exec_open, exec_on_frame, exec_on_room, exec_close},
    {"put", put_open, exec_on_frame, exec_on_room, exec_close},
    {"get", get_open, exec_on_frame, exec_on_room, exec_close},
    {"wait", wait_open, NULL, NULL, NULL},
    {"signal", signal_open, NULL, NULL, NULL},
    {"stats", stats_open, NULL, NULL, NULL},
    {"time", time_open, NULL, NULL, NULL},
    {"shutdown", shutdown_open, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
