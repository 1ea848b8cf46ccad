/* Requests go from the queues to the block node and back in the disk's own thread, in batches: one wait, one pass over
 * completions and queues under the device's lock, one system call that submits and waits again.
 * Every request has a slot of a fixed pool; when slots or rate tokens run out, chains stay in the queue. */
#include "virtio/blk.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "base/log.h"
#include "base/own.h"
#include "block/block.h"
#include "mem/mem.h"

#define F_SEG_MAX 2
#define F_RO 5
#define F_BLK_SIZE 6
#define F_FLUSH 9
#define F_TOPOLOGY 10
#define F_CONFIG_WCE 11
#define F_MQ 12
#define F_DISCARD 13
#define F_WRITE_ZEROES 14

#define T_IN 0u
#define T_OUT 1u
#define T_FLUSH 4u
#define T_GET_ID 8u
#define T_DISCARD 11u
#define T_WRITE_ZEROES 13u

#define S_OK 0u
#define S_IOERR 1u
#define S_UNSUPP 2u

#define QUEUE_SIZE 256u
#define SEG_MAX (QUEUE_SIZE - 2u)
#define HEADER_SIZE 16u
#define ID_SIZE 20u
#define RANGES_MAX 16u /* of one discard or write-zeroes request */
#define RANGE_SIZE 16u
#define RANGE_F_UNMAP 1u
#define RANGE_SECTORS_MAX (UINT32_C(1) << 22) /* 2 GiB */
#define IN_FLIGHT_MAX 512u

/* Offsets in config space. */
#define C_CAPACITY 0
#define C_SEG_MAX 12
#define C_BLK_SIZE 20
#define C_TOPOLOGY 24
#define C_WRITEBACK 32
#define C_NUM_QUEUES 34
#define C_DISCARD 36
#define C_WRITE_ZEROES 48
#define CONFIG_LEN 60

struct blk_request {
    struct block_request block; /* first */
    struct virtio_blk *blk;
    struct blk_request *next_free;
    struct virtq_chain chain;
    uint8_t *status;
    uint16_t queue;
    uint32_t type;
    uint32_t written; /* bytes in the in buffers besides the status */
    unsigned range, range_count;
    uint8_t ranges[RANGES_MAX * RANGE_SIZE];
    struct iovec iov[QUEUE_SIZE];
};

struct blk_watch {
    struct virtio_blk *blk;
    unsigned queue;
};

struct virtio_blk {
    struct virtio_device dev; /* first */
    struct block_node *node;
    struct block_ring *ring;
    struct limiter limiter;
    char serial[ID_SIZE];
    bool writeback, unsafe;
    pthread_t thread;
    bool thread_runs, stop;
    struct blk_watch watches[VIRTIO_BLK_MAX_QUEUES];
    int control_fd; /* wakes the thread for reasons that are not the guest's */
    pthread_cond_t idle;
    unsigned in_flight;
    unsigned holds; /* >0: no new requests are taken (a swap of nodes waits) */
    uint64_t kicked, touched; /* bit a queue: to be served; to be signalled */
    uint64_t resume_at_ns; /* rate limit; 0: none */
    struct blk_request *slots, *free_slots;
    unsigned slots_used; /* slots beyond were never touched */

    uint64_t read_bytes, write_bytes, read_count, write_count, flush_count, discard_count, write_zeroes_count,
        queue_event_count, execute_fails, invalid_reqs_count, rate_limiter_throttled_events, rate_limiter_event_count,
        no_avail_slot, update_count;
};

/* ---- slots ---- */

static struct blk_request *take_slot(struct virtio_blk *blk)
{
    struct blk_request *req = blk->free_slots;
    if (req) {
        blk->free_slots = req->next_free;
        return req;
    }
    return blk->slots_used < IN_FLIGHT_MAX ? &blk->slots[blk->slots_used++] : NULL;
}

static void put_slot(struct virtio_blk *blk, struct blk_request *req)
{
    req->next_free = blk->free_slots;
    blk->free_slots = req;
}

/* ---- completion ---- */

static void mark_written(struct blk_request *req)
{
    struct mem *mem = req->blk->dev.host.mem;
    uint32_t left = req->written;
    for (unsigned i = 0; left && i < req->chain.in_count; i++) {
        size_t len = req->chain.in[i].iov_len;
        uint32_t n = len < left ? (uint32_t)len : left;
        mem_mark_dirty(mem, mem_gpa_of(mem, req->chain.in[i].iov_base), n);
        left -= n;
    }
}

