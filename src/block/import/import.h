/* Disk images of other products, read only: what the readers of vmdk, vhd, vhdx and vdi share.
 *
 * A reader turns what an image says into extents: pieces of the disk, one after the other, that are zeroes, lie in a file in
 * one piece ("flat"), or in blocks that a table places. All tables are in memory once an image is open. Everything is
 * checked before it is used, and what an image may claim is bounded.
 * Threads: as for block nodes; readers run while the image is opened, not in fibers. */
#pragma once

#include "block/block.h"
#include "block/fiber.h"

#define IMPORT_FILES_MAX 512u
#define IMPORT_TABLE_BYTES_MAX (UINT64_C(256) << 20) /* of all tables: 4 TiB of vmdk */
#define IMPORT_BLOCK_MAX (UINT32_C(256) << 20)

struct import_extent {
    uint64_t len;        /* bytes of the disk; a multiple of 512 */
    bool zero;           /* reads as zeroes */
    unsigned file;       /* index of import_node's files */
    uint64_t base;       /* flat: where it begins in the file */
    uint32_t *table;     /* entry for each block: 0: zeroes, n: it is at base + (n - 1) * unit; NULL: flat. Owned */
    uint32_t block_size, unit;
    bool packed;         /* vmdk: blocks are compressed, behind a marker */
    uint64_t start;      /* on the disk; set by import_add_extent */
};

struct import_node {
    struct block_node node; /* first */
    struct block_node *files[IMPORT_FILES_MAX];
    unsigned file_count;
    struct import_extent *extents;
    unsigned extent_count;
    uint64_t table_bytes;
    struct fiber_pool pool;
    unsigned fibers;
    struct block_request *backlog, **backlog_end;
    uint8_t *unpacked; /* the block that was unpacked last, of `unpacked_at` in `unpacked_file` */
    uint64_t unpacked_at;
    unsigned unpacked_file;
};

/* Opens files[0] as the options say and lets the reader add extents. */
must_check int import_open(const struct block_options *options, const struct block_class *class,
                           int (*load)(struct import_node *node, const struct block_options *options, struct err *err),
                           struct block_node **ret_node, struct err *err);

/* ---- for readers ---- */

/* Refuses what is there and not read; the sentence names who converts it. */
#define import_refuse(err, ...) (err_say(err, ENOTSUP, __VA_ARGS__), import_add_converter(err))
int import_add_converter(struct err *err);
/* A whole range of a file, or an error that says that it is cut off. */
must_check int import_read(struct import_node *node, unsigned file, uint64_t offset, void *buf, uint64_t len, struct err *err);
/* A zeroed table, counted. */
must_check int import_new_table(struct import_node *node, uint64_t entries, uint32_t **ret_table, struct err *err);
/* Takes the extent, and its table in any case. */
must_check int import_add_extent(struct import_node *node, struct import_extent extent, struct err *err);
/* One more file; the descriptor becomes the node's when this succeeds. */
must_check int import_add_file(struct import_node *node, const char *path, int fd, struct err *err);

/* ---- class functions ---- */
void import_close(struct block_node *node);
int import_attach(struct block_node *node, struct block_ring *ring, struct err *err);
void import_submit(struct block_node *node, struct block_request *request);
int import_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent);
