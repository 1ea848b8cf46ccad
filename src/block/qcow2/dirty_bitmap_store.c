/* Dirty bitmaps in the file: a directory that the header names, and for each bitmap a table of the clusters with its bits.
 *
 * What changes is written to new clusters; when they and their counts are stable the header names a new directory, and what
 * the old one named becomes free. Only the flags change in place, in bytes of their own, so that a torn write does no harm. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/own.h"
#include "block/qcow2/dirty_bitmap.h"
#include "block/qcow2/qcow2_impl.h"

void dirty_bitmap_free(struct dirty_bitmap *b)
{
    free(b->name);
    free(b->extra);
    free(b->bits);
}

void dirty_bitmaps_free(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->bitmaps.count && q->bitmaps.list; i++)
        dirty_bitmap_free(&q->bitmaps.list[i]);
    free(q->bitmaps.list);
    free(q->bitmaps.unused);
    q->bitmaps = (struct dirty_bitmaps){0};
}

int dirty_bitmap_allocate(struct qcow2 *q, struct dirty_bitmap *b, uint64_t bit_count)
{
    uint64_t bytes = (bit_count + 7) / 8;
    if (bytes > BITMAP_BYTES_MAX || bytes > BITMAPS_BYTES_MAX - q->bitmaps.bytes)
        return -EFBIG;
    b->bits = calloc(bytes ? bytes : 1, 1);
    if (!b->bits)
        return -ENOMEM;
    b->bit_count = bit_count;
    q->bitmaps.bytes += bytes;
    return 0;
}

/* ---- the directory ---- */

static uint64_t entry_len(const struct dirty_bitmap *b)
{
    return (BITMAP_ENTRY_LEN + (uint64_t)b->extra_len + strlen(b->name) + 7) & ~UINT64_C(7);
}

/* One entry of `len` bytes at most; its length, or -EINVAL. */
static int64_t parse_entry(const struct qcow2 *q, const uint8_t *entry, uint64_t len, struct dirty_bitmap *b)
{
    if (len < BITMAP_ENTRY_LEN)
        return -EINVAL;
    uint32_t name_len = load_be16(entry + 18);
    *b = (struct dirty_bitmap){.table_offset = load_be64(entry),
                               .table_size = load_be32(entry + 8),
                               .flags = load_be32(entry + 12),
                               .type = entry[16],
                               .granularity_bits = entry[17],
                               .extra_len = load_be32(entry + 20)};
    const uint8_t *name = entry + BITMAP_ENTRY_LEN + b->extra_len;
    if (!name_len || name_len > NAME_MAX_LEN || (uint64_t)b->extra_len + name_len > len - BITMAP_ENTRY_LEN)
        return -EINVAL;
    if (memchr(name, 0, name_len) || b->table_offset & (q->cluster_size - 1))
        return -EINVAL;
    b->name = strndup((const char *)name, name_len);
    b->extra = malloc(b->extra_len ? b->extra_len : 1);
    if (!b->name || !b->extra) {
        dirty_bitmap_free(b);
        return -ENOMEM;
    }
    memcpy(b->extra, entry + BITMAP_ENTRY_LEN, b->extra_len);
    return (int64_t)entry_len(b);
}

static int parse_directory(struct qcow2 *q, const uint8_t *directory, uint32_t count)
{
    uint64_t at = 0;
    q->bitmaps.list = calloc(count, sizeof *q->bitmaps.list);
    if (!q->bitmaps.list)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t left = q->bitmaps.directory_len > at ? q->bitmaps.directory_len - at : 0;
        int64_t len = parse_entry(q, directory + at, left, &q->bitmaps.list[i]);
        if (len < 0)
            return (int)len;
        q->bitmaps.count++;
        at += (uint64_t)len;
    }
    return at == q->bitmaps.directory_len ? 0 : -EINVAL;
}

