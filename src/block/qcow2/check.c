/* Counts the references to each cluster and compares them with the reference counts in the file.
 * Memory: 4 bytes a cluster of the file, 1 GiB at most. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/qcow2/check_impl.h"

#define COUNTS_MAX (UINT64_C(1) << 28)

void check_report(const struct checker *c, const char *format, ...)
{
    char line[200];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (c->out->report)
        c->out->report(c->out->arg, line);
}

/* ---- counting ---- */

static void count_range(struct checker *c, uint64_t offset, uint64_t len, const char *what)
{
    unsigned bits = c->q->cluster_bits;
    if (!len)
        return;
    if (offset + len < offset || (offset + len - 1) >> bits >= c->clusters) {
        check_report(c, "ERROR %s at %#" PRIx64 " lies beyond the end of the file", what, offset);
        c->out->corruptions++;
        return;
    }
    for (uint64_t i = offset >> bits; i <= (offset + len - 1) >> bits; i++)
        if (c->counts[i] < UINT32_MAX)
            c->counts[i]++;
}

static bool aligned(struct checker *c, uint64_t offset, const char *what)
{
    if (!(offset & (c->q->cluster_size - 1)))
        return true;
    check_report(c, "ERROR %s at %#" PRIx64 " does not begin at a cluster", what, offset);
    c->out->corruptions++;
    return false;
}

static void count_entry(struct checker *c, uint64_t entry, uint64_t bitmap, bool active)
{
    const struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET, len;
    if (entry & ENTRY_COMPRESSED) {
        compressed_range(q, entry, &offset, &len);
        count_range(c, offset, len, "compressed cluster");
        if (active)
            c->out->compressed_clusters++, c->out->allocated_clusters++, c->out->fragmented_clusters++;
        return;
    }
    if (q->extended && ((uint32_t)bitmap & (uint32_t)(bitmap >> 32))) {
        check_report(c, "ERROR a subcluster of the cluster at %#" PRIx64 " is both data and zero", offset);
        c->out->corruptions++;
    }
    if (!offset || (!q->external && !aligned(c, offset, "data cluster")))
        return;
    if (active) {
        c->out->allocated_clusters++;
        if (c->next_data && offset != c->next_data)
            c->out->fragmented_clusters++;
        c->next_data = offset + q->cluster_size;
    }
    if (!q->external)
        count_range(c, offset, q->cluster_size, "data cluster");
}

static int count_l2(struct checker *c, uint64_t l2, bool active, uint8_t *table)
{
    const struct qcow2 *q = c->q;
    if (!aligned(c, l2, "L2 table"))
        return 0;
    count_range(c, l2, q->cluster_size, "L2 table");
    if (l2 >> q->cluster_bits >= c->clusters)
        return 0;
    if (active && c->counts[l2 >> q->cluster_bits] > 1) { /* the first tree to be counted: nobody else may have it */
        check_report(c, "ERROR L2 table at %#" PRIx64 " is used twice", l2);
        c->out->corruptions++;
        return 0;
    }
    int r = block_do(q->file, BLOCK_READ, l2, table, q->cluster_size);
    for (uint32_t i = 0; r == 0 && i < 1u << q->l2_bits; i++) {
        const uint8_t *at = table + (size_t)i * q->entry_size;
        count_entry(c, load_be64(at), q->extended ? load_be64(at + 8) : 0, active);
    }
    return r;
}

static int count_tree(struct checker *c, const uint64_t *l1, uint32_t l1_size, bool active)
{
    own_free uint8_t *table = aligned_alloc(4096, c->q->cluster_size < 4096 ? 4096 : c->q->cluster_size);
    int r = table ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < l1_size; i++)
        if (l1[i] & ENTRY_OFFSET)
            r = count_l2(c, l1[i] & ENTRY_OFFSET, active, table);
    return r;
}

static int count_snapshots(struct checker *c, struct err *err)
{
    struct qcow2 *q = c->q;
    struct qcow2_snapshots all;
    int r = qcow2_snapshots_load(&q->node, &all, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < all.count; i++) {
        const struct qcow2_snapshot *s = &all.list[i];
        own_free uint64_t *l1 = NULL;
        count_range(c, s->l1_offset, (uint64_t)s->l1_size * 8, "snapshot's L1 table");
        r = read_entries(q, s->l1_offset, s->l1_size, &l1);
        if (r == 0)
            r = count_tree(c, l1, s->l1_size, false);
    }
    count_range(c, q->snapshots_offset, all.table_len, "snapshot table");
    qcow2_snapshots_free(&all);
    return r;
}

