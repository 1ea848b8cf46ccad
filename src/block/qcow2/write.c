/* Writes that change the mapping. A write goes run by run: what is our own already is written in place; else clusters
 * are allocated, data and what must be kept around it are written to them, and only then the L2 table learns of them.
 * Meanwhile the guest clusters are `busy`: reads see what was before, other such writes wait. */
#include <errno.h>
#include <stdlib.h>

#include "base/iov.h"
#include "block/qcow2/qcow2_impl.h"

struct source {
    const struct iovec *iov;
    unsigned count;
    uint64_t skip; /* what of it is done */
};

/* What one allocating step does. */
struct run {
    uint64_t offset, len;     /* guest bytes */
    uint64_t start, end;      /* with what is written around them, in whole units */
    uint64_t host;            /* of `cluster` */
    uint64_t cluster;         /* guest offset of the first cluster */
    uint32_t clusters;
    bool fresh;               /* the host clusters are new; else units of an own cluster become allocated */
    bool blank;               /* ... and reading them gives zeroes already */
};

/* ---- busy clusters ---- */

static bool is_busy(const struct qcow2 *q, uint64_t first, uint64_t last)
{
    for (const struct busy *b = q->busy; b; b = b->next)
        if (b->first <= last && b->last >= first)
            return true;
    return false;
}

void wait_not_busy(struct qcow2 *q, uint64_t first, uint64_t last)
{
    while (is_busy(q, first, last)) {
        fiber_unlock(&q->lock);
        if (is_busy(q, first, last)) /* who had the lock next may have ended it */
            fiber_queue_wait(&q->busy_waiters);
        fiber_lock(&q->lock);
    }
}

void begin_busy(struct qcow2 *q, struct busy *busy)
{
    busy->next = q->busy;
    q->busy = busy;
}

void end_busy(struct qcow2 *q, const struct busy *busy)
{
    struct busy **link = &q->busy;
    while (*link != busy)
        link = &(*link)->next;
    *link = busy->next;
    fiber_queue_wake_all(&q->busy_waiters);
}

/* ---- planning ---- */

/* True when all of a cluster must be copied to write some of it: it has data that is not our own. */
static bool copies_all(const struct qcow2 *q, uint64_t entry, uint64_t bitmap)
{
    if (entry & ENTRY_COMPRESSED)
        return true;
    return q->extended ? (uint32_t)bitmap != 0 : entry & ENTRY_OFFSET && !(entry & ENTRY_ZERO);
}

static bool own_host(const struct qcow2 *q, uint64_t entry)
{
    return !(entry & ENTRY_COMPRESSED) && entry & ENTRY_COPIED && (entry & ENTRY_OFFSET || q->external);
}

static uint64_t unit_floor(const struct qcow2 *q, uint64_t offset)
{
    return offset & ~(uint64_t)(q->unit_size - 1);
}

/* Units of a cluster that has its place already: those from the first on that are not data. */
static int plan_in_place(struct qcow2 *q, struct run *run, uint64_t entry)
{
    uint64_t end = run->offset, cluster_end = run->cluster + q->cluster_size, want = run->offset + run->len;
    while (end < want && end < cluster_end) {
        struct map map;
        int r = map_get(q, end, 1, &map);
        if (r < 0)
            return r;
        if (map.kind == MAP_DATA)
            break;
        end = unit_floor(q, end) + q->unit_size;
    }
    if (end > want)
        end = want;
    run->len = end - run->offset;
    run->start = unit_floor(q, run->offset);
    run->end = unit_floor(q, end + q->unit_size - 1);
    run->host = entry & ENTRY_OFFSET;
    run->clusters = 1;
    return 0;
}

/* How many clusters from the first on have to be made new, as far as the write goes. */
static uint32_t count_fresh(const struct qcow2 *q, const struct table *table, const struct run *run)
{
    uint32_t index = l2_index(q, run->cluster), count = 0;
    uint64_t wanted = cluster_count(q, run->offset + run->len - run->cluster);
    uint64_t most = RUN_BYTES_MAX >> q->cluster_bits ? RUN_BYTES_MAX >> q->cluster_bits : 1;
    if (wanted > most)
        wanted = most;
    while (count < wanted && index + count < 1u << q->l2_bits && !own_host(q, entry_get(q, table, index + count)))
        count++;
    return count;
}