static void complete(struct blk_request *req, uint8_t status)
{
    struct virtio_blk *blk = req->blk;
    struct virtio_device *dev = &blk->dev;
    mark_written(req);
    *req->status = status;
    mem_mark_dirty(dev->host.mem, mem_gpa_of(dev->host.mem, req->status), 1);
    virtq_push_head(&dev->queues[req->queue], req->chain.head, req->written + 1);
    blk->touched |= UINT64_C(1) << req->queue;
    blk->in_flight--;
    put_slot(blk, req);
}

static void refuse(struct blk_request *req, uint8_t status)
{
    stat_add(&req->blk->invalid_reqs_count, 1);
    req->written = 0;
    complete(req, status);
}

static void count_done(struct virtio_blk *blk, const struct blk_request *req)
{
    if (req->type == T_IN) {
        stat_add(&blk->read_count, 1);
        stat_add(&blk->read_bytes, req->block.len);
    } else if (req->type == T_OUT) {
        stat_add(&blk->write_count, 1);
        stat_add(&blk->write_bytes, req->block.len);
    } else if (req->type == T_FLUSH) {
        stat_add(&blk->flush_count, 1);
    } else {
        stat_add(req->type == T_DISCARD ? &blk->discard_count : &blk->write_zeroes_count, 1);
    }
}

static void submit_range(struct blk_request *req);

static void request_done(struct block_request *block, int result)
{
    struct blk_request *req = (struct blk_request *)(void *)block;
    if (result == 0 && ++req->range < req->range_count) {
        submit_range(req);
        return;
    }
    if (result < 0) {
        stat_add(&req->blk->execute_fails, 1);
        log_guest("virtio-blk", "'%s': request type %u at byte %llu failed: %s", req->blk->dev.id, req->type,
                  (unsigned long long)block->offset, strerror(-result));
    } else {
        count_done(req->blk, req);
    }
    complete(req, (uint8_t)(result < 0 ? S_IOERR : S_OK));
}

/* ---- requests ---- */

static bool range_fits(const struct virtio_blk *blk, uint64_t sector, uint64_t len)
{
    const struct block_node *node = blk->node;
    uint64_t offset = sector * BLOCK_SECTOR_SIZE;
    return sector <= node->size / BLOCK_SECTOR_SIZE && len <= node->size - offset && offset % node->block_size == 0 &&
           len % node->block_size == 0;
}

static void submit(struct blk_request *req, enum block_op op, uint64_t offset, uint64_t len)
{
    struct virtio_blk *blk = req->blk;
    req->block.op = op;
    req->block.offset = offset;
    req->block.len = len;
    req->block.stable = !blk->writeback && !blk->unsafe;
    req->block.done = request_done;
    block_submit(blk->node, &req->block);
}

static void start_transfer(struct blk_request *req, uint64_t sector)
{
    struct virtq_chain *chain = &req->chain;
    bool read = req->type == T_IN;
    uint32_t len = read ? chain->in_len - 1 : chain->out_len - HEADER_SIZE;
    if (!range_fits(req->blk, sector, len) || (!read && req->blk->node->read_only)) {
        refuse(req, S_IOERR);
        return;
    }
    req->block.iov = read ? chain->in : chain->out;
    req->block.iov_count = read ? chain->in_count : chain->out_count;
    if (!read)
        iov_advance(&req->block.iov, &req->block.iov_count, HEADER_SIZE);
    req->written = read ? len : 0;
    submit(req, read ? BLOCK_READ : BLOCK_WRITE, sector * BLOCK_SECTOR_SIZE, len);
}

static void submit_range(struct blk_request *req)
{
    const uint8_t *range = req->ranges + req->range * RANGE_SIZE;
    req->block.may_unmap = req->type == T_DISCARD || (load_le32(range + 12) & RANGE_F_UNMAP);
    submit(req, req->type == T_DISCARD ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES, load_le64(range) * BLOCK_SECTOR_SIZE,
           (uint64_t)load_le32(range + 8) * BLOCK_SECTOR_SIZE);
}

