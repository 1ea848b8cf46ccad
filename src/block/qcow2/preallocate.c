/* A place for every cluster of a new disk, so that writes change no metadata later. What it reads stays zeroes: the host
 * clusters are behind the end of the file, which then becomes longer. Encrypted, it would read as noise: zeroes are written. */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

struct run {
    uint64_t offset, host, len;
};

/* Lock held: some clusters from run->offset on. */
static int place_run(struct qcow2 *q, struct run *run)
{
    uint32_t index = l2_index(q, run->offset), most = (1u << q->l2_bits) - index, count;
    uint64_t left = cluster_count(q, q->node.size - run->offset), chunk = RUN_BYTES_MAX >> q->cluster_bits;
    struct table *table = NULL;
    if (most > left)
        most = (uint32_t)left;
    if (most > chunk)
        most = chunk ? (uint32_t)chunk : 1;
    int r = make_room(q);
    if (r == 0)
        r = map_table_for_write(q, run->offset, &table);
    if (r < 0)
        return r;
    run->host = run->offset;
    count = most;
    if (!q->external)
        r = alloc_clusters(q, most, &run->host, &count);
    run->len = (uint64_t)count << q->cluster_bits;
    for (uint32_t i = 0; r == 0 && i < count; i++)
        entry_set(q, table, index + i, (run->host + ((uint64_t)i << q->cluster_bits)) | ENTRY_COPIED, UINT32_MAX);
    tables_put(q, table);
    return r;
}

static int fill_run(struct qcow2 *q, const struct run *run, enum qcow2_preallocation mode, uint8_t *zeroes)
{
    uint64_t len = run->len;
    if (q->external && run->host + len > q->node.size)
        len = q->node.size - run->host;
    if (mode == QCOW2_PREALLOCATE_FULL)
        return block_do(q->data, BLOCK_WRITE, run->host, zeroes, len);
    return mode == QCOW2_PREALLOCATE_SPACE ? block_do(q->data, BLOCK_WRITE_ZEROES, run->host, NULL, len) : 0;
}

static int preallocate(struct qcow2 *q, enum qcow2_preallocation mode, uint8_t *zeroes)
{
    uint64_t end = 0;
    for (struct run run = {0}; run.offset < q->node.size; run.offset += run.len) {
        fiber_lock(&q->lock);
        int r = place_run(q, &run);
        fiber_unlock(&q->lock);
        if (r == 0)
            r = fill_run(q, &run, mode, zeroes);
        if (r < 0)
            return r;
        if (end < run.host + run.len)
            end = run.host + run.len;
    }
    if (!q->external && q->file->size < end)
        return q->file->class->resize(q->file, end, NULL);
    return 0;
}

int qcow2_preallocate(struct block_node *node, enum qcow2_preallocation mode, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    if (q->crypt_method != CRYPT_NONE)
        mode = QCOW2_PREALLOCATE_FULL;
    uint64_t most = RUN_BYTES_MAX > q->cluster_size ? RUN_BYTES_MAX : q->cluster_size;
    uint8_t *zeroes = calloc(1, most);
    int r = !zeroes ? -ENOMEM : q->backing_name ? -EINVAL : preallocate(q, mode, zeroes);
    free(zeroes);
    if (r == 0)
        r = block_do(node, BLOCK_FLUSH, 0, NULL, 0);
    return r < 0 ? err_set(err, -r, "disk '%s': preallocation", node->name) : 0;
}
