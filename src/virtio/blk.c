/* The device and its thread: one wait, one pass over completions and queues under the device's lock, one system call
 * that submits the batch and waits again. */
#include "virtio/blk.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "virtio/blk_impl.h"

#define F_SEG_MAX 2
#define F_RO 5
#define F_BLK_SIZE 6
#define F_FLUSH 9
#define F_TOPOLOGY 10
#define F_CONFIG_WCE 11
#define F_MQ 12
#define F_DISCARD 13
#define F_WRITE_ZEROES 14
#define SEG_MAX (QUEUE_SIZE - 2u)
#define C_CAPACITY 0
#define C_SEG_MAX 12
#define C_BLK_SIZE 20
#define C_TOPOLOGY 24
#define C_WRITEBACK 32
#define C_NUM_QUEUES 34
#define C_DISCARD 36
#define C_WRITE_ZEROES 48
#define CONFIG_LEN 60

/* ---- the thread ---- */

/* How long the thread may sleep: until something happens, or tokens are there, or not at all when work is left over
 * that no event will announce. */
static uint64_t sleep_ns(const struct virtio_blk *blk)
{
    if (!blk->kicked || !virtio_live(&blk->dev) || blk->holds)
        return UINT64_MAX;
    if (blk->resume_at_ns) {
        uint64_t now = limiter_now();
        return blk->resume_at_ns > now ? blk->resume_at_ns - now : 0;
    }
    return blk->in_flight < IN_FLIGHT_MAX ? 0 : UINT64_MAX;
}

/* The ring must be started in its thread; the creator waits for how that went. */
static bool start_ring(struct virtio_blk *blk)
{
    int r = block_ring_start(blk->ring, NULL);
    pthread_mutex_lock(&blk->dev.lock);
    blk->start_result = r < 0 ? r : 1;
    pthread_cond_broadcast(&blk->idle);
    pthread_mutex_unlock(&blk->dev.lock);
    return r == 0;
}

static void *blk_thread(void *arg)
{
    struct virtio_blk *blk = arg;
    uint64_t timeout_ns = UINT64_MAX;
    char name[16];
    snprintf(name, sizeof name, "blk %.11s", blk->dev.id);
    pthread_setname_np(pthread_self(), name); /* of another thread it would take /proc */
    for (bool stop = !start_ring(blk); !stop;) {
        block_ring_wait(blk->ring, timeout_ns);
        pthread_mutex_lock(&blk->dev.lock);
        block_ring_dispatch(blk->ring);
        blk_serve_queues(blk);
        blk_signal_queues(blk);
        if (!blk->in_flight)
            pthread_cond_broadcast(&blk->idle);
        stop = blk->stop && !blk->in_flight;
        timeout_ns = sleep_ns(blk);
        pthread_mutex_unlock(&blk->dev.lock);
    }
    return NULL;
}

static void on_kick(void *arg)
{
    struct blk_watch *watch = arg;
    watch->blk->kicked |= UINT64_C(1) << watch->queue;
    stat_add(&watch->blk->queue_event_count, 1);
}

static void wake(struct virtio_blk *blk)
{
    uint64_t one = 1;
    ssize_t ignored = write(blk->control_fd, &one, sizeof one);
    (void)ignored;
}

/* From the thread of another member of the group. */
static void on_turn(void *arg)
{
    struct virtio_blk *blk = arg;
    atomic_store(&blk->throttle_woken, true);
    wake(blk);
}

/* Lock held, dropped while waiting; no new requests may be taken meanwhile. */
static void wait_idle(struct virtio_blk *blk)
{
    while (blk->in_flight)
        pthread_cond_wait(&blk->idle, &blk->dev.lock);
}

/* ---- calls from other threads ---- */

static void fill_config(struct virtio_blk *blk);

static void run_call(void *arg)
{
    struct virtio_blk *blk = arg;
    struct blk_call *call = blk->call;
    struct block_node *node = blk->node;
    uint64_t size = node->size;
    call->result = call->fn(&node, call->arg);
    if (node != blk->node || node->size != size) {
        blk->node = node;
        fill_config(blk);
        stat_add(&blk->update_count, 1);
        virtio_config_changed(&blk->dev);
    }
    call->done = true;
    pthread_cond_broadcast(&blk->idle);
}

