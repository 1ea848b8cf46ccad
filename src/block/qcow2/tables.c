/* The cache of tables: a hash by offset in the file, and a list from the one used longest ago to the newest. Clean tables
 * without pins go when the room is used up; dirty ones stay until a checkpoint, which make_room() calls in time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2_impl.h"

#define BUCKETS 4096u
#define WRITES_MAX 64u
#define SPARE_BYTES (UINT64_C(1) << 20)

int tables_init(struct qcow2 *q)
{
    q->cache.bucket_mask = BUCKETS - 1;
    q->cache.buckets = calloc(BUCKETS, sizeof(struct table *));
    return q->cache.buckets ? 0 : -ENOMEM;
}

static struct table **bucket_of(struct qcow2 *q, uint64_t offset)
{
    uint64_t hash = (offset >> q->cluster_bits) * UINT64_C(0x9e3779b97f4a7c15);
    return &q->cache.buckets[(hash >> 32) & q->cache.bucket_mask];
}

static void list_remove(struct table_cache *cache, struct table *table)
{
    *(table->older ? &table->older->newer : &cache->oldest) = table->newer;
    *(table->newer ? &table->newer->older : &cache->newest) = table->older;
}

static void list_append(struct table_cache *cache, struct table *table)
{
    table->older = cache->newest;
    table->newer = NULL;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = table;
    cache->newest = table;
}

static bool table_dirty(const struct table *table)
{
    return table->dirty_from < table->dirty_to;
}

static void set_clean(struct qcow2 *q, struct table *table)
{
    if (table_dirty(table))
        q->cache.dirty_bytes -= q->cluster_size;
    table->dirty_from = UINT32_MAX;
    table->dirty_to = 0;
}

static void table_free(struct qcow2 *q, struct table *table)
{
    if ((q->cache.spare_count + 1) * (uint64_t)q->cluster_size <= SPARE_BYTES) {
        table->hash_next = q->cache.spare;
        q->cache.spare = table;
        q->cache.spare_count++;
        return;
    }
    free(table->data);
    free(table);
}

/* All fields 0 but `data`. */
static struct table *table_take(struct qcow2 *q)
{
    struct table *table = q->cache.spare;
    if (table) {
        q->cache.spare = table->hash_next;
        q->cache.spare_count--;
        *table = (struct table){.data = table->data};
        return table;
    }
    table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    table->data = aligned_alloc(4096, q->cluster_size < 4096 ? 4096 : q->cluster_size);
    if (!table->data) {
        free(table);
        return NULL;
    }
    return table;
}

/* Out of hash and list; freed now, or with its last pin. */
static void detach(struct qcow2 *q, struct table *table)
{
    struct table **link = bucket_of(q, table->offset);
    while (*link != table)
        link = &(*link)->hash_next;
    *link = table->hash_next;
    list_remove(&q->cache, table);
    set_clean(q, table);
    q->cache.bytes -= q->cluster_size;
    table->gone = true;
    if (!table->pins)
        table_free(q, table);
}

void tables_free(struct qcow2 *q)
{
    while (q->cache.oldest)
        detach(q, q->cache.oldest);
    for (struct table *table; (table = q->cache.spare);) {
        q->cache.spare = table->hash_next;
        free(table->data);
        free(table);
    }
    free(q->cache.buckets);
}

static void evict(struct qcow2 *q)
{
    struct table *next;
    for (struct table *t = q->cache.oldest; t && q->cache.bytes + q->cluster_size > CACHE_BYTES; t = next) {
        next = t->newer;
        if (!t->pins && !table_dirty(t))
            detach(q, t);
    }
}

static struct table *lookup(struct qcow2 *q, uint64_t offset)
{
    struct table *table = *bucket_of(q, offset);
    while (table && table->offset != offset)
        table = table->hash_next;
    return table;
}

static void touch(struct qcow2 *q, struct table *table)
{
    if (q->cache.newest == table)
        return;
    list_remove(&q->cache, table);
    list_append(&q->cache, table);
}

struct table *tables_find(struct qcow2 *q, uint64_t offset, enum table_kind kind)
{
    struct table *table = lookup(q, offset);
    if (!table || !table->loaded || table->kind != kind)
        return NULL;
    touch(q, table);
    return table;
}

static struct table *insert(struct qcow2 *q, uint64_t offset, enum table_kind kind)
{
    evict(q);
    struct table *table = table_take(q);
    if (!table)
        return NULL;
    table->offset = offset;
    table->kind = kind;
    table->pins = 1;
    table->dirty_from = UINT32_MAX;
    struct table **bucket = bucket_of(q, offset);
    table->hash_next = *bucket;
    *bucket = table;
    list_append(&q->cache, table);
    q->cache.bytes += q->cluster_size;
    return table;
}

/* -EIO when another loader failed meanwhile. */
static int wait_loaded(struct qcow2 *q, struct table *table)
{
    table->pins++;
    while (!table->loaded && !table->gone)
        fiber_queue_wait(&table->waiters);
    if (!table->gone)
        return 0;
    tables_put(q, table);
    return -EIO;
}

