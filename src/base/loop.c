#include "base/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/own.h"

struct loop_source {
    struct loop *loop;
    struct loop_source *next;
    loop_fd_fn *on_fd;
    void *arg;
    loop_fn *on_timer; /* timers only, with its argument; then arg is the source itself */
    void *timer_arg;
    int fd;
    bool owns_fd;
    bool removed;
};

struct call {
    struct call *next;
    loop_fn *fn;
    void *arg;
};

struct loop {
    int epoll_fd, wake_fd;
    bool stop;
    struct loop_source *sources;
    bool sweep; /* some source is marked removed */
    pthread_mutex_t calls_lock;
    struct call *calls, **calls_end;
};

static void loop_sweep(struct loop *loop)
{
    if (!loop->sweep)
        return;
    loop->sweep = false;
    for (struct loop_source **at = &loop->sources; *at;) {
        struct loop_source *s = *at;
        if (s->removed) {
            *at = s->next;
            free(s);
        } else {
            at = &s->next;
        }
    }
}

static void loop_wake(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t ignored = write(loop->wake_fd, &one, sizeof one);
    (void)ignored;
}

static void loop_on_wake(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct loop *loop = arg;
    uint64_t count;
    ssize_t ignored = read(fd, &count, sizeof count);
    (void)ignored;
    pthread_mutex_lock(&loop->calls_lock);
    struct call *calls = loop->calls;
    loop->calls = NULL;
    loop->calls_end = &loop->calls;
    pthread_mutex_unlock(&loop->calls_lock);
    while (calls) {
        struct call *call = calls;
        calls = call->next;
        call->fn(call->arg);
        free(call);
    }
}

int loop_create(struct loop **ret_loop, struct err *err)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return err_set(err, ENOMEM, "event loop");
    pthread_mutex_init(&loop->calls_lock, NULL);
    loop->calls_end = &loop->calls;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 || !loop_add_fd(loop, loop->wake_fd, EPOLLIN, loop_on_wake, loop)) {
        int code = errno;
        loop_free(loop);
        return err_set(err, code, "event loop");
    }
    *ret_loop = loop;
    return 0;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    for (struct loop_source *s = loop->sources; s; s = s->next)
        loop_remove(s);
    loop_sweep(loop);
    while (loop->calls) {
        struct call *call = loop->calls;
        loop->calls = call->next;
        free(call);
    }
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    pthread_mutex_destroy(&loop->calls_lock);
    free(loop);
}

struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t epoll_events, loop_fd_fn *fn, void *arg)
{
    struct loop_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (struct loop_source){.loop = loop, .next = loop->sources, .on_fd = fn, .arg = arg, .fd = fd};
    struct epoll_event event = {.events = epoll_events, .data.ptr = s};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        free(s);
        return NULL;
    }
    loop->sources = s;
    return s;
}

void loop_source_set_events(struct loop_source *source, uint32_t epoll_events)
{
    struct epoll_event event = {.events = epoll_events, .data.ptr = source};
    epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

static void loop_on_timer(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct loop_source *timer = arg;
    uint64_t count;
    if (read(fd, &count, sizeof count) == sizeof count)
        timer->on_timer(timer->timer_arg);
}

struct loop_source *loop_add_timer(struct loop *loop, loop_fn *fn, void *arg)
{
    own_fd int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (fd < 0)
        return NULL;
    struct loop_source *s = loop_add_fd(loop, fd, EPOLLIN, loop_on_timer, NULL);
    if (!s)
        return NULL;
    s->arg = s;
    s->on_timer = fn;
    s->timer_arg = arg;
    s->owns_fd = true;
    TAKE_FD(fd);
    return s;
}

void loop_timer_set(struct loop_source *timer, uint64_t delay_ns)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(delay_ns / 1000000000u),
                                           .tv_nsec = (long)(delay_ns % 1000000000u)}};
    timerfd_settime(timer->fd, 0, &when, NULL);
}

void loop_remove(struct loop_source *source)
{
    if (!source || source->removed)
        return;
    epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    if (source->owns_fd)
        close(source->fd);
    source->removed = true;
    source->loop->sweep = true;
}

void loop_run(struct loop *loop)
{
    while (!__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE)) {
        struct epoll_event events[32];
        int n = epoll_wait(loop->epoll_fd, events, 32, -1);
        assert(n >= 0 || errno == EINTR);
        for (int i = 0; i < n; i++) {
            struct loop_source *s = events[i].data.ptr;
            if (!s->removed)
                s->on_fd(s->arg, s->fd, events[i].events);
        }
        loop_sweep(loop);
    }
    __atomic_store_n(&loop->stop, false, __ATOMIC_RELEASE);
}

void loop_stop(struct loop *loop)
{
    __atomic_store_n(&loop->stop, true, __ATOMIC_RELEASE);
    loop_wake(loop);
}

void loop_call(struct loop *loop, loop_fn *fn, void *arg)
{
    struct call *call = malloc(sizeof *call);
    assert(call);
    *call = (struct call){.fn = fn, .arg = arg};
    pthread_mutex_lock(&loop->calls_lock);
    *loop->calls_end = call;
    loop->calls_end = &call->next;
    pthread_mutex_unlock(&loop->calls_lock);
    loop_wake(loop);
}
