/* Fibers: functions with stacks of their own that wait for I/O without a thread.
 *
 * A fiber runs in the thread that started or resumed it until it waits or ends; control then goes back there. So what lies
 * between two waits is atomic for all that share the thread. x86-64 only, as the rest of Polder.
 * Threads: a pool and its fibers belong to one thread at a time, and change it only while no fiber lives. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

struct fiber;

/* Stacks that wait for their next use; zero-initialised. */
struct fiber_pool {
    struct fiber *free;
};

/* Runs fn(arg) up to its first wait, or its end. -ENOMEM. */
must_check int fiber_start(struct fiber_pool *pool, void (*fn)(void *arg), void *arg);
/* NULL outside of fibers. */
struct fiber *fiber_current(void);
/* Only in a fiber: sleeps until fiber_resume. */
void fiber_wait(void);
/* Only for a fiber that waits. Returns when it waits again or has ended. */
void fiber_resume(struct fiber *fiber);
/* Gives all stacks back. No fiber of the pool lives. */
void fiber_pool_drain(struct fiber_pool *pool);

/* Fibers that wait for one thing, in the order in which they came; zero-initialised. */
struct fiber_queue {
    struct fiber *first, *last;
};
/* Only in a fiber. */
void fiber_queue_wait(struct fiber_queue *queue);
/* False when nobody waits. */
bool fiber_queue_wake_one(struct fiber_queue *queue);
/* Wakes those that wait now, once each. */
void fiber_queue_wake_all(struct fiber_queue *queue);

/* A mutex among fibers; zero-initialised. Handed over in order. */
struct fiber_lock {
    bool held;
    struct fiber_queue waiters;
};
void fiber_lock(struct fiber_lock *lock);
void fiber_unlock(struct fiber_lock *lock);