/* The thread was woken for a reason that is not the guest's. */
static void on_control(void *arg)
{
    struct virtio_blk *blk = arg;
    struct blk_call *call = blk->call;
    if (!call || call->started)
        return;
    call->started = true;
    int r = fiber_start(&blk->pool, run_call, blk);
    if (r < 0) {
        call->result = r;
        call->done = true;
        pthread_cond_broadcast(&blk->idle);
    }
}

int virtio_blk_run(struct virtio_device *dev, bool alone, virtio_blk_fn *fn, void *arg)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    struct blk_call call = {.fn = fn, .arg = arg};
    pthread_mutex_lock(&dev->lock);
    if (alone)
        blk->holds++;
    while (blk->call || (alone && blk->in_flight))
        pthread_cond_wait(&blk->idle, &dev->lock);
    blk->call = &call;
    wake(blk);
    while (!call.done)
        pthread_cond_wait(&blk->idle, &dev->lock);
    if (alone)
        blk->holds--;
    blk->call = NULL;
    pthread_cond_broadcast(&blk->idle);
    pthread_mutex_unlock(&dev->lock);
    wake(blk); /* for requests that were held */
    return call.result;
}

/* ---- class ---- */

static bool has_cache_control(const struct virtio_device *dev)
{
    return virtio_has(dev, F_CONFIG_WCE);
}

static void blk_start(struct virtio_device *dev)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    blk->writeback = has_cache_control(dev) ? dev->config[C_WRITEBACK] : virtio_has(dev, F_FLUSH);
}

static void blk_kicked(struct virtio_device *dev, unsigned index)
{
    virtio_kick(dev, index); /* the queues are this thread's only by their eventfds */
}

static void blk_config_write(struct virtio_device *dev, unsigned offset, const void *data, unsigned len)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    if (offset != C_WRITEBACK || len != 1 || !has_cache_control(dev))
        return;
    dev->config[C_WRITEBACK] = *(const uint8_t *)data & 1;
    blk->writeback = dev->config[C_WRITEBACK];
}

static void blk_reset(struct virtio_device *dev)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    wait_idle(blk);
    blk->kicked = blk->touched = 0;
    blk->resume_at_ns = 0;
    blk->throttle_passed = false;
    if (dev->offered & VIRTIO_FEATURE(F_CONFIG_WCE))
        dev->config[C_WRITEBACK] = 1;
}

static void blk_pause(struct virtio_device *dev)
{
    wait_idle((struct virtio_blk *)dev);
}

static int stop_node(struct block_node **node, void *arg)
{
    (void)arg;
    if ((*node)->class->stop)
        (*node)->class->stop(*node);
    return 0;
}

static void blk_free(struct virtio_device *dev)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    if (blk->thread_runs) {
        if (blk->node && blk->start_result > 0)
            virtio_blk_run(dev, false, stop_node, NULL);
        pthread_mutex_lock(&dev->lock);
        blk->stop = true;
        pthread_mutex_unlock(&dev->lock);
        wake(blk);
        pthread_join(blk->thread, NULL);
    }
    throttle_leave(blk->throttle);
    fiber_pool_drain(&blk->pool);
    block_ring_free(blk->ring);
    block_close(blk->node);
    if (blk->control_fd >= 0)
        close(blk->control_fd);
    pthread_cond_destroy(&blk->idle);
    virtio_release(dev);
    free(blk->slots);
    free(blk);
}

#define STAT(field) {#field, offsetof(struct virtio_blk, field)}
static const struct virtio_stat blk_stats[] = {STAT(read_bytes),
                                               STAT(write_bytes),
                                               STAT(read_count),
                                               STAT(write_count),
                                               STAT(flush_count),
                                               STAT(discard_count),
                                               STAT(write_zeroes_count),
                                               STAT(queue_event_count),
                                               STAT(execute_fails),
                                               STAT(invalid_reqs_count),
                                               STAT(rate_limiter_throttled_events),
                                               STAT(rate_limiter_event_count),
                                               STAT(no_avail_slot),
                                               STAT(update_count),
                                               {0}};

