/* bitmap: persistent dirty bitmaps of a qcow2 image. Steps are taken in the order in which they are given. */
#include <errno.h>
#include <string.h>

#include "img/img.h"

struct work {
    const struct img_options *options;
    struct block_node *node, *source;
    uint32_t granularity;
    struct err *err;
};

static int take_steps(void *arg)
{
    struct work *work = arg;
    const struct img_options *o = work->options;
    for (unsigned i = 0; i < o->bitmap_step_count; i++) {
        struct qcow2_bitmap_change change = {.action = o->bitmap_steps[i].action,
                                             .name = o->operands[1],
                                             .granularity = work->granularity,
                                             .source = o->bitmap_steps[i].source,
                                             .source_node = work->source};
        int r = qcow2_bitmap_change(work->node, &change, work->err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int open_qcow2(const struct img_options *options, const char *path, const char *format, bool read_only,
                      struct block_ring *ring, struct img_image *ret_image, struct err *err)
{
    int r = img_open(options, path, format, read_only, read_only, ring, ret_image, err);
    if (r < 0 || strcmp(ret_image->format, "qcow2") == 0)
        return r;
    if (ring)
        ret_image->ring = NULL;
    img_close(ret_image);
    return err_say(err, ENOTSUP, "'%s' is raw, and only qcow2 images have bitmaps", path);
}

static int with_source(struct work *work, const struct img_image *image)
{
    const struct img_options *o = work->options;
    struct img_image source = {0};
    if (!o->backing)
        return block_run(image->ring, take_steps, work);
    int r = open_qcow2(o, o->backing, o->backing_format, true, image->ring, &source, work->err);
    if (r < 0)
        return r;
    work->source = source.node;
    r = block_run(image->ring, take_steps, work);
    source.ring = NULL;
    img_close(&source);
    return r;
}

static int parse_granularity(const char *text, uint32_t *ret_granularity, struct err *err)
{
    uint64_t bytes = 0;
    int r = text ? img_parse_size(text, &bytes, err) : 0;
    if (r == 0 && text && (bytes < 512 || bytes > UINT32_C(1) << 31))
        return err_say(err, EINVAL, "a bitmap's granularity is a power of two from 512 to 2G");
    if (r == 0)
        *ret_granularity = (uint32_t)bytes;
    return r;
}

static int run_bitmap(const struct img_options *options, struct err *err)
{
    struct img_image image = {0};
    struct work work = {.options = options, .err = err};
    if (!options->bitmap_step_count)
        return err_say(err, EINVAL, "say what to do: --add, --remove, --clear, --enable, --disable or --merge SOURCE");
    int r = parse_granularity(options->granularity, &work.granularity, err);
    if (r == 0)
        r = open_qcow2(options, options->operands[0], options->format, false, NULL, &image, err);
    if (r < 0)
        return r;
    work.node = image.node;
    r = with_source(&work, &image);
    img_close(&image);
    return r;
}

static const struct option_letter letters[] = {
    {'f', "format"}, {'b', "backing"}, {'F', "backing-format"}, {'g', "granularity"}, {0, NULL}};

const struct img_command img_bitmap = {
    .name = "bitmap",
    .usage = "(--add | --remove | --clear | --enable | --disable | --merge SOURCE)... [-b PATH [-F FORMAT]] [-g SIZE] "
             "[-f FORMAT] IMAGE NAME",
    .summary = "bitmaps of what was written",
    .accepts = " format backing backing-format granularity add remove clear enable disable merge allow-backing ",
    .letters = letters,
    .operands_min = 2,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_bitmap,
};
