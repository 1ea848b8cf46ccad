/* A step: the document says what is desired and what was last known, the process what is. Each step may be the first one
 * after a crash, so it relies on nothing but these two and repeats what it cannot know to be done.
 *
 *     document        process   step
 *     gone            any       kill, clean
 *     stopped, ...    none      launch if it shall run; remove if it shall go
 *     starting        none      it was never there (no pid): launch again; else it has ended
 *     running, ...    none      note the end: code, restart or not
 *     starting        there     greet the agent until it answers: running
 *     running         there     pause, or wait for the main process's end
 *     paused          there     resume
 *     any             there     shall not run: ask, press the power button, kill; at once: end the main process and let the
 *                               guest write what it has, then kill */
#include "control/instance_impl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>
#include "base/log.h"
#include "control/fault.h"
#include "sandbox/sandbox.h"

#define GREET_MS 120000     /* how long a guest may take to boot; the jit engine on a busy host is slow */
#define GREET_DELAY_MS 20   /* between tries, doubled up to ... */
#define GREET_DELAY_MAX_MS 250
#define AGENT_RETRY_MS 200
#define POWER_OFF_MS 10000  /* from the main process's end to the machine's */
#define STOP_MS 10000
#define LAST_WRITES_MS 2000 /* for a guest that is ended at once to write what it has to its disks */
#define KILL_RETRY_MS 1000
#define STRAY_RETRY_MS 100
#define BACKOFF_MS 500      /* before the first restart, doubled up to ... */
#define BACKOFF_MAX_MS 60000
#define BACKOFF_RESET_S 60  /* who ran as long begins anew */
#define REBOOT_PAUSE_MS 1000 /* between restarts within a guest, doubled up to BACKOFF_MAX_MS */
#define WAIT_FRAMES 64u     /* taken of a guest in a step */

/* ---- changes of documents ---- */

static int now_starting(struct instance_change *change, struct err *err)
{
    (void)err;
    json_t *status = instance_status(change->doc);
    if (instance_doc_desired(change->doc) == INSTANCE_WANT_STOPPED)
        return -EALREADY;
    instance_doc_set_state(change->doc, INSTANCE_STARTING);
    json_object_set_new(status, "pid", json_integer(0));
    json_object_set_new(status, "error", json_string(""));
    json_object_del(status, "started_at"); /* the last run's: a start that fails has run no time */
    return 0;
}

static int now_launched(struct instance_change *change, struct err *err)
{
    (void)err;
    const struct instance *instance = change->arg;
    json_object_set_new(instance_status(change->doc), "pid", json_integer(instance->pid));
    return 0;
}

static int now_running(struct instance_change *change, struct err *err)
{
    (void)err;
    json_t *status = instance_status(change->doc);
    json_object_update(status, (json_t *)(uintptr_t)change->arg);
    instance_doc_set_state(change->doc, INSTANCE_RUNNING);
    instance_doc_set_time(status, "started_at");
    return 0;
}

static int now_in_state(struct instance_change *change, struct err *err)
{
    (void)err;
    enum instance_state state = *(const enum instance_state *)change->arg;
    if (instance_doc_state(change->doc) == state)
        return -EALREADY;
    instance_doc_set_state(change->doc, state);
    return 0;
}

struct end {
    int code; /* -1: not known */
    const char *text;
    bool failed;
};

static bool shall_restart(const json_t *doc, const struct end *end)
{
    const char *policy = json_text(json_object_get(doc, "spec"), "restart");
    if (json_flag(doc, "deleting") || instance_doc_desired(doc) == INSTANCE_WANT_STOPPED)
        return false;
    return !strcmp(policy, "always") || (!strcmp(policy, "on-failure") && (end->code != 0 || end->failed));
}

static int now_ended(struct instance_change *change, struct err *err)
{
    (void)err;
    const struct end *end = change->arg;
    json_t *status = instance_status(change->doc);
    instance_doc_set_state(change->doc, end->failed ? INSTANCE_FAILED : INSTANCE_STOPPED);
    json_object_set_new(status, "pid", json_integer(0));
    json_object_set_new(status, "exit_code", json_integer(end->code < 0 ? 255 : end->code));
    json_object_set_new(status, "error", json_string(end->text));
    json_object_set_new(status, "addresses", json_array());
    instance_doc_set_time(status, "finished_at");
    if (shall_restart(change->doc, end)) {
        json_object_set_new(status, "restarts", json_integer(json_number(status, "restarts") + 1));
        return 0;
    }
    if (json_flag(json_object_get(change->doc, "spec"), "remove"))
        json_object_set_new(change->doc, "deleting", json_true());
    instance_doc_set_desired(change->doc, INSTANCE_WANT_STOPPED);
    json_object_del(change->doc, "stop_timeout_s");
    change->promise = INSTANCE_PROMISE_DROP;
    return 0;
}

