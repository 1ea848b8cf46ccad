#include "virtio/limiter.h"

#include <time.h>

#define NS_PER_MS UINT64_C(1000000)
#define TOKENS_MAX (UINT64_C(1) << 62)

typedef unsigned __int128 limiter_wide; /* products of 64-bit amounts and times */

static void bucket_init(struct token_bucket *b, const struct token_bucket_config *config, uint64_t now_ns)
{
    *b = (struct token_bucket){.updated_ns = now_ns};
    if (!config->size || !config->refill_time_ms)
        return;
    b->size = config->size < TOKENS_MAX ? config->size : TOKENS_MAX;
    b->refill_ns = config->refill_time_ms < UINT64_MAX / NS_PER_MS ? config->refill_time_ms * NS_PER_MS : UINT64_MAX;
    b->burst = config->one_time_burst;
    b->tokens = (int64_t)b->size;
}

void limiter_init(struct limiter *limiter, const struct limiter_config *config, uint64_t now_ns)
{
    bucket_init(&limiter->bytes, &config->bandwidth, now_ns);
    bucket_init(&limiter->ops, &config->ops, now_ns);
}

bool limiter_active(const struct limiter *limiter)
{
    return limiter->bytes.size || limiter->ops.size;
}

static void bucket_refill(struct token_bucket *b, uint64_t now_ns)
{
    if (now_ns <= b->updated_ns)
        return;
    uint64_t room = b->size - (uint64_t)b->tokens; /* wraps right for a debt */
    limiter_wide gained = (limiter_wide)(now_ns - b->updated_ns) * b->size / b->refill_ns;
    if (gained >= room) {
        b->tokens = (int64_t)b->size;
        b->updated_ns = now_ns;
        return;
    }
    b->tokens += (int64_t)gained;
    b->updated_ns += (uint64_t)(gained * b->refill_ns / b->size); /* the rest of the time still counts */
}

/* Time until `amount` may be taken; 0 now. */
static uint64_t bucket_wait(struct token_bucket *b, uint64_t amount, uint64_t now_ns)
{
    if (!b->size || amount <= b->burst)
        return 0;
    bucket_refill(b, now_ns);
    uint64_t need = amount - b->burst;
    need = need < b->size ? need : b->size;
    if (b->tokens >= (int64_t)need)
        return 0;
    uint64_t missing = need - (uint64_t)b->tokens;
    limiter_wide wait = ((limiter_wide)missing * b->refill_ns + b->size - 1) / b->size;
    return wait > UINT64_C(1) << 60 ? UINT64_C(1) << 60 : (uint64_t)wait;
}

static void bucket_take(struct token_bucket *b, uint64_t amount)
{
    if (!b->size)
        return;
    uint64_t from_burst = amount < b->burst ? amount : b->burst;
    b->burst -= from_burst;
    b->tokens -= (int64_t)(amount - from_burst);
}

uint64_t limiter_take(struct limiter *limiter, uint64_t bytes, uint64_t now_ns)
{
    uint64_t for_bytes = bucket_wait(&limiter->bytes, bytes, now_ns);
    uint64_t for_ops = bucket_wait(&limiter->ops, 1, now_ns);
    if (for_bytes || for_ops)
        return for_bytes > for_ops ? for_bytes : for_ops;
    bucket_take(&limiter->bytes, bytes);
    bucket_take(&limiter->ops, 1);
    return 0;
}

uint64_t limiter_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
