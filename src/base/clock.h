/* Time that only goes forward, from some start (CLOCK_MONOTONIC): for spans and deadlines. */
#pragma once

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Signed, so that what is left until a deadline may be negative. */
static inline int64_t clock_now_ms(void)
{
    return (int64_t)(clock_now_ns() / 1000000);
}
