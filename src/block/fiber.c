/* The switch saves what the System V ABI lets a callee keep, and the stack pointer. Sanitizers are told about every
 * switch: they keep shadow state for each stack. */
#include "block/fiber.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN
#endif
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FIBER_ASAN
#endif
#ifdef __SANITIZE_THREAD__
#define FIBER_TSAN
#endif
#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define STACK_SIZE (256u * 1024) /* address space: only what is touched takes memory */
#define GUARD_SIZE 4096u

/* Lies at the top of its stack. */
struct fiber {
    void *sp;        /* while it does not run */
    void *caller_sp; /* of who resumed it */
    struct fiber *caller;
    struct fiber_pool *pool;
    struct fiber *next; /* in the pool or in a queue */
    void (*fn)(void *arg);
    void *arg;
    void *base; /* of the mapping */
    bool ended;
#ifdef FIBER_ASAN
    void *fake_stack, *caller_fake;
    const void *caller_bottom;
    size_t caller_size;
#endif
#ifdef FIBER_TSAN
    void *tsan, *caller_tsan;
#endif
};

static _Thread_local struct fiber *current;

void fiber_switch(void **save_sp, void *to_sp);

__asm__(".text\n"
        ".globl fiber_switch\n"
        ".hidden fiber_switch\n"
        ".type fiber_switch, @function\n"
        "fiber_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size fiber_switch, . - fiber_switch\n");

static void enter(struct fiber *fiber)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&fiber->caller_fake, (char *)fiber->base + GUARD_SIZE, STACK_SIZE - GUARD_SIZE);
#endif
#ifdef FIBER_TSAN
    fiber->caller_tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber->tsan, 0);
#endif
    fiber_switch(&fiber->caller_sp, fiber->sp);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(fiber->caller_fake, NULL, NULL);
#endif
}

static void leave(struct fiber *fiber)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(fiber->ended ? NULL : &fiber->fake_stack, fiber->caller_bottom, fiber->caller_size);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(fiber->caller_tsan, 0);
#endif
    fiber_switch(&fiber->sp, fiber->caller_sp);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &fiber->caller_bottom, &fiber->caller_size);
#endif
}

/* The first frame of each stack; never returns. */
static void fiber_main(void)
{
    struct fiber *fiber = current;
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(NULL, &fiber->caller_bottom, &fiber->caller_size);
#endif
    fiber->fn(fiber->arg);
    fiber->ended = true;
    leave(fiber);
    __builtin_unreachable();
}

static struct fiber *take_stack(struct fiber_pool *pool)
{
    struct fiber *fiber = pool->free;
    if (fiber) {
        pool->free = fiber->next;
        return fiber;
    }
    uint8_t *base = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (mprotect(base, GUARD_SIZE, PROT_NONE) < 0) {
        munmap(base, STACK_SIZE);
        return NULL;
    }
    fiber = (struct fiber *)(void *)(base + STACK_SIZE - ((sizeof *fiber + 63) & ~(size_t)63));
    fiber->base = base;
#ifdef FIBER_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
    return fiber;
}

static void put_stack(struct fiber *fiber)
{
    fiber->next = fiber->pool->free;
    fiber->pool->free = fiber;
}

int fiber_start(struct fiber_pool *pool, void (*fn)(void *arg), void *arg)
{
    struct fiber *fiber = take_stack(pool);
    if (!fiber)
        return -ENOMEM;
    fiber->pool = pool;
    fiber->next = NULL;
    fiber->fn = fn;
    fiber->arg = arg;
    fiber->ended = false;
    /* six registers and the return address, then the place where fiber_main's caller would have left one */
    void **sp = (void **)(void *)fiber - 8;
    for (unsigned i = 0; i < 8; i++)
        sp[i] = NULL;
    sp[6] = (void *)(uintptr_t)fiber_main;
    fiber->sp = sp;
    fiber_resume(fiber);
    return 0;
}

struct fiber *fiber_current(void)
{
    return current;
}

void fiber_wait(void)
{
    struct fiber *fiber = current;
    assert(fiber);
    leave(fiber);
}

void fiber_resume(struct fiber *fiber)
{
    fiber->caller = current;
    current = fiber;
    enter(fiber);
    current = fiber->caller;
    if (fiber->ended)
        put_stack(fiber);
}

void fiber_pool_drain(struct fiber_pool *pool)
{
    struct fiber *fiber;
    while ((fiber = pool->free)) {
        pool->free = fiber->next;
#ifdef FIBER_TSAN
        __tsan_destroy_fiber(fiber->tsan);
#endif
#ifdef FIBER_ASAN
        __asan_unpoison_memory_region((char *)fiber->base + GUARD_SIZE, STACK_SIZE - GUARD_SIZE);
#endif
        munmap(fiber->base, STACK_SIZE);
    }
}

void fiber_queue_wait(struct fiber_queue *queue)
{
    struct fiber *fiber = current;
    assert(fiber);
    fiber->next = NULL;
    if (queue->last)
        queue->last->next = fiber;
    else
        queue->first = fiber;
    queue->last = fiber;
    fiber_wait();
}

bool fiber_queue_wake_one(struct fiber_queue *queue)
{
    struct fiber *fiber = queue->first;
    if (!fiber)
        return false;
    queue->first = fiber->next;
    if (!queue->first)
        queue->last = NULL;
    fiber_resume(fiber);
    return true;
}

void fiber_queue_wake_all(struct fiber_queue *queue)
{
    struct fiber_queue now = *queue;
    *queue = (struct fiber_queue){0};
    while (fiber_queue_wake_one(&now)) {
    }
}

void fiber_lock(struct fiber_lock *lock)
{
    if (lock->held)
        fiber_queue_wait(&lock->waiters); /* and have it: fiber_unlock leaves it held */
    lock->held = true;
}

void fiber_unlock(struct fiber_lock *lock)
{
    assert(lock->held);
    if (!lock->waiters.first)
        lock->held = false;
    else
        fiber_queue_wake_one(&lock->waiters);
}
