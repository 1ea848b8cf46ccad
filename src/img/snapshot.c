/* snapshot: internal snapshots of a qcow2 image. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "img/snapshots.h"

struct work {
    const struct img_options *options;
    struct block_node *node;
    struct qcow2_snapshots snapshots;
    struct err *err;
};

static int load(void *arg)
{
    struct work *work = arg;
    return qcow2_snapshots_load(work->node, &work->snapshots, work->err);
}

int img_list_snapshots(const struct img_image *image, json_t **ret_list, struct err *err)
{
    struct work work = {.node = image->node, .err = err};
    int r = block_run(image->ring, load, &work);
    if (r < 0)
        return r;
    json_t *list = json_array();
    for (uint32_t i = 0; i < work.snapshots.count; i++) {
        const struct qcow2_snapshot *s = &work.snapshots.list[i];
        json_t *item = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", s->id, "name", s->name, "vm-state-size",
                                 (json_int_t)s->vm_state_size, "date-sec", (json_int_t)s->date_s, "date-nsec",
                                 (json_int_t)s->date_ns, "vm-clock-sec", (json_int_t)(s->vm_clock_ns / 1000000000u),
                                 "vm-clock-nsec", (json_int_t)(s->vm_clock_ns % 1000000000u));
        if (item && s->icount != UINT64_MAX)
            json_object_set_new(item, "icount", json_integer((json_int_t)s->icount));
        json_array_append_new(list, item ? item : json_pack("{s:s}", "name", "not UTF-8"));
    }
    qcow2_snapshots_free(&work.snapshots);
    *ret_list = list;
    return 0;
}

void img_print_snapshots(const json_t *list)
{
    size_t i;
    json_t *item;
    printf("%-10s%-20s%12s%20s\n", "ID", "TAG", "VM SIZE", "DATE");
    for (i = 0; (item = json_array_get(list, i)) != NULL; i++) {
        const char *id = json_string_value(json_object_get(item, "id"));
        time_t when = (time_t)json_integer_value(json_object_get(item, "date-sec"));
        char date[32] = "";
        struct tm tm;
        if (localtime_r(&when, &tm))
            strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
        printf("%-10s%-20s%12" PRIu64 "%20s\n", id ? id : "", json_string_value(json_object_get(item, "name")),
               (uint64_t)json_integer_value(json_object_get(item, "vm-state-size")), date);
    }
}

static int change(void *arg)
{
    struct work *work = arg;
    const struct img_options *o = work->options;
    if (o->snapshot_create)
        return qcow2_snapshot_create(work->node, o->snapshot_create, work->err);
    if (o->snapshot_apply)
        return qcow2_snapshot_apply(work->node, o->snapshot_apply, work->err);
    return qcow2_snapshot_delete(work->node, o->snapshot_delete, work->err);
}

static int list_all(const struct img_options *options, const struct img_image *image, struct err *err)
{
    json_t *list;
    int r = img_list_snapshots(image, &list, err);
    if (r < 0)
        return r;
    if (options->json)
        return img_print_json(list);
    if (json_array_size(list)) {
        printf("Snapshot list:\n");
        img_print_snapshots(list);
    }
    json_decref(list);
    return 0;
}

static int run_snapshot(const struct img_options *options, struct err *err)
{
    unsigned changes = (options->snapshot_create ? 1u : 0) + (options->snapshot_apply ? 1u : 0) +
                       (options->snapshot_delete ? 1u : 0);
    struct img_image image;
    if (changes + (options->snapshot_list ? 1u : 0) > 1)
        return err_say(err, EINVAL, "only one of -l, -c, -a and -d at a time");
    int r = img_open(options, options->operands[0], options->format, !changes, false, NULL, &image, err);
    if (r < 0)
        return r;
    struct work work = {.options = options, .node = image.node, .err = err};
    if (strcmp(image.format, "qcow2") != 0)
        r = err_say(err, ENOTSUP, "'%s' is raw, and only qcow2 images have snapshots", options->operands[0]);
    else
        r = changes ? block_run(image.ring, change, &work) : list_all(options, &image, err);
    img_close(&image);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {'l', "list"},   {'c', "create"},
                                               {'a', "apply"},  {'d', "delete"}, {0, NULL}};

const struct img_command img_snapshot = {
    .name = "snapshot",
    .usage = "[-f FORMAT] [-l | -c NAME | -a NAME | -d NAME] IMAGE",
    .summary = "snapshots inside of the image",
    .accepts = " format key list create apply delete output allow-backing ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = 1,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_snapshot,
};
