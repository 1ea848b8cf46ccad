/* info: what an image is, from its header; its backing file is not opened. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/own.h"
#include "img/img.h"
#include "img/snapshots.h"

/* "20 GiB" in at most three digits. */
static void print_size(char text[32], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    while (value > 1000 && unit < 6) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 32, "%.3g %s", value, units[unit]);
}

static json_t *bitmaps_json(struct block_node *node)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < qcow2_bitmap_count(node); i++) {
        struct qcow2_bitmap b;
        json_t *flags = json_array();
        qcow2_get_bitmap(node, i, &b);
        if (b.in_use)
            json_array_append_new(flags, json_string("in-use"));
        if (b.enabled)
            json_array_append_new(flags, json_string("auto"));
        json_t *item = json_pack("{s:o, s:s, s:I}", "flags", flags, "name", b.name, "granularity", (json_int_t)b.granularity);
        json_array_append_new(list, item ? item : json_pack("{s:s}", "name", "not UTF-8"));
    }
    return list;
}

static void print_bitmaps(struct block_node *node)
{
    if (qcow2_bitmap_count(node))
        printf("    bitmaps:\n");
    for (uint32_t i = 0; i < qcow2_bitmap_count(node); i++) {
        struct qcow2_bitmap b;
        qcow2_get_bitmap(node, i, &b);
        printf("        [%u]:\n            flags:\n", i);
        if (b.in_use)
            printf("                [0]: in-use\n");
        if (b.enabled)
            printf("                [%d]: auto\n", b.in_use);
        printf("            name: %s\n            granularity: %" PRIu64 "\n", b.name, b.granularity);
    }
}

static json_t *qcow2_json(const struct img_image *image, const struct qcow2_info *info)
{
    json_t *bitmaps = bitmaps_json(image->node);
    json_t *data = json_pack("{s:s, s:s, s:b, s:i, s:b, s:b}", "compat", info->version == 2 ? "0.10" : "1.1", "compression-type",
                             info->zstd ? "zstd" : "zlib", "lazy-refcounts", info->lazy_refcounts, "refcount-bits",
                             (int)info->refcount_bits, "corrupt", info->corrupt, "extended-l2", info->extended_l2);
    if (json_array_size(bitmaps))
        json_object_set(data, "bitmaps", bitmaps);
    json_decref(bitmaps);
    if (info->data_file) {
        json_object_set_new(data, "data-file", json_string(info->data_file));
        json_object_set_new(data, "data-file-raw", json_boolean(info->external_raw));
    }
    return json_pack("{s:s, s:o}", "type", "qcow2", "data", data);
}

static int print_json(const struct img_image *image, uint64_t actual, const struct qcow2_info *info, json_t *snapshots)
{
    json_t *out = json_pack("{s:I, s:s, s:s, s:I, s:b}", "virtual-size", (json_int_t)image->node->size, "filename",
                            image->node->name, "format", image->format, "actual-size", (json_int_t)actual, "dirty-flag", info->dirty);
    if (info->version) {
        json_object_set_new(out, "cluster-size", json_integer(info->cluster_size));
        json_object_set_new(out, "format-specific", qcow2_json(image, info));
    }
    if (info->backing) {
        own_free char *full = img_beside(image->node->name, info->backing);
        json_object_set_new(out, "backing-filename", json_string(info->backing));
        json_object_set_new(out, "full-backing-filename", json_string(full ? full : info->backing));
        if (info->backing_format)
            json_object_set_new(out, "backing-filename-format", json_string(info->backing_format));
    }
    if (json_array_size(snapshots))
        json_object_set(out, "snapshots", snapshots);
    return img_print_json(out);
}

static void print_qcow2(const struct img_image *image, const struct qcow2_info *info, const json_t *snapshots)
{
    printf("cluster_size: %u\n", info->cluster_size);
    if (info->backing)
        printf("backing file: %s\n", info->backing);
    if (info->backing_format)
        printf("backing file format: %s\n", info->backing_format);
    if (json_array_size(snapshots)) {
        printf("Snapshot list:\n");
        img_print_snapshots(snapshots);
    }
    printf("Format specific information:\n    compat: %s\n    compression type: %s\n    lazy refcounts: %s\n",
           info->version == 2 ? "0.10" : "1.1", info->zstd ? "zstd" : "zlib", info->lazy_refcounts ? "true" : "false");
    print_bitmaps(image->node);
    printf("    refcount bits: %u\n", info->refcount_bits);
    if (info->data_file)
        printf("    data file: %s\n    data file raw: %s\n", info->data_file, info->external_raw ? "true" : "false");
    printf("    corrupt: %s\n    extended l2: %s\n", info->corrupt ? "true" : "false", info->extended_l2 ? "true" : "false");
}

static int print(const struct img_options *options, const struct img_image *image, struct err *err)
{
    struct stat st = {0};
    struct qcow2_info info = {0};
    json_t *snapshots = NULL;
    if (strcmp(image->format, "qcow2") == 0) {
        qcow2_get_info(image->node, &info);
        int r = img_list_snapshots(image, &snapshots, err);
        if (r < 0)
            return r;
    }
    stat(image->node->name, &st);
    uint64_t actual = (uint64_t)st.st_blocks * 512;
    int r = 0;
    if (options->json) {
        r = print_json(image, actual, &info, snapshots);
    } else {
        char size[32], used[32];
        print_size(size, image->node->size);
        print_size(used, actual);
        printf("image: %s\nfile format: %s\nvirtual size: %s (%" PRIu64 " bytes)\ndisk size: %s\n", image->node->name, image->format,
               size, image->node->size, used);
        if (info.version)
            print_qcow2(image, &info, snapshots);
    }
    json_decref(snapshots);
    return r;
}

static int run_info(const struct img_options *options, struct err *err)
{
    struct img_image image;
    int r = img_open(options, options->operands[0], options->format, true, true, NULL, &image, err);
    if (r < 0)
        return r;
    r = print(options, &image, err);
    img_close(&image);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {0, NULL}};

const struct img_command img_info = {
    .name = "info",
    .usage = "[-f FORMAT] [--output json] IMAGE",
    .summary = "what an image is",
    .accepts = " format output allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_info,
};
