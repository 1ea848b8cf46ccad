/* check: counts references, reports and repairs. Statuses are qemu-img's. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "img/img.h"

#define STATUS_CORRUPT 2
#define STATUS_LEAKS 3
#define STATUS_UNSUPPORTED 63

struct work {
    struct block_node *node;
    enum qcow2_repair repair;
    struct qcow2_check check;
    struct err *err;
};

static void print_line(void *arg, const char *line)
{
    fprintf(arg, "%s\n", line);
}

static int check(void *arg)
{
    struct work *work = arg;
    return qcow2_check(work->node, work->repair, &work->check, work->err);
}

static int print_json(const struct img_image *image, const struct qcow2_check *c)
{
    json_t *out = json_pack("{s:I, s:I, s:i, s:s, s:s}", "image-end-offset", (json_int_t)c->image_end, "total-clusters",
                            (json_int_t)c->total_clusters, "check-errors", 0, "filename", image->node->name, "format", image->format);
    const struct {
        const char *name;
        uint64_t value;
    } optional[] = {{"corruptions", c->corruptions},
                    {"leaks", c->leaks},
                    {"corruptions-fixed", c->corruptions_fixed},
                    {"leaks-fixed", c->leaks_fixed},
                    {"allocated-clusters", c->allocated_clusters},
                    {"fragmented-clusters", c->fragmented_clusters},
                    {"compressed-clusters", c->compressed_clusters}};
    for (unsigned i = 0; i < sizeof optional / sizeof *optional; i++)
        if (optional[i].value)
            json_object_set_new(out, optional[i].name, json_integer((json_int_t)optional[i].value));
    return img_print_json(out);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void print_human(const struct qcow2_check *c)
{
    if (c->corruptions_fixed + c->leaks_fixed)
        printf("Repaired: %" PRIu64 " leaked clusters, %" PRIu64 " corruptions.\n", c->leaks_fixed, c->corruptions_fixed);
    if (!c->corruptions && !c->leaks)
        printf("No errors were found on the image.\n");
    if (c->corruptions)
        printf("%" PRIu64 " errors were found on the image; its data may be damaged. Repair it: polder-img check -r all\n", c->corruptions);
    if (c->leaks)
        printf("%" PRIu64 " leaked clusters were found on the image: lost space, no harm to data. polder-img check -r leaks\n", c->leaks);
    if (c->total_clusters)
        printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", c->allocated_clusters,
               c->total_clusters, percent(c->allocated_clusters, c->total_clusters),
               percent(c->fragmented_clusters, c->allocated_clusters), percent(c->compressed_clusters, c->allocated_clusters));
    printf("Image end offset: %" PRIu64 "\n", c->image_end);
}

static int run_check(const struct img_options *options, struct err *err)
{
    struct img_image image;
    int r = img_open(options, options->operands[0], options->format, !options->repair, true, NULL, &image, err);
    if (r < 0)
        return r;
    struct work work = {.node = image.node, .check = {.report = print_line, .arg = options->json ? stderr : stdout}, .err = err};
    if (options->repair)
        work.repair = options->repair[0] == 'a' ? QCOW2_REPAIR_ALL : QCOW2_REPAIR_LEAKS;
    if (strcmp(image.format, "qcow2") != 0) {
        img_close(&image);
        fprintf(stderr, "polder-img: raw images have nothing to check\n");
        return STATUS_UNSUPPORTED;
    }
    r = block_run(image.ring, check, &work);
    if (r == 0 && options->json)
        r = print_json(&image, &work.check);
    else if (r == 0)
        print_human(&work.check);
    img_close(&image);
    if (r < 0)
        return r;
    return work.check.corruptions ? STATUS_CORRUPT : work.check.leaks ? STATUS_LEAKS : 0;
}

static const struct option_letter letters[] = {{'f', "format"}, {'r', "repair"}, {0, NULL}};

const struct img_command img_check = {
    .name = "check",
    .usage = "[-f FORMAT] [-r leaks|all] [--output json] IMAGE",
    .summary = "is the image sound?",
    .accepts = " format repair key output allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_FAILURE,
    .run = run_check,
};
