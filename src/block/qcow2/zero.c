/* Ranges that become zeroes or nothing: by flags in the L2 table as far as whole clusters go, else by writing zeroes. */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2/qcow2_impl.h"

#define PLAIN_CHUNK (UINT64_C(1) << 20)

/* Does a hole at `offset` read as zeroes, also for who opens the image with its backing file when this node was not? */
static bool hole_is_zero(const struct qcow2 *q, uint64_t offset)
{
    return q->backing ? offset >= q->backing_size : !q->backing_name;
}

/* Writes zeroes where it does not read as zeroes. */
static int zero_plain(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint8_t *zeroes = calloc(1, len < PLAIN_CHUNK ? len : PLAIN_CHUNK);
    int r = zeroes ? 0 : -ENOMEM;
    while (r == 0 && len) {
        struct map map = {0};
        uint64_t most = len < PLAIN_CHUNK ? len : PLAIN_CHUNK;
        r = map_get(q, offset, most, &map);
        bool zero = map.kind == MAP_ZERO || (map.kind == MAP_HOLE && hole_is_zero(q, offset));
        if (r == 0 && (!zero || q->external_raw)) {
            struct iovec iov = {zeroes, map.len};
            r = write_guest(q, offset, map.len, &iov, 1);
        }
        offset += map.len;
        len -= map.len;
    }
    free(zeroes);
    return r;
}

/* The entry that a cluster gets; false: it stays as it is. */
static bool zero_entry(const struct qcow2 *q, enum block_op op, bool may_unmap, uint64_t old, uint64_t *ret_entry,
                       uint64_t *ret_bitmap)
{
    bool own = !(old & ENTRY_COMPRESSED) && old & ENTRY_COPIED && (old & ENTRY_OFFSET || q->external);
    bool keep = own && (q->external || !may_unmap);
    bool hole = !has_backing(q) && !keep; /* reads as zeroes, too */
    if (op == BLOCK_DISCARD && q->version < 3 && has_backing(q))
        return false;
    *ret_entry = keep ? (old & ENTRY_OFFSET) | ENTRY_COPIED : 0;
    *ret_bitmap = hole ? 0 : UINT64_C(0xffffffff00000000);
    if (!q->extended && !hole)
        *ret_entry |= ENTRY_ZERO;
    return true;
}

static int zero_cluster(struct qcow2 *q, struct table *table, uint32_t index, enum block_op op, bool may_unmap)
{
    uint64_t old = entry_get(q, table, index), entry, bitmap;
    if (!zero_entry(q, op, may_unmap, old, &entry, &bitmap))
        return 0;
    if (old == entry && (!q->extended || bitmap_get(q, table, index) == bitmap))
        return 0;
    int r = 0;
    if (old & ENTRY_COMPRESSED)
        r = free_compressed_later(q, old);
    else if (old & ENTRY_OFFSET && !(entry & ENTRY_OFFSET) && !q->external)
        r = free_later(q, old & ENTRY_OFFSET);
    if (r == 0)
        entry_set(q, table, index, entry, bitmap);
    return r;
}

/* Whole clusters of one L2 table; lock held. */
static int zero_clusters(struct qcow2 *q, enum block_op op, bool may_unmap, uint64_t offset, uint32_t count)
{
    wait_not_busy(q, offset >> q->cluster_bits, (offset >> q->cluster_bits) + count - 1);
    if (!has_backing(q) && !(q->l1[offset >> (q->cluster_bits + q->l2_bits)] & ENTRY_OFFSET))
        return 0; /* nothing is there */
    struct table *table = NULL;
    int r = make_room(q);
    if (r == 0)
        r = map_table_for_write(q, offset, &table);
    if (r < 0)
        return r;
    uint32_t index = l2_index(q, offset);
    for (uint32_t i = 0; r == 0 && i < count; i++)
        r = zero_cluster(q, table, index + i, op, may_unmap);
    tables_put(q, table);
    return r;
}

/* The whole clusters of a range; false: there are none, or no flags for them. */
static bool whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t end, uint64_t *ret_first, uint64_t *ret_last)
{
    uint64_t mask = q->cluster_size - 1;
    *ret_first = (offset + mask) & ~mask;
    *ret_last = end == q->node.size ? (end + mask) & ~mask : end & ~mask;
    return *ret_first < *ret_last && !q->external_raw && (q->version >= 3 || !has_backing(q));
}

bool zeroes_are_data(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint64_t first, last;
    return !whole_clusters(q, offset, offset + len, &first, &last);
}

int zero_guest(struct qcow2 *q, enum block_op op, bool may_unmap, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len, first, last;
    bool whole = whole_clusters(q, offset, end, &first, &last);
    if (op == BLOCK_DISCARD && q->external_raw)
        return 0; /* only advice, and the raw file must go on reading the same */
    if (op == BLOCK_WRITE_ZEROES && !whole)
        return zero_plain(q, offset, len);
    int r = 0;
    if (op == BLOCK_WRITE_ZEROES && offset < first)
        r = zero_plain(q, offset, first - offset);
    for (uint64_t at = first; r == 0 && at < last;) {
        uint64_t left = (last - at) >> q->cluster_bits, in_table = (UINT64_C(1) << q->l2_bits) - l2_index(q, at);
        uint32_t count = (uint32_t)(left < in_table ? left : in_table);
        fiber_lock(&q->lock);
        r = zero_clusters(q, op, may_unmap, at, count);
        fiber_unlock(&q->lock);
        at += (uint64_t)count << q->cluster_bits;
    }
    if (r == 0 && op == BLOCK_WRITE_ZEROES && last < end)
        r = zero_plain(q, last, end - last);
    return r;
}
