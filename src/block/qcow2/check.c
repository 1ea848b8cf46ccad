/* Counts the references to each cluster and compares them with the reference counts in the file.
 *
 * Trees share L2 tables: first all L1 tables tell how many entries name each table, then each table is walked once and counts
 * as often. So a check takes as long as the file is large, whatever the image says.
 * Memory: 12 bytes a cluster of the file, 3 GiB at most. */
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

/* False: it lies beyond the end. */
static bool count_range(struct checker *c, uint64_t offset, uint64_t len, uint32_t times, const char *what)
{
    unsigned bits = c->q->cluster_bits;
    if (!len)
        return true;
    if (offset + len < offset || (offset + len - 1) >> bits >= c->clusters) {
        check_report(c, "ERROR %s at %#" PRIx64 " lies beyond the end of the file", what, offset);
        c->out->corruptions++;
        return false;
    }
    for (uint64_t i = offset >> bits; i <= (offset + len - 1) >> bits; i++)
        if (__builtin_add_overflow(c->counts[i], times, &c->counts[i]))
            c->counts[i] = UINT32_MAX;
    return true;
}

static bool aligned(struct checker *c, uint64_t offset, const char *what)
{
    if (!(offset & (c->q->cluster_size - 1)))
        return true;
    check_report(c, "ERROR %s at %#" PRIx64 " does not begin at a cluster", what, offset);
    c->out->corruptions++;
    return false;
}

static void count_entry(struct checker *c, uint64_t entry, uint64_t bitmap, uint32_t times, bool active)
{
    const struct qcow2 *q = c->q;
    uint64_t offset = entry & ENTRY_OFFSET, len;
    if (entry & ENTRY_COMPRESSED) {
        compressed_range(q, entry, &offset, &len);
        count_range(c, offset, len, times, "compressed cluster");
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
        count_range(c, offset, q->cluster_size, times, "data cluster");
}

/* What lies below a table that is not walked looks leaked. */
static void count_tables(struct checker *c, const uint64_t *l1, uint32_t l1_size)
{
    const struct qcow2 *q = c->q;
    for (uint32_t i = 0; i < l1_size; i++) {
        uint64_t l2 = l1[i] & ENTRY_OFFSET;
        if (!l2)
            continue;
        if (!aligned(c, l2, "L2 table") || !count_range(c, l2, q->cluster_size, 1, "L2 table"))
            c->incomplete = true;
        else if (c->tables[l2 >> q->cluster_bits] < UINT32_MAX)
            c->tables[l2 >> q->cluster_bits]++;
    }
}

static int walk_table(struct checker *c, uint64_t cluster, bool active, uint8_t *table)
{
    const struct qcow2 *q = c->q;
    uint32_t times = cluster < c->clusters ? c->tables[cluster] : 0;
    if (!times)
        return 0;
    c->tables[cluster] = 0;
    int r = block_do(q->file, BLOCK_READ, cluster << q->cluster_bits, table, q->cluster_size);
    for (uint32_t i = 0; r == 0 && i < 1u << q->l2_bits; i++) {
        const uint8_t *at = table + (size_t)i * q->entry_size;
        count_entry(c, load_be64(at), q->extended ? load_be64(at + 8) : 0, times, active);
    }
    return r;
}

static int count_active(struct checker *c, uint8_t *table)
{
    const struct qcow2 *q = c->q;
    int r = 0;
    count_tables(c, q->l1, q->l1_size);
    for (uint32_t i = 0; r == 0 && i < q->l1_size; i++)
        r = walk_table(c, (q->l1[i] & ENTRY_OFFSET) >> q->cluster_bits, true, table);
    return r;
}

/* Counts a table of offsets; its entries, unless it cannot be read. In a sound image such tables lie apart and are together
 * shorter than the file; more would be a check without end. */
static int count_offsets(struct checker *c, uint64_t offset, uint32_t size, const char *what, uint64_t **ret_entries)
{
    uint64_t len = (uint64_t)size * 8;
    c->table_clusters += cluster_count(c->q, len);
    if (c->table_clusters > c->clusters) {
        check_report(c, "ERROR %s at %#" PRIx64 " is used by several", what, offset);
        c->out->corruptions++;
    } else if (count_range(c, offset, len, 1, what) && len <= L1_BYTES_MAX) {
        return read_entries(c->q, offset, size, ret_entries);
    }
    c->incomplete = true;
    return 0;
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
        r = count_offsets(c, s->l1_offset, s->l1_size, "snapshot's L1 table", &l1);
        if (l1)
            count_tables(c, l1, s->l1_size);
    }
    count_range(c, q->snapshots_offset, all.table_len, 1, "snapshot table");
    qcow2_snapshots_free(&all);
    return r;
}

static int count_trees(struct checker *c, struct err *err)
{
    own_free uint8_t *table = aligned_alloc(4096, c->q->cluster_size < 4096 ? 4096 : c->q->cluster_size);
    int r = table ? count_active(c, table) : -ENOMEM;
    if (r == 0)
        r = count_snapshots(c, err);
    for (uint64_t i = 0; r == 0 && i < c->clusters; i++)
        r = walk_table(c, i, false, table);
    return r;
}

