/* Compressed clusters, written one by one. Several share a host cluster, each counted there; they start at multiples of the
 * file's block, so that direct I/O can write them. What does not get shorter is written as it is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "block/qcow2/qcow2_impl.h"
#include "block/workers.h"

/* Lock held: counts one more user of the host clusters [offset, offset + len), which lie in the cluster that is
 * filled now and, when it is too short, the next. */
static int take_room(struct qcow2 *q, uint32_t len, uint64_t *ret_offset)
{
    uint64_t at = q->packed_at, room = at ? q->cluster_size - (at & (q->cluster_size - 1)) : 0, next = 0;
    uint32_t got;
    int r = 0;
    if (at && at % q->cluster_size == 0)
        room = 0;
    if (room < len)
        r = alloc_clusters(q, 1, &next, &got);
    if (r < 0)
        return r;
    if (!room || (room < len && next != at + room)) {
        *ret_offset = next;
        q->packed_at = next + len;
        return 0;
    }
    r = refcount_add(q, at >> q->cluster_bits, 1);
    if (r < 0 && next && free_later(q, next) < 0)
        return -ENOMEM;
    if (r == -ERANGE) { /* the count is too narrow for another */
        q->packed_at = 0;
        return take_room(q, len, ret_offset);
    }
    *ret_offset = at;
    q->packed_at = at + len;
    return r;
}

static int link_compressed(struct qcow2 *q, uint64_t offset, uint64_t host, uint32_t len)
{
    struct table *table;
    int r = map_table_for_write(q, offset, &table);
    if (r < 0)
        return r;
    uint32_t index = l2_index(q, offset);
    uint64_t old = entry_get(q, table, index);
    uint64_t entry = ENTRY_COMPRESSED | (uint64_t)((len - 1) / 512) << (62 - (q->cluster_bits - 8)) | host;
    if (old & ENTRY_COMPRESSED)
        r = free_compressed_later(q, old);
    else if (old & ENTRY_OFFSET)
        r = free_later(q, old & ENTRY_OFFSET);
    if (r == 0)
        entry_set(q, table, index, entry, 0);
    tables_put(q, table);
    return r;
}

/* `packed` has room for a whole cluster; what is behind `len` there is zeroes. */
static int store(struct qcow2 *q, uint64_t offset, uint8_t *packed, uint32_t len)
{
    uint32_t align = q->file->block_size, padded = (len + align - 1) & ~(align - 1);
    uint64_t host = 0;
    fiber_lock(&q->lock);
    wait_not_busy(q, offset >> q->cluster_bits, offset >> q->cluster_bits);
    struct busy busy = {.first = offset >> q->cluster_bits, .last = offset >> q->cluster_bits};
    int r = make_room(q);
    if (r == 0)
        r = take_room(q, padded, &host);
    if (r == 0 && host + padded > UINT64_C(1) << (62 - (q->cluster_bits - 8)))
        r = -EFBIG;
    if (r == 0)
        begin_busy(q, &busy);
    fiber_unlock(&q->lock);
    if (r < 0)
        return r;
    struct iovec iov = {packed, padded};
    struct block_request req = {.op = BLOCK_WRITE, .offset = host, .len = padded, .iov = &iov, .iov_count = 1};
    r = tracked_io(q, q->file, &req);
    fiber_lock(&q->lock);
    if (r == 0)
        r = link_compressed(q, offset, host, len);
    if (r < 0) {
        uint64_t first = host >> q->cluster_bits, last = (host + padded - 1) >> q->cluster_bits;
        if (free_run_later(q, first << q->cluster_bits, last - first + 1) < 0)
            q->failed = -ENOMEM;
    }
    fiber_unlock(&q->lock);
    end_busy(q, &busy);
    return r;
}

/* A cluster on its way through a worker. */
struct packing {
    struct compressor *compressor;
    const uint8_t *cluster;
    uint8_t *packed;
    uint32_t size;
    int packed_len;
};

static void pack(void *arg)
{
    struct packing *p = arg;
    memset(p->packed, 0, p->size);
    p->packed_len = compress_cluster(p->compressor, p->cluster, p->size, p->packed, p->size - 1);
}

static int write_packed(struct qcow2 *q, uint64_t offset, struct packing *p, uint8_t *cluster, size_t len)
{
    uint32_t align = q->file->block_size;
    struct iovec whole = {cluster, len};
    block_work(q->node.ring, pack, p);
    if (p->packed_len > 0 && ((uint32_t)p->packed_len + align - 1) / align * align < p->size)
        return store(q, offset, p->packed, (uint32_t)p->packed_len);
    return p->packed_len == -ENOSPC || p->packed_len > 0 ? write_guest(q, offset, len, &whole, 1) : p->packed_len;
}

int write_compressed(struct qcow2 *q, uint64_t offset, uint64_t len, const struct iovec *iov, unsigned iov_count)
{
    uint32_t size = q->cluster_size;
    if (q->external || offset & (size - 1) || (len & (size - 1) && offset + len != q->node.size))
        return -ENOTSUP;
    uint8_t *cluster = malloc(size), *packed = aligned_alloc(4096, size < 4096 ? 4096 : size);
    struct packing packing = {compressor_new(q->compression), cluster, packed, size, 0};
    int r = cluster && packed && packing.compressor ? 0 : -ENOMEM;
    for (uint64_t done = 0; r == 0 && done < len; done += size) {
        size_t got = iov_read(iov, iov_count, done, cluster, len - done < size ? len - done : size);
        memset(cluster + got, 0, size - got);
        r = write_packed(q, offset + done, &packing, cluster, got);
    }
    compressor_free(packing.compressor);
    free(cluster);
    free(packed);
    return r;
}
