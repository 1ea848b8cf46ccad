/* The header and its extensions. Every number is checked before it is used; changes overwrite single fields, so that
 * extensions that are not known stay as they are. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2_impl.h"

#define say(...) err_say(err, EINVAL, __VA_ARGS__)

/* ---- extensions ---- */

static char *copy_text(const uint8_t *text, uint32_t len)
{
    return strndup((const char *)text, len);
}

/* Names bits that are not known, as far as the image has a table of names. */
static int refuse_bits(uint64_t bits, const uint8_t *names, uint32_t len, const char *image, struct err *err)
{
    unsigned bit = (unsigned)__builtin_ctzll(bits);
    for (uint32_t at = 0; names && at + 48 <= len; at += 48)
        if (names[at] == 0 && names[at + 1] == bit)
            return say("disk '%s' uses the qcow2 feature '%.46s', which is not supported", image, names + at + 2);
    return say("disk '%s' uses qcow2 feature bit %u, which is not supported", image, bit);
}

static int take_extension(struct qcow2 *q, uint32_t type, const uint8_t *data, uint32_t len, struct err *err)
{
    char **text = type == EXTENSION_BACKING_FORMAT ? &q->backing_format : type == EXTENSION_DATA_FILE ? &q->data_name : NULL;
    if (text) {
        if (len > NAME_MAX_LEN || *text)
            return say("header extension 0x%08x is too long or there twice", type);
        *text = copy_text(data, len);
        return *text ? 0 : err_set(err, ENOMEM, "header");
    }
    if (type == EXTENSION_BITMAPS && len >= BITMAP_EXTENSION_LEN && q->autoclear & AUTOCLEAR_BITMAPS) {
        q->bitmaps.count = load_be32(data);
        q->bitmaps.directory_len = load_be64(data + 8);
        q->bitmaps.directory = load_be64(data + 16);
    }
    return 0;
}

static int walk_extensions(struct qcow2 *q, const uint8_t *start, size_t len, const char *name, struct err *err)
{
    const uint8_t *names = NULL;
    uint32_t names_len = 0;
    uint64_t end = q->backing_name ? load_be64(start + H_BACKING_OFFSET) : len;
    if (end > len)
        end = len;
    for (uint64_t at = q->header_len; at + 8 <= end;) {
        uint32_t type = load_be32(start + at), size = load_be32(start + at + 4);
        if (type == EXTENSION_END)
            break;
        if (size > end - at - 8)
            return say("header extension 0x%08x is longer than the header", type);
        if (type == EXTENSION_FEATURE_NAMES) {
            names = start + at + 8;
            names_len = size;
        }
        int r = take_extension(q, type, start + at + 8, size, err);
        if (r < 0)
            return r;
        at += 8 + (((uint64_t)size + 7) & ~UINT64_C(7));
    }
    uint64_t unknown = q->incompatible & ~(uint64_t)INCOMPATIBLE_KNOWN;
    return unknown ? refuse_bits(unknown, names, names_len, name, err) : 0;
}

/* ---- fields ---- */

static int parse_features(struct qcow2 *q, const uint8_t *h, size_t len, struct err *err)
{
    q->refcount_order = 4;
    q->header_len = QCOW2_V2_HEADER_LEN;
    if (q->version == 2)
        return 0;
    if (len < QCOW2_V3_HEADER_LEN)
        return say("the header is cut off");
    q->incompatible = load_be64(h + H_INCOMPATIBLE);
    q->compatible = load_be64(h + H_COMPATIBLE);
    q->autoclear = load_be64(h + H_AUTOCLEAR);
    q->refcount_order = load_be32(h + H_REFCOUNT_ORDER);
    q->header_len = load_be32(h + H_HEADER_LEN);
    if (q->refcount_order > 6)
        return say("refcounts of 2^%u bits are too wide", q->refcount_order);
    if (q->header_len < QCOW2_V3_HEADER_LEN || q->header_len > q->cluster_size || q->header_len > len)
        return say("a header of %u bytes is impossible", q->header_len);
    if (q->header_len > H_COMPRESSION)
        q->compression = h[H_COMPRESSION];
    if (!(q->incompatible & INCOMPATIBLE_COMPRESSION) != (q->compression == COMPRESSION_ZLIB))
        return say("compression type %u and its feature bit disagree", q->compression);
    if (q->compression > COMPRESSION_ZSTD)
        return say("compression type %u is not known", q->compression);
    q->extended = q->incompatible & INCOMPATIBLE_EXTENDED_L2;
    q->external = q->incompatible & INCOMPATIBLE_DATA_FILE;
    q->external_raw = q->external && q->autoclear & AUTOCLEAR_DATA_RAW;
    if (q->extended && q->cluster_bits < 14)
        return say("extended L2 entries need clusters of 16 KiB or more");
    return 0;
}

