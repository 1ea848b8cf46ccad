/* rebase: another backing file, or none. What the image does not hold itself and the two read differently is copied into it
 * first and stable before the name changes: whenever this is interrupted the image reads as before. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/own.h"
#include "block/rebase.h"
#include "img/img.h"

struct rebase {
    struct img_walk walk; /* first */
    const struct img_options *options;
    struct block_node *top, *base; /* base NULL: none */
    struct err *err;
};

static int rebase_chunk(struct img_walk *walk, uint64_t offset, uint64_t len, uint8_t *data)
{
    const struct rebase *c = (struct rebase *)walk;
    uint64_t n;
    bool same;
    int r = block_rebase_same(c->top, c->base, offset, &n, &same);
    if (r < 0 || (same && n >= len)) {
        if (r == 0)
            img_walk_skip(walk, offset + n);
        return r;
    }
    return block_rebase_range(c->top, c->base, offset, len, data);
}

static int rebase(void *arg)
{
    struct rebase *c = arg;
    const char *name = *c->options->backing ? c->options->backing : NULL;
    int r = c->options->unsafe ? 0 : qcow2_refuse_snapshots(c->top, ", or say -u", c->err);
    if (r == 0 && !c->options->unsafe)
        r = img_walk(&c->walk);
    if (r == 0)
        r = block_do(c->top, BLOCK_FLUSH, 0, NULL, 0);
    return r < 0 ? r : qcow2_set_backing(c->top, name, c->options->backing_format, c->err);
}

static int with_base(const struct img_options *options, struct img_image *top, struct err *err)
{
    own_free char *path = img_beside(top->node->name, options->backing);
    struct img_image base = {0};
    int r = path ? 0 : err_set(err, ENOMEM, "rebase");
    if (r == 0 && !options->unsafe && *options->backing)
        r = img_open(options, path, options->backing_format, true, false, top->ring, &base, err);
    if (r < 0)
        return r;
    struct rebase c = {.walk = {.chunk = rebase_chunk, .end = top->node->size, .progress = options->progress},
                       .options = options,
                       .top = top->node,
                       .base = base.node,
                       .err = err};
    r = block_run(top->ring, rebase, &c);
    base.ring = NULL;
    img_close(&base);
    return r < 0 && !err->code ? err_set(err, -r, "rebase '%s'", options->operands[0]) : r;
}

static int run_rebase(const struct img_options *options, struct err *err)
{
    struct img_image top = {0};
    struct block_options open = {0};
    if (!options->backing)
        return err_say(err, EINVAL, "say which backing file: -b BASE -F FORMAT, or -b '' for none");
    if (*options->backing && !options->backing_format)
        return err_say(err, EINVAL, "state the backing file's format: -F raw or -F qcow2");
    int r = img_block_options(options, options->operands[0], options->format, false, &open, err);
    if (r == 0 && strcmp(open.driver, "qcow2") != 0)
        return err_say(err, ENOTSUP, "'%s' is raw, and only qcow2 images have backing files", options->operands[0]);
    open.no_backing = options->unsafe;
    if (r == 0)
        r = img_open_as(&open, NULL, &top, err);
    if (r < 0 || !top.node)
        return r;
    r = with_base(options, &top, err);
    img_close(&top);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {'b', "backing"},  {'F', "backing-format"},
                                               {'u', "unsafe"}, {'p', "progress"}, {0, NULL}};

const struct img_command img_rebase = {
    .name = "rebase",
    .usage = "[-f FORMAT] [-u] -b BASE [-F FORMAT] [-p] IMAGE",
    .summary = "another backing file",
    .accepts = " format backing backing-format unsafe progress allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_rebase,
};
