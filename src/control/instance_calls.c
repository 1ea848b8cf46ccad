/* Calls that change what is desired, and wait until the controller has done it. */
#include "control/instance_impl.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include "base/own.h"

#define LOOK_MS 100 /* how often a waiting call asks whether it was cancelled */

/* ---- waiting ---- */

/* What a waiting call began with; `done` looks at the mirror, under the lock. */
struct waiting {
    unsigned runs, failures;
};
typedef bool done_fn(const struct instance *instance, const struct waiting *before);

static bool cancelled(const struct instance_call *call)
{
    return call && call->cancelled && call->cancelled(call->arg);
}

static void wait_a_little(struct instances *instances)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_cond_timedwait(&instances->changed, &instances->lock, &until);
}

static int wait_until(struct instance *instance, done_fn *done, const struct waiting *before,
                      const struct instance_call *call, struct err *err)
{
    struct instances *instances = instance->owner;
    int ret = 0;
    pthread_mutex_lock(&instances->lock);
    while (!done(instance, before) && !instance->removed) {
        wait_a_little(instances);
        pthread_mutex_unlock(&instances->lock);
        if (cancelled(call))
            ret = err_set(err, ECANCELED, "instance '%s'", instance->name);
        pthread_mutex_lock(&instances->lock);
        if (instances->closing)
            ret = err_say(err, ECANCELED, "the daemon is ending; it goes on when it is back");
        if (ret < 0)
            break;
    }
    pthread_mutex_unlock(&instances->lock);
    return ret;
}

static struct waiting look(struct instance *instance)
{
    pthread_mutex_lock(&instance->owner->lock);
    struct waiting now = {.runs = instance->runs, .failures = instance->failures};
    pthread_mutex_unlock(&instance->owner->lock);
    return now;
}

static bool has_settled(const struct instance *instance)
{
    return instance->state == INSTANCE_CREATED || instance->state == INSTANCE_STOPPED || instance->state == INSTANCE_FAILED;
}

static bool started(const struct instance *instance, const struct waiting *before)
{
    return instance->runs != before->runs || instance->failures != before->failures ||
           instance->state == INSTANCE_RUNNING ||
           (has_settled(instance) && instance->desired == INSTANCE_WANT_STOPPED);
}

static bool stopped(const struct instance *instance, const struct waiting *before)
{
    (void)before;
    return has_settled(instance);
}

static bool paused(const struct instance *instance, const struct waiting *before)
{
    (void)before;
    return instance->state == INSTANCE_PAUSED || has_settled(instance);
}

static bool runs(const struct instance *instance, const struct waiting *before)
{
    (void)before;
    return instance->state == INSTANCE_RUNNING || has_settled(instance);
}

static bool finished(const struct instance *instance, const struct waiting *before)
{
    (void)before;
    return instance->desired == INSTANCE_WANT_STOPPED &&
           (instance->state == INSTANCE_STOPPED || instance->state == INSTANCE_FAILED);
}

static bool gone(const struct instance *instance, const struct waiting *before)
{
    (void)before;
    return instance->removed;
}

/* Changes the document and waits; a call that is not let through changes nothing. */
static int change_and_wait(struct instance *instance, instance_change_fn *fn, const void *arg, const char *action,
                           done_fn *done, const struct instance_call *call, struct err *err)
{
    struct waiting before = look(instance);
    int ret = instance_change(instance->owner, instance->name, fn, arg, action, call, NULL, err);
    if (ret < 0)
        return ret;
    instance_enqueue(instance);
    return wait_until(instance, done, &before, call, err);
}

static int last_error(struct instance *instance, int code, struct err *err)
{
    char text[ERR_MESSAGE_SIZE];
    pthread_mutex_lock(&instance->owner->lock);
    memcpy(text, instance->error, sizeof text);
    int exit_code = instance->exit_code;
    pthread_mutex_unlock(&instance->owner->lock);
    int ret = err_say(err, code, "instance '%s': %s", instance->name, *text ? text : "it has ended");
    if (exit_code == AGENT_NOT_RUNNABLE || exit_code == AGENT_NOT_FOUND)
        err_set_exit_code(err, exit_code);
    return ret;
}

/* ---- start, stop ---- */

static int want_running(struct instance_change *change, struct err *err)
{
    if (json_flag(change->doc, "deleting"))
        return err_say(err, EBUSY, "the instance is being removed");
    if (instance_doc_desired(change->doc) == INSTANCE_WANT_PAUSED)
        return err_say(err, EBUSY, "the instance is paused: resume it");
    if (instance_doc_desired(change->doc) == INSTANCE_WANT_RUNNING)
        return -EALREADY;
    enum instance_state state = instance_doc_state(change->doc);
    if (state == INSTANCE_STOPPING || state == INSTANCE_STARTING || state == INSTANCE_RUNNING)
        return err_say(err, EBUSY, "the instance is stopping: start it when it has stopped");
    instance_doc_set_desired(change->doc, INSTANCE_WANT_RUNNING);
    json_object_del(change->doc, "stop_timeout_s");
    json_object_set_new(instance_status(change->doc), "restarts", json_integer(0));
    /* failed before: a new failure is to be told from the old one */
    if (state == INSTANCE_FAILED)
        instance_doc_set_state(change->doc, INSTANCE_STOPPED);
    change->promise = INSTANCE_PROMISE_TAKE;
    return 0;
}