static int table_fits(const struct qcow2 *q, const char *what, uint64_t offset, uint64_t len, uint64_t most, struct err *err)
{
    uint64_t end = (q->file->size + q->cluster_size - 1) & ~(uint64_t)(q->cluster_size - 1);
    if (offset & (q->cluster_size - 1))
        return say("the %s does not begin at a cluster", what);
    if (len > most)
        return say("the %s has %llu bytes, more than any image needs", what, (unsigned long long)len);
    if (len && (!offset || offset > end || len > end - offset))
        return say("the %s lies beyond the end of the file", what);
    return 0;
}

static int parse_tables(struct qcow2 *q, const uint8_t *h, struct err *err)
{
    uint64_t size = load_be64(h + H_SIZE);
    q->l1_size = load_be32(h + H_L1_SIZE);
    q->l1_offset = load_be64(h + H_L1_OFFSET);
    q->reftable_offset = load_be64(h + H_REFTABLE_OFFSET);
    uint64_t reftable_len = (uint64_t)load_be32(h + H_REFTABLE_CLUSTERS) << q->cluster_bits;
    q->snapshot_count = load_be32(h + H_SNAPSHOT_COUNT);
    q->snapshots_offset = load_be64(h + H_SNAPSHOT_OFFSET);
    unsigned span_bits = q->cluster_bits + q->l2_bits;
    uint64_t need = (size >> span_bits) + ((size & ((UINT64_C(1) << span_bits) - 1)) != 0);
    if (size > INT64_MAX || need > q->l1_size)
        return say("a disk of %llu bytes needs more than %u L1 entries", (unsigned long long)size, q->l1_size);
    q->node.size = size & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    int r = table_fits(q, "L1 table", q->l1_offset, (uint64_t)q->l1_size * 8, L1_BYTES_MAX, err);
    if (r == 0)
        r = table_fits(q, "refcount table", q->reftable_offset, reftable_len, REFTABLE_BYTES_MAX, err);
    if (r < 0)
        return r;
    if (!reftable_len)
        return say("there is no refcount table");
    q->reftable_size = (uint32_t)(reftable_len / 8);
    if (q->snapshot_count > SNAPSHOTS_MAX)
        return say("%u snapshots are more than %u", q->snapshot_count, SNAPSHOTS_MAX);
    if (q->external && q->snapshot_count)
        return say("snapshots with an external data file are impossible");
    return table_fits(q, "snapshot table", q->snapshots_offset, (uint64_t)q->snapshot_count * 40, SNAPSHOT_TABLE_BYTES_MAX, err);
}

static int parse_backing(struct qcow2 *q, const uint8_t *h, size_t len, struct err *err)
{
    uint64_t offset = load_be64(h + H_BACKING_OFFSET);
    uint32_t name_len = load_be32(h + H_BACKING_LEN);
    if (!offset)
        return 0;
    if (!name_len || name_len > NAME_MAX_LEN || offset > len || name_len > len - offset)
        return say("the backing file's name lies outside of the header");
    q->backing_name = copy_text(h + offset, name_len);
    return q->backing_name ? 0 : err_set(err, ENOMEM, "header");
}