static int plan_fresh(struct qcow2 *q, const struct table *table, struct run *run)
{
    uint32_t count = count_fresh(q, table, run), index = l2_index(q, run->cluster);
    int r = 0;
    run->fresh = true;
    if (q->external) {
        run->host = run->cluster;
        run->clusters = count;
    } else {
        r = alloc_clusters(q, count, &run->host, &run->clusters);
        run->blank = run->host >= q->file->size && q->crypt_method == CRYPT_NONE;
    }
    if (r < 0)
        return r;
    uint64_t cluster_end = run->cluster + ((uint64_t)run->clusters << q->cluster_bits);
    if (run->offset + run->len > cluster_end)
        run->len = cluster_end - run->offset;
    uint32_t last = index + run->clusters - 1;
    run->start = copies_all(q, entry_get(q, table, index), bitmap_get(q, table, index)) ? run->cluster
                                                                                       : unit_floor(q, run->offset);
    run->end = copies_all(q, entry_get(q, table, last), bitmap_get(q, table, last))
                   ? cluster_end
                   : unit_floor(q, run->offset + run->len + q->unit_size - 1);
    return 0;
}

/* ---- data ---- */

/* What the guest has at the edge of a run; NULL and nothing when it need not be written. */
static int read_edge(struct qcow2 *q, const struct run *run, uint64_t offset, uint64_t len, struct iovec *ret_iov)
{
    *ret_iov = (struct iovec){0};
    if (!len)
        return 0;
    struct map map = {0};
    bool zero = false;
    for (uint64_t at = offset; run->blank && at < offset + len; at += map.len) {
        int r = at < q->node.size ? map_get(q, at, offset + len - at, &map) : 0;
        if (r < 0)
            return r;
        if (at >= q->node.size)
            map = (struct map){.kind = MAP_ZERO, .len = offset + len - at};
        zero = map.kind == MAP_ZERO || (map.kind == MAP_HOLE && (!q->backing || at >= q->backing_size));
        if (!zero)
            break;
    }
    if (zero)
        return 0;
    uint8_t *buf = aligned_alloc(4096, (len + 4095) & ~(uint64_t)4095);
    if (!buf)
        return -ENOMEM;
    int r = read_guest(q, offset, buf, len);
    if (r < 0) {
        free(buf);
        return r;
    }
    *ret_iov = (struct iovec){buf, len};
    return 0;
}

/* One request with the edges around the data. */
static int write_run_data(struct qcow2 *q, const struct run *run, const struct source *source)
{
    struct iovec head, tail = {0}, *iov = malloc((source->count + 2) * sizeof *iov);
    int r = iov ? read_edge(q, run, run->start, run->offset - run->start, &head) : -ENOMEM;
    if (r < 0) {
        free(iov);
        return r;
    }
    r = read_edge(q, run, run->offset + run->len, run->end - run->offset - run->len, &tail);
    if (r == 0) {
        unsigned count = 0;
        if (head.iov_len)
            iov[count++] = head;
        count += iov_slice(source->iov, source->count, source->skip, run->len, iov + count);
        if (tail.iov_len)
            iov[count++] = tail;
        uint64_t from = run->offset - head.iov_len;
        struct block_request req = {.op = BLOCK_WRITE,
                                    .offset = run->host + (from - run->cluster),
                                    .len = head.iov_len + run->len + tail.iov_len,
                                    .iov = iov,
                                    .iov_count = count};
        r = tracked_io(q, q->data, &req);
    }
    free(head.iov_base);
    free(tail.iov_base);
    free(iov);
    return r;
}

/* ---- mapping ---- */

/* What an entry referred to loses a reference; an own host cluster too. */
static int drop_old(struct qcow2 *q, uint64_t entry)
{
    if (q->external)
        return 0;
    if (entry & ENTRY_COMPRESSED)
        return free_compressed_later(q, entry);
    return entry & ENTRY_OFFSET ? free_later(q, entry & ENTRY_OFFSET) : 0;
}

/* The subclusters of one cluster that [start, end) covers. */
static uint32_t unit_mask(const struct qcow2 *q, uint64_t cluster, uint64_t start, uint64_t end)
{
    uint64_t from = start > cluster ? (start - cluster) / q->unit_size : 0;
    uint64_t to = end < cluster + q->cluster_size ? (end - cluster + q->unit_size - 1) / q->unit_size : SUBCLUSTERS;
    return (uint32_t)(((UINT64_C(1) << to) - 1) & ~((UINT64_C(1) << from) - 1));
}

