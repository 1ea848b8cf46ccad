/* Metrics file. `lock` covers everything but the thread handle; collect runs with it held, so it must not
 * come back here. `last` holds each counter's value at the last line that was really written. */
#include "vmm/metrics.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"

#define FLUSH_INTERVAL_S 60
#define STACK_SIZE ((size_t)256 << 10)

struct metrics {
    int fd;
    metrics_collect_fn *collect;
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    json_t *last; /* group -> name -> value */
};

/* A line being made. */
struct line {
    const json_t *last;
    json_t *groups;   /* what is written */
    json_t *absolute; /* becomes `last` */
};

/* The object `group` in `parent`, made when missing; NULL when memory is out. */
static json_t *group_of(json_t *parent, const char *group)
{
    json_t *object = json_object_get(parent, group);
    if (!object) {
        object = json_object();
        if (json_object_set_new(parent, group, object) < 0)
            return NULL;
    }
    return object;
}

static void line_emit(void *arg, enum metrics_kind kind, const char *group, const char *name, uint64_t value)
{
    struct line *line = arg;
    json_int_t now = (json_int_t)value, shown = now;
    if (kind == METRICS_COUNTER) {
        shown = now - json_integer_value(json_object_get(json_object_get(line->last, group), name));
        json_object_set_new(group_of(line->absolute, group), name, json_integer(now));
    }
    json_object_set_new(group_of(line->groups, group), name, json_integer(shown));
}

static int64_t utc_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* One write, so that a reader of a pipe never sees half a line: a short one counts as lost. */
static int line_write(int fd, const json_t *groups)
{
    own_free char *text = json_dumps(groups, JSON_COMPACT);
    if (!text)
        return -ENOMEM;
    size_t len = strlen(text);
    text[len] = '\n'; /* in place of the terminator, which is not written */
    ssize_t done = write(fd, text, len + 1);
    if (done < 0)
        return -errno;
    return (size_t)done == len + 1 ? 0 : -EAGAIN;
}

static int flush_locked(struct metrics *metrics)
{
    struct line line = {.last = metrics->last, .groups = json_object(), .absolute = json_object()};
    json_object_set_new(line.groups, "utc_timestamp_ms", json_integer(utc_ms()));
    metrics->collect(metrics->arg, line_emit, &line);
    int ret = line.groups && line.absolute ? line_write(metrics->fd, line.groups) : -ENOMEM;
    if (ret == 0) {
        json_t *old = metrics->last;
        metrics->last = line.absolute;
        line.absolute = old;
    }
    json_decref(line.absolute);
    json_decref(line.groups);
    return ret;
}

int metrics_flush(struct metrics *metrics, struct err *err)
{
    pthread_mutex_lock(&metrics->lock);
    int ret = flush_locked(metrics);
    pthread_mutex_unlock(&metrics->lock);
    return ret < 0 ? err_set(err, -ret, "metrics") : 0;
}

static void *metrics_run(void *arg)
{
    struct metrics *metrics = arg;
    pthread_mutex_lock(&metrics->lock);
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    next.tv_sec += FLUSH_INTERVAL_S;
    while (!metrics->stop) {
        if (pthread_cond_timedwait(&metrics->wake, &metrics->lock, &next) != ETIMEDOUT)
            continue;
        int ret = flush_locked(metrics);
        if (ret < 0)
            log_debug("metrics: a line is lost: %s", strerror(-ret));
        next.tv_sec += FLUSH_INTERVAL_S;
    }
    pthread_mutex_unlock(&metrics->lock);
    return NULL;
}

/* Signals are for the threads that expect them. */
static int thread_start(struct metrics *metrics)
{
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&metrics->thread, &attr, metrics_run, metrics);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -code;
}

static void metrics_release(struct metrics *metrics)
{
    close(metrics->fd);
    json_decref(metrics->last);
    pthread_cond_destroy(&metrics->wake);
    pthread_mutex_destroy(&metrics->lock);
    free(metrics);
}

int metrics_create(int fd, metrics_collect_fn *collect, void *arg, struct metrics **ret_metrics,
                   struct err *err)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (!metrics) {
        close(fd);
        return err_set(err, ENOMEM, "metrics");
    }
    metrics->fd = fd;
    metrics->collect = collect;
    metrics->arg = arg;
    metrics->last = json_object();
    pthread_mutex_init(&metrics->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&metrics->wake, &attr);
    pthread_condattr_destroy(&attr);
    int ret = thread_start(metrics);
    if (ret < 0) {
        metrics_release(metrics);
        return err_set(err, -ret, "metrics thread");
    }
    *ret_metrics = metrics;
    return 0;
}

void metrics_free(struct metrics *metrics)
{
    if (!metrics)
        return;
    pthread_mutex_lock(&metrics->lock);
    metrics->stop = true;
    pthread_cond_signal(&metrics->wake);
    pthread_mutex_unlock(&metrics->lock);
    pthread_join(metrics->thread, NULL);
    int ret = flush_locked(metrics);
    if (ret < 0)
        log_debug("metrics: the last line is lost: %s", strerror(-ret));
    metrics_release(metrics);
}
