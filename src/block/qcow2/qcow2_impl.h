/* Private to qcow2: an open image.
 *
 * Metadata lives in memory: the L1 and refcount tables as a whole, L2 tables and refcount blocks in one write-back cache.
 * What is changed there reaches the file by checkpoint.c only, in an order that leaves at worst leaked clusters after a
 * crash. Requests whose mapping is cached and needs no change go straight to the files below (request.c); all others run
 * in a fiber. `lock` is held by whoever changes metadata, also while it waits; readers of the mapping need no lock, as a
 * table's entries change only between two waits.
 *
 * A cluster that loses its last reference is not used again before the loss is on disk and every request that may still
 * work on it is done (`free_list`, `generation`).
 *
 * Memory: L1 32 MiB and refcount table 8 MiB at most, what of it the file really has; the cache CACHE_BYTES and two tables for
 * each of FIBERS_MAX fibers, 1 MiB of spare tables; FREE_LIST_MAX entries of deferred frees. */
#pragma once

#include "block/block.h"
#include "block/crypt/luks.h"
#include "block/fiber.h"
#include "block/qcow2/dirty_bitmap.h"
#include "block/qcow2/format.h"

#define CACHE_BYTES (UINT64_C(160) << 20) /* L2 tables of 1 TiB with clusters of 64 KiB take 128 MiB */
#define FIBERS_MAX 32u
#define FREE_LIST_MAX 65536u
#define RUN_BYTES_MAX (UINT64_C(2) << 20) /* of one allocating write; at least a cluster */

enum table_kind { TABLE_L2, TABLE_REFCOUNTS };

/* A cached L2 table or refcount block, as on disk. */
struct table {
    uint64_t offset;
    enum table_kind kind;
    uint8_t *data;
    unsigned pins; /* >0: stays */
    bool loaded, gone; /* gone: no longer in the cache, freed with the last pin */
    uint32_t dirty_from, dirty_to; /* bytes that differ from the file; from >= to: none */
    struct fiber_queue waiters; /* for `loaded` */
    struct table *hash_next, *older, *newer;
};

struct table_cache {
    struct table *spare; /* freed ones, through hash_next: memory that was touched before is faster than fresh memory */
    unsigned spare_count;
    struct table **buckets;
    unsigned bucket_mask;
    struct table *oldest, *newest;
    uint64_t bytes, dirty_bytes;
};

/* Guest clusters that an allocating write works on. */
struct busy {
    uint64_t first, last;
    struct busy *next;
};

/* A request of ours to a node below, for a part of a request to us. */
struct part {
    struct block_request request; /* first */
    struct qcow2 *q;
    struct block_request *parent;
    unsigned generation;
    uint64_t guest; /* offset of what it reads; UINT64_MAX: not from `data` */
    struct part *next_free;
    struct iovec iov[8];
    struct iovec *more_iov; /* instead of iov, when that is too short */
};

struct dirty_range {
    uint32_t from, to; /* entries */
};

struct qcow2 {
    struct block_node node; /* first */
    struct block_node *file, *data, *backing; /* data: file itself, the external data file, or either behind a cipher */
    bool before_base; /* the backing file is the one at which the chain was to end */
    uint64_t backing_size; /* 0: none; where it ends, zeroes follow */
    unsigned version, cluster_bits, l2_bits, entry_size, refcount_order, refblock_bits;
    uint32_t cluster_size, unit_size; /* unit: what is allocated at once, a cluster or subcluster */
    bool extended, external, external_raw;
    uint8_t compression;
    uint64_t incompatible, compatible, autoclear;
    uint32_t header_len;
    char *backing_name, *backing_format, *data_name;
    struct dirty_bitmaps bitmaps;
    uint32_t crypt_method;
    bool locked; /* encrypted, and opened without its key */
    uint64_t luks_offset, luks_len;
    struct luks_info luks;
    struct crypt_cipher *legacy; /* CRYPT_AES: decrypts what was read from `data` */

    uint64_t *l1, l1_offset; /* entries in host order */
    uint32_t l1_size;
    struct dirty_range l1_dirty;
    uint64_t *reftable, reftable_offset;
    uint32_t reftable_size;
    struct dirty_range reftable_dirty;
    uint64_t snapshots_offset;
    uint32_t snapshot_count;

    struct table_cache cache;
    struct fiber_lock lock;
    struct fiber_pool pool;
    unsigned fibers;
    struct block_request *backlog, **backlog_end; /* requests that wait for a fiber */
    struct busy *busy;
    struct fiber_queue busy_waiters;
    struct part *free_parts;
    uint64_t free_hint; /* no cluster before this is free; an index */
    uint8_t *unpacked; /* the compressed cluster that was read last, of `unpacked_entry`; 0: none */
    uint64_t unpacked_entry;
    uint64_t packed_at; /* where the next compressed cluster goes; 0: to a new host cluster */
    uint64_t *free_list;
    unsigned free_count, free_room;
    unsigned generation, in_flight[2]; /* requests below, by the parity of their generation */
    struct fiber_queue drain_waiters;
    int failed; /* a sync failed: what is on disk is not known, nothing more is written */
};

