/* convert: copies what is not zero. Several chunks are on their way at once (walk.c). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "img/img.h"

#define ZERO_UNIT 4096u

struct convert {
    struct img_walk walk; /* first */
    struct block_node *from, *to;
    bool compress;
    bool overwrites; /* what is there is not known to be zero: zeroes are written too */
    uint64_t unit; /* zeroes are found at this grain */
};

static int write_part(struct convert *c, uint64_t offset, uint8_t *data, uint64_t len)
{
    struct iovec iov = {data, len};
    struct block_request req = {
        .op = BLOCK_WRITE, .offset = offset, .len = len, .iov = &iov, .iov_count = 1, .compress = c->compress};
    return block_do_request(c->to, &req);
}

/* The parts of a chunk that are not zero, in units; the new image is empty. */
static int write_chunk(struct convert *c, uint64_t offset, uint8_t *data, uint64_t len)
{
    uint64_t from = 0, at = 0;
    int r = 0;
    while (r == 0 && at < len) {
        uint64_t n = len - at < c->unit ? len - at : c->unit;
        bool zero = !c->overwrites && img_is_zero(data + at, n);
        if (zero && at > from)
            r = write_part(c, offset + from, data + from, at - from);
        at += n;
        if (zero)
            from = at;
    }
    return r == 0 && at > from ? write_part(c, offset + from, data + from, at - from) : r;
}

static int clear(struct convert *c, uint64_t offset, uint64_t len)
{
    return c->overwrites ? img_write(c->to, offset, len, NULL) : 0;
}

static int copy_chunk(struct img_walk *walk, uint64_t offset, uint64_t len, uint8_t *data)
{
    struct convert *c = (struct convert *)walk;
    struct block_extent extent;
    bool any = false;
    int r = block_status(c->from, offset, c->from->size - offset, &extent);
    if (r == 0 && extent.zero && extent.len > len) { /* a large hole: all go on behind it */
        if (c->overwrites)
            return clear(c, offset, len);
        img_walk_skip(walk, offset + extent.len);
        return 0;
    }
    for (uint64_t at = offset; at < offset + len && at < c->from->size; at += extent.len) {
        uint64_t end = offset + len < c->from->size ? offset + len : c->from->size;
        r = block_status(c->from, at, end - at, &extent);
        if (r < 0)
            return r;
        any = any || !extent.zero;
    }
    if (!any)
        return clear(c, offset, len);
    r = img_read(c->from, offset, len, data);
    return r < 0 ? r : write_chunk(c, offset, data, len);
}

int img_copy(struct block_node *from, struct block_node *to, bool compress, bool progress)
{
    struct qcow2_info info = {.cluster_size = ZERO_UNIT};
    if (compress)
        qcow2_get_info(to, &info);
    struct convert c = {.walk = {.chunk = copy_chunk,
                                 .end = (from->size + BLOCK_SECTOR_SIZE - 1) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1),
                                 .progress = progress},
                        .from = from,
                        .to = to,
                        .compress = compress,
                        .overwrites = to->class == &block_luks || to->class == &block_nbd,
                        .unit = info.cluster_size};
    int r = img_walk(&c.walk);
    return r < 0 ? r : block_do(to, BLOCK_FLUSH, 0, NULL, 0);
}

struct copying {
    struct block_node *from, *to;
    bool compress, progress;
};

static int copy(void *arg)
{
    const struct copying *c = arg;
    return img_copy(c->from, c->to, c->compress, c->progress);
}

static int convert(const struct img_options *from_options, struct img_image *from, const char *format, struct err *err)
{
    struct img_image to = {0};
    struct img_options target = *from_options, *options = &target;
    const char *path = options->operands[1];
    target.key = from_options->target_key;
    uint64_t size = (from->node->size + BLOCK_SECTOR_SIZE - 1) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    bool remote = block_is_nbd_uri(path);
    int r = remote ? 0 : img_make(options, format, path, size, err);
    if (r == 0)
        r = img_open(options, path, format, false, false, from->ring, &to, err);
    if (r < 0 || !to.node)
        return r;
    struct qcow2_info info = {0};
    if (remote && to.node->size < size)
        r = err_say(err, ENOSPC, "'%s' is smaller than the image", path);
    if (options->compress)
        qcow2_get_info(to.node, &info);
    if (info.encrypted)
        r = err_say(err, ENOTSUP, "encrypted images are not compressed; leave out -c");
    bool progress = options->progress || (isatty(STDERR_FILENO) && size > UINT64_C(1) << 30);
    struct copying c = {from->node, to.node, options->compress, progress};
    struct img_writeback *writeback = r == 0 && !remote ? img_writeback_start(path) : NULL;
    if (r == 0)
        r = block_run(from->ring, copy, &c);
    img_writeback_stop(writeback);
    to.ring = NULL;
    img_close(&to);
    return r < 0 && !err->code ? err_set(err, -r, "convert '%s'", options->operands[0]) : r;
}

static int run_convert(const struct img_options *options, struct err *err)
{
    struct img_image from;
    const char *format = options->output_format ? options->output_format : "raw";
    int r = block_is_nbd_uri(options->operands[1]) ? 0 : img_guess(options->operands[1], format, &format, err);
    if (r < 0)
        return r;
    if (options->compress && (strcmp(format, "qcow2") != 0 || block_is_nbd_uri(options->operands[1])))
        return err_say(err, EINVAL, "format '%s' has no compression, say -O qcow2", format);
    if (options->settings && strstr(options->settings, "backing_file"))
        return err_say(err, ENOTSUP, "convert makes images without a backing file; leave out backing_file");
    r = img_open(options, options->operands[0], options->format, true, false, NULL, &from, err);
    if (r < 0)
        return r;
    r = convert(options, &from, format, err);
    img_close(&from);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"},   {'O', "output-format"}, {'o', "options"},
                                               {'c', "compress"}, {'p', "progress"},      {0, NULL}};

const struct img_command img_convert = {
    .name = "convert",
    .usage = "[-f FORMAT] [-O FORMAT] [-o SETTINGS] [-c] [-p] [--key FILE] [--target-key FILE] IMAGE NEW",
    .summary = "copy into a new image",
    .accepts = " format output-format options compress progress key target-key allow-backing ",
    .letters = letters,
    .operands_min = 2,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_convert,
};
