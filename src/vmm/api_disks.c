/* Handlers for disks of a machine that runs. With api->lock held. The config follows what the machine took, so that GET
 * /vm/config tells the truth. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/api_impl.h"

static int find_disk(struct api *api, const struct api_request *request, bool op, const char *what, struct vm_disk **ret_disk,
                     struct err *err)
{
    *ret_disk = api_disk_find(api->config, request->id);
    if (!*ret_disk)
        return err_say(err, ENOENT, "Invalid block device ID: %s", request->id);
    return op ? 0 : api_not_there(what, err);
}

/* The disk's file is another one now. */
static int set_file(struct vm_disk *disk, const char *path, const char *format, struct err *err)
{
    int ret = vm_config_set(&disk->path, path, err);
    if (ret == 0 && format)
        ret = vm_config_set(&disk->format, format, err);
    return ret;
}

int api_disk_update_backing(struct api *api, struct vm_disk *disk, struct err *err)
{
    char *names[VM_MAX_BACKING + 1];
    if (!disk->backing[0] || !api->ops->disk_chain)
        return 0;
    int ret = api->ops->disk_chain(api->arg, disk->id, names, err);
    if (ret < 0)
        return ret;
    vm_disk_clear_backing(disk);
    memcpy(disk->backing, names, sizeof names);
    return 0;
}

static int update_path(struct api *api, struct vm_disk *disk, const char *path, struct err *err)
{
    if (!api->ops->disk_set_path)
        return api_not_there("changing a disk's file", err);
    int ret = api->ops->disk_set_path(api->arg, disk->id, path, err);
    return ret < 0 ? ret : set_file(disk, path, NULL, err);
}

static int update_limit(struct api *api, struct vm_disk *disk, const json_t *limiter, struct err *err)
{
    if (!api->ops->disk_set_limit)
        return api_not_there("changing a disk's limits", err);
    struct vm_rate_limit limit = disk->limit;
    api_rate_limit_update(&limit, limiter);
    int ret = api->ops->disk_set_limit(api->arg, disk->id, &limit, err);
    if (ret == 0)
        disk->limit = limit;
    return ret;
}

static int update_share(struct api *api, struct vm_disk *disk, const json_t *body, struct err *err)
{
    const char *group = api_string(body, "throttle_id");
    struct throttle_share old = disk->share;
    if (!api->ops->disk_set_share)
        return api_not_there("changing a disk's part in its group", err);
    if (!disk->throttle || (group && strcmp(group, disk->throttle) != 0))
        return err_say(err, EINVAL, "disk '%s' is in %s%s; that can only change before the start", disk->id,
                       disk->throttle ? "group " : "no group", disk->throttle ? disk->throttle : "");
    int ret = api_share_update(disk, body, err);
    if (ret == 0)
        ret = vm_config_check_throttles(api->config, err);
    if (ret == 0)
        ret = api->ops->disk_set_share(api->arg, disk->id, &disk->share, err);
    if (ret < 0)
        disk->share = old;
    return ret;
}

int api_patch_drive(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const json_t *body = request->body;
    bool has_path = api_has(body, "path_on_host"), has_limit = api_has(body, "rate_limiter"), has_size = api_has(body, "size"),
         has_share = api_has(body, "throttle");
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_set_size || !has_size, "changing a disk's size", &disk, err);
    if (ret < 0)
        return ret;
    if (!has_path && !has_limit && !has_size && !has_share)
        return err_say(err, EINVAL, "the update has neither path_on_host nor size, rate_limiter or throttle");
    if (has_path)
        ret = update_path(api, disk, api_string(body, "path_on_host"), err);
    if (ret == 0 && has_size && api->ops->disk_set_size)
        ret = api->ops->disk_set_size(api->arg, disk->id, api_integer(body, "size", 0), err);
    if (ret == 0 && has_limit)
        ret = update_limit(api, disk, json_object_get(body, "rate_limiter"), err);
    if (ret == 0 && has_share)
        ret = update_share(api, disk, json_object_get(body, "throttle"), err);
    return ret;
}

/* ---- snapshots ---- */

int api_put_drive_snapshot(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const char *path = api_string(request->body, "path_on_host"), *name = api_string(request->body, "name");
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_internal_snapshot, "a disk's snapshot", &disk, err);
    if (ret < 0)
        return ret;
    if (!path == !name)
        return err_say(err, EINVAL, "give either path_on_host or a name");
    if (name)
        return api->ops->disk_internal_snapshot(api->arg, disk->id, DISK_SNAPSHOT_CREATE, name, NULL, err);
    if (!api->ops->disk_snapshot)
        return api_not_there("a disk's snapshot", err);
    ret = api->ops->disk_snapshot(api->arg, disk->id, path, err);
    return ret < 0 ? ret : set_file(disk, path, "qcow2", err);
}