static int count_bitmap(struct checker *c, const struct dirty_bitmap *b)
{
    own_free uint64_t *table = NULL;
    uint64_t len = (uint64_t)b->table_size * 8, before = c->out->corruptions;
    count_range(c, b->table_offset, len, "bitmap table");
    if (!len || len > L1_BYTES_MAX || c->out->corruptions != before)
        return 0;
    if (c->counts[b->table_offset >> c->q->cluster_bits] > 1) {
        check_report(c, "ERROR table of bitmap '%.80s' is used twice", b->name);
        c->out->corruptions++;
        return 0;
    }
    int r = read_entries(c->q, b->table_offset, b->table_size, &table);
    for (uint32_t i = 0; r == 0 && i < b->table_size; i++)
        if (table[i] & ENTRY_OFFSET && aligned(c, table[i] & ENTRY_OFFSET, "bitmap data"))
            count_range(c, table[i] & ENTRY_OFFSET, c->q->cluster_size, "bitmap data");
    return r;
}

static int count_bitmaps(struct checker *c)
{
    const struct dirty_bitmaps *bitmaps = &c->q->bitmaps;
    int r = 0;
    if (bitmaps->damaged) {
        check_report(c, "ERROR the directory of bitmaps is damaged; opening the image for writing drops it");
        c->out->corruptions++;
    }
    count_range(c, bitmaps->directory, bitmaps->directory_len, "bitmap directory");
    for (uint32_t i = 0; r == 0 && i < bitmaps->count; i++)
        r = count_bitmap(c, &bitmaps->list[i]);
    return r;
}

static void count_refcounts(struct checker *c)
{
    const struct qcow2 *q = c->q;
    count_range(c, q->reftable_offset, (uint64_t)q->reftable_size * 8, "refcount table");
    for (uint32_t i = 0; i < q->reftable_size; i++) {
        uint64_t block = q->reftable[i] & REFTABLE_OFFSET;
        if (block && aligned(c, block, "refcount block"))
            count_range(c, block, q->cluster_size, "refcount block");
    }
}

static int count_all(struct checker *c, struct err *err)
{
    struct qcow2 *q = c->q;
    count_range(c, 0, q->cluster_size, "header");
    count_range(c, q->l1_offset, (uint64_t)q->l1_size * 8, "L1 table");
    count_range(c, q->luks_offset, q->luks_len, "LUKS header");
    int r = count_tree(c, q->l1, q->l1_size, true);
    if (r == 0)
        r = count_snapshots(c, err);
    if (r == 0)
        r = count_bitmaps(c);
    return r;
}

/* ---- comparing ---- */