/* Does anything show through holes, if not here (no_backing) then for who opens the image later? */
static inline bool has_backing(const struct qcow2 *q)
{
    return q->backing || q->backing_name;
}

/* What a range of the guest's disk is. */
enum map_kind { MAP_HOLE, MAP_ZERO, MAP_DATA, MAP_COMPRESSED };
struct map {
    enum map_kind kind;
    bool own;      /* DATA: only this image's active state refers to it: may be written in place */
    uint64_t host; /* DATA: where; COMPRESSED: the descriptor */
    uint64_t len;  /* bytes that are alike; HOLE and ZERO perhaps more than asked for by nothing */
};

static inline struct qcow2 *qcow2_of(struct block_node *node)
{
    return (struct qcow2 *)node;
}

static inline uint64_t cluster_count(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->cluster_bits) + ((bytes & (q->cluster_size - 1)) != 0);
}

/* ---- open.c; in a fiber ---- */
/* A table of the file in host order; room for whole clusters, as it is written back by blocks. Free it. */
int read_entries(struct qcow2 *q, uint64_t offset, uint32_t count, uint64_t **ret_entries);

/* ---- header.c ---- */
/* `start`: the first cluster of the file, or what of it there is. Fills in what the header says, checked. */
int header_parse(struct qcow2 *q, const uint8_t *start, size_t len, const char *name, struct err *err);
/* In a fiber: overwrites bytes of the first cluster and waits until they are stable. */
int header_update(struct qcow2 *q, unsigned offset, const void *bytes, unsigned len);
int header_set_incompatible(struct qcow2 *q, uint64_t incompatible);
int header_set_autoclear(struct qcow2 *q, uint64_t autoclear);
/* In a fiber: extensions and backing file's name anew, as q has backing_name, backing_format, bitmaps and autoclear; what it does
 * not know stays. One write, then stable. -ENOSPC when they do not fit. */
int header_rewrite(struct qcow2 *q);

/* ---- encryption.c ---- */
/* The header's method and the data of its extension for it (CRYPT_POINTER_LEN bytes; NULL: none). */
int encryption_parse(struct qcow2 *q, uint32_t method, const uint8_t *pointer, struct err *err);
/* Not in a fiber: puts the cipher between us and the data. */
int encryption_open(struct qcow2 *q, const struct block_options *o, struct err *err);

/* ---- tables.c ---- */
int tables_init(struct qcow2 *q);
void tables_free(struct qcow2 *q);
/* A loaded table, or NULL; not pinned. Never waits. */
struct table *tables_find(struct qcow2 *q, uint64_t offset, enum table_kind kind);
/* In a fiber: pins the table, reading it when it is not there. */
int tables_get(struct qcow2 *q, uint64_t offset, enum table_kind kind, struct table **ret_table);
/* A zeroed table for a cluster that was allocated just now; pinned, all of it dirty. */
int tables_new(struct qcow2 *q, uint64_t offset, enum table_kind kind, struct table **ret_table);
void tables_put(struct qcow2 *q, struct table *table);
void tables_mark(struct qcow2 *q, struct table *table, uint32_t from, uint32_t len);
/* Forgets a table whose cluster is free. */
void tables_drop(struct qcow2 *q, uint64_t offset);
/* Forgets a table that is clean and that nobody holds. */
void tables_forget(struct qcow2 *q, uint64_t offset);
/* In a fiber: writes all dirty tables of the kind. */
int tables_write(struct qcow2 *q, enum table_kind kind);
bool tables_has_dirty(const struct qcow2 *q, enum table_kind kind);

/* ---- refcount.c; in a fiber, lock held ---- */
uint64_t refcount_load(const uint8_t *block, unsigned order, uint32_t index);
void refcount_store(uint8_t *block, unsigned order, uint32_t index, uint64_t value);
int refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count);
int refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t count);
/* Adds `delta`, 1 or -1. */
int refcount_add(struct qcow2 *q, uint64_t cluster, int delta);
/* Up to `count` clusters in a row, at least one; their refcounts become 1. */
int alloc_clusters(struct qcow2 *q, uint32_t count, uint64_t *ret_offset, uint32_t *ret_count);
/* Exactly `count` clusters in a row. */
int alloc_exactly(struct qcow2 *q, uint32_t count, uint64_t *ret_offset);
/* One reference less, once that is safe. */
int free_later(struct qcow2 *q, uint64_t offset);
int free_run_later(struct qcow2 *q, uint64_t offset, uint64_t count);
/* All host clusters that a compressed cluster's descriptor touches. */
int free_compressed_later(struct qcow2 *q, uint64_t entry);
/* The free_list's clusters lose their reference. */
int apply_frees(struct qcow2 *q);