static int parse(struct qcow2 *q, const uint8_t *h, size_t len, const char *name, struct err *err)
{
    if (len < QCOW2_V2_HEADER_LEN || load_be32(h) != QCOW2_MAGIC)
        return say("it is no qcow2 image; is its format raw?");
    q->version = load_be32(h + H_VERSION);
    q->cluster_bits = load_be32(h + H_CLUSTER_BITS);
    if (q->version != 2 && q->version != 3)
        return say("qcow2 version %u is not supported", q->version);
    if (q->cluster_bits < CLUSTER_BITS_MIN || q->cluster_bits > CLUSTER_BITS_MAX)
        return say("clusters of 2^%u bytes are not between 512 bytes and 2 MiB", q->cluster_bits);
    q->cluster_size = 1u << q->cluster_bits;
    if (len > q->cluster_size)
        len = q->cluster_size;
    int r = parse_features(q, h, len, err);
    q->entry_size = q->extended ? 16 : 8;
    q->l2_bits = q->cluster_bits - (q->extended ? 4 : 3);
    q->refblock_bits = q->cluster_bits + 3 - q->refcount_order;
    q->unit_size = q->extended ? q->cluster_size / SUBCLUSTERS : q->cluster_size;
    if (r == 0)
        r = parse_backing(q, h, len, err);
    if (r == 0)
        r = walk_extensions(q, h, len, name, err);
    if (r == 0 && load_be32(h + H_CRYPT))
        return say("it is encrypted, which is not supported; convert it first (qemu-img convert)");
    if (r == 0)
        r = parse_tables(q, h, err);
    if (r == 0 && q->external_raw && q->backing_name)
        return say("a raw data file and a backing file exclude each other");
    return r;
}

int header_parse(struct qcow2 *q, const uint8_t *start, size_t len, const char *name, struct err *err)
{
    int r = parse(q, start, len, name, err);
    return r < 0 ? err_ctx(err, "disk '%s'", name) : 0;
}

/* Read, changed, and written in whole blocks of the file. */
int header_update(struct qcow2 *q, unsigned offset, const void *bytes, unsigned len)
{
    uint32_t block = q->file->block_size, from = offset & ~(block - 1), to = (offset + len + block - 1) & ~(block - 1);
    uint8_t *buf = aligned_alloc(4096, (to - from + 4095) & ~UINT32_C(4095));
    if (!buf)
        return -ENOMEM;
    int r = block_do(q->file, BLOCK_READ, from, buf, to - from);
    if (r == 0) {
        memcpy(buf + (offset - from), bytes, len);
        r = block_do(q->file, BLOCK_WRITE, from, buf, to - from);
    }
    if (r == 0)
        r = block_do(q->file, BLOCK_FLUSH, 0, NULL, 0);
    free(buf);
    if (r < 0)
        q->failed = r;
    return r;
}

int header_set_incompatible(struct qcow2 *q, uint64_t incompatible)
{
    uint8_t field[8];
    store_be64(field, incompatible);
    int r = header_update(q, H_INCOMPATIBLE, field, sizeof field);
    if (r == 0)
        q->incompatible = incompatible;
    return r;
}

/* ---- rewriting ---- */

struct area {
    uint8_t *start;
    size_t at, size;
};

static int area_put(struct area *area, uint32_t type, const void *data, size_t len)
{
    size_t padded = 8 + ((len + 7) & ~(size_t)7);
    if (padded > area->size - area->at)
        return -ENOSPC;
    store_be32(area->start + area->at, type);
    store_be32(area->start + area->at + 4, (uint32_t)len);
    if (len)
        memcpy(area->start + area->at + 8, data, len);
    area->at += padded;
    return 0;
}

