/* Requests: straight to the files below as long as the mapping is cached and stays as it is; else in a fiber, of which
 * FIBERS_MAX run at once and the others wait in `backlog`. A request ends when all its parts have. */
#include <errno.h>
#include <stdlib.h>

#include "base/iov.h"
#include "block/qcow2/qcow2_impl.h"
#include "block/workers.h"

#define NEEDS_FIBER 1
#define INLINE_IOV (sizeof ((struct part *)0)->iov / sizeof(struct iovec))

static void request_put(struct block_request *req)
{
    if (--req->pending == 0)
        req->done(req, req->result);
}

static void leave_generation(struct qcow2 *q, unsigned generation)
{
    if (--q->in_flight[generation & 1] == 0)
        fiber_queue_wake_all(&q->drain_waiters);
}

int tracked_io(struct qcow2 *q, struct block_node *node, struct block_request *request)
{
    unsigned generation = q->generation;
    q->in_flight[generation & 1]++;
    int r = block_do_request(node, request);
    leave_generation(q, generation);
    return r;
}

/* ---- parts ---- */

static void part_done(struct block_request *request, int result)
{
    struct part *part = (struct part *)(void *)request;
    struct qcow2 *q = part->q;
    struct block_request *parent = part->parent;
    unsigned generation = part->generation;
    if (result == 0 && q->legacy && part->guest != UINT64_MAX)
        result = crypt_decrypt(q->legacy, part->guest, request->iov, request->iov_count);
    if (result < 0 && parent->result == 0)
        parent->result = result;
    parent->zeroes += request->zeroes;
    free(part->more_iov);
    part->next_free = q->free_parts;
    q->free_parts = part;
    leave_generation(q, generation);
    request_put(parent);
}

static struct part *take_part(struct qcow2 *q)
{
    struct part *part = q->free_parts;
    if (!part)
        return malloc(sizeof *part);
    q->free_parts = part->next_free;
    return part;
}

/* Sends the next `len` bytes of the request's data to `offset` of a node below. */
static int submit_part(struct qcow2 *q, struct block_request *req, struct block_node *node, uint64_t offset, uint64_t len)
{
    struct part *part = take_part(q);
    if (!part)
        return -ENOMEM;
    part->q = q;
    part->parent = req;
    part->more_iov = NULL;
    part->guest = node == q->data && req->op == BLOCK_READ ? req->offset + req->progress : UINT64_MAX;
    part->generation = q->generation;
    part->request = (struct block_request){.op = req->op, .offset = offset, .len = len, .done = part_done};
    if (len == req->len) {
        part->request.iov = req->iov;
        part->request.iov_count = req->iov_count;
    } else if (req->op != BLOCK_FLUSH) {
        struct iovec *iov = part->iov;
        if (req->iov_count > INLINE_IOV)
            iov = part->more_iov = malloc(req->iov_count * sizeof *iov);
        if (!iov) {
            part->next_free = q->free_parts;
            q->free_parts = part;
            return -ENOMEM;
        }
        part->request.iov = iov;
        part->request.iov_count = iov_slice(req->iov, req->iov_count, req->progress, len, iov);
    }
    req->pending++;
    q->in_flight[part->generation & 1]++;
    block_submit(node, &part->request);
    return 0;
}

/* ---- reading ---- */

static void fill_zeroes(struct block_request *req, uint64_t from, uint64_t len)
{
    iov_zero(req->iov, req->iov_count, from, len);
    req->zeroes += len;
}

static int read_backing(struct qcow2 *q, struct block_request *req, uint64_t offset, uint64_t len)
{
    uint64_t size = q->backing_size;
    uint64_t behind = offset >= size ? 0 : size - offset < len ? size - offset : len;
    int r = behind ? submit_part(q, req, q->backing, offset, behind) : 0;
    if (behind < len)
        fill_zeroes(req, req->progress + behind, len - behind);
    return r;
}

static int start_read(struct qcow2 *q, struct block_request *req, const struct map *map)
{
    switch (map->kind) {
    case MAP_DATA:
        return submit_part(q, req, q->data, map->host, map->len);
    case MAP_HOLE:
        return read_backing(q, req, req->offset + req->progress, map->len);
    case MAP_ZERO:
        fill_zeroes(req, req->progress, map->len);
        return 0;
    case MAP_COMPRESSED:
        break;
    }
    return NEEDS_FIBER;
}

/* A compressed cluster on its way through a worker. */
struct unpacking {
    const struct qcow2 *q;
    const uint8_t *packed;
    uint64_t len;
    uint8_t *cluster;
    int result;
};

