/* Images. They live in their own store on disk, so their events are made here. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/events.h"
#include "api/prune.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/transfer.h"
#include "api/work.h"
#include "base/log.h"
#include "base/own.h"
#include "image/rootfs.h"

/* Notes what was done to an image: for the audit log, and for those who watch. */
static void note(struct platform *platform, const struct store_audit *audit, const char *ref, const char *action)
{
    json_t *image = NULL;
    if (store_commit(platform->store, NULL, 0, audit, NULL, NULL) < 0)
        log_warn("audit of %s %s cannot be kept", audit->action, audit->target);
    if (image_inspect(platform->images, ref, &image, NULL) < 0)
        image = NULL;
    events_publish(platform->events, "image", ref, action, image);
    json_decref(image);
}

static int list_images(struct request *request, struct err *err)
{
    json_t *list;
    int r = image_list(request->platform->images, &list, err);
    return r < 0 ? r : request_reply(request, list);
}

static int inspect_image(struct request *request, struct err *err)
{
    json_t *image;
    int r = image_inspect(request->platform->images, request_text(request, "ref"), &image, err);
    return r < 0 ? r : request_reply(request, image);
}

static int remove_image(struct request *request, struct err *err)
{
    struct request_audit audit;
    const char *ref = request_text(request, "ref");
    request_audit(request, &audit, "image.remove", "images/%s", ref);
    int r = image_check_unused(request->platform, ref, err);
    if (r == 0)
        r = image_remove(request->platform->images, ref, err);
    if (r == 0)
        note(request->platform, &audit.audit, ref, "removed");
    return r;
}

static int tag_image(struct request *request, struct err *err)
{
    struct request_audit audit;
    json_t *image;
    const char *target = request_member(request, "target");
    request_audit(request, &audit, "image.tag", "images/%s", target);
    int r = image_tag(request->platform->images, request_member(request, "ref"), target, err);
    if (r < 0)
        return r;
    note(request->platform, &audit.audit, target, "tagged");
    r = image_inspect(request->platform->images, target, &image, err);
    return r < 0 ? r : request_reply(request, image);
}

/* ---- operations ---- */

static int end_of(struct operation *operation, const struct work *work, const char *ref, const char *action,
                  json_t **ret_result, struct err *err)
{
    note(work->platform, operation_audit(operation), ref, action);
    return image_inspect(work->platform->images, ref, ret_result, err);
}

static struct image_remote remote_of(const struct work *work)
{
    return (struct image_remote){.insecure = work_flag(work, "insecure"), .username = work_member(work, "username"),
                                 .password = work_member(work, "password")};
}

static int run_pull(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct image_progress progress = work_image_progress(operation);
    const struct image_remote remote = remote_of(work);
    char digest[IMAGE_DIGEST_SIZE];
    const char *ref = work_member(work, "ref");
    int r = image_pull(work->platform->images, ref, &remote, &progress, digest, err);
    return r < 0 ? r : end_of(operation, work, ref, "pulled", ret_result, err);
}

static int run_push(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct image_progress progress = work_image_progress(operation);
    const struct image_remote remote = remote_of(work);
    const char *ref = work_member(work, "ref");
    int r = image_push(work->platform->images, ref, work_member(work, "target"), &remote, &progress, err);
    return r < 0 ? r : end_of(operation, work, ref, "pushed", ret_result, err);
}

static int run_build(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct image_progress progress = work_image_progress(operation);
    const json_t *packages = json_object_get(work->body, "packages");
    char digest[IMAGE_DIGEST_SIZE];
    const char *ref = work_member(work, "ref");
    own_free const char **names = calloc(json_array_size(packages) + 1, sizeof *names);
    if (!names)
        return err_set(err, ENOMEM, "packages");
    for (size_t i = 0; i < json_array_size(packages); i++)
        names[i] = json_string_value(json_array_get(packages, i));
    const struct image_debian debian = {.suite = work_member(work, "suite"), .packages = names};
    int r = image_build_debian(work->platform->images, ref, &debian, &progress, digest, err);
    return r < 0 ? r : end_of(operation, work, ref, "built", ret_result, err);
}

