/* Event loop over epoll. One thread runs a loop; sources are added, changed and removed from that thread only, or
 * before it runs. Other threads hand work in with loop_call(). Callbacks run one at a time in the loop's thread. */
#pragma once

#include <stdint.h>
#include <stdbool.h>
#include "base/err.h"

struct loop;
struct loop_source;

typedef void loop_fd_fn(void *arg, int fd, uint32_t epoll_events);
typedef void loop_fn(void *arg);

must_check int loop_create(struct loop **ret_loop, struct err *err);
/* Frees the loop and all of its sources. NULL is fine. */
void loop_free(struct loop *loop);

/* Watches `fd` (not owned) for `epoll_events` (EPOLLIN, EPOLLOUT, ... level-triggered). NULL when memory is out or
 * the fd cannot be watched. */
struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t epoll_events, loop_fd_fn *fn, void *arg);
void loop_source_set_events(struct loop_source *source, uint32_t epoll_events);
/* A one-shot timer, created disarmed; arms again with loop_timer_set. */
struct loop_source *loop_add_timer(struct loop *loop, loop_fn *fn, void *arg);
/* Fires once `delay_ns` from now (CLOCK_MONOTONIC); 0 disarms. */
void loop_timer_set(struct loop_source *timer, uint64_t delay_ns);
/* Removes and frees a source; safe within any callback of the same loop. NULL is fine. */
void loop_remove(struct loop_source *source);

/* Runs callbacks until loop_stop(). */
void loop_run(struct loop *loop);
/* From any thread or a signal handler: makes loop_run return soon. */
void loop_stop(struct loop *loop);
/* From any thread: runs fn(arg) once in the loop's thread, soon, in call order. */
void loop_call(struct loop *loop, loop_fn *fn, void *arg);