static int compare_counts(struct checker *c)
{
    for (uint64_t i = 0; i < c->counted; i++) {
        uint64_t have;
        uint32_t found = check_found(c, i);
        int r = refcount_get(c->q, i, &have);
        if (r < 0 && r != -EIO)
            return r;
        if (r < 0)
            have = 0; /* its block is unusable */
        if ((have || found) && i < c->clusters)
            c->out->image_end = (i + 1) << c->q->cluster_bits;
        if (have == found)
            continue;
        bool leak = have > found;
        check_report(c, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%u", leak ? "Leaked" : "ERROR", i, have, found);
        if (leak)
            c->out->leaks++;
        else
            c->stale++;
    }
    return 0;
}

/* COPIED with several references would let a write reach them all. The flag with one reference and a higher count is a
 * leak; without it, a lost chance to write in place. */
static void compare_flag(struct checker *c, uint64_t entry, const char *what)
{
    uint64_t cluster = (entry & ENTRY_OFFSET) >> c->q->cluster_bits, have;
    if (!(entry & ENTRY_OFFSET) || cluster >= c->clusters || refcount_get(c->q, cluster, &have) < 0)
        return;
    bool set = entry & ENTRY_COPIED;
    if (set ? have == 1 || c->counts[cluster] == 1 : have != 1)
        return;
    check_report(c, "ERROR %s: cluster %" PRIu64 " has refcount %" PRIu64 " and COPIED is %s", what, cluster, have,
                 set ? "set" : "not set");
    c->flags++;
}

static int compare_flags(struct checker *c)
{
    struct qcow2 *q = c->q;
    for (uint32_t i = 0; i < q->l1_size && !q->external; i++) {
        uint64_t l2 = q->l1[i] & ENTRY_OFFSET;
        struct table *table;
        if (!l2 || l2 & (q->cluster_size - 1) || l2 >> q->cluster_bits >= c->clusters)
            continue;
        compare_flag(c, q->l1[i], "L1 entry");
        int r = tables_get(q, l2, TABLE_L2, &table);
        if (r == -EIO)
            continue; /* in two roles: the counts tell */
        if (r < 0)
            return r;
        for (uint32_t j = 0; j < 1u << q->l2_bits; j++) {
            uint64_t entry = entry_get(q, table, j);
            if (!(entry & ENTRY_COMPRESSED))
                compare_flag(c, entry, "L2 entry");
        }
        tables_put(q, table);
    }
    return 0;
}

/* ---- repair ---- */

static int repair_all(struct checker *c)
{
    struct qcow2 *q = c->q;
    uint64_t damaged = c->out->corruptions;
    int r = c->stale ? check_rebuild(c) : check_fix_leaks(c);
    if (r == 0 && (c->flags || c->stale))
        r = tree_fix_copied(q);
    if (r == 0)
        r = checkpoint(q);
    if (r == 0 && !damaged && q->incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
        r = header_set_incompatible(q, q->incompatible & ~(uint64_t)(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT));
    if (r < 0)
        return r;
    c->out->corruptions_fixed = c->stale + c->flags;
    c->out->leaks_fixed = c->out->leaks;
    c->out->leaks = c->stale = c->flags = 0;
    return 0;
}

static int repair_leaks(struct checker *c)
{
    int r = check_fix_leaks(c);
    if (r == 0)
        r = checkpoint(c->q);
    if (r < 0)
        return r;
    c->out->leaks_fixed = c->out->leaks;
    c->out->leaks = 0;
    return 0;
}

static int run_check(struct checker *c, enum qcow2_repair repair, struct err *err)
{
    int r = is_dirty(c->q) ? checkpoint(c->q) : 0;
    if (r == 0)
        r = count_all(c, err);
    if (r < 0)
        return r;
    uint32_t *counts = malloc((c->clusters + 1) * sizeof *counts); /* a rebuild makes other refcount blocks */
    if (!counts)
        return -ENOMEM;
    memcpy(counts, c->counts, c->clusters * sizeof *counts);
    count_refcounts(c);
    r = compare_counts(c);
    if (r == 0)
        r = compare_flags(c);
    if (c->stale && repair == QCOW2_REPAIR_ALL)
        memcpy(c->counts, counts, c->clusters * sizeof *counts);
    free(counts);
    if (r == 0 && repair == QCOW2_REPAIR_ALL)
        r = repair_all(c);
    else if (r == 0 && repair == QCOW2_REPAIR_LEAKS && c->out->leaks)
        r = repair_leaks(c);
    c->out->corruptions += c->stale + c->flags;
    return r;
}

int qcow2_check(struct block_node *node, enum qcow2_repair repair, struct qcow2_check *check, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    struct checker c = {.q = q, .out = check, .clusters = cluster_count(q, q->file->size)};
    struct err why = {0};
    c.counted = ((c.clusters >> q->refblock_bits) + 1) << q->refblock_bits;
    if (c.clusters > COUNTS_MAX)
        return err_say(err, EFBIG, "disk '%s' has too many clusters to check: %" PRIu64, node->name, c.clusters);
    c.counts = calloc(c.clusters ? c.clusters : 1, sizeof *c.counts);
    if (!c.counts)
        return err_set(err, ENOMEM, "disk '%s': check", node->name);
    check->total_clusters = cluster_count(q, node->size);
    fiber_lock(&q->lock);
    int r = run_check(&c, repair, &why);
    fiber_unlock(&q->lock);
    free(c.counts);
    if (r < 0 && why.code && err)
        *err = why;
    return r < 0 && !why.code ? err_set(err, -r, "disk '%s': check", node->name) : r;
}
