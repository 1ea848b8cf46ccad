/* map: what each range of a disk is, and where it lies. Neighbours that are alike and lie in a row are one line. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "img/img.h"

struct mapping {
    struct block_node *node;
    bool json;
    json_t *list;
    uint64_t start;
    struct block_extent extent; /* what was found, from `start` on; not printed yet */
};

static void print_extent(struct mapping *m)
{
    const struct block_extent *e = &m->extent;
    if (!e->len)
        return;
    if (!m->json) {
        if (e->data && !e->zero && e->has_offset)
            printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", m->start, e->len, e->offset, e->name);
        return;
    }
    json_t *item = json_pack("{s:I, s:I, s:i, s:b, s:b, s:b}", "start", (json_int_t)m->start, "length", (json_int_t)e->len, "depth",
                             (int)e->depth, "present", e->present, "zero", e->zero, "data", e->data);
    if (e->has_offset)
        json_object_set_new(item, "offset", json_integer((json_int_t)e->offset));
    json_array_append_new(m->list, item);
}

static bool joins(const struct block_extent *a, const struct block_extent *b)
{
    return a->len && a->data == b->data && a->zero == b->zero && a->present == b->present && a->depth == b->depth &&
           a->has_offset == b->has_offset && (!a->has_offset || (a->offset + a->len == b->offset && a->name == b->name));
}

static int collect(void *arg)
{
    struct mapping *m = arg;
    struct block_extent extent;
    for (uint64_t at = 0; at < m->node->size; at += extent.len) {
        int r = block_status(m->node, at, m->node->size - at, &extent);
        if (r < 0)
            return r;
        if (extent.compressed && !m->json)
            fprintf(stderr, "polder-img: bytes %" PRIu64 " to %" PRIu64 " are compressed and left out\n", at, at + extent.len);
        if (joins(&m->extent, &extent)) {
            m->extent.len += extent.len;
        } else {
            print_extent(m);
            m->start = at;
            m->extent = extent;
        }
    }
    print_extent(m);
    return 0;
}

static int run_map(const struct img_options *options, struct err *err)
{
    struct img_image image;
    int r = img_open(options, options->operands[0], options->format, true, false, NULL, &image, err);
    if (r < 0)
        return r;
    struct mapping m = {.node = image.node, .json = options->json, .list = json_array()};
    if (!m.json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    r = block_run(image.ring, collect, &m);
    if (r == 0 && m.json)
        r = img_print_json(json_incref(m.list));
    json_decref(m.list);
    img_close(&image);
    return r < 0 ? err_set(err, -r, "map '%s'", options->operands[0]) : 0;
}

static const struct option_letter letters[] = {{'f', "format"}, {0, NULL}};

const struct img_command img_map = {
    .name = "map",
    .usage = "[-f FORMAT] [--output json] IMAGE",
    .summary = "where its data lies",
    .accepts = " format key output allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_map,
};
