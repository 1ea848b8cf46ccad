/* The table of internal snapshots in the file: entries of variable length, read with bounds, written as a whole. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/own.h"
#include "block/qcow2/snapshot_impl.h"

#define ENTRY_LEN 40u
#define EXTRA_KNOWN 24u /* VM state size, disk size, icount */

static size_t padded(size_t len)
{
    return (len + 7) & ~(size_t)7;
}

static int parse_entry(const struct qcow2 *q, const uint8_t *at, size_t len, struct qcow2_snapshot *s, size_t *ret_used)
{
    if (len < ENTRY_LEN)
        return -EINVAL;
    unsigned id_len = load_be16(at + 12), name_len = load_be16(at + 14);
    uint32_t extra_len = load_be32(at + 36);
    if (extra_len > SNAPSHOT_EXTRA_MAX || ENTRY_LEN + (size_t)extra_len + id_len + name_len > len)
        return -EINVAL;
    const uint8_t *extra = at + ENTRY_LEN, *text = extra + extra_len;
    *s = (struct qcow2_snapshot){.l1_offset = load_be64(at),
                                 .l1_size = load_be32(at + 8),
                                 .date_s = load_be32(at + 16),
                                 .date_ns = load_be32(at + 20),
                                 .vm_clock_ns = load_be64(at + 24),
                                 .vm_state_size = extra_len >= 8 ? load_be64(extra) : load_be32(at + 32),
                                 .disk_size = extra_len >= 16 ? load_be64(extra + 8) : q->node.size,
                                 .icount = extra_len >= 24 ? load_be64(extra + 16) : UINT64_MAX,
                                 .extra_len = extra_len};
    s->id = strndup((const char *)text, id_len);
    s->name = strndup((const char *)text + id_len, name_len);
    s->extra = malloc(extra_len + 1);
    if (!s->id || !s->name || !s->extra)
        return -ENOMEM;
    memcpy(s->extra, extra, extra_len);
    *ret_used = padded(ENTRY_LEN + (size_t)extra_len + id_len + name_len);
    uint64_t l1_len = (uint64_t)s->l1_size * 8;
    if (s->l1_offset & (q->cluster_size - 1) || l1_len > L1_BYTES_MAX || s->l1_offset > q->file->size + q->cluster_size ||
        l1_len > q->file->size + q->cluster_size - s->l1_offset)
        return -EINVAL;
    return 0;
}

void qcow2_snapshots_free(struct qcow2_snapshots *snapshots)
{
    for (uint32_t i = 0; i < snapshots->count; i++) {
        free(snapshots->list[i].id);
        free(snapshots->list[i].name);
        free(snapshots->list[i].extra);
    }
    free(snapshots->list);
    *snapshots = (struct qcow2_snapshots){0};
}

static int parse_table(const struct qcow2 *q, const uint8_t *table, size_t len, struct qcow2_snapshots *out)
{
    size_t at = 0, used = 0;
    for (uint32_t i = 0; i < q->snapshot_count; i++) {
        out->count = i + 1; /* what parse_entry leaves behind is freed with the list */
        int r = at <= len ? parse_entry(q, table + at, len - at, &out->list[i], &used) : -EINVAL;
        if (r < 0)
            return r;
        at += used;
    }
    out->table_len = at;
    return 0;
}

int qcow2_snapshots_load(struct block_node *node, struct qcow2_snapshots *ret_snapshots, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_snapshots snapshots = {0};
    if (!q->snapshot_count) {
        *ret_snapshots = snapshots;
        return 0;
    }
    uint64_t left = q->file->size > q->snapshots_offset ? q->file->size - q->snapshots_offset : 0;
    uint64_t most = (uint64_t)q->snapshot_count * (ENTRY_LEN + SNAPSHOT_EXTRA_MAX + 2 * 65536);
    size_t len = left < most ? left : most;
    if (len > SNAPSHOT_TABLE_BYTES_MAX)
        len = SNAPSHOT_TABLE_BYTES_MAX;
    len = (len + 511) & ~(size_t)511;
    own_free uint8_t *table = aligned_alloc(4096, (len + 4095) & ~(size_t)4095);
    snapshots.list = calloc(q->snapshot_count, sizeof *snapshots.list);
    int r = table && snapshots.list ? block_do(q->file, BLOCK_READ, q->snapshots_offset, table, len) : -ENOMEM;
    if (r == 0)
        r = parse_table(q, table, len, &snapshots);
    if (r < 0) {
        qcow2_snapshots_free(&snapshots);
        return r == -EINVAL ? err_say(err, EINVAL, "disk '%s': its snapshot table is damaged", node->name)
                            : err_set(err, -r, "disk '%s': snapshots", node->name);
    }
    *ret_snapshots = snapshots;
    return 0;
}