int tables_get(struct qcow2 *q, uint64_t offset, enum table_kind kind, struct table **ret_table)
{
    if (!offset || offset & (q->cluster_size - 1))
        return -EIO;
    struct table *table = lookup(q, offset);
    if (table) {
        if (table->kind != kind) /* one cluster cannot be both */
            return -EIO;
        touch(q, table);
        int r = wait_loaded(q, table);
        if (r == 0)
            *ret_table = table;
        return r;
    }
    table = insert(q, offset, kind);
    if (!table)
        return -ENOMEM;
    int r = block_do(q->file, BLOCK_READ, offset, table->data, q->cluster_size);
    if (r < 0 && !table->gone)
        detach(q, table);
    table->loaded = r == 0;
    fiber_queue_wake_all(&table->waiters);
    if (r < 0)
        tables_put(q, table);
    else
        *ret_table = table;
    return r;
}

int tables_new(struct qcow2 *q, uint64_t offset, enum table_kind kind, struct table **ret_table)
{
    if (lookup(q, offset))
        tables_drop(q, offset);
    struct table *table = insert(q, offset, kind);
    if (!table)
        return -ENOMEM;
    memset(table->data, 0, q->cluster_size);
    table->loaded = true;
    tables_mark(q, table, 0, q->cluster_size);
    *ret_table = table;
    return 0;
}

void tables_put(struct qcow2 *q, struct table *table)
{
    if (--table->pins == 0 && table->gone)
        table_free(q, table);
}

void tables_mark(struct qcow2 *q, struct table *table, uint32_t from, uint32_t len)
{
    if (!table_dirty(table))
        q->cache.dirty_bytes += q->cluster_size;
    if (from < table->dirty_from)
        table->dirty_from = from;
    if (from + len > table->dirty_to)
        table->dirty_to = from + len;
}

void tables_drop(struct qcow2 *q, uint64_t offset)
{
    struct table *table = lookup(q, offset);
    if (table && table->loaded)
        detach(q, table);
}

void tables_forget(struct qcow2 *q, uint64_t offset)
{
    struct table *table = lookup(q, offset);
    if (table && table->loaded && !table->pins && !table_dirty(table))
        detach(q, table);
}

bool tables_has_dirty(const struct qcow2 *q, enum table_kind kind)
{
    if (!q->cache.dirty_bytes)
        return false;
    for (const struct table *t = q->cache.newest; t; t = t->older)
        if (t->kind == kind && table_dirty(t))
            return true;
    return false;
}

/* ---- writing: many at once ---- */

struct writer {
    struct fiber *fiber;
    unsigned in_flight;
    bool waits;
    int result;
};

struct table_write {
    struct block_request request; /* first */
    struct qcow2 *q;
    struct writer *writer;
    struct table *table; /* pinned; NULL: this slot is free */
    uint32_t from, to;   /* its bytes that are on their way */
    struct iovec iov;
};

static void write_done(struct block_request *request, int result)
{
    struct table_write *write = (struct table_write *)(void *)request;
    struct writer *writer = write->writer;
    if (result < 0) {
        writer->result = result;
        tables_mark(write->q, write->table, write->from, write->to - write->from);
    }
    tables_put(write->q, write->table);
    write->table = NULL;
    writer->in_flight--;
    if (writer->waits) {
        writer->waits = false;
        fiber_resume(writer->fiber);
    }
}

static void wait_one(struct writer *writer)
{
    writer->waits = true;
    fiber_wait();
}

static void write_table(struct qcow2 *q, struct table *table, struct table_write *write)
{
    uint32_t align = q->file->block_size;
    uint32_t from = table->dirty_from & ~(align - 1), to = (table->dirty_to + align - 1) & ~(align - 1);
    if (to > q->cluster_size)
        to = q->cluster_size;
    table->pins++;
    write->table = table;
    write->from = from;
    write->to = to;
    write->writer->in_flight++;
    write->iov = (struct iovec){table->data + from, to - from};
    write->request = (struct block_request){.op = BLOCK_WRITE,
                                            .offset = table->offset + from,
                                            .len = to - from,
                                            .iov = &write->iov,
                                            .iov_count = 1,
                                            .done = write_done};
    set_clean(q, table);
    block_submit(q->file, &write->request);
}

/* One pass from the oldest on. Whoever reads meanwhile may move tables to the end of the list, so that it misses some. */
static void write_pass(struct qcow2 *q, enum table_kind kind, struct table_write *writes, struct writer *writer)
{
    unsigned slot = 0;
    for (struct table *t = q->cache.oldest; t && writer->result == 0; t = t->newer) {
        if (t->kind != kind || !table_dirty(t))
            continue;
        while (writer->in_flight == WRITES_MAX)
            wait_one(writer); /* t stays: it is dirty, and the lock is held */
        while (writes[slot].table)
            slot = (slot + 1) % WRITES_MAX;
        t->pins++; /* the write may be done at once */
        write_table(q, t, &writes[slot]);
        t->pins--;
    }
}

/* The lock keeps tables from changing. What fails stays dirty. */
int tables_write(struct qcow2 *q, enum table_kind kind)
{
    if (!tables_has_dirty(q, kind))
        return 0;
    struct table_write *writes = calloc(WRITES_MAX, sizeof *writes);
    if (!writes)
        return -ENOMEM;
    struct writer writer = {.fiber = fiber_current()};
    for (unsigned i = 0; i < WRITES_MAX; i++) {
        writes[i].q = q;
        writes[i].writer = &writer;
    }
    while (writer.result == 0 && tables_has_dirty(q, kind)) {
        write_pass(q, kind, writes, &writer);
        while (writer.in_flight)
            wait_one(&writer);
    }
    free(writes);
    return writer.result;
}
