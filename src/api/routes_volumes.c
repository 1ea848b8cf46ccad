/* Volumes: disks that outlive instances. */
#include <errno.h>

#include "control/volume.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/transfer.h"
#include "api/work.h"

static int reply_volume(struct request *request, const char *name, struct err *err)
{
    json_t *volume;
    int r = volume_get(request->platform->volumes, name, &volume, err);
    return r < 0 ? r : request_reply(request, volume);
}

static int list_volumes(struct request *request, struct err *err)
{
    json_t *list;
    int r = volumes_list(request->platform->volumes, &list, err);
    return r < 0 ? r : request_reply(request, list);
}

static int create_volume(struct request *request, struct err *err)
{
    struct request_audit audit;
    const char *name = request_member(request, "name");
    const json_t *fs = json_object_get(request->body, "fs");
    request_audit(request, &audit, "volume.create", "volumes/%s", name);
    int r = volume_create(request->platform->volumes, name,
                          (uint64_t)json_integer_value(json_object_get(request->body, "size_bytes")),
                          json_is_string(fs) ? json_string_value(fs) : "ext4", &audit.audit, err);
    return r < 0 ? r : reply_volume(request, name, err);
}

static int get_volume(struct request *request, struct err *err)
{
    return reply_volume(request, request->params[0], err);
}

static int remove_volume(struct request *request, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, "volume.remove", "volumes/%s", request->params[0]);
    return volume_remove(request->platform->volumes, request->params[0], &audit.audit, err);
}

static int resize_volume(struct request *request, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, "volume.resize", "volumes/%s", request->params[0]);
    int r = volume_resize(request->platform->volumes, request->params[0],
                          (uint64_t)json_integer_value(json_object_get(request->body, "size_bytes")), &audit.audit, err);
    return r < 0 ? r : reply_volume(request, request->params[0], err);
}

static int run_clone(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct image_progress progress = work_image_progress(operation);
    const char *name = work_member(work, "name");
    int r = volume_clone(work->platform->volumes, work->params[0], name, &progress, operation_audit(operation), err);
    return r < 0 ? r : volume_get(work->platform->volumes, name, ret_result, err);
}

static int clone_volume(struct request *request, struct err *err)
{
    return work_begin(request, "volume.clone", run_clone, err, "volumes/%s", request->params[0]);
}

/* ---- snapshots ---- */

static int create_snapshot(struct request *request, struct err *err)
{
    struct request_audit audit;
    const char *snapshot = request_member(request, "name");
    request_audit(request, &audit, "volume.snapshot", "volumes/%s@%s", request->params[0], snapshot);
    int r = volume_snapshot_create(request->platform->volumes, request->params[0], snapshot, &audit.audit, err);
    return r < 0 ? r : reply_volume(request, request->params[0], err);
}

static int restore_snapshot(struct request *request, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, "volume.restore", "volumes/%s@%s", request->params[0], request->params[1]);
    int r = volume_snapshot_restore(request->platform->volumes, request->params[0], request->params[1], &audit.audit, err);
    return r < 0 ? r : reply_volume(request, request->params[0], err);
}

static int remove_snapshot(struct request *request, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, "volume.snapshot-remove", "volumes/%s@%s", request->params[0], request->params[1]);
    return volume_snapshot_remove(request->platform->volumes, request->params[0], request->params[1], &audit.audit, err);
}

/* ---- in and out ---- */

static int send_volume(const struct transfer *transfer, int fd, struct err *err)
{
    const struct image_progress progress = {.cancelled = transfer_stopping, .context = transfer->platform};
    return volume_export(transfer->platform->volumes, transfer->name, transfer->detail, fd, &progress, err);
}

static int export_volume(struct request *request, struct err *err)
{
    const char *format = request_text(request, "format");
    json_t *volume;
    int r = volume_get(request->platform->volumes, request->params[0], &volume, err);
    if (r < 0)
        return r;
    json_decref(volume);
    return request_reply_transfer(request, send_volume, request->params[0], format ? format : "qcow2", err);
}

static int import_volume(struct request *request, struct err *err)
{
    struct request_audit audit;
    const char *format = request_text(request, "format");
    request_audit(request, &audit, "volume.import", "volumes/%s", request->params[0]);
    int r = volume_import(request->platform->volumes, request->params[0], format ? format : "qcow2", request->body_fd, NULL,
                          &audit.audit, err);
    if (r == -EIO && err) /* polder-img refuses what the client sent */
        return err->code = EINVAL, -EINVAL;
    return r < 0 ? r : reply_volume(request, request->params[0], err);
}

