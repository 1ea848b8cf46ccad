/* Rate limiter: two token buckets, bytes and operations, as Firecracker's API defines them. Each has a capacity that
 * refills continuously over refill_time_ms, and a one-time burst that is spent first and never refilled.
 * Pure arithmetic on a clock the caller passes in; not thread-safe. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct token_bucket_config {
    uint64_t size; /* tokens; 0 switches the bucket off */
    uint64_t one_time_burst;
    uint64_t refill_time_ms; /* 0 switches the bucket off */
};

struct limiter_config {
    struct token_bucket_config bandwidth, ops;
};

struct token_bucket {
    uint64_t size, burst, refill_ns;
    int64_t tokens; /* below zero: a debt to wait out */
    uint64_t updated_ns;
};

struct limiter {
    struct token_bucket bytes, ops;
};

void limiter_init(struct limiter *limiter, const struct limiter_config *config, uint64_t now_ns);
bool limiter_active(const struct limiter *limiter);
/* Takes one operation of `bytes`. 0 when it may go ahead, else the time in ns after which to ask again (nothing taken).
 * A request larger than the bucket goes ahead once the bucket is full, and leaves a debt that refills first. */
uint64_t limiter_take(struct limiter *limiter, uint64_t bytes, uint64_t now_ns);
/* CLOCK_MONOTONIC in ns. */
uint64_t limiter_now(void);