static int count_bitmap(struct checker *c, const struct dirty_bitmap *b)
{
    own_free uint64_t *table = NULL;
    int r = count_offsets(c, b->table_offset, b->table_size, "bitmap table", &table);
    for (uint32_t i = 0; table && i < b->table_size; i++)
        if (table[i] & ENTRY_OFFSET && aligned(c, table[i] & ENTRY_OFFSET, "bitmap data"))
            count_range(c, table[i] & ENTRY_OFFSET, c->q->cluster_size, 1, "bitmap data");
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
    count_range(c, bitmaps->directory, bitmaps->directory_len, 1, "bitmap directory");
    for (uint32_t i = 0; r == 0 && i < bitmaps->count; i++)
        r = count_bitmap(c, &bitmaps->list[i]);
    return r;
}

static void count_refcounts(struct checker *c)
{
    const struct qcow2 *q = c->q;
    count_range(c, q->reftable_offset, (uint64_t)q->reftable_size * 8, 1, "refcount table");
    for (uint32_t i = 0; i < q->reftable_size; i++) {
        uint64_t block = q->reftable[i] & REFTABLE_OFFSET;
        if (block && aligned(c, block, "refcount block"))
            count_range(c, block, q->cluster_size, 1, "refcount block");
    }
}

static int count_all(struct checker *c, struct err *err)
{
    struct qcow2 *q = c->q;
    count_range(c, 0, q->cluster_size, 1, "header");
    count_range(c, q->l1_offset, (uint64_t)q->l1_size * 8, 1, "L1 table");
    count_range(c, q->luks_offset, q->luks_len, 1, "LUKS header");
    int r = count_trees(c, err);
    return r < 0 ? r : count_bitmaps(c);
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

static int compare_table(struct checker *c, uint64_t l2)
{
    struct qcow2 *q = c->q;
    struct table *table;
    int r = tables_get(q, l2, TABLE_L2, &table);
    if (r < 0)
        return r;
    for (uint32_t j = 0; j < 1u << q->l2_bits; j++) {
        uint64_t entry = entry_get(q, table, j);
        if (!(entry & ENTRY_COMPRESSED))
            compare_flag(c, entry, "L2 entry");
    }
    tables_put(q, table);
    return 0;
}

static int compare_flags(struct checker *c)
{
    struct qcow2 *q = c->q;
    for (uint32_t i = 0; i < q->l1_size && !q->external; i++) {
        uint64_t l2 = q->l1[i] & ENTRY_OFFSET;
        c->left_out[i] = !l2 || l2 & (q->cluster_size - 1) || l2 >> q->cluster_bits >= c->clusters;
        if (c->left_out[i])
            continue;
        compare_flag(c, q->l1[i], "L1 entry");
        c->left_out[i] = c->tables[l2 >> q->cluster_bits]++;
        int r = c->left_out[i] ? 0 : compare_table(c, l2);
        if (r == -EIO)
            c->left_out[i] = true; /* in two roles: the counts tell */
        else if (r < 0)
            return r;
    }
    return 0;
}

/* ---- repair ---- */

static void leaks_fixed(struct checker *c)
{
    if (c->incomplete && c->out->leaks)
        check_report(c, "Leaked clusters stay: they may be what a table that cannot be read refers to");
    if (c->incomplete)
        return;
    c->out->leaks_fixed = c->out->leaks;
    c->out->leaks = 0;
}

static int repair_all(struct checker *c)
{
    struct qcow2 *q = c->q;
    uint64_t damaged = c->out->corruptions;
    int r = c->stale ? check_rebuild(c) : check_fix_leaks(c);
    if (r == 0 && (c->flags || c->stale))
        r = tree_fix_copied(q, c->left_out);
    if (r == 0)
        r = checkpoint(q);
    if (r == 0 && !damaged && q->incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
        r = header_set_incompatible(q, q->incompatible & ~(uint64_t)(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT));
    if (r < 0)
        return r;
    c->out->corruptions_fixed = c->stale + c->flags;
    c->stale = c->flags = 0;
    leaks_fixed(c);
    return 0;
}

static int repair_leaks(struct checker *c)
{
    int r = check_fix_leaks(c);
    if (r == 0)
        r = checkpoint(c->q);
    if (r == 0)
        leaks_fixed(c);
    return r;
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
    own_free uint32_t *counts = calloc(c.clusters + 1, sizeof *counts), *tables = calloc(c.clusters + 1, sizeof *tables);
    own_free bool *left_out = calloc((size_t)q->l1_size + 1, sizeof *left_out);
    c.counts = counts;
    c.tables = tables;
    c.left_out = left_out;
    if (!counts || !tables || !left_out)
        return err_set(err, ENOMEM, "disk '%s': check", node->name);
    check->total_clusters = cluster_count(q, node->size);
    fiber_lock(&q->lock);
    int r = run_check(&c, repair, &why);
    fiber_unlock(&q->lock);
    if (r < 0 && why.code && err)
        *err = why;
    return r < 0 && !why.code ? err_set(err, -r, "disk '%s': check", node->name) : r;
}
