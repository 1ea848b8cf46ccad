/* What hangs below an L1 table: L2 tables and the host clusters that they name. Trees are large: tables that nobody else
 * needs go again behind the walk, and the next ones are read into their memory, which is faster than fresh memory. */
#include <errno.h>

#include "block/qcow2/qcow2_impl.h"

#define WINDOW 16u /* tables that a walk brings in at a time */

static int add_cluster(struct qcow2 *q, uint64_t offset, int delta)
{
    return delta > 0 ? refcount_add(q, offset >> q->cluster_bits, 1) : free_later(q, offset);
}

static int add_compressed(struct qcow2 *q, uint64_t entry, int delta)
{
    uint64_t offset, len;
    compressed_range(q, entry, &offset, &len);
    int r = 0;
    for (uint64_t c = offset >> q->cluster_bits; r == 0 && c <= (offset + len - 1) >> q->cluster_bits; c++)
        r = add_cluster(q, c << q->cluster_bits, delta);
    return r;
}

/* The first entry from `index` on that is not 0, or the number of entries: thin images have few. */
static uint32_t next_entry(const struct qcow2 *q, const struct table *table, uint32_t index)
{
    const uint32_t count = 1u << q->l2_bits, step = q->entry_size / sizeof(uint64_t);
    const uint64_t *words = (const uint64_t *)(const void *)table->data;
    while (index < count && !words[(size_t)index * step])
        index++;
    return index;
}

static int add_table(struct qcow2 *q, uint64_t l2, int delta)
{
    struct table *table;
    bool held = tables_find(q, l2, TABLE_L2);
    int r = tables_get(q, l2, TABLE_L2, &table);
    if (r < 0)
        return r;
    for (uint32_t i = q->external ? 1u << q->l2_bits : 0; r == 0 && (i = next_entry(q, table, i)) < 1u << q->l2_bits; i++) {
        uint64_t entry = entry_get(q, table, i);
        if (entry & ENTRY_COMPRESSED)
            r = add_compressed(q, entry, delta);
        else if (entry & ENTRY_OFFSET)
            r = add_cluster(q, entry & ENTRY_OFFSET, delta);
    }
    tables_put(q, table);
    if (!held)
        tables_forget(q, l2);
    return r < 0 ? r : add_cluster(q, l2, delta);
}

int tree_add(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size, int delta)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < l1_size; i++)
        if (l1[i] & ENTRY_OFFSET)
            r = add_table(q, l1[i] & ENTRY_OFFSET, delta);
    return r;
}

/* The flag for a cluster that is counted once. */
static int copied_flag(struct qcow2 *q, uint64_t entry, uint64_t *ret_entry)
{
    uint64_t count;
    int r = refcount_get(q, (entry & ENTRY_OFFSET) >> q->cluster_bits, &count);
    *ret_entry = count == 1 ? entry | ENTRY_COPIED : entry & ~ENTRY_COPIED;
    return r;
}

static int fix_table(struct qcow2 *q, uint64_t l2)
{
    struct table *table;
    int r = tables_get(q, l2, TABLE_L2, &table);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && (i = next_entry(q, table, i)) < 1u << q->l2_bits; i++) {
        uint64_t entry = entry_get(q, table, i), fixed = 0;
        if (entry & ENTRY_COMPRESSED || !(entry & ENTRY_OFFSET))
            continue;
        r = copied_flag(q, entry, &fixed);
        if (r == 0 && fixed != entry)
            entry_set(q, table, i, fixed, bitmap_get(q, table, i));
    }
    tables_put(q, table);
    return r;
}

static int fix_l1_entry(struct qcow2 *q, uint32_t index)
{
    uint64_t fixed = 0;
    int r = copied_flag(q, q->l1[index], &fixed);
    if (r < 0 || fixed == q->l1[index])
        return r;
    q->l1[index] = fixed;
    if (index < q->l1_dirty.from)
        q->l1_dirty.from = index;
    if (index >= q->l1_dirty.to)
        q->l1_dirty.to = index + 1;
    return 0;
}

/* Tables that the walk brought in. */
struct window {
    uint64_t tables[WINDOW];
    unsigned count;
};

static int leave_window(struct qcow2 *q, struct window *window)
{
    int r = tables_write(q, TABLE_L2);
    while (window->count)
        tables_forget(q, window->tables[--window->count]);
    return r;
}

int tree_fix_copied(struct qcow2 *q, const bool *left_out)
{
    struct window window = {.count = 0};
    int r = 0;
    for (uint32_t i = 0; r == 0 && !q->external && i < q->l1_size; i++) {
        uint64_t l2 = q->l1[i] & ENTRY_OFFSET;
        if (!l2)
            continue;
        if (!left_out || !left_out[i]) {
            if (!tables_find(q, l2, TABLE_L2))
                window.tables[window.count++] = l2;
            r = fix_table(q, l2);
        }
        if (r == 0)
            r = fix_l1_entry(q, i);
        if (r == 0 && (window.count == WINDOW || q->cache.dirty_bytes > CACHE_BYTES / 2))
            r = leave_window(q, &window);
    }
    return r;
}
