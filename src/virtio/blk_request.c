/* Requests: parsing and checking, submission, completion. Whatever a header asks for is checked against the node before
 * anything is done. A request has a slot of a fixed pool; when slots or rate tokens run out, chains stay in the queue. */
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "base/log.h"
#include "mem/mem.h"
#include "virtio/blk_impl.h"

#define T_IN 0u
#define T_OUT 1u
#define T_FLUSH 4u
#define T_GET_ID 8u
#define T_DISCARD 11u
#define T_WRITE_ZEROES 13u
#define S_OK 0u
#define S_IOERR 1u
#define S_UNSUPP 2u
#define HEADER_SIZE 16u
#define RANGE_F_UNMAP 1u

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

/* 0 when the request may go; else how long it waits, unless the group wakes the thread sooner. */
static uint64_t limit_request(struct virtio_blk *blk, const struct blk_request *req, uint64_t now_ns)
{
    uint64_t bytes = limited_bytes(req), wait_ns = 0;
    if (blk->throttle && !blk->throttle_passed)
        wait_ns = throttle_take(blk->throttle, req->type != T_IN, bytes, now_ns);
    blk->throttle_passed = wait_ns == 0;
    if (wait_ns == 0)
        wait_ns = limiter_take(&blk->limiter, bytes, now_ns);
    if (wait_ns == 0)
        blk->throttle_passed = false;
    return wait_ns;
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
    uint64_t now_ns = limiter_now(), wait_ns = limit_request(blk, req, now_ns);
    if (wait_ns) {
        virtq_unpop(&blk->dev.queues[index], 1);
        put_slot(blk, req);
        stat_add(&blk->rate_limiter_throttled_events, 1);
        blk->resume_at_ns = now_ns + wait_ns;
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
    unsigned budget = QUEUE_SIZE; /* a guest that goes on adding must not keep the lock for itself */
    for (;;) {
        virtq_quiet(q);
        while (budget && take_request(blk, index))
            budget--;
        if (!budget)
            blk->kicked |= UINT64_C(1) << index;
        if (blk->kicked >> index & 1 || !virtio_live(&blk->dev) || !virtq_listen(q))
            return;
    }
}

void blk_serve_queues(struct virtio_blk *blk)
{
    if (!virtio_live(&blk->dev) || blk->holds)
        return;
    if (blk->resume_at_ns) {
        if (!atomic_exchange(&blk->throttle_woken, false) && limiter_now() < blk->resume_at_ns)
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

void blk_signal_queues(struct virtio_blk *blk)
{
    for (unsigned i = 0; blk->touched && i < blk->dev.queue_count; i++) {
        if (blk->touched >> i & 1)
            virtio_signal(&blk->dev, i);
    }
    blk->touched = 0;
}