/* The old header's extensions that are `names` (of features), or neither that nor written anew. */
static int copy_extensions(const struct qcow2 *q, const uint8_t *old, struct area *area, bool names)
{
    for (size_t at = q->header_len; at + 8 <= q->cluster_size;) {
        uint32_t type = load_be32(old + at), len = load_be32(old + at + 4);
        if (type == EXTENSION_END || len > q->cluster_size - at - 8)
            break;
        bool anew = type == EXTENSION_BACKING_FORMAT || type == EXTENSION_BITMAPS;
        int r = !anew && (type == EXTENSION_FEATURE_NAMES) == names ? area_put(area, type, old + at + 8, len) : 0;
        if (r < 0)
            return r;
        at += 8 + (((size_t)len + 7) & ~(size_t)7);
    }
    return 0;
}

static int put_bitmaps(const struct qcow2 *q, struct area *area)
{
    uint8_t extension[BITMAP_EXTENSION_LEN] = {0};
    store_be32(extension, q->bitmaps.count);
    store_be64(extension + 8, q->bitmaps.directory_len);
    store_be64(extension + 16, q->bitmaps.directory);
    return area_put(area, EXTENSION_BITMAPS, extension, sizeof extension);
}

/* Names of features, which only explain, go last and only if there is room for them. */
static int fill_area(const struct qcow2 *q, const uint8_t *old, struct area *area)
{
    size_t name_len = q->backing_name ? strlen(q->backing_name) : 0;
    int r = q->autoclear & AUTOCLEAR_BITMAPS ? put_bitmaps(q, area) : 0;
    if (r == 0 && q->backing_name && q->backing_format)
        r = area_put(area, EXTENSION_BACKING_FORMAT, q->backing_format, strlen(q->backing_format));
    if (r == 0)
        r = copy_extensions(q, old, area, false);
    if (r < 0 || name_len + 8 > area->size - area->at)
        return r < 0 ? r : -ENOSPC;
    area->size -= name_len;
    struct area with_names = {area->start, area->at, area->size - 8};
    if (copy_extensions(q, old, &with_names, true) == 0)
        area->at = with_names.at;
    else
        memset(area->start + area->at, 0, area->size - area->at);
    area->size += name_len;
    return area_put(area, EXTENSION_END, NULL, 0);
}

static int rewrite(struct qcow2 *q, const uint8_t *old, uint8_t *new)
{
    struct area area = {new, q->header_len, q->cluster_size};
    memcpy(new, old, q->header_len);
    int r = fill_area(q, old, &area);
    if (r < 0)
        return r;
    size_t name_len = q->backing_name ? strlen(q->backing_name) : 0, end = area.at + name_len, block = q->file->block_size;
    store_be64(new + H_BACKING_OFFSET, name_len ? area.at : 0);
    store_be32(new + H_BACKING_LEN, (uint32_t)name_len);
    if (name_len)
        memcpy(new + area.at, q->backing_name, name_len);
    if (q->version >= 3)
        store_be64(new + H_AUTOCLEAR, q->autoclear);
    r = block_do(q->file, BLOCK_WRITE, 0, new, (end + block - 1) & ~(block - 1));
    if (r == 0)
        r = block_do(q->file, BLOCK_FLUSH, 0, NULL, 0);
    if (r < 0)
        q->failed = r;
    return r;
}

int header_rewrite(struct qcow2 *q)
{
    size_t room = q->cluster_size < 4096 ? 4096 : q->cluster_size;
    uint8_t *old = aligned_alloc(4096, room), *new = aligned_alloc(4096, room);
    int r = old && new ? block_do(q->file, BLOCK_READ, 0, old, q->cluster_size) : -ENOMEM;
    if (r == 0) {
        memset(new, 0, room);
        r = rewrite(q, old, new);
    }
    free(old);
    free(new);
    return r;
}

int header_set_autoclear(struct qcow2 *q, uint64_t autoclear)
{
    uint8_t field[8];
    store_be64(field, autoclear);
    int r = header_update(q, H_AUTOCLEAR, field, sizeof field);
    if (r == 0)
        q->autoclear = autoclear;
    return r;
}
