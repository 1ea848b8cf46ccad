/* bench: how many requests an image serves a second, how long each takes, and what that costs of the CPU. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "img/img.h"
#include "base/clock.h"

#define DEPTH_MAX 1024u
#define REQUEST_MAX (UINT64_C(64) << 20)
/* Latencies are counted in classes a sixteenth of a power of two wide. */
#define CLASS_BITS 4u
#define CLASSES (64u << CLASS_BITS)

static struct fiber_pool pool; /* gives back a fiber's stack after the last one has ended the run */

struct bench {
    struct block_node *node;
    uint64_t count, depth, size, step, offset, flush_interval;
    bool is_write, is_random;
    uint64_t next, places; /* requests begun; different places of random ones */
    uint64_t random;
    unsigned fibers;
    struct fiber_queue idle;
    int result;
    uint32_t latencies[CLASSES];
    uint64_t latency_max_ns;
};

/* ---- latencies ---- */

static unsigned class_of(uint64_t ns)
{
    unsigned top = 63u - (unsigned)__builtin_clzll(ns | 1);
    if (top < CLASS_BITS)
        return (unsigned)ns;
    return ((top - CLASS_BITS + 1) << CLASS_BITS) + (unsigned)(ns >> (top - CLASS_BITS) & ((1u << CLASS_BITS) - 1));
}

static uint64_t class_start_ns(unsigned class)
{
    unsigned power = class >> CLASS_BITS;
    uint64_t low = class & ((1u << CLASS_BITS) - 1);
    return power ? (low | 1u << CLASS_BITS) << (power - 1) : low;
}

static double percentile_us(const struct bench *b, double part)
{
    double wanted = part * (double)b->count, seen = 0;
    for (unsigned class = 0; class < CLASSES; class++) {
        seen += b->latencies[class];
        if (seen >= wanted && b->latencies[class])
            return (double)class_start_ns(class) / 1000;
    }
    return (double)b->latency_max_ns / 1000;
}

static void note(struct bench *b, uint64_t ns)
{
    b->latencies[class_of(ns)]++;
    if (ns > b->latency_max_ns)
        b->latency_max_ns = ns;
}

/* ---- the run ---- */

/* xorshift64 (Marsaglia 2003): the same places in each run. */
static uint64_t next_random(struct bench *b)
{
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return b->random;
}

static uint64_t next_offset(struct bench *b, uint64_t number)
{
    uint64_t place = b->is_random ? next_random(b) % b->places : number % b->places;
    return b->offset + place * b->step;
}

static int one_request(struct bench *b, uint64_t number, void *data)
{
    uint64_t start_ns = clock_now_ns();
    int r = block_do(b->node, b->is_write ? BLOCK_WRITE : BLOCK_READ, next_offset(b, number), data, b->size);
    note(b, clock_now_ns() - start_ns);
    if (r == 0 && b->flush_interval && (number + 1) % b->flush_interval == 0)
        r = block_do(b->node, BLOCK_FLUSH, 0, NULL, 0);
    return r;
}

static void work(void *arg)
{
    struct bench *b = arg;
    void *data = aligned_alloc(4096, (b->size + 4095) / 4096 * 4096);
    if (data)
        memset(data, 0xa5, b->size);
    else
        b->result = -ENOMEM;
    while (b->result == 0 && b->next < b->count) {
        int r = one_request(b, b->next++, data);
        if (r < 0)
            b->result = r;
    }
    free(data);
    if (--b->fibers == 0)
        fiber_queue_wake_all(&b->idle);
}

static int run_all(void *arg)
{
    struct bench *b = arg;
    for (uint64_t i = 0; i < b->depth; i++) {
        b->fibers++;
        if (fiber_start(&pool, work, b) < 0) {
            b->fibers--;
            b->result = -ENOMEM;
        }
    }
    if (b->fibers)
        fiber_queue_wait(&b->idle);
    return b->result;
}

/* ---- what was asked for, and what came out ---- */

static int number(const char *name, const char *text, uint64_t fallback, uint64_t most, uint64_t *ret_number, struct err *err)
{
    *ret_number = fallback;
    if (!text)
        return 0;
    int r = img_parse_size(text, ret_number, err);
    if (r == 0 && *ret_number > most)
        r = err_say(err, EINVAL, "%" PRIu64 " is too much, give at most %" PRIu64, *ret_number, most);
    return r < 0 ? err_ctx(err, "--%s", name) : 0;
}

static int read_options(const struct img_options *options, struct bench *b, struct err *err)
{
    const struct img_bench_options *o = &options->bench;
    int r = number("count", o->count, 75000, UINT32_MAX, &b->count, err);
    if (r == 0)
        r = number("depth", o->depth, 64, DEPTH_MAX, &b->depth, err);
    if (r == 0)
        r = number("buffer-size", o->size, 4096, REQUEST_MAX, &b->size, err);
    if (r == 0)
        r = number("step-size", o->step, b->size, INT64_MAX, &b->step, err);
    if (r == 0)
        r = number("offset", o->offset, 0, INT64_MAX, &b->offset, err);
    if (r == 0)
        r = number("flush-interval", o->flush_interval, 0, UINT32_MAX, &b->flush_interval, err);
    if (r == 0 && (!b->count || !b->depth || !b->size || !b->step))
        r = err_say(err, EINVAL, "count, depth, buffer-size and step-size are at least 1");
    b->is_write = o->write;
    b->is_random = o->random;
    return r;
}

