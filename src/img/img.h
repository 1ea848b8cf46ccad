/* polder-img: what its files share. One table of options (options.c) and one of commands (main.c); a command is one file. */
#pragma once

#include <jansson.h>
#include "base/option.h"
#include "block/block.h"
#include "block/qcow2/qcow2.h"

#define IMG_OPERANDS_MAX 16
#define IMG_DIRS_MAX 32
#define IMG_STATUS_FAILURE 1
#define IMG_STATUS_USAGE 2

struct img_options {
    const char *format, *output_format, *settings, *backing, *backing_format;
    const char *repair;                  /* "leaks", "all" or NULL */
    const char *snapshot_create, *snapshot_apply, *snapshot_delete;
    const char *socket, *port, *bind, *export, *snapshot, *bitmap, *tls_psk, *tls_certs; /* serve */
    bool read_only;
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

extern const struct img_command img_check, img_compare, img_convert, img_create, img_info, img_map, img_resize,
    img_serve, img_snapshot;
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
/* Writes back what is to be written; its ring goes too unless it was given to img_open. */
void img_close(struct img_image *image);
must_check int img_guess(const char *path, const char *format, const char **ret_format, struct err *err);
/* "512M" or plain bytes. */
must_check int img_parse_size(const char *text, uint64_t *ret_bytes, struct err *err);
/* -o's "name=value,..." for a new image of `format`, and the image itself. */
must_check int img_make(const struct img_options *options, const char *format, const char *path, uint64_t size, struct err *err);
/* Prints and frees. */
int img_print_json(json_t *json);
bool img_is_zero(const void *data, size_t len);