const struct virtio_class virtio_blk = {
    .name = "virtio-blk",
    .type = 2,
    .pci_class = 0x018000, /* mass storage, other */
    .own_thread = true,
    .stats = blk_stats,
    .start = blk_start,
    .kicked = blk_kicked,
    .config_write = blk_config_write,
    .reset = blk_reset,
    .pause = blk_pause,
    .free = blk_free,
};

/* ---- creation ---- */

static uint64_t features_for(const struct virtio_blk_config *config)
{
    const struct block_node *node = config->node;
    uint64_t f = VIRTIO_FEATURE(F_SEG_MAX) | VIRTIO_FEATURE(F_BLK_SIZE) | VIRTIO_FEATURE(F_TOPOLOGY) |
                 VIRTIO_FEATURE(F_MQ);
    if (node->read_only)
        f |= VIRTIO_FEATURE(F_RO);
    if (!config->writethrough)
        f |= VIRTIO_FEATURE(F_FLUSH) | VIRTIO_FEATURE(F_CONFIG_WCE);
    if (node->can_discard)
        f |= VIRTIO_FEATURE(F_DISCARD);
    if (node->can_write_zeroes)
        f |= VIRTIO_FEATURE(F_WRITE_ZEROES);
    return f;
}

static void fill_config(struct virtio_blk *blk)
{
    uint8_t *c = blk->dev.config;
    const struct block_node *node = blk->node;
    uint32_t block = node->block_size;
    uint32_t physical = node->physical_block_size > block ? node->physical_block_size : block;
    uint32_t alignment = node->discard_alignment / BLOCK_SECTOR_SIZE;
    store_le64(c + C_CAPACITY, node->size / BLOCK_SECTOR_SIZE);
    store_le32(c + C_SEG_MAX, SEG_MAX);
    store_le32(c + C_BLK_SIZE, block);
    c[C_TOPOLOGY] = (uint8_t)__builtin_ctz(physical / block);
    store_le16(c + C_TOPOLOGY + 2, (uint16_t)(physical / block));
    store_le32(c + C_TOPOLOGY + 4, node->optimal_io_size / block);
    store_le16(c + C_NUM_QUEUES, (uint16_t)blk->dev.queue_count);
    store_le32(c + C_DISCARD, RANGE_SECTORS_MAX);
    store_le32(c + C_DISCARD + 4, RANGES_MAX);
    store_le32(c + C_DISCARD + 8, alignment ? alignment : 1);
    store_le32(c + C_WRITE_ZEROES, RANGE_SECTORS_MAX);
    store_le32(c + C_WRITE_ZEROES + 4, RANGES_MAX);
    c[C_WRITE_ZEROES + 8] = 1; /* may unmap */
}

static int start_thread(struct virtio_blk *blk)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the main thread and the vCPUs */
    int r = pthread_create(&blk->thread, NULL, blk_thread, blk);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return -r;
    blk->thread_runs = true;
    pthread_mutex_lock(&blk->dev.lock);
    while (!blk->start_result)
        pthread_cond_wait(&blk->idle, &blk->dev.lock);
    pthread_mutex_unlock(&blk->dev.lock);
    return blk->start_result < 0 ? blk->start_result : 0;
}

static int watch_queues(struct virtio_blk *blk)
{
    int r = block_ring_watch(blk->ring, blk->control_fd, on_control, blk);
    for (unsigned i = 0; r == 0 && i < blk->dev.queue_count; i++) {
        blk->watches[i] = (struct blk_watch){.blk = blk, .queue = i};
        r = block_ring_watch(blk->ring, blk->dev.kick_fd[i], on_kick, &blk->watches[i]);
    }
    return r;
}