int qcow2_refuse_snapshots(struct block_node *node, const char *or_else, struct err *err)
{
    struct qcow2_snapshots all = {0};
    int r = qcow2_snapshots_load(node, &all, err);
    if (r == 0 && all.count)
        r = err_say(err, EBUSY, "disk '%.100s' has the snapshot '%.40s', which reads from the backing file, too: "
                                "delete its snapshots first%s", node->name, all.list[0].name, or_else);
    qcow2_snapshots_free(&all);
    return r;
}

uint64_t snapshot_table_len(const struct qcow2_snapshots *snapshots)
{
    uint64_t len = 0;
    for (uint32_t i = 0; i < snapshots->count; i++) {
        const struct qcow2_snapshot *s = &snapshots->list[i];
        uint32_t extra = s->extra_len > EXTRA_KNOWN ? s->extra_len : EXTRA_KNOWN;
        len += padded(ENTRY_LEN + (size_t)extra + strlen(s->id) + strlen(s->name));
    }
    return len;
}

static size_t put_entry(uint8_t *at, const struct qcow2_snapshot *s)
{
    uint32_t extra_len = s->extra_len > EXTRA_KNOWN ? s->extra_len : EXTRA_KNOWN;
    size_t id_len = strlen(s->id), name_len = strlen(s->name);
    store_be64(at, s->l1_offset);
    store_be32(at + 8, s->l1_size);
    store_be16(at + 12, (uint16_t)id_len);
    store_be16(at + 14, (uint16_t)name_len);
    store_be32(at + 16, s->date_s);
    store_be32(at + 20, s->date_ns);
    store_be64(at + 24, s->vm_clock_ns);
    store_be32(at + 32, s->vm_state_size > UINT32_MAX ? 0 : (uint32_t)s->vm_state_size);
    store_be32(at + 36, extra_len);
    uint8_t *extra = at + ENTRY_LEN;
    memcpy(extra, s->extra, s->extra_len);
    store_be64(extra, s->vm_state_size);
    store_be64(extra + 8, s->disk_size);
    store_be64(extra + 16, s->icount);
    memcpy(extra + extra_len, s->id, id_len);
    memcpy(extra + extra_len + id_len, s->name, name_len);
    return padded(ENTRY_LEN + (size_t)extra_len + id_len + name_len);
}

int snapshot_table_write(struct qcow2 *q, const struct qcow2_snapshots *snapshots, uint64_t *ret_offset)
{
    uint64_t clusters = cluster_count(q, snapshot_table_len(snapshots)), len = clusters << q->cluster_bits, at = 0;
    *ret_offset = 0;
    own_free uint8_t *table = aligned_alloc(4096, len ? (len + 4095) & ~(uint64_t)4095 : 4096);
    if (!table)
        return -ENOMEM;
    if (len > SNAPSHOT_TABLE_BYTES_MAX)
        return -EFBIG;
    memset(table, 0, len);
    for (uint32_t i = 0; i < snapshots->count; i++)
        at += put_entry(table + at, &snapshots->list[i]);
    int r = clusters ? alloc_exactly(q, (uint32_t)clusters, ret_offset) : 0;
    return r < 0 || !clusters ? r : block_do(q->file, BLOCK_WRITE, *ret_offset, table, len);
}

int snapshot_table_switch(struct qcow2 *q, const struct qcow2_snapshots *snapshots, uint64_t offset, uint64_t old_len)
{
    int r = checkpoint(q);
    uint8_t field[12];
    store_be32(field, snapshots->count);
    store_be64(field + 4, offset);
    if (r == 0)
        r = header_update(q, H_SNAPSHOT_COUNT, field, sizeof field);
    if (r == 0 && q->snapshots_offset)
        r = free_run_later(q, q->snapshots_offset, cluster_count(q, old_len));
    if (r == 0) {
        q->snapshots_offset = offset;
        q->snapshot_count = snapshots->count;
    }
    return r;
}