/* Status for the copied ranges; S_OK when all may go ahead (VIRTIO 1.2 §5.2.6.2). */
static uint8_t check_ranges(const struct blk_request *req)
{
    uint32_t known = req->type == T_DISCARD ? 0 : RANGE_F_UNMAP;
    for (unsigned i = 0; i < req->range_count; i++) {
        const uint8_t *range = req->ranges + i * RANGE_SIZE;
        uint32_t sectors = load_le32(range + 8);
        if (load_le32(range + 12) & ~known)
            return S_UNSUPP;
        if (sectors > RANGE_SECTORS_MAX ||
            !range_fits(req->blk, load_le64(range), (uint64_t)sectors * BLOCK_SECTOR_SIZE))
            return S_IOERR;
    }
    return S_OK;
}

static void start_ranges(struct blk_request *req)
{
    uint32_t len = req->chain.out_len - HEADER_SIZE;
    bool can = req->type == T_DISCARD ? req->blk->node->can_discard : req->blk->node->can_write_zeroes;
    if (!can) {
        refuse(req, req->blk->node->read_only ? S_IOERR : S_UNSUPP);
        return;
    }
    if (!len || len % RANGE_SIZE || len / RANGE_SIZE > RANGES_MAX) {
        refuse(req, S_IOERR);
        return;
    }
    iov_read(req->chain.out, req->chain.out_count, HEADER_SIZE, req->ranges, len);
    req->range_count = len / RANGE_SIZE;
    uint8_t status = check_ranges(req);
    if (status == S_OK)
        submit_range(req);
    else
        refuse(req, status);
}

static void answer_id(struct blk_request *req)
{
    req->written = (uint32_t)iov_write(req->chain.in, req->chain.in_count, 0, req->blk->serial, ID_SIZE);
    complete(req, S_OK);
}

static void start_request(struct blk_request *req, uint64_t sector)
{
    switch (req->type) {
    case T_IN:
    case T_OUT:
        start_transfer(req, sector);
        break;
    case T_FLUSH:
        if (req->blk->unsafe)
            complete(req, S_OK);
        else
            submit(req, BLOCK_FLUSH, 0, 0);
        break;
    case T_GET_ID:
        answer_id(req);
        break;
    case T_DISCARD:
    case T_WRITE_ZEROES:
        start_ranges(req);
        break;
    default:
        refuse(req, S_UNSUPP);
    }
}

/* The status is the last writable byte, wherever the driver put it; the rest of the in buffers is for data. */
static bool split_status(struct blk_request *req)
{
    struct virtq_chain *chain = &req->chain;
    if (chain->out_len < HEADER_SIZE || !chain->in_len)
        return false;
    struct iovec *last = &chain->in[chain->in_count - 1];
    last->iov_len--;
    req->status = (uint8_t *)last->iov_base + last->iov_len;
    if (!last->iov_len)
        chain->in_count--;
    return true;
}

static uint64_t limited_bytes(const struct blk_request *req)
{
    if (req->type == T_IN)
        return req->chain.in_len - 1;
    return req->type == T_OUT ? req->chain.out_len - HEADER_SIZE : 0;
}

/* False when the queue should be left for now. */
static bool take_request(struct virtio_blk *blk, unsigned index)
{
    struct blk_request *req = take_slot(blk);
    if (!req) {
        stat_add(&blk->no_avail_slot, 1);
        blk->kicked |= UINT64_C(1) << index; /* again once something completes */
        return false;
    }
    uint8_t header[HEADER_SIZE];
    if (!virtio_pop(&blk->dev, index, &req->chain, req->iov, QUEUE_SIZE)) {
        put_slot(blk, req);
        return false;
    }
    if (!split_status(req)) {
        put_slot(blk, req);
        virtio_fail(&blk->dev, "queue %u: request without header or status", index);
        return false;
    }
    iov_read(req->chain.out, req->chain.out_count, 0, header, sizeof header);
    req->type = load_le32(header);
    uint64_t wait_ns = limiter_take(&blk->limiter, limited_bytes(req), limiter_now());
    if (wait_ns) {
        virtq_unpop(&blk->dev.queues[index], 1);
        put_slot(blk, req);
        stat_add(&blk->rate_limiter_throttled_events, 1);
        blk->resume_at_ns = limiter_now() + wait_ns;
        blk->kicked |= UINT64_C(1) << index;
        return false;
    }
    req->blk = blk;
    req->queue = (uint16_t)index;
    req->written = 0;
    req->range = req->range_count = 0;
    blk->in_flight++;
    start_request(req, load_le64(header + 8));
    return true;
}