/* Everything that needs no undoing but blk_free. */
static int build(struct virtio_blk *blk, const struct virtio_blk_config *config, struct err *err)
{
    blk->control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    blk->slots = calloc(IN_FLIGHT_MAX, sizeof *blk->slots);
    if (blk->control_fd < 0 || !blk->slots)
        return err_set(err, ENOMEM, "virtio-blk '%s'", blk->dev.id);
    blk->throttle = config->throttle ? throttle_join(config->throttle, &config->share, on_turn, blk) : NULL;
    if (config->throttle && !blk->throttle)
        return err_set(err, ENOMEM, "virtio-blk '%s'", blk->dev.id);
    int r = block_ring_create(config->io_engine, &blk->ring, err);
    if (r == 0)
        r = block_attach(blk->node, blk->ring, err);
    if (r < 0)
        return err_ctx(err, "virtio-blk '%s'", blk->dev.id);
    r = watch_queues(blk);
    if (r == 0)
        r = start_thread(blk);
    if (r < 0)
        return err_set(err, -r, "virtio-blk '%s': I/O thread", blk->dev.id);
    return virtio_attach(&blk->dev, err);
}

static unsigned queues_for(const struct virtio_blk_config *config)
{
    unsigned n = config->queues ? config->queues : 1;
    return n < VIRTIO_BLK_MAX_QUEUES ? n : VIRTIO_BLK_MAX_QUEUES;
}

int virtio_blk_create(const struct virtio_blk_config *config, const struct virtio_host *host,
                      struct virtio_device **ret_dev, struct err *err)
{
    struct virtio_blk *blk = calloc(1, sizeof *blk);
    if (!blk)
        return err_set(err, ENOMEM, "virtio-blk");
    uint16_t sizes[VIRTIO_BLK_MAX_QUEUES];
    for (unsigned i = 0; i < VIRTIO_BLK_MAX_QUEUES; i++)
        sizes[i] = QUEUE_SIZE;
    struct virtio_setup setup = {.id = config->id,
                                 .features = features_for(config),
                                 .queue_count = queues_for(config),
                                 .queue_sizes = sizes,
                                 .config_len = CONFIG_LEN};
    int r = virtio_init(&blk->dev, &virtio_blk, host, &setup, err);
    if (r < 0) {
        free(blk);
        return r;
    }
    pthread_cond_init(&blk->idle, NULL);
    blk->node = config->node;
    blk->writeback = true;
    blk->unsafe = config->unsafe;
    limiter_init(&blk->limiter, &config->limiter, limiter_now());
    const char *serial = config->serial ? config->serial : blk->dev.id;
    memcpy(blk->serial, serial, strnlen(serial, ID_SIZE)); /* zero-padded, no terminator when full */
    fill_config(blk);
    blk->dev.config[C_WRITEBACK] = !config->writethrough;
    r = build(blk, config, err);
    if (r < 0) {
        blk->node = NULL; /* stays the caller's */
        blk_free(&blk->dev);
        return r;
    }
    *ret_dev = &blk->dev;
    return 0;
}

/* ---- changes while the guest runs ---- */

void virtio_blk_set_limiter(struct virtio_device *dev, const struct limiter_config *limiter)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    pthread_mutex_lock(&dev->lock);
    limiter_init(&blk->limiter, limiter, limiter_now());
    blk->resume_at_ns = 0;
    stat_add(&blk->update_count, 1);
    pthread_mutex_unlock(&dev->lock);
    wake(blk);
}

void virtio_blk_set_share(struct virtio_device *dev, const struct throttle_share *share)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    throttle_set_share(blk->throttle, share, limiter_now());
    stat_add(&blk->update_count, 1);
}

static int replace_node(struct block_node **node, void *arg)
{
    struct block_node **other = arg, *old = *node;
    int r = old->class->stop ? -EBUSY : block_attach(*other, old->ring, NULL); /* something works on the old one */
    if (r < 0)
        return r;
    *node = *other;
    *other = old;
    return 0;
}

int virtio_blk_set_node(struct virtio_device *dev, struct block_node *node, struct err *err)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    if (node->read_only != blk->node->read_only)
        return err_say(err, EINVAL, "disk '%s': the new image must be %s as the old one is", dev->id,
                       blk->node->read_only ? "read-only" : "writable");
    int r = virtio_blk_run(dev, true, replace_node, &node);
    if (r < 0)
        return err_set(err, -r, "disk '%s'", dev->id);
    block_close(node);
    return 0;
}
