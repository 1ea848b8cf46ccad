/* Repairs of reference counts. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2/check_impl.h"

int check_fix_leaks(struct checker *c)
{
    struct qcow2 *q = c->q;
    for (uint64_t i = 0; i < c->counted && !c->incomplete; i++) {
        uint64_t have = 0;
        int r = make_room(q);
        if (r == 0)
            r = refcount_get(q, i, &have);
        if (r == 0 && have > check_found(c, i))
            r = refcount_set(q, i, check_found(c, i));
        if (r < 0)
            return r;
    }
    return 0;
}

/* The clusters that the new structures take, behind the file's last: first the blocks, then the table. */
struct rebuilt {
    uint64_t start, blocks, table_clusters, end;
};

static struct rebuilt plan(const struct checker *c)
{
    const struct qcow2 *q = c->q;
    struct rebuilt new = {.start = c->clusters, .blocks = 1, .table_clusters = 1};
    for (uint64_t before = 0; before != new.blocks + new.table_clusters;) {
        before = new.blocks + new.table_clusters;
        new.end = new.start + before;
        new.blocks = (new.end + (UINT64_C(1) << q->refblock_bits) - 1) >> q->refblock_bits;
        new.table_clusters = cluster_count(q, new.blocks * 8);
    }
    return new;
}

static int write_block(const struct checker *c, const struct rebuilt *new, uint64_t index, uint8_t *block)
{
    const struct qcow2 *q = c->q;
    uint64_t most = q->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << q->refcount_order)) - 1;
    memset(block, 0, q->cluster_size);
    for (uint32_t i = 0; i < 1u << q->refblock_bits; i++) {
        uint64_t cluster = (index << q->refblock_bits) + i;
        uint64_t count = cluster < c->clusters ? c->counts[cluster] : cluster >= new->start && cluster < new->end;
        if (count > most)
            return -ERANGE;
        refcount_store(block, q->refcount_order, i, count);
    }
    return block_do(q->file, BLOCK_WRITE, (new->start + index) << q->cluster_bits, block, q->cluster_size);
}

static int switch_reftable(struct qcow2 *q, const struct rebuilt *new, uint64_t *table)
{
    uint8_t field[12];
    uint64_t offset = (new->start + new->blocks) << q->cluster_bits;
    uint32_t size = (uint32_t)((new->table_clusters << q->cluster_bits) / 8);
    store_be64(field, offset);
    store_be32(field + 8, (uint32_t)new->table_clusters);
    int r = write_entries(q, offset, table, 0, size);
    if (r == 0)
        r = sync_files(q);
    if (r == 0)
        r = header_update(q, H_REFTABLE_OFFSET, field, sizeof field);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < q->reftable_size; i++)
        if (q->reftable[i])
            tables_drop(q, q->reftable[i] & REFTABLE_OFFSET);
    free(q->reftable);
    q->reftable = table;
    q->reftable_offset = offset;
    q->reftable_size = size;
    q->free_hint = 0;
    return 0;
}

static void keep_old_counts(struct checker *c)
{
    for (uint64_t i = 0; i < c->clusters; i++) {
        uint64_t have = 0;
        if (refcount_get(c->q, i, &have) == 0 && have > c->counts[i])
            c->counts[i] = have < UINT32_MAX ? (uint32_t)have : UINT32_MAX;
    }
}

int check_rebuild(struct checker *c)
{
    struct qcow2 *q = c->q;
    struct rebuilt new = plan(c);
    if (new.table_clusters << q->cluster_bits > REFTABLE_BYTES_MAX)
        return -EFBIG;
    if (c->incomplete)
        keep_old_counts(c);
    uint64_t *table = calloc(new.table_clusters, q->cluster_size);
    uint8_t *block = aligned_alloc(4096, q->cluster_size < 4096 ? 4096 : q->cluster_size);
    int r = table && block ? 0 : -ENOMEM;
    for (uint64_t i = 0; r == 0 && i < new.blocks; i++) {
        table[i] = (new.start + i) << q->cluster_bits;
        r = write_block(c, &new, i, block);
    }
    free(block);
    if (r == 0)
        r = switch_reftable(q, &new, table);
    if (r < 0)
        free(table);
    return r;
}