static void serve_queue(struct virtio_blk *blk, unsigned index)
{
    struct virtq *q = &blk->dev.queues[index];
    for (;;) {
        virtq_quiet(q);
        unsigned budget = QUEUE_SIZE;
        while (budget && take_request(blk, index))
            budget--;
        if (!budget)
            blk->kicked |= UINT64_C(1) << index;
        if (blk->kicked >> index & 1 || !virtio_live(&blk->dev) || !virtq_listen(q))
            return;
    }
}

static void serve_queues(struct virtio_blk *blk)
{
    if (!virtio_live(&blk->dev) || blk->holds)
        return;
    if (blk->resume_at_ns) {
        if (limiter_now() < blk->resume_at_ns)
            return;
        blk->resume_at_ns = 0;
        stat_add(&blk->rate_limiter_event_count, 1);
    }
    uint64_t todo = blk->kicked;
    blk->kicked = 0;
    for (unsigned i = 0; i < blk->dev.queue_count; i++) {
        if (todo >> i & 1)
            serve_queue(blk, i);
    }
}

static void signal_queues(struct virtio_blk *blk)
{
    for (unsigned i = 0; blk->touched && i < blk->dev.queue_count; i++) {
        if (blk->touched >> i & 1)
            virtio_signal(&blk->dev, i);
    }
    blk->touched = 0;
}

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

static void *blk_thread(void *arg)
{
    struct virtio_blk *blk = arg;
    struct err err = {0};
    if (block_ring_start(blk->ring, &err) < 0)
        log_error("virtio-blk '%s': %s", blk->dev.id, err.message);
    uint64_t timeout_ns = UINT64_MAX;
    for (bool stop = false; !stop;) {
        block_ring_wait(blk->ring, timeout_ns);
        pthread_mutex_lock(&blk->dev.lock);
        block_ring_dispatch(blk->ring);
        serve_queues(blk);
        signal_queues(blk);
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

static void on_control(void *arg)
{
    (void)arg; /* being awake is all */
}

static void wake(struct virtio_blk *blk)
{
    uint64_t one = 1;
    ssize_t ignored = write(blk->control_fd, &one, sizeof one);
    (void)ignored;
}

/* Lock held, dropped while waiting; no new requests may be taken meanwhile. */
static void wait_idle(struct virtio_blk *blk)
{
    while (blk->in_flight)
        pthread_cond_wait(&blk->idle, &blk->dev.lock);
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
    if (dev->offered & VIRTIO_FEATURE(F_CONFIG_WCE))
        dev->config[C_WRITEBACK] = 1;
}

static void blk_pause(struct virtio_device *dev)
{
    wait_idle((struct virtio_blk *)dev);
}

static void blk_free(struct virtio_device *dev)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    if (blk->thread_runs) {
        pthread_mutex_lock(&dev->lock);
        blk->stop = true;
        pthread_mutex_unlock(&dev->lock);
        wake(blk);
        pthread_join(blk->thread, NULL);
    }
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
    char name[16];
    snprintf(name, sizeof name, "blk %.11s", blk->dev.id);
    pthread_setname_np(blk->thread, name);
    return 0;
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
static int build(struct virtio_blk *blk, struct err *err)
{
    blk->control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    blk->slots = calloc(IN_FLIGHT_MAX, sizeof *blk->slots);
    if (blk->control_fd < 0 || !blk->slots)
        return err_set(err, ENOMEM, "virtio-blk '%s'", blk->dev.id);
    int r = block_ring_create(NULL, &blk->ring, err);
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
    r = build(blk, err);
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

int virtio_blk_set_node(struct virtio_device *dev, struct block_node *node, struct err *err)
{
    struct virtio_blk *blk = (struct virtio_blk *)dev;
    if (node->read_only != blk->node->read_only)
        return err_say(err, EINVAL, "disk '%s': the new image must be %s as the old one is", dev->id,
                       blk->node->read_only ? "read-only" : "writable");
    pthread_mutex_lock(&dev->lock);
    blk->holds++;
    wait_idle(blk);
    int r = block_attach(node, blk->ring, err);
    struct block_node *old = NULL;
    if (r == 0) {
        old = blk->node;
        blk->node = node;
        fill_config(blk);
        stat_add(&blk->update_count, 1);
        virtio_config_changed(dev);
    }
    blk->holds--;
    pthread_mutex_unlock(&dev->lock);
    wake(blk);
    block_close(old);
    return r;
}