static int load_directory(struct qcow2 *q, uint32_t count)
{
    uint64_t offset = q->bitmaps.directory, len = q->bitmaps.directory_len, size = q->file->size;
    if (count > BITMAPS_MAX || len > BITMAP_DIRECTORY_BYTES_MAX || len < (uint64_t)count * BITMAP_ENTRY_LEN)
        return -EINVAL;
    if (!offset || offset & (q->cluster_size - 1) || offset > size || len > size - offset)
        return -EINVAL;
    own_free uint8_t *directory = aligned_alloc(4096, (len + 4095) & ~UINT64_C(4095));
    if (!directory)
        return -ENOMEM;
    uint64_t block = q->file->block_size;
    int r = block_do(q->file, BLOCK_READ, offset, directory, (len + block - 1) & ~(block - 1));
    return r < 0 ? r : parse_directory(q, directory, count);
}

int dirty_bitmaps_load_directory(struct qcow2 *q)
{
    uint32_t count = q->bitmaps.count;
    if (!(q->autoclear & AUTOCLEAR_BITMAPS))
        return 0;
    q->bitmaps.count = 0;
    int r = count ? load_directory(q, count) : -EINVAL;
    if (r != -EINVAL)
        return r; /* what cannot be read just now is not damaged, and must not be dropped */
    log_debug("disk '%s': its directory of bitmaps is damaged", q->node.name);
    dirty_bitmaps_free(q);
    q->bitmaps.damaged = true;
    return 0;
}

/* ---- bits ---- */

static int load_cluster(struct qcow2 *q, struct dirty_bitmap *b, uint64_t entry, uint64_t at, uint8_t *buf)
{
    uint64_t bytes = (b->bit_count + 7) / 8, len = bytes - at < q->cluster_size ? bytes - at : q->cluster_size;
    uint64_t offset = entry & ENTRY_OFFSET;
    if (entry & ~(ENTRY_OFFSET | BITMAP_ALL_ONES) || offset & (q->cluster_size - 1) ||
        (offset && entry & BITMAP_ALL_ONES))
        return -EIO;
    if (!offset) {
        memset(b->bits + at, entry ? 0xff : 0, len);
        return 0;
    }
    int r = block_do(q->file, BLOCK_READ, offset, buf, q->cluster_size);
    if (r == 0)
        memcpy(b->bits + at, buf, len);
    return r;
}

static int load_bits(struct qcow2 *q, struct dirty_bitmap *b)
{
    own_free uint64_t *table = NULL;
    own_free uint8_t *buf = aligned_alloc(4096, q->cluster_size < 4096 ? 4096 : q->cluster_size);
    int r = buf ? read_entries(q, b->table_offset, b->table_size, &table) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < b->table_size; i++)
        r = load_cluster(q, b, table[i], (uint64_t)i << q->cluster_bits, buf);
    if (r == 0 && b->bit_count & 7) /* what is behind the disk's end is zero */
        b->bits[b->bit_count >> 3] &= (uint8_t)((1u << (b->bit_count & 7)) - 1);
    return r;
}

int dirty_bitmap_load(struct qcow2 *q, struct dirty_bitmap *b)
{
    if (b->bits)
        return 0;
    if (!dirty_bitmap_usable(q, b))
        return -EIO;
    int r = dirty_bitmap_allocate(q, b, dirty_bitmap_bit_count(b, q->node.size));
    if (r < 0)
        return r;
    r = b->table_offset ? load_bits(q, b) : 0;
    if (r < 0) {
        free(b->bits);
        b->bits = NULL;
        q->bitmaps.bytes -= (b->bit_count + 7) / 8;
    }
    return r;
}

static bool all_are(const uint8_t *bytes, uint64_t len, uint8_t value)
{
    return bytes[0] == value && memcmp(bytes, bytes + 1, len - 1) == 0;
}

static int store_cluster(struct qcow2 *q, const uint8_t *bits, uint64_t len, uint8_t *buf, uint64_t *ret_entry)
{
    uint32_t got;
    *ret_entry = 0;
    if (all_are(bits, len, 0))
        return 0;
    if (len == q->cluster_size && all_are(bits, len, 0xff)) {
        *ret_entry = BITMAP_ALL_ONES;
        return 0;
    }
    int r = alloc_clusters(q, 1, ret_entry, &got);
    if (r < 0)
        return r;
    memset(buf, 0, q->cluster_size);
    memcpy(buf, bits, len);
    return block_do(q->file, BLOCK_WRITE, *ret_entry, buf, q->cluster_size);
}