/* ---- checkpoint.c; in a fiber, lock held ---- */
bool is_dirty(const struct qcow2 *q);
/* All metadata to the file, all of it and all data stable; then deferred frees are done. */
int checkpoint(struct qcow2 *q);
/* A checkpoint for counts that went down and COPIED flags that were set for it: the flags are stable before the counts, so
 * that a crash leaves counts that are too high, as ever. Nothing else is dirty. */
int checkpoint_flags_first(struct qcow2 *q);
/* A checkpoint when much is dirty; before metadata is changed. */
int make_room(struct qcow2 *q);
int sync_files(struct qcow2 *q);
/* Waits until requests below that began before are done. */
void drain_generation(struct qcow2 *q);
int write_l1(struct qcow2 *q, uint32_t from, uint32_t to);
int write_reftable(struct qcow2 *q, uint32_t from, uint32_t to);
/* Entries in host order to a table in the file. */
int write_entries(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint32_t from, uint32_t to);

/* ---- map.c ---- */
/* Never waits: -EAGAIN when the L2 table is not cached. */
int map_cached(struct qcow2 *q, uint64_t offset, uint64_t len, struct map *ret_map);
/* In a fiber. */
int map_get(struct qcow2 *q, uint64_t offset, uint64_t len, struct map *ret_map);
/* In a fiber, lock held: the L2 table for a guest offset, pinned, to be changed: made, or copied when it is shared. */
int map_table_for_write(struct qcow2 *q, uint64_t offset, struct table **ret_table);
static inline uint32_t l2_index(const struct qcow2 *q, uint64_t offset)
{
    return (uint32_t)(offset >> q->cluster_bits) & ((1u << q->l2_bits) - 1);
}
uint64_t entry_get(const struct qcow2 *q, const struct table *table, uint32_t index);
uint64_t bitmap_get(const struct qcow2 *q, const struct table *table, uint32_t index);
void entry_set(struct qcow2 *q, struct table *table, uint32_t index, uint64_t entry, uint64_t bitmap);
/* A compressed cluster's bytes in the file. */
void compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_len);

/* ---- request.c ---- */
void qcow2_submit(struct block_node *node, struct block_request *request);
/* In a fiber: reads guest bytes. */
int read_guest(struct qcow2 *q, uint64_t offset, void *buf, uint64_t len);
/* In a fiber: data to or from a node below, counted in its generation. */
int tracked_io(struct qcow2 *q, struct block_node *node, struct block_request *request);
int qcow2_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent);

/* ---- write.c; in a fiber ---- */
int write_guest(struct qcow2 *q, uint64_t offset, uint64_t len, const struct iovec *iov, unsigned iov_count);
int write_compressed(struct qcow2 *q, uint64_t offset, uint64_t len, const struct iovec *iov, unsigned iov_count);
/* Lock held, dropped while it waits: until no allocating write works on these guest clusters. */
void wait_not_busy(struct qcow2 *q, uint64_t first, uint64_t last);
/* `busy` is the caller's, with its range filled in. Lock held. */
void begin_busy(struct qcow2 *q, struct busy *busy);
/* Lock not held. */
void end_busy(struct qcow2 *q, const struct busy *busy);

/* ---- zero.c; in a fiber: WRITE_ZEROES and DISCARD ---- */
/* WRITE_ZEROES of this range writes all of it, as there is no whole cluster, or no flag. */
bool zeroes_are_data(const struct qcow2 *q, uint64_t offset, uint64_t len);
int zero_guest(struct qcow2 *q, enum block_op op, bool may_unmap, uint64_t offset, uint64_t len);

/* ---- compress.c ---- */
/* What compressing clusters one after the other takes; NULL: no memory. Any thread, one at a time. */
struct compressor;
struct compressor *compressor_new(unsigned type);
void compressor_free(struct compressor *compressor);
/* Length of the result, or -ENOSPC when it is not shorter than `room`. */
int compress_cluster(struct compressor *compressor, const void *from, size_t len, void *to, size_t room);
/* Fills all of `to`, or -EIO. */
int decompress_cluster(unsigned type, const void *from, size_t len, void *to, size_t size);

/* ---- tree.c; in a fiber, lock held ---- */
/* One reference more (delta 1) or less (-1, deferred) to each L2 table and host cluster below an L1 table. */
int tree_add(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size, int delta);
/* The COPIED flags of the active L1 and L2 tables say what the reference counts say. Writes some L2 tables: the counts that
 * clear flags are stable, those that set them not in the file yet. `left_out`: of each L1 entry, whether its table stays as it
 * is, in an image that is damaged; NULL: none. */
int tree_fix_copied(struct qcow2 *q, const bool *left_out);

/* ---- resize.c ---- */
/* Makes a table in the file the active L1 table; stable when it returns. */
int switch_l1(struct qcow2 *q, uint64_t offset, uint32_t entries);
int qcow2_resize(struct block_node *node, uint64_t size, struct err *err);