static int fit(struct bench *b, struct err *err)
{
    uint64_t unit = b->node->block_size;
    if (b->size % unit || b->step % unit || b->offset % unit)
        return err_say(err, EINVAL, "buffer-size, step-size and offset are multiples of the disk's %" PRIu64 " bytes", unit);
    if (b->offset >= b->node->size || b->size > b->node->size - b->offset)
        return err_say(err, EINVAL, "a request of %" PRIu64 " bytes at %" PRIu64 " is not inside the disk of %" PRIu64, b->size, b->offset,
                       b->node->size);
    b->places = (b->node->size - b->offset - b->size) / b->step + 1;
    return 0;
}

static double seconds_of(struct timeval a, struct timeval b)
{
    return (double)(a.tv_sec + b.tv_sec) + (double)(a.tv_usec + b.tv_usec) / 1e6;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return seconds_of(usage.ru_utime, usage.ru_stime);
}

static int report(const struct bench *b, bool json, double seconds, double cpu)
{
    double iops = (double)b->count / seconds, cpu_us = cpu * 1e6 / (double)b->count;
    const double p50 = percentile_us(b, 0.5), p99 = percentile_us(b, 0.99), p999 = percentile_us(b, 0.999);
    if (json)
        return img_print_json(json_pack("{s:I, s:I, s:I, s:s, s:f, s:f, s:f, s:f, s:{s:f, s:f, s:f, s:f}}", "count", (json_int_t)b->count,
                                        "depth", (json_int_t)b->depth, "bytes", (json_int_t)b->size, "operation",
                                        b->is_write ? "write" : "read", "seconds", seconds, "iops", iops, "bytes-per-second",
                                        iops * (double)b->size, "cpu-us-per-request", cpu_us, "latency-us", "p50", p50, "p99", p99,
                                        "p99.9", p999, "max", (double)b->latency_max_ns / 1000));
    printf("%" PRIu64 " %s of %" PRIu64 " bytes, %" PRIu64 " at a time, in %.3f seconds\n", b->count, b->is_write ? "writes" : "reads",
           b->size, b->depth, seconds);
    printf("%.0f requests a second, %.1f MiB/s, %.2f us of the CPU each\n", iops, iops * (double)b->size / (1 << 20), cpu_us);
    printf("latency: half below %.1f us, 99 %% %.1f us, 99.9 %% %.1f us, longest %.1f us\n", p50, p99, p999,
           (double)b->latency_max_ns / 1000);
    return 0;
}

static int measure(const struct img_image *image, struct bench *b, bool json, struct err *err)
{
    b->node = image->node;
    int r = fit(b, err);
    if (r < 0)
        return r;
    double cpu = cpu_seconds();
    uint64_t start_ns = clock_now_ns();
    r = block_run(image->ring, run_all, b);
    double seconds = (double)(clock_now_ns() - start_ns) / 1e9;
    cpu = cpu_seconds() - cpu;
    fiber_pool_drain(&pool);
    return r < 0 ? err_set(err, -r, "%s", b->is_write ? "write" : "read") : report(b, json, seconds, cpu);
}

static int open_image(const struct img_options *options, bool is_write, struct img_image *ret_image, struct err *err)
{
    const char *cache = options->bench.cache ? options->bench.cache : "writeback";
    struct block_options open = {0};
    if (strcmp(cache, "writeback") != 0 && strcmp(cache, "none") != 0)
        return err_say(err, EINVAL, "unknown cache mode '%s', give writeback or none", cache);
    int r = img_block_options(options, options->operands[0], options->format, !is_write, &open, err);
    if (r < 0)
        return r;
    open.direct = strcmp(cache, "none") == 0;
    if (strcmp(open.driver, "raw") == 0)
        open.below = false; /* requests as they come, at the end of the file too */
    return img_open_as(&open, NULL, ret_image, err);
}

static int run_bench(const struct img_options *options, struct err *err)
{
    struct bench bench = {.random = UINT64_C(0x9e3779b97f4a7c15)};
    struct img_image image;
    int r = read_options(options, &bench, err);
    if (r == 0)
        r = open_image(options, bench.is_write, &image, err);
    if (r < 0)
        return r;
    r = measure(&image, &bench, options->json, err);
    img_close(&image);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {'c', "count"}, {'d', "depth"}, {'s', "buffer-size"}, {'S', "step-size"},
                                               {'o', "offset"}, {'w', "write"}, {'t', "cache"}, {0, NULL}};

const struct img_command img_bench = {
    .name = "bench",
    .usage = "[-f FORMAT] [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP | --random] [-o OFFSET] [-w] [--flush-interval N] [-t none] IMAGE",
    .summary = "how fast is it?",
    .accepts = " format count depth buffer-size step-size random offset write flush-interval cache key allow-backing output ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_bench,
};
