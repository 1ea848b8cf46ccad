/* Another size: a longer L1 table where the present one does not reach, then the size in the header. What is cut off is gone
 * before that, and what must not show behind the old end is zeroed before that: a crash in between leaves the old size, and
 * zeroes at the end. And another backing file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

/* Offset and length change in one write of one sector. */
int switch_l1(struct qcow2 *q, uint64_t offset, uint32_t entries)
{
    uint8_t field[12];
    store_be32(field, entries);
    store_be64(field + 4, offset);
    return header_update(q, H_L1_SIZE, field, sizeof field);
}

static int grow_l1(struct qcow2 *q, uint32_t entries)
{
    uint64_t clusters = cluster_count(q, (uint64_t)entries * 8), offset;
    uint64_t *l1 = aligned_alloc(4096, ((clusters << q->cluster_bits) + 4095) & ~(uint64_t)4095);
    if (!l1)
        return -ENOMEM;
    memset(l1, 0, clusters << q->cluster_bits);
    memcpy(l1, q->l1, (size_t)q->l1_size * 8);
    int r = alloc_exactly(q, (uint32_t)clusters, &offset);
    if (r == 0)
        r = checkpoint(q);
    if (r == 0)
        r = write_entries(q, offset, l1, 0, entries);
    if (r == 0)
        r = sync_files(q);
    if (r == 0)
        r = switch_l1(q, offset, entries);
    if (r < 0) {
        free(l1);
        return r;
    }
    r = free_run_later(q, q->l1_offset, cluster_count(q, (uint64_t)q->l1_size * 8));
    free(q->l1);
    q->l1 = l1;
    q->l1_offset = offset;
    q->l1_size = entries;
    return r;
}

/* L1 table and data file for another size. */
static int make_fit(struct qcow2 *q, uint64_t size)
{
    unsigned span_bits = q->cluster_bits + q->l2_bits;
    uint64_t entries = (size >> span_bits) + ((size & ((UINT64_C(1) << span_bits) - 1)) != 0);
    if (entries > L1_BYTES_MAX / 8)
        return -EFBIG;
    fiber_lock(&q->lock);
    int r = checkpoint(q);
    if (r == 0 && entries > q->l1_size)
        r = grow_l1(q, (uint32_t)entries);
    if (r == 0 && q->external && q->data->size != size)
        r = q->data->class->resize(q->data, size, NULL);
    fiber_unlock(&q->lock);
    return r;
}

/* What a shorter disk's last cluster has behind the old end, and the backing file there. */
static int hide(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->node.size, edge = (old + q->cluster_size - 1) & ~(uint64_t)(q->cluster_size - 1);
    uint64_t end = edge > q->backing_size ? edge : q->backing_size;
    if (end > size)
        end = size;
    if (end <= old)
        return 0;
    q->node.size = size; /* where a write ends; nobody else sees it: no request is in flight */
    int r = zero_guest(q, BLOCK_WRITE_ZEROES, false, old, end - old);
    q->node.size = old;
    return r;
}

static int set_size(struct qcow2 *q, uint64_t size)
{
    uint8_t field[8];
    store_be64(field, size);
    fiber_lock(&q->lock);
    int r = checkpoint(q);
    if (r == 0)
        r = dirty_bitmaps_before_resize(q, size);
    if (r == 0)
        r = header_update(q, H_SIZE, field, sizeof field);
    dirty_bitmaps_after_resize(q, r == 0 ? size : q->node.size);
    if (r == 0)
        q->node.size = size;
    fiber_unlock(&q->lock);
    return r;
}

/* Whole clusters behind the new end; the rest of the last one is hidden, and zeroed should the disk grow again. */
static int cut_off(struct block_node *node, uint64_t size)
{
    const struct qcow2 *q = qcow2_of(node);
    uint64_t first = cluster_count(q, size) << q->cluster_bits;
    enum block_op op = q->version < 3 && has_backing(q) ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD; /* version 2 has no holes in front of data */
    return first < node->size ? block_do(node, op, first, NULL, node->size - first) : 0;
}

int qcow2_resize(struct block_node *node, uint64_t size, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    int r = size < node->size ? cut_off(node, size) : 0;
    if (r == 0)
        r = make_fit(q, size);
    if (r == 0)
        r = hide(q, size);
    if (r == 0)
        r = set_size(q, size);
    return r < 0 ? err_set(err, -r, "disk '%s': resize", node->name) : 0;
}

static void exchange(char **a, char **b)
{
    char *kept = *a;
    *a = *b;
    *b = kept;
}

/* With `q->lock` held: the header as q has it now. */
static int write_backing(struct qcow2 *q)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < 2; i++) /* the second writes what deferred frees changed */
        r = checkpoint(q);
    return r < 0 ? r : header_rewrite(q);
}

int qcow2_set_backing(struct block_node *node, const char *name, const char *format, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    if (name && (!*name || strlen(name) > NAME_MAX_LEN))
        return err_say(err, EINVAL, "a backing file's name has 1 to %u bytes", NAME_MAX_LEN);
    if (name && q->external_raw)
        return err_say(err, EINVAL, "disk '%s' has a raw data file, which excludes a backing file", node->name);
    char *new_name = name ? strdup(name) : NULL, *new_format = name && format ? strdup(format) : NULL;
    int r = (name && !new_name) || (name && format && !new_format) ? -ENOMEM : 0;
    fiber_lock(&q->lock);
    exchange(&q->backing_name, &new_name);
    exchange(&q->backing_format, &new_format);
    if (r == 0)
        r = write_backing(q);
    if (r < 0) {
        exchange(&q->backing_name, &new_name);
        exchange(&q->backing_format, &new_format);
    }
    fiber_unlock(&q->lock);
    free(new_name);
    free(new_format);
    return r < 0 ? err_set(err, -r, "disk '%s': backing file", node->name) : 0;
}

int qcow2_base_format(struct block_node *node, const char **ret_format)
{
    const struct qcow2 *q = qcow2_of(node);
    while (!q->before_base) {
        if (!q->backing || q->backing->class != &block_qcow2)
            return -ENOENT;
        q = qcow2_of(q->backing);
    }
    *ret_format = q->backing_format;
    return 0;
}

void qcow2_get_info(struct block_node *node, struct qcow2_info *ret_info)
{
    const struct qcow2 *q = qcow2_of(node);
    *ret_info = (struct qcow2_info){.version = q->version,
                                    .refcount_bits = 1u << q->refcount_order,
                                    .cluster_size = q->cluster_size,
                                    .snapshot_count = q->snapshot_count,
                                    .lazy_refcounts = q->compatible & COMPATIBLE_LAZY_REFCOUNTS,
                                    .dirty = q->incompatible & INCOMPATIBLE_DIRTY,
                                    .corrupt = q->incompatible & INCOMPATIBLE_CORRUPT,
                                    .extended_l2 = q->extended,
                                    .external_raw = q->external_raw,
                                    .zstd = q->compression == COMPRESSION_ZSTD,
                                    .backing = q->backing_name,
                                    .backing_format = q->backing_format,
                                    .data_file = q->data_name,
                                    .encrypted = q->crypt_method != CRYPT_NONE,
                                    .luks = q->luks};
}