static int store_table(struct qcow2 *q, const struct dirty_bitmap *b, uint64_t *table, uint32_t size,
                       uint64_t *ret_offset)
{
    uint64_t bytes = (b->bit_count + 7) / 8;
    own_free uint8_t *buf = aligned_alloc(4096, q->cluster_size < 4096 ? 4096 : q->cluster_size);
    int r = buf ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < size; i++) {
        uint64_t at = (uint64_t)i << q->cluster_bits;
        r = store_cluster(q, b->bits + at, bytes - at < q->cluster_size ? bytes - at : q->cluster_size, buf, &table[i]);
    }
    if (r == 0)
        r = alloc_exactly(q, (uint32_t)cluster_count(q, (uint64_t)size * 8), ret_offset);
    return r < 0 ? r : write_entries(q, *ret_offset, table, 0, size);
}

int dirty_bitmap_drop_table(struct qcow2 *q, struct dirty_bitmap *b)
{
    if (!b->table_offset)
        return 0;
    struct dirty_bitmap_table *list = realloc(q->bitmaps.unused, (q->bitmaps.unused_count + 1) * sizeof *list);
    if (!list)
        return -ENOMEM;
    q->bitmaps.unused = list;
    list[q->bitmaps.unused_count++] = (struct dirty_bitmap_table){b->table_offset, b->table_size};
    b->table_offset = 0;
    return 0;
}

/* To new clusters, which are given back when that fails. */
static int store_bits(struct qcow2 *q, struct dirty_bitmap *b)
{
    uint32_t size = (uint32_t)cluster_count(q, (b->bit_count + 7) / 8);
    uint64_t offset = 0;
    own_free uint64_t *table = calloc((cluster_count(q, (uint64_t)size * 8) + 1) << q->cluster_bits, 1);
    int r = table ? store_table(q, b, table, size ? size : 1, &offset) : -ENOMEM;
    if (r == 0)
        r = dirty_bitmap_drop_table(q, b);
    if (r == 0) {
        b->table_offset = offset;
        b->table_size = size;
        b->changed = false;
        q->bitmaps.changed = true;
        return 0;
    }
    for (uint32_t i = 0; table && i < size; i++)
        if (table[i] & ENTRY_OFFSET && free_later(q, table[i] & ENTRY_OFFSET) < 0)
            q->failed = -ENOMEM;
    if (offset && free_run_later(q, offset, cluster_count(q, (uint64_t)size * 8)) < 0)
        q->failed = -ENOMEM;
    return r;
}

/* ---- storing ---- */

static void put_entry(uint8_t *at, const struct dirty_bitmap *b, bool closing, bool resizing)
{
    bool in_use = !closing && b->bits && (b->flags & BITMAP_AUTO || resizing);
    size_t name_len = strlen(b->name);
    store_be64(at, b->table_offset);
    store_be32(at + 8, b->table_size);
    store_be32(at + 12, b->flags | (in_use ? BITMAP_IN_USE : 0));
    at[16] = b->type;
    at[17] = b->granularity_bits;
    store_be16(at + 18, (uint16_t)name_len);
    store_be32(at + 20, b->extra_len);
    if (b->extra_len)
        memcpy(at + BITMAP_ENTRY_LEN, b->extra, b->extra_len);
    memcpy(at + BITMAP_ENTRY_LEN + b->extra_len, b->name, name_len);
}