static int run_prune(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    return images_prune(work->platform, operation_audit(operation), ret_result, err);
}

static int begin_with_ref(struct request *request, const char *kind, operation_fn *fn, struct err *err)
{
    return work_begin(request, kind, fn, err, "images/%.140s", request_member(request, "ref"));
}

static int pull_image(struct request *request, struct err *err)
{
    return begin_with_ref(request, "image.pull", run_pull, err);
}

static int push_image(struct request *request, struct err *err)
{
    return begin_with_ref(request, "image.push", run_push, err);
}

static int build_image(struct request *request, struct err *err)
{
    return begin_with_ref(request, "image.build", run_build, err);
}

static int prune_images(struct request *request, struct err *err)
{
    return work_begin(request, "image.prune", run_prune, err, "images");
}

/* ---- archives ---- */

/* The body is a disk when its format is said, else an archive. */
static int take_image(const struct request *request, const struct image_progress *progress, char ref[static IMAGE_REF_SIZE],
                      struct err *err)
{
    struct image_store *images = request->platform->images;
    const char *given = request_text(request, "ref");
    const struct image_disk disk = {.fd = request->body_fd,
                                    .format = request_text(request, "disk"),
                                    .kernel_fd = -1,
                                    .initrd_fd = -1,
                                    .cmdline = request_text(request, "cmdline")};
    char digest[IMAGE_DIGEST_SIZE];
    if (!disk.format && disk.cmdline)
        return err_say(err, EINVAL, "cmdline: goes with the format of a disk");
    if (!disk.format)
        return image_import(images, disk.fd, given, progress, ref, err);
    if (!given)
        return err_say(err, EINVAL, "ref: a disk has no name of its own: give the image one");
    snprintf(ref, IMAGE_REF_SIZE, "%s", given);
    return image_import_disk(images, ref, &disk, progress, digest, err);
}

static int run_import(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct request *request = arg;
    const struct image_progress progress = work_image_progress(operation);
    char ref[IMAGE_REF_SIZE];
    int r = take_image(request, &progress, ref, err);
    if (r < 0)
        return r;
    struct request_audit audit;
    request_audit(request, &audit, "image.import", "images/%.140s", ref); /* the archive may have named it */
    note(request->platform, &audit.audit, ref, "imported");
    return image_inspect(request->platform->images, ref, ret_result, err);
}

static int import_image(struct request *request, struct err *err)
{
    char target[160];
    const char *ref = request_text(request, "ref");
    json_t *image = NULL;
    snprintf(target, sizeof target, "images/%.140s", ref ? ref : "");
    int r = request_run_operation(request, "image.import", target, run_import, request, &image, err);
    return r < 0 ? r : request_reply(request, image);
}

static int send_image(const struct transfer *transfer, int fd, struct err *err)
{
    const struct image_progress progress = {.cancelled = transfer_stopping, .context = transfer->platform};
    return image_export(transfer->platform->images, transfer->name, fd, &progress, err);
}

static int export_image(struct request *request, struct err *err)
{
    return request_reply_transfer(request, send_image, request_text(request, "ref"), NULL, err);
}

/* ---- the table ---- */

#define REF_FIELD(needed)                                                                                    \
    {.name = "ref", .text = "Like 'debian:12'.", .type = SCHEMA_STRING, .format = SCHEMA_REF, .required = (needed), \
     .max = 512}

