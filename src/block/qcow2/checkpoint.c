/* What was changed in memory goes to the file, each step stable before the next begins:
 *
 *     data (written before)   refcount blocks         \  what is about to be referred to
 *     refcount table                                   | exists and is counted
 *     L2 tables                                        | before
 *     L1 table                                        /  something refers to it
 *     counts of clusters that lost a reference            only after the reference is gone
 *
 * So a crash between any two writes leaves clusters that are counted and not used, never the other way round. A step with
 * nothing to write is left out, with its sync. What could not be written (the host's disk is full, perhaps) stays dirty for
 * the next time; after a sync that failed nobody knows what is on disk, so nothing more is written. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2_impl.h"

bool is_dirty(const struct qcow2 *q)
{
    return q->cache.dirty_bytes || q->l1_dirty.from < q->l1_dirty.to || q->reftable_dirty.from < q->reftable_dirty.to ||
           q->free_count;
}

int sync_files(struct qcow2 *q)
{
    int r = block_do(q->file, BLOCK_FLUSH, 0, NULL, 0);
    if (r == 0 && q->external)
        r = block_do(q->data, BLOCK_FLUSH, 0, NULL, 0);
    if (r < 0)
        q->failed = r;
    return r;
}

int write_entries(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint32_t from, uint32_t to)
{
    uint32_t unit = (q->file->block_size < q->cluster_size ? q->file->block_size : q->cluster_size) / 8;
    uint32_t end = (uint32_t)cluster_count(q, (uint64_t)to * 8) << (q->cluster_bits - 3); /* the table's clusters are its own */
    uint32_t first = from / unit * unit, last = (to + unit - 1) / unit * unit;
    if (last > end)
        last = end;
    uint8_t *buf = aligned_alloc(4096, ((size_t)(last - first) * 8 + 4095) & ~(size_t)4095);
    if (!buf)
        return -ENOMEM;
    for (uint32_t i = first; i < last; i++)
        store_be64(buf + (size_t)(i - first) * 8, entries[i]);
    int r = block_do(q->file, BLOCK_WRITE, offset + (uint64_t)first * 8, buf, (uint64_t)(last - first) * 8);
    free(buf);
    return r;
}

static int write_dirty_reftable(struct qcow2 *q)
{
    struct dirty_range dirty = q->reftable_dirty;
    if (dirty.from >= dirty.to)
        return 0;
    int r = sync_files(q);
    if (r == 0)
        r = write_entries(q, q->reftable_offset, q->reftable, dirty.from, dirty.to);
    if (r == 0)
        q->reftable_dirty = (struct dirty_range){UINT32_MAX, 0};
    return r;
}

static int write_mapping(struct qcow2 *q)
{
    struct dirty_range dirty = q->l1_dirty;
    bool l1 = dirty.from < dirty.to, l2 = tables_has_dirty(q, TABLE_L2);
    int r = l1 || l2 ? sync_files(q) : 0;
    if (r == 0)
        r = tables_write(q, TABLE_L2);
    if (r < 0 || !l1)
        return r;
    if (l2)
        r = sync_files(q);
    if (r == 0)
        r = write_entries(q, q->l1_offset, q->l1, dirty.from, dirty.to);
    if (r == 0)
        q->l1_dirty = (struct dirty_range){UINT32_MAX, 0};
    return r;
}

void drain_generation(struct qcow2 *q)
{
    unsigned old = q->generation++ & 1;
    while (q->in_flight[old])
        fiber_queue_wait(&q->drain_waiters);
}

int checkpoint(struct qcow2 *q)
{
    if (q->failed)
        return q->failed;
    int r = tables_write(q, TABLE_REFCOUNTS);
    if (r == 0)
        r = write_dirty_reftable(q);
    if (r == 0)
        r = write_mapping(q);
    if (r == 0)
        r = sync_files(q);
    if (r == 0 && q->free_count) {
        drain_generation(q);
        r = apply_frees(q);
    }
    return r;
}

int checkpoint_flags_first(struct qcow2 *q)
{
    if (q->failed)
        return q->failed;
    int r = write_mapping(q);
    if (r == 0)
        r = sync_files(q);
    return r < 0 ? r : checkpoint(q);
}

int make_room(struct qcow2 *q)
{
    if (q->failed)
        return q->failed;
    return q->cache.dirty_bytes > CACHE_BYTES / 2 || q->free_count > FREE_LIST_MAX ? checkpoint(q) : 0;
}