int api_patch_drive_snapshot(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    bool apply = !strcmp(api_string(request->body, "action"), "Apply"); /* else Delete: the schema knows no other */
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_internal_snapshot, "a disk's snapshot", &disk, err);
    if (ret < 0)
        return ret;
    if (apply && api->ops->state(api->arg) != API_VM_PAUSED)
        return err_say(err, EBUSY, "the guest runs, and what it has in memory would not fit the disk any more; pause the machine first "
                                   "(it restarts when it is resumed)");
    return api->ops->disk_internal_snapshot(api->arg, disk->id, apply ? DISK_SNAPSHOT_APPLY : DISK_SNAPSHOT_DELETE,
                                            api_string(request->body, "name"), NULL, err);
}

int api_get_drive_snapshot(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    struct qcow2_snapshots snapshots = {0};
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_internal_snapshot, "a disk's snapshot", &disk, err);
    if (ret == 0)
        ret = api->ops->disk_internal_snapshot(api->arg, disk->id, DISK_SNAPSHOT_LIST, NULL, &snapshots, err);
    if (ret < 0)
        return ret;
    json_t *root = json_object(), *list = json_array();
    for (uint32_t i = 0; i < snapshots.count; i++) {
        const struct qcow2_snapshot *snapshot = &snapshots.list[i];
        json_t *shown = json_object();
        json_object_set_new(shown, "id", json_string(snapshot->id));
        json_object_set_new(shown, "name", json_string(snapshot->name));
        json_object_set_new(shown, "date_s", json_integer(snapshot->date_s));
        json_object_set_new(shown, "size", json_integer((json_int_t)(snapshot->disk_size & INT64_MAX)));
        json_array_append_new(list, shown);
    }
    json_object_set_new(root, "snapshots", list);
    qcow2_snapshots_free(&snapshots);
    *ret_answer = root;
    return 0;
}

/* ---- copies ---- */

static const char *const kinds[] = {[BLOCK_COPY_MIRROR] = "Mirror",
                                    [BLOCK_COPY_BACKUP] = "Backup",
                                    [BLOCK_COPY_COMMIT] = "Commit",
                                    [BLOCK_COPY_FLATTEN] = "Flatten",
                                    [BLOCK_COPY_REBASE] = "Rebase"};
static const char *const states[] = {
    [DISK_COPY_NONE] = "None", [DISK_COPY_RUNNING] = "Running", [DISK_COPY_READY] = "Ready",
    [DISK_COPY_DONE] = "Done", [DISK_COPY_FAILED] = "Failed",   [DISK_COPY_CANCELLED] = "Cancelled"};

int api_put_drive_copy(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const json_t *body = request->body;
    unsigned mode = 0;
    while (strcmp(api_string(body, "kind"), kinds[mode]) != 0) /* the schema knows no others */
        mode++;
    const char *format = mode == BLOCK_COPY_REBASE ? NULL : "qcow2";
    struct disk_copy_request copy = {.mode = (enum block_copy_mode)mode,
                                     .path = api_string(body, "path_on_host"),
                                     .format = api_has(body, "format") ? api_string(body, "format") : format,
                                     .bitmap = api_string(body, "bitmap"),
                                     .base = api_string(body, "base_path_on_host"),
                                     .base_name = api_string(body, "base_name")};
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_copy_start, "a disk's copy", &disk, err);
    return ret < 0 ? ret : api->ops->disk_copy_start(api->arg, disk->id, &copy, err);
}

int api_patch_drive_copy(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    bool complete = !strcmp(api_string(request->body, "action"), "Complete");
    struct disk_copy_status status = {0};
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_copy_end, "a disk's copy", &disk, err);
    if (ret == 0)
        ret = api->ops->disk_copy_end(api->arg, disk->id, complete, err);
    if (ret < 0 || !complete)
        return ret;
    ret = api->ops->disk_copy_status(api->arg, disk->id, &status, err);
    if (ret == 0)
        ret = set_file(disk, status.path, status.format, err);
    free(status.path);
    return ret;
}

int api_get_drive_copy(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    struct disk_copy_status status = {0};
    struct vm_disk *disk;
    int ret = find_disk(api, request, api->ops->disk_copy_status, "a disk's copy", &disk, err);
    if (ret == 0)
        ret = api->ops->disk_copy_status(api->arg, disk->id, &status, err);
    if (ret < 0)
        return ret;
    json_t *root = json_object();
    json_object_set_new(root, "state", json_string(states[status.state]));
    if (status.state != DISK_COPY_NONE) {
        json_object_set_new(root, "kind", json_string(kinds[status.mode]));
        json_object_set_new(root, "path_on_host", json_string(status.path));
        json_object_set_new(root, "copied_bytes", json_integer((json_int_t)status.copied));
        json_object_set_new(root, "total_bytes", json_integer((json_int_t)status.size));
    }
    if (status.state == DISK_COPY_FAILED)
        json_object_set_new(root, "error", json_string(strerror(-status.error)));
    free(status.path);
    *ret_answer = root;
    return 0;
}