static const struct schema_field remote_fields[] = {
    REF_FIELD(true),
    {.name = "target", .text = "Where to, if not to its own name.", .type = SCHEMA_STRING, .format = SCHEMA_REF, .max = 512},
    {.name = "insecure", .text = "Certificates are not verified, http is fine.", .type = SCHEMA_BOOL},
    {.name = "username", .text = "For the registry.", .type = SCHEMA_STRING, .max = 256},
    {.name = "password", .text = "Kept nowhere.", .type = SCHEMA_STRING},
    {0},
};
static const struct schema remote_schema = {"ImageRemote", "An image of a registry.", remote_fields, false};
static const struct schema_field build_fields[] = {
    REF_FIELD(true),
    {.name = "suite", .text = "Of Debian, like 'bookworm'.", .type = SCHEMA_STRING, .format = SCHEMA_SUITE, .max = 64,
     .required = true},
    {.name = "packages", .text = "Besides the minimal system.", .type = SCHEMA_LIST, .format = SCHEMA_SUITE},
    {0},
};
static const struct schema build_schema = {"ImageBuild", "A Debian system to make.", build_fields, false};
static const struct schema_field tag_fields[] = {
    REF_FIELD(true),
    {.name = "target", .text = "The other name.", .type = SCHEMA_STRING, .format = SCHEMA_REF, .max = 512, .required = true},
    {0},
};
static const struct schema tag_schema = {"ImageTag", "Another name for an image.", tag_fields, false};
static const struct schema_field ref_query[] = {REF_FIELD(true), {0}};
static const struct schema_field import_query[] = {
    REF_FIELD(false),
    {.name = "disk", .text = "The body is a disk of this format with a system of its own; left out, an archive.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", NULL}},
    {.name = "cmdline", .text = "Of the disk's kernel, if not \"root=\" of its system's partition and \"ro console=ttyS0\".",
     .type = SCHEMA_STRING, .max = 2047},
    {0},
};

const struct route routes_images[] = {
    {.method = "GET", .path = "/v1/images", .role = ROLE_VIEWER, .handler = list_images, .answer = ANSWER_LIST,
     .answer_schema = &schema_object, .text = "All images."},
    {.method = "DELETE", .path = "/v1/images", .role = ROLE_OPERATOR, .handler = remove_image, .query = ref_query,
     .answer = ANSWER_NOTHING, .text = "Takes a name away; the bytes go when pruned."},
    {.method = "GET", .path = "/v1/images/inspect", .role = ROLE_VIEWER, .handler = inspect_image, .query = ref_query,
     .answer_schema = &schema_object, .text = "One image, with its configuration and layers."},
    {.method = "POST", .path = "/v1/images/pull", .role = ROLE_OPERATOR, .handler = pull_image, .body = BODY_JSON,
     .schema = &remote_schema, .answer = ANSWER_OPERATION, .text = "Fetches an image from a registry."},
    {.method = "POST", .path = "/v1/images/push", .role = ROLE_OPERATOR, .handler = push_image, .body = BODY_JSON,
     .schema = &remote_schema, .answer = ANSWER_OPERATION, .text = "Sends an image to a registry."},
    {.method = "POST", .path = "/v1/images/build", .role = ROLE_OPERATOR, .handler = build_image, .body = BODY_JSON,
     .schema = &build_schema, .answer = ANSWER_OPERATION, .text = "Makes a Debian image from Debian's packages."},
    {.method = "POST", .path = "/v1/images/tag", .role = ROLE_OPERATOR, .handler = tag_image, .body = BODY_JSON,
     .schema = &tag_schema, .answer_schema = &schema_object, .text = "Gives an image another name."},
    {.method = "POST", .path = "/v1/images/prune", .role = ROLE_OPERATOR, .handler = prune_images,
     .answer = ANSWER_OPERATION, .text = "Removes bytes that no name and no instance needs."},
    {.method = "PUT", .path = "/v1/images/import", .role = ROLE_OPERATOR, .handler = import_image, .query = import_query,
     .body = BODY_STREAM, .answer = ANSWER_CREATED, .answer_schema = &schema_object,
     .text = "An image from an OCI layout or docker archive in a tar."},
    {.method = "GET", .path = "/v1/images/export", .role = ROLE_VIEWER, .handler = export_image, .query = ref_query,
     .answer = ANSWER_STREAM, .media = "application/x-tar", .text = "An image as OCI layout and docker archive in one tar."},
    {0},
};
