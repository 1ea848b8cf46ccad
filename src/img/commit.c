/* commit: what an image (and those between it and the base) changed goes into the base, and the image becomes empty. The base is
 * complete and stable before the image is emptied: whenever this is interrupted the image reads as before. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/own.h"
#include "img/img.h"

struct commit {
    struct img_walk walk; /* first */
    struct block_node *top, *base;
    bool empty;
    struct err *err;
};

static int copy_chunk(struct img_walk *walk, uint64_t offset, uint64_t len, uint8_t *data)
{
    struct commit *c = (struct commit *)walk;
    struct block_extent extent;
    int r = 0;
    for (uint64_t at = offset; r == 0 && at < offset + len; at += extent.len) {
        r = block_status(c->top, at, c->top->size - at, &extent);
        if (r == 0 && !extent.present && !extent.beyond && at == offset)
            img_walk_skip(walk, at + extent.len);
        uint64_t left = offset + len - at;
        if (r == 0 && extent.len > left)
            extent.len = left;
        if (r < 0 || !(extent.present || extent.beyond))
            continue;
        if (!extent.zero)
            r = img_read(c->top, at, extent.len, data);
        if (r == 0)
            r = img_write(c->base, at, extent.len, extent.zero ? NULL : data);
    }
    return r;
}

/* Of all images above the base. */
static int refuse_snapshots(const struct commit *c)
{
    int r = 0;
    for (struct block_node *node = c->top; r == 0 && node; node = qcow2_backing(node))
        r = qcow2_refuse_snapshots(node, "", c->err);
    return r;
}

static int grow_base(const struct commit *c)
{
    if (c->base->size >= c->top->size)
        return 0;
    return c->base->class->resize(c->base, c->top->size, c->err);
}

static int commit(void *arg)
{
    struct commit *c = arg;
    int r = refuse_snapshots(c);
    if (r == 0)
        r = grow_base(c);
    if (r == 0)
        r = img_walk(&c->walk);
    if (r == 0)
        r = block_do(c->base, BLOCK_FLUSH, 0, NULL, 0);
    return r == 0 && c->empty ? qcow2_empty(c->top, c->err) : r;
}

/* `top` is open down to the base. */
static int commit_to(const struct img_options *options, struct img_image *top, const char *base_path, struct err *err)
{
    const char *format = NULL;
    struct img_image base = {0};
    int r = qcow2_base_format(top->node, &format);
    if (r < 0)
        return err_say(err, -r, "'%s' is not in the backing chain of '%s'", base_path, top->node->name);
    r = img_open(options, base_path, format, false, false, top->ring, &base, err);
    if (r < 0)
        return r;
    struct commit c = {.walk = {.chunk = copy_chunk, .end = top->node->size, .progress = options->progress},
                       .top = top->node,
                       .base = base.node,
                       .empty = !options->keep && !options->backing,
                       .err = err};
    r = block_run(top->ring, commit, &c);
    base.ring = NULL;
    img_close(&base);
    return r < 0 && !err->code ? err_set(err, -r, "commit '%s'", options->operands[0]) : r;
}

/* The base's path: what -b says, else the backing file. */
static int find_base(const struct img_options *options, char **ret_path, struct err *err)
{
    struct img_image image = {0};
    struct qcow2_info info = {0};
    int r = img_open(options, options->operands[0], options->format, true, true, NULL, &image, err);
    if (r < 0)
        return r;
    if (strcmp(image.format, "qcow2") == 0)
        qcow2_get_info(image.node, &info);
    if (!info.backing)
        r = err_say(err, EINVAL, "'%s' has no backing file to commit to", options->operands[0]);
    else if ((*ret_path = options->backing ? strdup(options->backing) : img_beside(image.node->name, info.backing)) == NULL)
        r = err_set(err, ENOMEM, "commit");
    img_close(&image);
    return r;
}

static int run_commit(const struct img_options *options, struct err *err)
{
    own_free char *base = NULL;
    struct img_image top = {0};
    struct block_options open = {0};
    int r = find_base(options, &base, err);
    if (r == 0)
        r = img_block_options(options, options->operands[0], options->format, false, &open, err);
    open.base = base;
    if (r == 0)
        r = img_open_as(&open, NULL, &top, err);
    if (r < 0 || !top.node)
        return r;
    r = commit_to(options, &top, base, err);
    img_close(&top);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {'b', "backing"}, {'d', "keep"}, {'p', "progress"}, {0, NULL}};

const struct img_command img_commit = {
    .name = "commit",
    .usage = "[-f FORMAT] [-b BASE] [-d] [-p] IMAGE",
    .summary = "put changes into the backing file",
    .accepts = " format backing keep progress allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_commit,
};