/* ---- the table ---- */

#define SIZE_FIELD                                                                                           \
    {.name = "size_bytes", .text = "Rounded up to 1 MiB.", .type = SCHEMA_INTEGER, .required = true,          \
     .min = VOLUME_SIZE_MIN, .max = VOLUME_SIZE_MAX}

static const struct schema_field volume_fields[] = {
    {.name = "name", .text = "Its name.", .type = SCHEMA_STRING, .format = SCHEMA_NAME, .required = true},
    SIZE_FIELD,
    {.name = "fs", .text = "The file system in it; empty: none. ext4 if left out.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"ext4", "", NULL}},
    {0},
};
static const struct schema volume_schema = {"VolumeSpec", "A volume to make.", volume_fields, false};
static const struct schema_field size_fields[] = {SIZE_FIELD, {0}};
static const struct schema size_schema = {"VolumeSize", "How large a volume shall be.", size_fields, false};
static const struct schema_field export_query[] = {
    {.name = "format", .text = "qcow2 if left out.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"qcow2", "raw", NULL}},
    {0},
};
static const struct schema_field import_query[] = {
    {.name = "format", .text = "Of the body; qcow2 if left out. Never guessed.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi", NULL}},
    {0},
};

const struct route routes_volumes[] = {
    {.method = "GET", .path = "/v1/volumes", .role = ROLE_VIEWER, .handler = list_volumes, .answer = ANSWER_LIST,
     .answer_schema = &schema_object, .text = "All volumes."},
    {.method = "POST", .path = "/v1/volumes", .role = ROLE_OPERATOR, .handler = create_volume, .body = BODY_JSON,
     .schema = &volume_schema, .answer = ANSWER_CREATED, .answer_schema = &schema_object, .text = "A new thin volume."},
    {.method = "GET", .path = "/v1/volumes/{name}", .role = ROLE_VIEWER, .handler = get_volume,
     .answer_schema = &schema_object, .text = "One volume."},
    {.method = "DELETE", .path = "/v1/volumes/{name}", .role = ROLE_OPERATOR, .handler = remove_volume,
     .answer = ANSWER_NOTHING, .text = "Removes a volume that no instance has."},
    {.method = "POST", .path = "/v1/volumes/{name}/resize", .role = ROLE_OPERATOR, .handler = resize_volume, .body = BODY_JSON,
     .schema = &size_schema, .answer_schema = &schema_object, .text = "Makes a volume larger."},
    {.method = "POST", .path = "/v1/volumes/{name}/clone", .role = ROLE_OPERATOR, .handler = clone_volume, .body = BODY_JSON,
     .schema = &schema_new_name, .answer = ANSWER_OPERATION, .text = "A copy under another name."},
    {.method = "POST", .path = "/v1/volumes/{name}/snapshot", .role = ROLE_OPERATOR, .handler = create_snapshot,
     .body = BODY_JSON, .schema = &schema_new_name, .answer = ANSWER_CREATED, .answer_schema = &schema_object,
     .text = "Keeps what the volume holds now."},
    {.method = "POST", .path = "/v1/volumes/{name}/snapshots/{snapshot}/restore", .role = ROLE_OPERATOR,
     .handler = restore_snapshot, .answer_schema = &schema_object, .text = "The volume as it was."},
    {.method = "DELETE", .path = "/v1/volumes/{name}/snapshots/{snapshot}", .role = ROLE_OPERATOR,
     .handler = remove_snapshot, .answer = ANSWER_NOTHING, .text = "Forgets a snapshot."},
    {.method = "GET", .path = "/v1/volumes/{name}/export", .role = ROLE_OPERATOR, .handler = export_volume,
     .query = export_query, .answer = ANSWER_STREAM, .media = "application/octet-stream", .text = "The volume's bytes."},
    {.method = "PUT", .path = "/v1/volumes/{name}/import", .role = ROLE_OPERATOR, .handler = import_volume,
     .query = import_query, .body = BODY_STREAM, .answer = ANSWER_CREATED, .answer_schema = &schema_object,
     .text = "A new volume from a disk image."},
    {0},
};