static void unpack(void *arg)
{
    struct unpacking *u = arg;
    u->result = decompress_cluster(u->q->compression, u->packed, u->len, u->cluster, u->q->cluster_size);
}

/* In a fiber: one whole cluster. */
static int read_compressed(struct qcow2 *q, uint64_t entry, uint8_t *cluster)
{
    uint64_t offset, len, align = q->file->block_size;
    compressed_range(q, entry, &offset, &len);
    uint64_t start = offset & ~(align - 1), end = (offset + len + align - 1) & ~(align - 1);
    uint8_t *packed = aligned_alloc(4096, (end - start + 4095) & ~(uint64_t)4095);
    if (!packed)
        return -ENOMEM;
    struct iovec iov = {packed, end - start};
    struct block_request req = {.op = BLOCK_READ, .offset = start, .len = end - start, .iov = &iov, .iov_count = 1};
    struct unpacking unpacking = {q, packed + (offset - start), len, cluster, tracked_io(q, q->file, &req)};
    if (unpacking.result == 0)
        block_work(q->node.ring, unpack, &unpacking);
    free(packed);
    return unpacking.result;
}

/* The last cluster is kept: guests read on in it. Unless its space may have been freed while it was read. */
static int copy_compressed(struct qcow2 *q, struct block_request *req, const struct map *map)
{
    uint32_t skip = (uint32_t)(req->offset + req->progress) & (q->cluster_size - 1);
    if (q->unpacked_entry == map->host) {
        iov_write(req->iov, req->iov_count, req->progress, q->unpacked + skip, map->len);
        return 0;
    }
    uint8_t *cluster = malloc(q->cluster_size);
    if (!cluster)
        return -ENOMEM;
    unsigned generation = q->generation;
    int r = read_compressed(q, map->host, cluster);
    if (r == 0)
        iov_write(req->iov, req->iov_count, req->progress, cluster + skip, map->len);
    if (r < 0 || generation != q->generation) {
        free(cluster);
        return r;
    }
    free(q->unpacked);
    q->unpacked = cluster;
    q->unpacked_entry = map->host;
    return 0;
}

static int read_in_fiber(struct qcow2 *q, struct block_request *req)
{
    while (req->progress < req->len) {
        struct map map;
        int r = map_get(q, req->offset + req->progress, req->len - req->progress, &map);
        if (r == 0)
            r = start_read(q, req, &map);
        if (r == NEEDS_FIBER)
            r = copy_compressed(q, req, &map);
        if (r < 0)
            return r;
        req->progress += map.len;
    }
    return 0;
}

struct inner_read {
    struct block_request request; /* first */
    struct fiber *fiber;
    bool done;
};

static void inner_read_done(struct block_request *req, int result)
{
    struct inner_read *read = (struct inner_read *)(void *)req;
    (void)result; /* as in the request */
    read->done = true;
    if (read->fiber)
        fiber_resume(read->fiber);
}

/* In the fiber that is there: waiting for another, of which there are so many only, could last forever. */
int read_guest(struct qcow2 *q, uint64_t offset, void *buf, uint64_t len)
{
    /* the last cluster may be longer than the disk */
    uint64_t inside = offset >= q->node.size ? 0 : q->node.size - offset < len ? q->node.size - offset : len;
    struct iovec iov = {buf, inside};
    struct inner_read read = {.request = {.op = BLOCK_READ,
                                          .offset = offset,
                                          .len = inside,
                                          .iov = &iov,
                                          .iov_count = 1,
                                          .done = inner_read_done,
                                          .node = &q->node,
                                          .pending = 1}};
    memset((uint8_t *)buf + inside, 0, len - inside);
    int r = read_in_fiber(q, &read.request);
    if (r < 0)
        read.request.result = r;
    request_put(&read.request);
    if (!read.done) {
        read.fiber = fiber_current();
        fiber_wait();
    }
    return read.request.result;
}

/* ---- where a request goes ---- */

static int run_in_fiber(struct qcow2 *q, struct block_request *req)
{
    uint64_t offset = req->offset + req->progress, len = req->len - req->progress;
    int r = 0;
    switch (req->op) {
    case BLOCK_READ:
        return read_in_fiber(q, req);
    case BLOCK_WRITE:
        r = req->compress ? write_compressed(q, req->offset, req->len, req->iov, req->iov_count)
                          : write_guest(q, req->offset, req->len, req->iov, req->iov_count);
        break;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        r = req->fast && zeroes_are_data(q, offset, len) ? -ENOTSUP : zero_guest(q, req->op, req->may_unmap, offset, len);
        break;
    case BLOCK_FLUSH:
        break;
    }
    if (r < 0 || !(req->stable || req->op == BLOCK_FLUSH))
        return r;
    fiber_lock(&q->lock);
    r = checkpoint(q);
    fiber_unlock(&q->lock);
    return r;
}