static int link_cluster(struct qcow2 *q, struct table *table, const struct run *run, uint32_t i)
{
    uint64_t cluster = run->cluster + ((uint64_t)i << q->cluster_bits);
    uint32_t index = l2_index(q, cluster);
    uint64_t old = entry_get(q, table, index), bitmap = bitmap_get(q, table, index);
    uint64_t entry = (run->host + ((uint64_t)i << q->cluster_bits)) | ENTRY_COPIED;
    if (q->extended) {
        uint64_t mask = unit_mask(q, cluster, run->start, run->end);
        if (old & ENTRY_COMPRESSED)
            bitmap = 0;
        bitmap = (bitmap | mask) & ~(mask << 32);
    }
    int r = run->fresh ? drop_old(q, old) : 0;
    if (r == 0)
        entry_set(q, table, index, entry, bitmap);
    return r;
}

static int link_run(struct qcow2 *q, const struct run *run)
{
    struct table *table;
    int r = map_table_for_write(q, run->offset, &table);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < run->clusters; i++)
        r = link_cluster(q, table, run, i);
    tables_put(q, table);
    return r;
}

/* ---- the steps ---- */

/* Lock held: allocates, or finds the place. */
static int plan(struct qcow2 *q, struct run *run)
{
    struct table *table = NULL;
    int r = make_room(q);
    if (r == 0)
        r = map_table_for_write(q, run->offset, &table);
    if (r < 0)
        return r;
    run->cluster = run->offset & ~(uint64_t)(q->cluster_size - 1);
    uint64_t entry = entry_get(q, table, l2_index(q, run->offset));
    if (own_host(q, entry))
        r = plan_in_place(q, run, entry);
    else
        r = plan_fresh(q, table, run);
    tables_put(q, table);
    if (q->external && run->end > q->node.size && run->offset < q->node.size)
        run->end = q->node.size; /* the data file is no longer than the disk */
    return r;
}

/* Lock held, and released. */
static int write_run(struct qcow2 *q, struct run *run, const struct source *source)
{
    int r = plan(q, run);
    if (r < 0) {
        fiber_unlock(&q->lock);
        return r;
    }
    struct busy busy = {.first = run->cluster >> q->cluster_bits};
    busy.last = busy.first + run->clusters - 1;
    begin_busy(q, &busy);
    fiber_unlock(&q->lock);
    r = write_run_data(q, run, source);
    fiber_lock(&q->lock);
    if (r == 0)
        r = q->failed;
    if (r == 0)
        r = link_run(q, run);
    else if (run->fresh && !q->external && free_run_later(q, run->host, run->clusters) < 0)
        q->failed = -ENOMEM;
    fiber_unlock(&q->lock);
    end_busy(q, &busy);
    return r;
}

static int write_in_place(struct qcow2 *q, const struct map *map, const struct source *source)
{
    struct iovec *iov = malloc(source->count * sizeof *iov);
    if (!iov)
        return -ENOMEM;
    struct block_request req = {.op = BLOCK_WRITE, .offset = map->host, .len = map->len, .iov = iov};
    req.iov_count = iov_slice(source->iov, source->count, source->skip, map->len, iov);
    int r = tracked_io(q, q->data, &req);
    free(iov);
    return r;
}

int write_guest(struct qcow2 *q, uint64_t offset, uint64_t len, const struct iovec *iov, unsigned iov_count)
{
    struct source source = {iov, iov_count, 0};
    while (len) {
        struct map map = {0};
        uint64_t most = len < RUN_BYTES_MAX ? len : RUN_BYTES_MAX;
        fiber_lock(&q->lock);
        wait_not_busy(q, offset >> q->cluster_bits, (offset + most - 1) >> q->cluster_bits);
        int r = q->failed ? q->failed : map_get(q, offset, most, &map);
        uint64_t done;
        if (r < 0) {
            fiber_unlock(&q->lock);
            return r;
        }
        if (map.kind == MAP_DATA && map.own) {
            fiber_unlock(&q->lock);
            r = write_in_place(q, &map, &source);
            done = map.len;
        } else {
            struct run run = {.offset = offset, .len = most};
            r = write_run(q, &run, &source);
            done = run.len;
        }
        if (r < 0)
            return r;
        source.skip += done;
        offset += done;
        len -= done;
    }
    return 0;
}
