/* The queue: a few threads run steps, one instance's never at once; another thread waits for processes' ends, guests' words
 * and times that were set. Everything here is under the controller's lock. */
#include "control/instance_impl.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"

static void wake_poller(struct instances *instances)
{
    uint64_t one = 1;
    if (write(instances->wake_fd, &one, sizeof one) < 0)
        log_debug("instances: wake: %s", strerror(errno));
}

/* ---- ready ---- */

static void make_ready(struct instance *instance)
{
    struct instances *instances = instance->owner;
    instance->due_ms = 0;
    if (instance->working) {
        instance->again = true;
        return;
    }
    if (instance->ready || instance->removed)
        return;
    instance->ready = true;
    instance->references++;
    instance->next_ready = NULL;
    *instances->last_ready = instance;
    instances->last_ready = &instance->next_ready;
    pthread_cond_signal(&instances->work);
}

void instance_enqueue(struct instance *instance)
{
    pthread_mutex_lock(&instance->owner->lock);
    make_ready(instance);
    pthread_mutex_unlock(&instance->owner->lock);
}

void instance_enqueue_in(struct instance *instance, int64_t delay_ms)
{
    int64_t due = clock_now_ms() + delay_ms;
    pthread_mutex_lock(&instance->owner->lock);
    if (!instance->due_ms || due < instance->due_ms)
        instance->due_ms = due;
    pthread_mutex_unlock(&instance->owner->lock);
    wake_poller(instance->owner);
}

static struct instance *take_ready(struct instances *instances)
{
    struct instance *instance = instances->first_ready;
    instances->first_ready = instance->next_ready;
    if (!instances->first_ready)
        instances->last_ready = &instances->first_ready;
    instance->ready = false;
    instance->working = true;
    return instance;
}

static void put_back_locked(struct instance *instance, bool again)
{
    instance->working = false;
    if (instance->again || again) {
        instance->again = false;
        make_ready(instance);
    }
    pthread_cond_broadcast(&instance->owner->changed);
}

static void *work(void *arg)
{
    struct instances *instances = arg;
    pthread_mutex_lock(&instances->lock);
    while (!instances->closing) {
        if (!instances->first_ready) {
            pthread_cond_wait(&instances->work, &instances->lock);
            continue;
        }
        struct instance *instance = take_ready(instances);
        pthread_mutex_unlock(&instances->lock);
        instance_step(instance);
        pthread_mutex_lock(&instances->lock);
        put_back_locked(instance, false);
        pthread_mutex_unlock(&instances->lock);
        instance_unref(instance);
        pthread_mutex_lock(&instances->lock);
    }
    pthread_mutex_unlock(&instances->lock);
    return NULL;
}

void instance_claim(struct instance *instance)
{
    struct instances *instances = instance->owner;
    pthread_mutex_lock(&instances->lock);
    /* one that waits in the queue is passed by: its step comes after */
    while (instance->working || instance->ready)
        pthread_cond_wait(&instances->changed, &instances->lock);
    instance->working = true;
    pthread_mutex_unlock(&instances->lock);
}

void instance_give_back(struct instance *instance)
{
    pthread_mutex_lock(&instance->owner->lock);
    put_back_locked(instance, true);
    pthread_mutex_unlock(&instance->owner->lock);
}

/* ---- waiting ---- */

/* Each descriptor tells once and is armed again by the next step: no level keeps the poller busy meanwhile. */
void instance_watch_fd(struct instance *instance, int fd)
{
    struct instances *instances = instance->owner;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT};
    memcpy(&event.data, instance->id, sizeof event.data);
    if (epoll_ctl(instances->epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0 &&
        epoll_ctl(instances->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        log_error("instance %s: watch: %s", instance->name, strerror(errno));
}

void instance_unwatch_fd(struct instance *instance, int fd)
{
    epoll_ctl(instance->owner->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* Makes those ready whose time has come; milliseconds until the next, -1 for none. */
static int run_timers(struct instances *instances)
{
    int64_t now = clock_now_ms(), next = -1;
    for (unsigned i = 0; i < INSTANCE_BUCKETS; i++) {
        for (struct instance *instance = instances->buckets[i]; instance; instance = instance->next) {
            if (!instance->due_ms)
                continue;
            if (instance->due_ms <= now)
                make_ready(instance);
            else if (next < 0 || instance->due_ms - now < next)
                next = instance->due_ms - now;
        }
    }
    return next > 60000 ? 60000 : (int)next;
}

/* Descriptors are named by the first half of the id, which says its bucket's instances apart well enough: a step too many
 * does no harm. */
static void wake_by_tag(struct instances *instances, epoll_data_t tag)
{
    for (unsigned i = 0; i < INSTANCE_BUCKETS; i++) {
        for (struct instance *instance = instances->buckets[i]; instance; instance = instance->next) {
            if (!memcmp(instance->id, &tag.u64, sizeof tag.u64))
                make_ready(instance);
        }
    }
}

static void *poll_all(void *arg)
{
    struct instances *instances = arg;
    struct epoll_event events[32];
    pthread_mutex_lock(&instances->lock);
    while (!instances->closing) {
        int timeout = run_timers(instances);
        pthread_mutex_unlock(&instances->lock);
        int count = epoll_wait(instances->epoll_fd, events, 32, timeout);
        pthread_mutex_lock(&instances->lock);
        for (int i = 0; i < count; i++) {
            uint64_t drained;
            if (events[i].data.u64)
                wake_by_tag(instances, events[i].data);
            else if (read(instances->wake_fd, &drained, sizeof drained) < 0)
                log_debug("instances: wake: %s", strerror(errno));
        }
    }
    pthread_mutex_unlock(&instances->lock);
    return NULL;
}

/* ---- start and end ---- */

static int start_thread(pthread_t *ret_thread, void *(*run)(void *), void *arg, struct err *err)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 512u << 10);
    int ret = pthread_create(ret_thread, &attributes, run, arg);
    pthread_attr_destroy(&attributes);
    return ret ? err_set(err, ret, "thread") : 0;
}

int instance_queue_start(struct instances *instances, struct err *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    instances->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    instances->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (instances->epoll_fd < 0 || instances->wake_fd < 0 ||
        epoll_ctl(instances->epoll_fd, EPOLL_CTL_ADD, instances->wake_fd, &event) < 0)
        return err_set(err, errno, "epoll");
    int ret = start_thread(&instances->poller, poll_all, instances, err);
    instances->poller_runs = !ret;
    while (!ret && instances->worker_count < INSTANCE_WORKERS) {
        ret = start_thread(&instances->workers[instances->worker_count], work, instances, err);
        instances->worker_count += !ret;
    }
    return ret;
}

void instance_queue_stop(struct instances *instances)
{
    pthread_mutex_lock(&instances->lock);
    instances->closing = true;
    pthread_cond_broadcast(&instances->work);
    pthread_cond_broadcast(&instances->changed);
    pthread_mutex_unlock(&instances->lock);
    if (instances->poller_runs) {
        wake_poller(instances);
        pthread_join(instances->poller, NULL);
    }
    for (unsigned i = 0; i < instances->worker_count; i++)
        pthread_join(instances->workers[i], NULL);
    while (instances->first_ready) {
        struct instance *instance = take_ready(instances);
        instance_unref(instance);
    }
}
