/* Host clusters: their reference counts, allocation, and deferred frees.
 *
 * A refcount block that does not exist means free clusters in a row, 64 or more; when one of them is wanted the block is
 * put at the first of them and counts itself, so that making one needs no other allocation. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2_impl.h"

uint64_t refcount_load(const uint8_t *block, unsigned order, uint32_t index)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return load_be16(block + (size_t)index * 2);
    case 5:
        return load_be32(block + (size_t)index * 4);
    case 6:
        return load_be64(block + (size_t)index * 8);
    default: { /* 1, 2, 4 bits, from the lowest on */
        unsigned shift = (index << order) & 7;
        return (unsigned)block[(index << order) >> 3] >> shift & ((1u << (1u << order)) - 1);
    }
    }
}

void refcount_store(uint8_t *block, unsigned order, uint32_t index, uint64_t value)
{
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        return;
    case 4:
        store_be16(block + (size_t)index * 2, (uint16_t)value);
        return;
    case 5:
        store_be32(block + (size_t)index * 4, (uint32_t)value);
        return;
    case 6:
        store_be64(block + (size_t)index * 8, value);
        return;
    default: {
        unsigned shift = (index << order) & 7, mask = ((1u << (1u << order)) - 1) << shift;
        uint8_t *byte = &block[(index << order) >> 3];
        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift & mask));
    }
    }
}

static uint64_t refcount_max(const struct qcow2 *q)
{
    return q->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << q->refcount_order)) - 1;
}

static uint32_t block_entries(const struct qcow2 *q)
{
    return 1u << q->refblock_bits;
}

static void mark_entries(struct qcow2 *q, struct table *block, uint32_t index, uint32_t count)
{
    uint32_t from = (uint32_t)(((uint64_t)index << q->refcount_order) >> 3);
    uint32_t to = (uint32_t)((((uint64_t)index + count - 1) << q->refcount_order) >> 3) + (1u << q->refcount_order) / 8 + 1;
    tables_mark(q, block, from, (to > q->cluster_size ? q->cluster_size : to) - from);
}

static int get_block(struct qcow2 *q, uint64_t table_index, struct table **ret_block)
{
    return tables_get(q, q->reftable[table_index] & REFTABLE_OFFSET, TABLE_REFCOUNTS, ret_block);
}

int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
    uint64_t table_index = cluster >> q->refblock_bits;
    *ret_count = 0;
    if (table_index >= q->reftable_size || !q->reftable[table_index])
        return 0;
    struct table *block;
    int r = get_block(q, table_index, &block);
    if (r < 0)
        return r;
    *ret_count = refcount_load(block->data, q->refcount_order, (uint32_t)cluster & (block_entries(q) - 1));
    tables_put(q, block);
    return 0;
}

int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    uint64_t table_index = cluster >> q->refblock_bits;
    if (table_index >= q->reftable_size || !q->reftable[table_index])
        return -EIO; /* a cluster in use without a count: the image is damaged */
    struct table *block = NULL;
    int r = get_block(q, table_index, &block);
    if (r < 0)
        return r;
    uint32_t index = (uint32_t)cluster & (block_entries(q) - 1);
    refcount_store(block->data, q->refcount_order, index, count);
    mark_entries(q, block, index, 1);
    tables_put(q, block);
    if (count == 0 && cluster < q->free_hint)
        q->free_hint = cluster;
    return 0;
}

int refcount_add(struct qcow2 *q, uint64_t cluster, int delta)
{
    uint64_t count;
    int r = refcount_get(q, cluster, &count);
    if (r < 0)
        return r;
    if (delta < 0 ? count == 0 : count == refcount_max(q))
        return delta < 0 ? -EIO : -ERANGE;
    return refcount_set(q, cluster, delta < 0 ? count - 1 : count + 1);
}

/* ---- growth of the refcount structures ---- */

static int put_block(struct qcow2 *q, uint64_t table_index, uint64_t offset)
{
    struct table *block;
    int r = tables_new(q, offset, TABLE_REFCOUNTS, &block);
    if (r < 0)
        return r;
    tables_put(q, block);
    q->reftable[table_index] = offset;
    if (table_index < q->reftable_dirty.from)
        q->reftable_dirty.from = (uint32_t)table_index;
    if (table_index >= q->reftable_dirty.to)
        q->reftable_dirty.to = (uint32_t)table_index + 1;
    return 0;
}

static int new_block(struct qcow2 *q, uint64_t table_index)
{
    if (!table_index) /* the header's cluster has no count: the image is damaged */
        return -EIO;
    int r = put_block(q, table_index, table_index << (q->refblock_bits + q->cluster_bits));
    return r < 0 ? r : refcount_add(q, table_index << q->refblock_bits, 1);
}

