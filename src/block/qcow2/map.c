/* From guest offsets to what is there. Entries of an L2 table describe clusters, or with extended entries their 32
 * subclusters; a map joins neighbours that are alike. */
#include <errno.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2_impl.h"

uint64_t entry_get(const struct qcow2 *q, const struct table *table, uint32_t index)
{
    return load_be64(table->data + (size_t)index * q->entry_size);
}

uint64_t bitmap_get(const struct qcow2 *q, const struct table *table, uint32_t index)
{
    return q->extended ? load_be64(table->data + (size_t)index * q->entry_size + 8) : 0;
}

void entry_set(struct qcow2 *q, struct table *table, uint32_t index, uint64_t entry, uint64_t bitmap)
{
    uint8_t *at = table->data + (size_t)index * q->entry_size;
    store_be64(at, entry);
    if (q->extended)
        store_be64(at + 8, bitmap);
    tables_mark(q, table, index * q->entry_size, q->entry_size);
}

void compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_len)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t offset = entry & ((UINT64_C(1) << offset_bits) - 1) & UINT64_C(0x00ffffffffffffff);
    uint64_t sectors = (entry & ~(ENTRY_COPIED | ENTRY_COMPRESSED)) >> offset_bits;
    *ret_offset = offset;
    *ret_len = (sectors + 1) * 512 - offset % 512;
}

/* The kind of unit `sub` of a cluster (0 without subclusters). */
static int unit_kind(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub, enum map_kind *ret_kind)
{
    if (q->extended) {
        bool allocated = bitmap >> sub & 1, zero = bitmap >> (32 + sub) & 1;
        if ((allocated && zero) || (allocated && !(entry & (ENTRY_OFFSET | ENTRY_COPIED))))
            return -EIO;
        *ret_kind = allocated ? MAP_DATA : zero ? MAP_ZERO : MAP_HOLE;
    } else if (entry & ENTRY_ZERO) {
        if (q->version < 3)
            return -EIO;
        *ret_kind = MAP_ZERO;
    } else {
        bool allocated = entry & ENTRY_OFFSET || (q->external && entry & ENTRY_COPIED);
        *ret_kind = allocated ? MAP_DATA : MAP_HOLE;
    }
    return 0;
}

/* What the unit at a guest offset is; `len` up to its end. */
static int map_unit(const struct qcow2 *q, const struct table *table, uint64_t offset, struct map *ret_map)
{
    uint32_t index = l2_index(q, offset), in_cluster = (uint32_t)offset & (q->cluster_size - 1);
    uint64_t entry = entry_get(q, table, index);
    struct map map = {.len = q->unit_size - (offset & (q->unit_size - 1))};
    if (entry & ENTRY_COMPRESSED) {
        if (q->external)
            return -EIO;
        *ret_map = (struct map){.kind = MAP_COMPRESSED, .host = entry, .len = q->cluster_size - in_cluster};
        return 0;
    }
    int r = unit_kind(q, entry, bitmap_get(q, table, index), in_cluster / q->unit_size, &map.kind);
    if (r == 0 && map.kind == MAP_DATA) {
        uint64_t host = entry & ENTRY_OFFSET;
        if (host & (q->cluster_size - 1) || (q->external && host != offset - in_cluster))
            return -EIO;
        map.host = host + in_cluster;
        map.own = entry & ENTRY_COPIED;
    }
    *ret_map = map;
    return r;
}

static bool continues(const struct map *map, const struct map *next)
{
    return next->kind == map->kind && map->kind != MAP_COMPRESSED &&
           (map->kind != MAP_DATA || (next->own == map->own && next->host == map->host + map->len));
}

static int map_table(const struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t len, struct map *ret_map)
{
    struct map map = {0}, next = {0};
    uint64_t table_span = UINT64_C(1) << (q->cluster_bits + q->l2_bits);
    uint64_t most = table_span - (offset & (table_span - 1));
    if (most > len)
        most = len;
    int r = map_unit(q, table, offset, &map);
    while (r == 0 && map.len < most) {
        r = map_unit(q, table, offset + map.len, &next);
        if (r < 0 || !continues(&map, &next)) {
            r = 0; /* a damaged entry is met when it is the first */
            break;
        }
        map.len += next.len;
    }
    if (map.len > most)
        map.len = most;
    *ret_map = map;
    return r;
}

/* The L2 table's offset in the file; 0: none, the map says so. */
static uint64_t l2_offset(const struct qcow2 *q, uint64_t offset, uint64_t len, struct map *ret_map)
{
    unsigned bits = q->cluster_bits + q->l2_bits;
    uint64_t l2 = q->l1[offset >> bits] & ENTRY_OFFSET;
    if (!l2) {
        uint64_t left = (UINT64_C(1) << bits) - (offset & ((UINT64_C(1) << bits) - 1));
        *ret_map = (struct map){.kind = MAP_HOLE, .len = left < len ? left : len};
    }
    return l2;
}

int map_cached(struct qcow2 *q, uint64_t offset, uint64_t len, struct map *ret_map)
{
    uint64_t l2 = l2_offset(q, offset, len, ret_map);
    if (!l2)
        return 0;
    const struct table *table = tables_find(q, l2, TABLE_L2);
    return table ? map_table(q, table, offset, len, ret_map) : -EAGAIN;
}

int map_get(struct qcow2 *q, uint64_t offset, uint64_t len, struct map *ret_map)
{
    uint64_t l2 = l2_offset(q, offset, len, ret_map);
    if (!l2)
        return 0;
    struct table *table;
    int r = tables_get(q, l2, TABLE_L2, &table);
    if (r < 0)
        return r;
    r = map_table(q, table, offset, len, ret_map);
    tables_put(q, table);
    return r;
}

static int copy_table(struct qcow2 *q, uint64_t from, struct table *to)
{
    struct table *old;
    int r = tables_get(q, from, TABLE_L2, &old);
    if (r < 0)
        return r;
    memcpy(to->data, old->data, q->cluster_size);
    tables_put(q, old);
    return free_later(q, from);
}

int map_table_for_write(struct qcow2 *q, uint64_t offset, struct table **ret_table)
{
    uint32_t index = (uint32_t)(offset >> (q->cluster_bits + q->l2_bits)), got;
    uint64_t entry = q->l1[index], l2 = entry & ENTRY_OFFSET, fresh;
    if (l2 && entry & ENTRY_COPIED)
        return tables_get(q, l2, TABLE_L2, ret_table);
    int r = alloc_clusters(q, 1, &fresh, &got);
    if (r < 0)
        return r;
    struct table *table;
    r = tables_new(q, fresh, TABLE_L2, &table);
    if (r == 0 && l2) {
        r = copy_table(q, l2, table);
        if (r < 0) {
            tables_put(q, table);
            tables_drop(q, fresh);
        }
    }
    if (r < 0) {
        int ignored = free_later(q, fresh);
        (void)ignored;
        return r;
    }
    q->l1[index] = fresh | ENTRY_COPIED;
    if (index < q->l1_dirty.from)
        q->l1_dirty.from = index;
    if (index >= q->l1_dirty.to)
        q->l1_dirty.to = index + 1;
    *ret_table = table;
    return 0;
}