static int now_gone(struct instance_change *change, struct err *err)
{
    (void)err;
    change->remove = true;
    change->promise = INSTANCE_PROMISE_DROP;
    return 0;
}

/* Commits; what fails here (a full disk) is tried again, as nothing else can be done. */
static int commit(struct instance *instance, instance_change_fn *fn, const void *arg, const char *action, json_t **ret_doc)
{
    struct err err = {0};
    int ret = instance_change(instance->owner, instance->name, fn, arg, action, NULL, ret_doc, &err);
    if (ret < 0 && ret != -ENOENT) {
        log_error("instance %s: %s", instance->name, err.message);
        instance_enqueue_in(instance, 1000);
    }
    return ret;
}

/* ---- the process ---- */

static bool process_ended(const struct instance *instance)
{
    struct pollfd poll_fd = {.fd = instance->pidfd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLIN);
}

static void kill_process(struct instance *instance)
{
    if (pidfd_send_signal(instance->pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
        log_error("instance %s: kill: %s", instance->name, strerror(errno));
    fault_here("stop.killed");
    instance_watch_fd(instance, instance->pidfd);
    instance_enqueue_in(instance, KILL_RETRY_MS);
}

static void drop_wait(struct instance *instance)
{
    if (!instance->wait)
        return;
    instance_unwatch_fd(instance, agent_fd(instance->wait));
    agent_close(instance->wait);
    instance->wait = NULL;
}

static void drop_process(struct instance *instance)
{
    siginfo_t info = {0};
    drop_wait(instance);
    instance_unwatch_fd(instance, instance->pidfd);
    int ret = waitid(P_PIDFD, (id_t)instance->pidfd, &info, WEXITED | WNOHANG); /* not our child after a restart: init's */
    if (ret == 0 && info.si_pid && info.si_code != CLD_EXITED && info.si_status == SIGSYS)
        sandbox_describe_end(SIGSYS, instance->failure, sizeof instance->failure);
    close(instance->pidfd);
    instance->pidfd = -1;
    instance->pid = 0;
}

static void reset_run(struct instance *instance)
{
    instance->has_exit = instance->asked_to_stop = instance->told_to_end = false;
    instance->failure[0] = '\0';
    instance->deadline_ms = 0;
    instance->delay_ms = GREET_DELAY_MS;
}

/* ---- the end ---- */

/* Seconds between two RFC 3339 times of a document; 0 when one is missing. */
static double seconds_of_run(const json_t *status)
{
    struct tm from = {0}, to = {0};
    if (!strptime(json_text(status, "started_at"), "%Y-%m-%dT%H:%M:%SZ", &from) ||
        !strptime(json_text(status, "finished_at"), "%Y-%m-%dT%H:%M:%SZ", &to))
        return 0;
    return difftime(timegm(&to), timegm(&from));
}

static void plan_restart(struct instance *instance, const json_t *doc)
{
    const json_t *status = instance_status(doc);
    int64_t restarts = json_number(status, "restarts");
    int64_t delay = BACKOFF_MAX_MS;
    if (seconds_of_run(status) >= BACKOFF_RESET_S)
        restarts = 1;
    if (restarts < 8)
        delay = BACKOFF_MS << (restarts > 0 ? restarts - 1 : 0);
    instance->deadline_ms = clock_now_ms() + (delay > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : delay);
    instance_enqueue_in(instance, delay);
}

static void note_end(struct instance *instance, const json_t *doc)
{
    own_json json_t *after = NULL;
    struct err err = {0};
    char text[ERR_MESSAGE_SIZE] = "";
    struct end end = {.code = instance->has_exit ? instance->exit_code_now : -1, .text = text};
    bool was_starting = instance_doc_state(doc) == INSTANCE_STARTING;
    bool asked = instance_doc_desired(doc) == INSTANCE_WANT_STOPPED;
    if (instance->owner->ops->ended(instance, doc, &end.code, text, sizeof text, &err) < 0) {
        log_error("instance %s: %s", instance->name, err.message);
        instance_enqueue_in(instance, 1000);
        return;
    }
    fault_here("end.released");
    if (*instance->failure && !strstr(text, SANDBOX_VIOLATION)) /* its own words have the call's number */
        memcpy(text, instance->failure, sizeof text);
    if (end.code < 0 && asked)
        end.code = 137; /* killed: 128 + SIGKILL */
    end.failed = end.code < 0 || (was_starting && !asked && *text);
    if (!end.failed)
        text[0] = '\0';
    if (commit(instance, now_ended, &end, "instance.end", &after) < 0)
        return;
    log_info("instance %s: ended with code %d%s%s", instance->name, end.code < 0 ? 255 : end.code, *text ? ": " : "", text);
    reset_run(instance);
    if (instance_doc_desired(after) != INSTANCE_WANT_STOPPED)
        plan_restart(instance, after);
    else
        instance_enqueue(instance);
}

/* ---- nothing runs ---- */

static void note_failure(struct instance *instance, struct err *cause)
{
    own_json json_t *after = NULL;
    struct end end = {.code = INSTANCE_NOT_LAUNCHED, .text = cause->message, .failed = true};
    log_error("instance %s: start: %s", instance->name, cause->message);
    if (commit(instance, now_ended, &end, "instance.fail", &after) < 0)
        return;
    reset_run(instance);
    if (instance_doc_desired(after) != INSTANCE_WANT_STOPPED)
        plan_restart(instance, after);
    else
        instance_enqueue(instance);
}

static void launch(struct instance *instance)
{
    own_json json_t *doc = NULL;
    struct err err = {0};
    int64_t now = clock_now_ms();
    if (now < instance->deadline_ms) {
        instance_enqueue_in(instance, instance->deadline_ms - now);
        return;
    }
    if (commit(instance, now_starting, NULL, "instance.launch", &doc) < 0 || instance_doc_state(doc) != INSTANCE_STARTING)
        return;
    reset_run(instance);
    instance->phase_ms[0] = now;
    int ret = instance->owner->ops->launch(instance, doc, &instance->pid, &instance->pidfd, &err);
    if (ret == -EAGAIN) {
        instance_enqueue_in(instance, STRAY_RETRY_MS);
        return;
    }
    if (ret < 0) {
        note_failure(instance, &err);
        return;
    }
    instance->phase_ms[1] = clock_now_ms();
    instance->deadline_ms = instance->phase_ms[1] + GREET_MS;
    instance_watch_fd(instance, instance->pidfd);
    commit(instance, now_launched, instance, "instance.launched", NULL);
    instance_enqueue(instance);
}

static void clean(struct instance *instance, const json_t *doc)
{
    struct err err = {0};
    if (instance->owner->ops->clean(instance, doc, &err) < 0) {
        log_error("instance %s: %s", instance->name, err.message);
        instance_enqueue_in(instance, 1000);
        return;
    }
    if (doc && commit(instance, now_gone, NULL, "instance.removed", NULL) < 0)
        return;
    instance_forget(instance);
}

static void step_without_process(struct instance *instance, const json_t *doc)
{
    enum instance_state state = instance_doc_state(doc);
    bool never_there = state == INSTANCE_STARTING && !json_number(instance_status(doc), "pid");
    bool was_there = state == INSTANCE_STARTING || state == INSTANCE_RUNNING || state == INSTANCE_PAUSED ||
                     state == INSTANCE_STOPPING;
    bool wanted = instance_doc_desired(doc) != INSTANCE_WANT_STOPPED && !json_flag(doc, "deleting");
    if (was_there && !(never_there && wanted))
        note_end(instance, doc);
    else if (json_flag(doc, "deleting"))
        clean(instance, doc);
    else if (wanted)
        launch(instance);
}

/* ---- it runs ---- */

static void step_starting(struct instance *instance, const json_t *doc)
{
    own_json json_t *status = NULL;
    struct err err = {0};
    int64_t now = clock_now_ms();
    if (*instance->failure) {
        kill_process(instance);
        return;
    }
    if (!instance->deadline_ms)
        instance->deadline_ms = now + GREET_MS;
    int ret = instance->owner->ops->greet(instance, doc, &status, &err);
    if (ret == -EAGAIN && now < instance->deadline_ms) {
        instance_enqueue_in(instance, instance->delay_ms);
        instance->delay_ms = instance->delay_ms * 2 < GREET_DELAY_MAX_MS ? instance->delay_ms * 2 : GREET_DELAY_MAX_MS;
        return;
    }
    if (ret < 0) {
        if (ret == -EAGAIN)
            err_say(&err, ETIMEDOUT, "the guest did not come up in %d s: see polder logs --source boot", GREET_MS / 1000);
        snprintf(instance->failure, sizeof instance->failure, "%s", err.message);
        kill_process(instance);
        return;
    }
    instance->phase_ms[3] = clock_now_ms();
    fault_here("greet.done");
    if (commit(instance, now_running, status, "instance.running", NULL) < 0)
        return;
    instance->deadline_ms = 0;
    instance->delay_ms = GREET_DELAY_MS;
    log_info("instance %s: runs; launch %lld ms, boot %lld ms", instance->name,
             (long long)(instance->phase_ms[1] - instance->phase_ms[0]),
             (long long)(instance->phase_ms[3] - instance->phase_ms[1]));
    instance_enqueue(instance);
}

/* Reads what the agent said; true when the session lives on. */
static bool wait_goes_on(struct instance *instance)
{
    struct agent_frame frame;
    struct err err = {0};
    for (unsigned i = 0; i < WAIT_FRAMES; i++) {
        int ret = agent_receive(instance->wait, &frame, 0, &err);
        if (ret == -EAGAIN)
            return true;
        if (ret <= 0)
            return false;
        if (frame.type == AGENT_EXIT && !agent_exit_code(&frame, &instance->exit_code_now, &err)) {
            instance->has_exit = true;
            instance->deadline_ms = clock_now_ms() + POWER_OFF_MS;
            return false;
        }
    }
    instance_enqueue(instance); /* a guest that floods us waits for its turn like all others */
    return true;
}

/* The guest is up again within the same process: its agent waits to be told what to run. */
static void note_reboot(struct instance *instance)
{
    enum instance_state starting = INSTANCE_STARTING;
    int64_t now = clock_now_ms();
    if (now < instance->reboot_after_ms) { /* each is kept in the store and its log */
        instance_enqueue_in(instance, instance->reboot_after_ms - now);
        return;
    }
    bool again = instance->reboot_pause_ms && now - instance->reboot_after_ms < BACKOFF_MAX_MS;
    int64_t pause = again ? instance->reboot_pause_ms * 2 : REBOOT_PAUSE_MS;
    instance->reboot_pause_ms = pause < BACKOFF_MAX_MS ? pause : BACKOFF_MAX_MS;
    instance->reboot_after_ms = now + instance->reboot_pause_ms;
    log_info("instance %s: the guest has restarted", instance->name);
    instance->delay_ms = GREET_DELAY_MS;
    instance->deadline_ms = 0;
    if (!commit(instance, now_in_state, &starting, "instance.rebooted", NULL))
        instance_enqueue(instance);
}

static bool someone_attaches(struct instance *instance)
{
    pthread_mutex_lock(&instance->owner->lock);
    bool attaching = instance->attaching > 0;
    pthread_mutex_unlock(&instance->owner->lock);
    return attaching;
}

static void watch_main(struct instance *instance)
{
    struct err err = {0};
    if (instance->has_exit) {
        if (clock_now_ms() >= instance->deadline_ms)
            kill_process(instance);
        else
            instance_enqueue_in(instance, instance->deadline_ms - clock_now_ms());
        return;
    }
    /* told of the end, the agent powers off: not before those that attach are connected */
    if (!instance->wait && someone_attaches(instance))
        return;
    if (!instance->wait && instance->owner->ops->wait(instance, &instance->wait, &err) < 0) {
        instance_enqueue_in(instance, AGENT_RETRY_MS);
        return;
    }
    if (wait_goes_on(instance)) {
        instance_watch_fd(instance, agent_fd(instance->wait));
        return;
    }
    drop_wait(instance);
    if (instance->has_exit)
        instance_enqueue_in(instance, POWER_OFF_MS);
    else if (!process_ended(instance))
        note_reboot(instance);
}

static void step_running(struct instance *instance, const json_t *doc)
{
    bool pause = instance_doc_desired(doc) == INSTANCE_WANT_PAUSED;
    enum instance_state state = pause ? INSTANCE_PAUSED : INSTANCE_RUNNING;
    if (instance->taken_over && !pause) { /* the daemon before us may have died while it cloned the machine, which stands still then */
        struct err err = {0};
        instance->taken_over = instance->owner->ops->set_paused(instance, false, &err) < 0;
    }
    if ((instance_doc_state(doc) == INSTANCE_PAUSED) != pause) {
        struct err err = {0};
        if (instance->owner->ops->set_paused(instance, pause, &err) < 0) {
            log_error("instance %s: %s: %s", instance->name, pause ? "pause" : "resume", err.message);
            instance_enqueue_in(instance, 1000);
            return;
        }
        if (commit(instance, now_in_state, &state, pause ? "instance.paused" : "instance.resumed", NULL) < 0)
            return;
    }
    if (!pause && !instance_doc_is_vm(doc))
        watch_main(instance);
}

/* ---- it shall end ---- */

static void wake_up(struct instance *instance, const json_t *doc)
{
    struct err err = {0};
    if (instance_doc_state(doc) == INSTANCE_PAUSED && instance->owner->ops->set_paused(instance, false, &err) < 0)
        log_debug("instance %s: resume: %s", instance->name, err.message);
}

static void ask(struct instance *instance, const json_t *doc, int64_t timeout_ms)
{
    struct err err = {0};
    const struct instance_ops *ops = instance->owner->ops;
    instance->asked_to_stop = true;
    wake_up(instance, doc);
    bool asked = !instance_doc_is_vm(doc) && !ops->ask_to_stop(instance, doc, (unsigned)timeout_ms, &err);
    fault_here("stop.asked");
    if (asked)
        return;
    if (ops->press_power(instance, &err) < 0)
        log_debug("instance %s: power button: %s", instance->name, err.message);
}

/* Whether a guest that is killed now would lose writes that somebody can miss: those to volumes, and where the instance stays
 * to its own disk. */
static bool can_lose(const json_t *doc)
{
    bool has_volumes = json_array_size(json_object_get(json_object_get(doc, "spec"), "volumes"));
    return !instance_doc_is_vm(doc) && instance_doc_state(doc) != INSTANCE_STARTING && (has_volumes || !json_flag(doc, "deleting"));
}

/* The guest ends its main process without asking it, and goes down; false: it has to be killed. */
static bool tell_to_end(struct instance *instance, const json_t *doc)
{
    struct err err = {0};
    instance->told_to_end = true;
    if (!can_lose(doc))
        return false;
    wake_up(instance, doc);
    int ret = instance->owner->ops->ask_to_stop(instance, doc, 0, &err);
    fault_here("stop.told");
    if (ret < 0)
        log_warn("instance %s: killed, what it did not write yet is lost: %s", instance->name, err.message);
    return ret == 0;
}

static int64_t time_to_stop_ms(const json_t *doc)
{
    const json_t *timeout = json_object_get(doc, "stop_timeout_s");
    if (json_flag(doc, "deleting"))
        return 0;
    return timeout ? json_integer_value(timeout) * 1000 : STOP_MS;
}

static void step_stopping(struct instance *instance, const json_t *doc)
{
    enum instance_state stopping = INSTANCE_STOPPING;
    int64_t now = clock_now_ms();
    int64_t timeout_ms = time_to_stop_ms(doc);
    int64_t until = now + (timeout_ms ? timeout_ms : LAST_WRITES_MS);
    bool is_new = timeout_ms ? !instance->asked_to_stop : !instance->told_to_end;
    if (is_new || instance->deadline_ms > until)
        instance->deadline_ms = until;
    if (commit(instance, now_in_state, &stopping, "instance.stopping", NULL) < 0)
        return;
    if (is_new && timeout_ms)
        ask(instance, doc, timeout_ms);
    else if (is_new && !tell_to_end(instance, doc))
        instance->deadline_ms = now;
    if (now >= instance->deadline_ms) {
        kill_process(instance);
        return;
    }
    if (instance->wait && !wait_goes_on(instance))
        drop_wait(instance);
    if (instance->wait)
        instance_watch_fd(instance, agent_fd(instance->wait));
    instance_watch_fd(instance, instance->pidfd);
    instance_enqueue_in(instance, instance->deadline_ms - now);
}

static void step_with_process(struct instance *instance, const json_t *doc)
{
    enum instance_state state = instance_doc_state(doc);
    if (json_flag(doc, "deleting") || instance_doc_desired(doc) == INSTANCE_WANT_STOPPED)
        step_stopping(instance, doc);
    else if (state == INSTANCE_RUNNING || state == INSTANCE_PAUSED)
        step_running(instance, doc);
    else
        step_starting(instance, doc);
    if (instance->pidfd >= 0)
        instance_watch_fd(instance, instance->pidfd);
}

void instance_step(struct instance *instance)
{
    own_json json_t *doc = NULL;
    struct err err = {0};
    int ret = instance_doc_get(instance->owner, instance->name, &doc, &err);
    if (ret < 0 && ret != -ENOENT) {
        log_error("instance %s: %s", instance->name, err.message);
        instance_enqueue_in(instance, 1000);
        return;
    }
    if (instance->pidfd >= 0 && process_ended(instance))
        drop_process(instance);
    if (doc && strcmp(json_text(doc, "id"), instance->id) != 0)
        ret = -ENOENT; /* another of the same name, when its own was removed in a crash */
    if (ret == -ENOENT && instance->pidfd >= 0)
        kill_process(instance);
    else if (ret == -ENOENT)
        clean(instance, NULL);
    else if (instance->pidfd >= 0)
        step_with_process(instance, doc);
    else
        step_without_process(instance, doc);
}