static void serve(void *arg)
{
    struct block_request *req = arg;
    struct qcow2 *q = qcow2_of(req->node);
    while (req) {
        int r = run_in_fiber(q, req);
        if (r < 0 && req->result == 0)
            req->result = r;
        request_put(req);
        req = q->backlog;
        if (req)
            q->backlog = req->next;
        if (!q->backlog)
            q->backlog_end = &q->backlog;
    }
    q->fibers--;
}

static void to_fiber(struct qcow2 *q, struct block_request *req)
{
    if (q->fibers == FIBERS_MAX) {
        req->next = NULL;
        *q->backlog_end = req;
        q->backlog_end = &req->next;
        return;
    }
    q->fibers++;
    if (fiber_start(&q->pool, serve, req) < 0) {
        q->fibers--;
        req->result = -ENOMEM;
        request_put(req);
    }
}

/* Reads, and writes to clusters of our own, as far as they go without a fiber. */
static int start_cached(struct qcow2 *q, struct block_request *req)
{
    while (req->progress < req->len) {
        struct map map;
        int r = map_cached(q, req->offset + req->progress, req->len - req->progress, &map);
        if (r == -EAGAIN)
            return NEEDS_FIBER;
        if (r == 0 && req->op == BLOCK_READ)
            r = start_read(q, req, &map);
        else if (r == 0 && !(map.kind == MAP_DATA && map.own && map.len == req->len))
            return NEEDS_FIBER;
        else if (r == 0)
            r = submit_part(q, req, q->data, map.host, map.len);
        if (r)
            return r;
        req->progress += map.len;
    }
    return 0;
}

void qcow2_submit(struct block_node *node, struct block_request *req)
{
    struct qcow2 *q = qcow2_of(node);
    req->progress = 0;
    req->pending = 1;
    req->result = 0;
    if (q->bitmaps.count && req->op != BLOCK_READ && req->op != BLOCK_FLUSH)
        dirty_bitmaps_mark(q, req->offset, req->len);
    int r = NEEDS_FIBER;
    if (!q->locked && (req->op == BLOCK_READ || (req->op == BLOCK_WRITE && !req->stable && !req->compress && !q->failed)))
        r = start_cached(q, req);
    else if (q->locked && req->op != BLOCK_FLUSH)
        r = -ENOKEY;
    else if (req->op == BLOCK_FLUSH && !q->external && !q->failed && !q->lock.held && !is_dirty(q))
        r = submit_part(q, req, q->file, 0, 0);
    else if (q->node.read_only)
        r = req->op == BLOCK_FLUSH ? 0 : -EROFS;
    if (r == NEEDS_FIBER) {
        to_fiber(q, req);
        return;
    }
    if (r < 0 && req->result == 0)
        req->result = r;
    request_put(req);
}

/* ---- extents ---- */

static int status_below(struct qcow2 *q, uint64_t offset, struct block_extent *extent)
{
    if (offset >= q->backing_size) {
        extent->zero = true;
        extent->beyond = q->backing != NULL;
        return 0;
    }
    uint64_t len = q->backing_size - offset < extent->len ? q->backing_size - offset : extent->len;
    int r = block_status(q->backing, offset, len, extent);
    extent->depth++;
    return r;
}

int qcow2_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    struct qcow2 *q = qcow2_of(node);
    struct map map;
    int r = map_get(q, offset, len, &map);
    if (r < 0)
        return r;
    struct block_extent extent = {.len = map.len, .present = map.kind != MAP_HOLE, .name = node->name};
    switch (map.kind) {
    case MAP_HOLE:
        r = status_below(q, offset, &extent);
        break;
    case MAP_ZERO:
        extent.zero = true;
        break;
    case MAP_DATA:
        extent.data = true;
        extent.has_offset = q->crypt_method == CRYPT_NONE;
        extent.offset = map.host;
        extent.name = q->data->name;
        break;
    case MAP_COMPRESSED:
        extent.data = extent.compressed = true;
        break;
    }
    if (r == 0)
        *ret_extent = extent;
    return r;
}
