/* polder-img: what its files share. One table of options (options.c) and one of commands (main.c); a command is one file. */
#pragma once

#include <jansson.h>
#include "base/option.h"
#include "block/block.h"
#include "block/crypt/luks.h"
#include "block/fiber.h"
#include "block/qcow2/qcow2.h"

#define IMG_OPERANDS_MAX 16
#define IMG_DIRS_MAX 32
#define IMG_STEPS_MAX 16
#define IMG_STATUS_FAILURE 1
#define IMG_STATUS_USAGE 2

struct img_options {
    struct block_key *key, *target_key; /* owned */
    const char *format, *output_format, *settings, *backing, *backing_format;
    const char *repair;                  /* "leaks", "all" or NULL */
    struct img_bitmap_step {
        enum qcow2_bitmap_action action;
        const char *source;
    } bitmap_steps[IMG_STEPS_MAX];
    unsigned bitmap_step_count;
    const char *granularity;
    const char *snapshot_create, *snapshot_apply, *snapshot_delete;
    const char *socket, *port, *bind, *export, *snapshot, *tls_psk, *tls_certs; /* serve */
    const char *bitmap;                                                         /* backup, serve */
    struct img_bench_options {
        const char *count, *depth, *size, *step, *offset, *flush_interval, *cache;
        bool write, random;
    } bench;
    bool shrink, keep, unsafe, full, read_only;
    bool snapshot_list, json, compress, strict, progress, help, version, man;
    const char *allow_dirs[IMG_DIRS_MAX + 1];
    unsigned allow_count;
    const char *operands[IMG_OPERANDS_MAX];
    unsigned operand_count;
    const char *used[32]; /* names of the options that were given */
    unsigned used_count;
};

struct img_command {
    const char *name, *usage, *summary;
    const char *accepts;                 /* names of options, with a blank on both sides of each */
    const struct option_letter *letters;
    unsigned operands_min, operands_max;
    int error_status;                    /* for what is wrong with image or host */
    int usage_status;
    /* The program's exit status, or -errno. */
    int (*run)(const struct img_options *options, struct err *err);
};

extern const struct img_command img_backup, img_bench, img_bitmap, img_check, img_commit, img_compare, img_convert, img_create, img_info,
    img_map, img_rebase, img_resize, img_serve, img_snapshot;
extern const struct option_spec img_option_table[];
int img_operand(void *target, const char *value, struct err *err);

/* ---- image.c ---- */

/* An image that is open on a ring of its own. */
struct img_image {
    struct block_node *node;
    struct block_ring *ring;
    const char *format;
};
/* `format` NULL: as block_guess_format() says; an error when that is not sure. `ring` NULL: a new one. */
must_check int img_open(const struct img_options *options, const char *path, const char *format, bool read_only, bool repair,
                        struct block_ring *ring, struct img_image *ret_image, struct err *err);
/* For serve: with --snapshot and --read-only. */
must_check int img_open_served(const struct img_options *options, const char *path, struct block_ring *ring,
                               struct img_image *ret_image, struct err *err);
/* The same for options that img_block_options() filled in and the caller changed. */
must_check int img_open_as(const struct block_options *open, struct block_ring *ring, struct img_image *ret_image, struct err *err);
must_check int img_block_options(const struct img_options *options, const char *path, const char *format, bool read_only,
                                 struct block_options *ret_open, struct err *err);
/* Writes back what is to be written; its ring goes too unless it was given to img_open. */
void img_close(struct img_image *image);
/* A file that an image names, as seen from here: relative to the image's folder. NULL: no memory. Free it. */
char *img_beside(const char *image, const char *name);
must_check int img_guess(const char *path, const char *format, const char **ret_format, struct err *err);
/* "512M" or plain bytes. */
must_check int img_parse_size(const char *text, uint64_t *ret_bytes, struct err *err);
/* -o's "name=value,..." for a new image of `format`, and the image itself. */
must_check int img_make(const struct img_options *options, const char *format, const char *path, uint64_t size, struct err *err);
/* ---- walk.c ---- */

#define IMG_CHUNK (UINT64_C(2) << 20) /* also the largest cluster */
#define IMG_BUFFERS 2u

/* Several fibers work on a disk at once, chunk by chunk. */
struct img_walk {
    /* A chunk's result is 0 or -errno, which ends the walk. `data` is the fiber's own: IMG_BUFFERS chunks. */
    int (*chunk)(struct img_walk *walk, uint64_t offset, uint64_t len, uint8_t *data);
    uint64_t end;
    bool progress; /* show it */
    /* walk.c's */
    uint64_t next;
    unsigned fibers, shown;
    struct fiber_queue idle;
    int result;
};
/* In a fiber. */
must_check int img_walk(struct img_walk *walk);
/* For a chunk's function: nothing is to be done before `offset`. */
void img_walk_skip(struct img_walk *walk, uint64_t offset);
/* Reads; behind the node's end there are zeroes. */
must_check int img_read(struct block_node *node, uint64_t offset, uint64_t len, uint8_t *data);
/* Writes the same range. `data` NULL: zeroes, whose space may go. */
must_check int img_write(struct block_node *node, uint64_t offset, uint64_t len, uint8_t *data);

/* Until it is stopped, what is written to the file goes on to the disk at once (writeback.c). NULL where that cannot be, and for stop. */
struct img_writeback *img_writeback_start(const char *path);
void img_writeback_stop(struct img_writeback *writeback);

/* In a fiber: all of a disk into a new, empty one that is no shorter; stable when it returns (convert.c). */
must_check int img_copy(struct block_node *from, struct block_node *to, bool compress, bool progress);

/* Prints and frees. */
int img_print_json(json_t *json);
bool img_is_zero(const void *data, size_t len);