int instance_start(struct instances *instances, const char *name, const struct instance_call *call, struct err *err)
{
    own_instance struct instance *instance = NULL;
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (ret < 0)
        return ret;
    struct waiting before = look(instance);
    ret = change_and_wait(instance, want_running, NULL, "instance.start", started, call, err);
    if (!ret && look(instance).failures != before.failures)
        return last_error(instance, EIO, err);
    return ret;
}

static int want_stopped(struct instance_change *change, struct err *err)
{
    (void)err;
    const int *timeout_s = change->arg;
    if (instance_doc_desired(change->doc) == INSTANCE_WANT_STOPPED && instance_doc_state(change->doc) != INSTANCE_STOPPING)
        return -EALREADY;
    instance_doc_set_desired(change->doc, INSTANCE_WANT_STOPPED);
    json_object_set_new(change->doc, "stop_timeout_s", json_integer(*timeout_s < 0 ? 10 : *timeout_s));
    /* between two tries nothing runs whose end would give the promise back */
    enum instance_state state = instance_doc_state(change->doc);
    if (state == INSTANCE_STOPPED || state == INSTANCE_FAILED || state == INSTANCE_CREATED)
        change->promise = INSTANCE_PROMISE_DROP;
    return 0;
}

int instance_stop(struct instances *instances, const char *name, int timeout_s, const struct instance_call *call,
                  struct err *err)
{
    own_instance struct instance *instance = NULL;
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (ret < 0)
        return ret;
    return change_and_wait(instance, want_stopped, &timeout_s, "instance.stop", stopped, call, err);
}

int instance_restart(struct instances *instances, const char *name, int timeout_s, const struct instance_call *call,
                     struct err *err)
{
    int ret = instance_stop(instances, name, timeout_s, call, err);
    return ret < 0 ? ret : instance_start(instances, name, call, err);
}

int instance_kill(struct instances *instances, const char *name, const char *signal, const struct instance_call *call,
                  struct err *err)
{
    own_instance struct instance *instance = NULL;
    const char *plain = signal && !strncmp(signal, "SIG", 3) ? signal + 3 : signal;
    if (!plain || !*plain || !strcmp(plain, "KILL") || !strcmp(plain, "9"))
        return instance_stop(instances, name, 0, call, err);
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    return ret < 0 ? ret : instance_send_signal(instance, plain, err);
}

/* ---- pause, resume ---- */

static int want_other(struct instance_change *change, struct err *err)
{
    enum instance_desired desired = *(const enum instance_desired *)change->arg;
    if (instance_doc_desired(change->doc) == desired)
        return -EALREADY;
    if (instance_doc_desired(change->doc) == INSTANCE_WANT_STOPPED || json_flag(change->doc, "deleting"))
        return err_say(err, EBUSY, "the instance does not run: start it first");
    instance_doc_set_desired(change->doc, desired);
    return 0;
}

static int pause_or_resume(struct instances *instances, const char *name, bool pause, const struct instance_call *call,
                           struct err *err)
{
    own_instance struct instance *instance = NULL;
    enum instance_desired desired = pause ? INSTANCE_WANT_PAUSED : INSTANCE_WANT_RUNNING;
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (!ret)
        ret = change_and_wait(instance, want_other, &desired, pause ? "instance.pause" : "instance.resume",
                              pause ? paused : runs, call, err);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&instances->lock);
    bool lost = has_settled(instance);
    pthread_mutex_unlock(&instances->lock);
    return lost ? last_error(instance, EBUSY, err) : 0;
}

int instance_pause(struct instances *instances, const char *name, const struct instance_call *call, struct err *err)
{
    return pause_or_resume(instances, name, true, call, err);
}

int instance_resume(struct instances *instances, const char *name, const struct instance_call *call, struct err *err)
{
    return pause_or_resume(instances, name, false, call, err);
}

/* ---- wait, remove ---- */

int instance_wait(struct instances *instances, const char *name, const struct instance_call *call, int *ret_exit_code,
                  struct err *err)
{
    own_instance struct instance *instance = NULL;
    struct waiting before = {0};
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (!ret)
        ret = wait_until(instance, finished, &before, call, err);
    if (ret < 0)
        return ret;
    pthread_mutex_lock(&instances->lock);
    *ret_exit_code = instance->exit_code;
    pthread_mutex_unlock(&instances->lock);
    return 0;
}

static int want_gone(struct instance_change *change, struct err *err)
{
    bool force = *(const bool *)change->arg;
    enum instance_state state = instance_doc_state(change->doc);
    bool active = instance_doc_desired(change->doc) != INSTANCE_WANT_STOPPED || state == INSTANCE_STARTING ||
                  state == INSTANCE_RUNNING || state == INSTANCE_PAUSED || state == INSTANCE_STOPPING;
    if (json_flag(change->doc, "deleting"))
        return -EALREADY;
    if (active && !force)
        return err_say(err, EBUSY, "the instance is %s: stop it first, or remove it by force", instance_state_name(state));
    json_object_set_new(change->doc, "deleting", json_true());
    instance_doc_set_desired(change->doc, INSTANCE_WANT_STOPPED);
    return 0;
}

int instance_remove(struct instances *instances, const char *name, bool force, const struct instance_call *call,
                    struct err *err)
{
    own_instance struct instance *instance = NULL;
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    return ret < 0 ? ret : change_and_wait(instance, want_gone, &force, "instance.remove", gone, call, err);
}