/* The new table is in place in memory; makes it so in the file. The old one goes only when the header has changed. */
static int switch_table(struct qcow2 *q, uint64_t old_offset, uint32_t old_size)
{
    uint8_t field[12];
    store_be64(field, q->reftable_offset);
    store_be32(field + 8, (uint32_t)(((uint64_t)q->reftable_size * 8) >> q->cluster_bits));
    int r = tables_write(q, TABLE_REFCOUNTS);
    if (r == 0)
        r = write_entries(q, q->reftable_offset, q->reftable, 0, q->reftable_size);
    if (r == 0)
        r = sync_files(q);
    if (r == 0)
        r = header_update(q, H_REFTABLE_OFFSET, field, sizeof field);
    if (r < 0) {
        q->failed = r;
        return r;
    }
    q->reftable_dirty = (struct dirty_range){UINT32_MAX, 0};
    return free_run_later(q, old_offset, cluster_count(q, (uint64_t)old_size * 8));
}

/* Blocks that count themselves and the clusters of the new table behind them. */
static int count_new_table(struct qcow2 *q, uint64_t first, uint64_t blocks, uint64_t clusters)
{
    uint64_t start = first << q->refblock_bits;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < blocks; i++)
        r = put_block(q, first + i, (start + i) << q->cluster_bits);
    for (uint64_t i = 0; r == 0 && i < blocks + clusters; i++)
        r = refcount_add(q, start + i, 1);
    return r;
}

/* A larger table, behind all that the present one can count. */
static int grow_table(struct qcow2 *q, uint64_t need)
{
    uint64_t first = q->reftable_size, clusters, blocks, entries = need + need / 2;
    do {
        clusters = cluster_count(q, entries * 8);
        entries = (clusters << q->cluster_bits) / 8;
        blocks = 1;
        while (blocks << q->refblock_bits < blocks + clusters)
            blocks++;
    } while (entries < first + blocks && (entries = first + blocks + 1));
    if (entries * 8 > REFTABLE_BYTES_MAX)
        return -EFBIG;
    uint64_t *table = calloc(entries, sizeof *table);
    if (!table)
        return -ENOMEM;
    memcpy(table, q->reftable, (size_t)q->reftable_size * sizeof *table);
    free(q->reftable);
    uint64_t old_offset = q->reftable_offset;
    uint32_t old_size = q->reftable_size;
    q->reftable = table;
    q->reftable_size = (uint32_t)entries;
    q->reftable_offset = ((first << q->refblock_bits) + blocks) << q->cluster_bits;
    int r = count_new_table(q, first, blocks, clusters);
    return r < 0 ? (q->failed = r) : switch_table(q, old_offset, old_size);
}

/* ---- allocation ---- */

static uint32_t take_run(struct qcow2 *q, struct table *block, uint32_t index, uint32_t count)
{
    uint32_t taken = 0;
    while (taken < count && index + taken < block_entries(q) &&
           refcount_load(block->data, q->refcount_order, index + taken) == 0) {
        refcount_store(block->data, q->refcount_order, index + taken, 1);
        taken++;
    }
    if (taken)
        mark_entries(q, block, index, taken);
    return taken;
}

/* A count of 0 does not make these free in a damaged image. */
static bool is_fixed_metadata(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len;
    return offset == 0 || (offset < q->l1_offset + (uint64_t)q->l1_size * 8 && end > q->l1_offset) ||
           (offset < q->bitmaps.directory + q->bitmaps.directory_len && end > q->bitmaps.directory) ||
           (offset < q->reftable_offset + (uint64_t)q->reftable_size * 8 && end > q->reftable_offset);
}

static int alloc_in_block(struct qcow2 *q, uint64_t cluster, uint32_t count, uint64_t *ret_cluster, uint32_t *ret_count)
{
    struct table *block;
    int r = get_block(q, cluster >> q->refblock_bits, &block);
    if (r < 0)
        return r;
    uint32_t index = (uint32_t)cluster & (block_entries(q) - 1);
    while (index < block_entries(q) && refcount_load(block->data, q->refcount_order, index) != 0)
        index++;
    *ret_cluster = (cluster & ~(uint64_t)(block_entries(q) - 1)) + index;
    *ret_count = index < block_entries(q) ? take_run(q, block, index, count) : 0;
    tables_put(q, block);
    return 0;
}

/* Makes what counts `cluster` exist. */
static int ensure_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t table_index = cluster >> q->refblock_bits;
    if (table_index >= q->reftable_size) {
        int r = grow_table(q, table_index + 1);
        if (r < 0)
            return r;
    }
    return q->reftable[table_index] ? 0 : new_block(q, table_index);
}

