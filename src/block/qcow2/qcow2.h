/* qcow2 images as tools handle them: what goes beyond reading and writing a block node. Functions that take a node want one
 * of class block_qcow2, no request in flight, and run in a fiber of its ring. */
#pragma once

#include "block/block.h"
#include "block/crypt/luks.h"

struct qcow2_create {
    const char *path;
    uint64_t size;          /* bytes; rounded up to sectors */
    unsigned version;       /* 2 or 3 */
    uint32_t cluster_size;  /* 512 bytes to 2 MiB */
    unsigned refcount_bits; /* 1 to 64 */
    bool extended_l2, lazy_refcounts, data_file_raw;
    bool zstd;
    bool encrypt; /* by LUKS, with `key`, the caller's */
    const struct block_key *key;
    uint32_t luks_iterations; /* as in struct luks_create */
    const char *backing, *backing_format, *data_file; /* as they are stored; NULL: none */
};

/* Makes an empty image, over whatever is at `path` (and at the data file, which is relative to it). Any thread. */
must_check int qcow2_create(const struct qcow2_create *create, struct err *err);

/* A node that was opened with no_backing reads from `backing` (owned) from now on; no request is in flight. -ELOOP when the
 * chain would be too long to be opened again. Any thread. */
must_check int qcow2_attach_backing(struct block_node *node, struct block_node *backing);
/* What it reads from; NULL: nothing. */
struct block_node *qcow2_backing(struct block_node *node);
/* Opens what the image `image->path`, opened with the same options, would open as its backing file by that name and format (NULL:
 * as block_guess_format says). NULL when that is `image->base`. Any thread. */
must_check int qcow2_open_base(const struct block_options *image, const char *name, const char *format, struct block_node **ret_node,
                               struct err *err);
/* Undoes qcow2_attach_backing; the backing node is the caller's. */
void qcow2_detach_backing(struct block_node *node);

enum qcow2_preallocation {
    QCOW2_PREALLOCATE_METADATA, /* each cluster has its place in the file */
    QCOW2_PREALLOCATE_SPACE,    /* ... and the host's space for it */
    QCOW2_PREALLOCATE_FULL,     /* ... with zeroes written to it */
};
/* For an image that was made just now, without a backing file; in a fiber. FULL when it is encrypted. Stable when it returns. */
must_check int qcow2_preallocate(struct block_node *node, enum qcow2_preallocation mode, struct err *err);

/* What an image says of itself; strings are the node's. */
struct qcow2_info {
    unsigned version, refcount_bits;
    uint32_t cluster_size, snapshot_count;
    bool lazy_refcounts, dirty, corrupt, extended_l2, external_raw, zstd;
    const char *backing, *backing_format, *data_file;
    bool encrypted;
    struct luks_info luks; /* version 0: none; encrypted without it is the old AES method */
};
void qcow2_get_info(struct block_node *node, struct qcow2_info *ret_info);

/* Opened with `base`: the format that the chain's last image states for it (NULL: none). -ENOENT: it is not in the chain. */
must_check int qcow2_base_format(struct block_node *node, const char **ret_format);

/* The name and format of the backing file, for the next time that the image is opened; NULL: none. Stable when it returns; on an
 * error either may be what the file says. Requests may be in flight. */
must_check int qcow2_set_backing(struct block_node *node, const char *name, const char *format, struct err *err);
/* Everything reads as the backing file says (zeroes without one). Stable when it returns. */
must_check int qcow2_empty(struct block_node *node, struct err *err);

/* ---- Check ---- */

enum qcow2_repair { QCOW2_CHECK_ONLY, QCOW2_REPAIR_LEAKS, QCOW2_REPAIR_ALL };
struct qcow2_check {
    uint64_t corruptions, leaks;             /* found and not repaired */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters; /* of the disk */
    uint64_t image_end; /* bytes of the file that are in use */
    void (*report)(void *arg, const char *line); /* the caller's; NULL: none */
    void *arg;
};
/* Counts references and compares them with the reference counts. The node is open for repair when it is asked for. */
must_check int qcow2_check(struct block_node *node, enum qcow2_repair repair, struct qcow2_check *check, struct err *err);

/* ---- Persistent dirty bitmaps ---- */

struct qcow2_bitmap {
    const char *name;     /* the node's */
    uint64_t granularity; /* bytes; 0: not understood */
    bool in_use;          /* its last writer did not store it: can only be removed */
    bool enabled;         /* records writes */
};
uint32_t qcow2_bitmap_count(struct block_node *node);
void qcow2_get_bitmap(struct block_node *node, uint32_t index, struct qcow2_bitmap *ret_bitmap);

enum qcow2_bitmap_action {
    QCOW2_BITMAP_ADD, /* enabled and clean */
    QCOW2_BITMAP_REMOVE,
    QCOW2_BITMAP_CLEAR,
    QCOW2_BITMAP_ENABLE,
    QCOW2_BITMAP_DISABLE,
    QCOW2_BITMAP_MERGE, /* what is dirty in the source becomes dirty here, too */
};
struct qcow2_bitmap_change {
    enum qcow2_bitmap_action action;
    const char *name;
    uint32_t granularity;           /* ADD: bytes; 0: the usual one */
    const char *source;             /* MERGE: a bitmap of source_node, on the same ring; NULL: of this node */
    struct block_node *source_node;
};
/* Stable when it returns. */
must_check int qcow2_bitmap_change(struct block_node *node, const struct qcow2_bitmap_change *change, struct err *err);

/* ---- Internal snapshots ---- */

struct qcow2_snapshot {
    char *id, *name; /* owned */
    uint64_t l1_offset, vm_clock_ns, vm_state_size, disk_size, icount;
    uint32_t l1_size, date_s, date_ns;
    uint8_t *extra; /* as stored; owned */
    uint32_t extra_len;
};
struct qcow2_snapshots {
    struct qcow2_snapshot *list;
    uint32_t count;
    uint64_t table_len; /* bytes of their table in the file */
};
must_check int qcow2_snapshots_load(struct block_node *node, struct qcow2_snapshots *ret_snapshots, struct err *err);
void qcow2_snapshots_free(struct qcow2_snapshots *snapshots);
/* -EBUSY, naming the first, when there are any: they read from the backing file, too, as it is now. `or_else` goes behind the
 * message. */
must_check int qcow2_refuse_snapshots(struct block_node *node, const char *or_else, struct err *err);
must_check int qcow2_snapshot_create(struct block_node *node, const char *name, struct err *err);
/* `name`: a name, or an id when no snapshot has that name. */
must_check int qcow2_snapshot_apply(struct block_node *node, const char *name, struct err *err);
must_check int qcow2_snapshot_delete(struct block_node *node, const char *name, struct err *err);