static int write_directory(struct qcow2 *q, uint64_t offset, uint64_t len, bool closing)
{
    uint64_t block = q->file->block_size, rounded = (len + block - 1) & ~(block - 1), at = 0;
    own_free uint8_t *directory = aligned_alloc(4096, (rounded + 4095) & ~UINT64_C(4095));
    if (!directory)
        return -ENOMEM;
    memset(directory, 0, rounded);
    for (uint32_t i = 0; i < q->bitmaps.count; i++) {
        put_entry(directory + at, &q->bitmaps.list[i], closing, q->bitmaps.resizing);
        at += entry_len(&q->bitmaps.list[i]);
    }
    return block_do(q->file, BLOCK_WRITE, offset, directory, rounded);
}

static int name_directory(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    q->bitmaps.directory = offset;
    q->bitmaps.directory_len = len;
    q->autoclear = (q->autoclear & ~(uint64_t)AUTOCLEAR_BITMAPS) | (offset ? AUTOCLEAR_BITMAPS : 0);
    return header_rewrite(q);
}

static int free_unused(struct qcow2 *q)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < q->bitmaps.unused_count; i++) {
        const struct dirty_bitmap_table *unused = &q->bitmaps.unused[i];
        own_free uint64_t *table = NULL;
        if ((uint64_t)unused->size * 8 > L1_BYTES_MAX)
            continue; /* beyond what we read: stays, a check finds it */
        r = read_entries(q, unused->offset, unused->size, &table);
        for (uint32_t j = 0; r == 0 && j < unused->size; j++)
            if (table[j] & ENTRY_OFFSET)
                r = free_later(q, table[j] & ENTRY_OFFSET);
        if (r == 0)
            r = free_run_later(q, unused->offset, cluster_count(q, (uint64_t)unused->size * 8));
    }
    q->bitmaps.unused_count = 0;
    return r;
}

static int move_directory(struct qcow2 *q, bool closing)
{
    uint64_t len = 0, offset = 0, old = q->bitmaps.directory, old_len = q->bitmaps.directory_len;
    for (uint32_t i = 0; i < q->bitmaps.count; i++)
        len += entry_len(&q->bitmaps.list[i]);
    if (len > BITMAP_DIRECTORY_BYTES_MAX)
        return -EFBIG;
    int r = len ? alloc_exactly(q, (uint32_t)cluster_count(q, len), &offset) : 0;
    if (r == 0 && len)
        r = write_directory(q, offset, len, closing);
    if (r == 0)
        r = checkpoint(q);
    if (r == 0) {
        q->bitmaps.in_use = len && !closing; /* perhaps also when it fails */
        r = name_directory(q, offset, len);
    }
    if (r == 0 && old)
        r = free_run_later(q, old, cluster_count(q, old_len));
    if (r == 0)
        r = free_unused(q);
    if (r < 0)
        return r;
    q->bitmaps.changed = false;
    for (unsigned i = 0; r == 0 && i < 2; i++) /* the second writes what deferred frees changed */
        r = checkpoint(q);
    return r;
}

int dirty_bitmaps_store(struct qcow2 *q, bool closing)
{
    bool any = q->bitmaps.count || q->bitmaps.directory;
    int r = q->failed;
    for (uint32_t i = 0; r == 0 && i < q->bitmaps.count; i++)
        if (q->bitmaps.list[i].changed)
            r = store_bits(q, &q->bitmaps.list[i]);
    if (r < 0 || !any)
        return r;
    if (q->bitmaps.changed)
        return move_directory(q, closing);
    q->bitmaps.in_use = !closing;
    r = write_directory(q, q->bitmaps.directory, q->bitmaps.directory_len, closing);
    return r < 0 ? r : sync_files(q);
}

int dirty_bitmaps_begin(struct qcow2 *q)
{
    bool any = false;
    for (uint32_t i = 0; i < q->bitmaps.count; i++) {
        struct dirty_bitmap *b = &q->bitmaps.list[i];
        if (!(b->flags & BITMAP_AUTO) || b->flags & BITMAP_IN_USE)
            continue;
        int r = dirty_bitmap_load(q, b);
        if (r == -ENOMEM)
            return r;
        if (r < 0)
            b->flags |= BITMAP_IN_USE; /* will miss what is written */
        any = true;
    }
    return any ? dirty_bitmaps_store(q, false) : 0;
}