int alloc_clusters(struct qcow2 *q, uint32_t count, uint64_t *ret_offset, uint32_t *ret_count)
{
    if (q->failed)
        return q->failed;
    for (uint64_t cluster = q->free_hint;;) {
        if (cluster >= (ENTRY_OFFSET >> q->cluster_bits))
            return -EFBIG;
        int r = ensure_block(q, cluster);
        uint64_t found = 0;
        uint32_t got = 0;
        if (r == 0)
            r = alloc_in_block(q, cluster, count, &found, &got);
        if (r < 0)
            return r;
        if (got && is_fixed_metadata(q, found << q->cluster_bits, (uint64_t)got << q->cluster_bits))
            return -EIO;
        q->free_hint = found + got;
        if (got) {
            *ret_offset = found << q->cluster_bits;
            *ret_count = got;
            return 0;
        }
        cluster = found;
    }
}

/* Tries where free clusters are; what comes too short is given back at the end, so that no place is tried twice. */
int alloc_exactly(struct qcow2 *q, uint32_t count, uint64_t *ret_offset)
{
    uint64_t run_start = 0, offset = 0;
    uint32_t run = 0, got = 0;
    while (run < count) {
        int r = alloc_clusters(q, count - run, &offset, &got);
        if (r < 0)
            return r;
        if (run && offset != run_start + ((uint64_t)run << q->cluster_bits)) {
            r = free_run_later(q, run_start, run);
            if (r < 0)
                return r;
            run = 0;
        }
        if (!run)
            run_start = offset;
        run += got;
    }
    *ret_offset = run_start;
    return 0;
}

/* ---- deferred frees ---- */

int free_later(struct qcow2 *q, uint64_t offset)
{
    if (q->free_count == q->free_room) {
        unsigned room = q->free_room ? q->free_room * 2 : 256;
        uint64_t *list = realloc(q->free_list, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        q->free_list = list;
        q->free_room = room;
    }
    q->free_list[q->free_count++] = offset;
    return 0;
}

int free_run_later(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < count; i++)
        r = free_later(q, offset + (i << q->cluster_bits));
    return r;
}

int free_compressed_later(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset, len;
    compressed_range(q, entry, &offset, &len);
    uint64_t first = offset >> q->cluster_bits, last = (offset + len - 1) >> q->cluster_bits;
    return free_run_later(q, first << q->cluster_bits, last - first + 1);
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Clusters in a row that lose their last reference: their space goes back to the host (only advice), and only then their
 * counts let others have them. */
static int free_row(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    int r = 0;
    if (q->file->can_discard && offset + len <= q->file->size && len >= q->file->discard_alignment) {
        int ignored = block_do(q->file, BLOCK_DISCARD, offset, NULL, len);
        (void)ignored;
    }
    for (uint64_t at = offset; r == 0 && at < offset + len; at += q->cluster_size)
        r = refcount_set(q, at >> q->cluster_bits, 0);
    return r;
}

/* What was cached of a cluster that is about to be free. */
static void forget_cluster(struct qcow2 *q, uint64_t offset)
{
    tables_drop(q, offset);
    if (q->packed_at && (q->packed_at - 1) >> q->cluster_bits == offset >> q->cluster_bits)
        q->packed_at = 0;
}

/* The list is sorted, so that what lies in a row comes in a row; a cluster in it twice loses two references. */
int apply_frees(struct qcow2 *q)
{
    unsigned count = q->free_count;
    uint64_t *list = q->free_list, row = 0, row_len = 0;
    int result = 0;
    q->free_list = NULL;
    q->free_count = q->free_room = 0;
    q->unpacked_entry = 0;
    if (count)
        qsort(list, count, sizeof *list, compare_offsets);
    for (unsigned i = 0; i < count; i++) {
        uint64_t refs = 0;
        int r = refcount_get(q, list[i] >> q->cluster_bits, &refs);
        if (r == 0 && refs == 1 && (i + 1 == count || list[i + 1] != list[i])) {
            forget_cluster(q, list[i]);
            if (row_len && row + row_len != list[i]) {
                r = free_row(q, row, row_len);
                row_len = 0;
            }
            row = row_len ? row : list[i];
            row_len += q->cluster_size;
        } else if (r == 0) {
            r = refcount_add(q, list[i] >> q->cluster_bits, -1);
        }
        if (r < 0 && result == 0)
            result = r;
    }
    int r = row_len ? free_row(q, row, row_len) : 0;
    free(list);
    return result < 0 ? result : r;
}
