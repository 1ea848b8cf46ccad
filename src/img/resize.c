/* resize: a larger disk, or a smaller one. */
#include <errno.h>
#include <string.h>

#include "img/img.h"

struct resizing {
    struct block_node *node;
    uint64_t size;
    struct err *err;
};

static int resize(void *arg)
{
    struct resizing *resizing = arg;
    int r = resizing->node->class->resize(resizing->node, resizing->size, resizing->err);
    return r < 0 ? r : block_do(resizing->node, BLOCK_FLUSH, 0, NULL, 0);
}

static int run_resize(const struct img_options *options, struct err *err)
{
    struct img_image image = {0};
    const char *text = options->operands[1];
    uint64_t size;
    bool relative = *text == '+' || *text == '-';
    int r = img_parse_size(text + relative, &size, err);
    if (r == 0)
        r = img_open(options, options->operands[0], options->format, false, false, NULL, &image, err);
    if (r < 0 || !image.node)
        return r;
    uint64_t old = image.node->size;
    if (relative)
        size = *text == '+' ? old + size : old > size ? old - size : 0;
    size = (size + BLOCK_SECTOR_SIZE - 1) & ~(uint64_t)(BLOCK_SECTOR_SIZE - 1);
    struct resizing resizing = {image.node, size, err};
    if (size < old && !options->shrink)
        r = err_say(err, EINVAL, "'%s' has %llu bytes, and what is behind the new end would be lost; if that is meant, say --shrink",
                    image.node->name, (unsigned long long)old);
    else
        r = block_run(image.ring, resize, &resizing);
    img_close(&image);
    return r < 0 && err && !err->code ? err_set(err, -r, "resize '%s'", options->operands[0]) : r;
}

static const struct option_letter letters[] = {{'f', "format"}, {0, NULL}};

const struct img_command img_resize = {
    .name = "resize",
    .usage = "[-f FORMAT] [--shrink] IMAGE [+|-]SIZE",
    .summary = "make the disk larger or smaller",
    .accepts = " format shrink allow-backing ",
    .letters = letters,
    .operands_min = 2,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_resize,
};
