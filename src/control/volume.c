/* Volumes: made, listed, grown, removed, and their snapshots. */
#include "control/volume_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/own.h"
#include "base/program_find.h"

#define SIZE_STEP (1u << 20)

static int open_dir(struct volumes *volumes, const char *state_dir, struct err *err)
{
    if (asprintf(&volumes->dir, "%s/volumes", state_dir) < 0) {
        volumes->dir = NULL;
        return err_set(err, ENOMEM, "volumes");
    }
    if (mkdir(volumes->dir, 0700) < 0 && errno != EEXIST)
        return err_set(err, errno, "make '%s'", volumes->dir);
    volumes->dir_fd = open(volumes->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return volumes->dir_fd < 0 ? err_set(err, errno, "open '%s'", volumes->dir) : 0;
}

int volumes_open(struct store *store, const char *state_dir, struct volumes **ret_volumes, struct err *err)
{
    struct volumes *volumes = calloc(1, sizeof *volumes);
    if (!volumes)
        return err_set(err, ENOMEM, "volumes");
    volumes->store = store;
    volumes->dir_fd = -1;
    pthread_mutex_init(&volumes->mutex, NULL);
    pthread_cond_init(&volumes->idle, NULL);
    int r = open_dir(volumes, state_dir, err);
    if (r == 0)
        r = program_find("polder-img", NULL, &volumes->img, err);
    if (r < 0) {
        volumes_close(volumes);
        return r;
    }
    *ret_volumes = volumes;
    return 0;
}

void volumes_close(struct volumes *volumes)
{
    if (!volumes)
        return;
    if (volumes->dir_fd >= 0)
        close(volumes->dir_fd);
    pthread_cond_destroy(&volumes->idle);
    pthread_mutex_destroy(&volumes->mutex);
    free(volumes->dir);
    free(volumes->img);
    free(volumes);
}

/* ---- what there is ---- */

static void add_used(const struct volumes *volumes, const char *name, json_t *value)
{
    struct stat st = {0};
    if (fstatat(volumes->dir_fd, volume_file(name, "qcow2").name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        st.st_blocks = 0;
    json_object_set_new(value, "used_bytes", json_integer((json_int_t)st.st_blocks * 512));
}

int volumes_list(struct volumes *volumes, json_t **ret_list, struct err *err)
{
    struct store_list list = {0};
    int r = store_list_prefix(volumes->store, VOLUME_KEY_PREFIX, &list, err);
    if (r < 0)
        return r;
    json_t *all = json_array();
    for (size_t i = 0; i < list.count; i++) {
        add_used(volumes, list.docs[i].key + strlen(VOLUME_KEY_PREFIX), list.docs[i].value);
        json_array_append(all, list.docs[i].value);
    }
    store_list_clear(&list);
    *ret_list = all;
    return all ? 0 : err_set(err, ENOMEM, "list volumes");
}

int volume_get(struct volumes *volumes, const char *name, json_t **ret_volume, struct err *err)
{
    own_store_doc doc = {0};
    int r = volume_load(volumes, name, &doc, err);
    if (r < 0)
        return r;
    add_used(volumes, name, doc.value);
    *ret_volume = json_incref(doc.value);
    return 0;
}

/* ---- create, resize, remove ---- */

int volume_round_size(uint64_t *size_bytes, struct err *err)
{
    if (*size_bytes < VOLUME_SIZE_MIN || *size_bytes > VOLUME_SIZE_MAX)
        return err_say(err, EINVAL, "a volume has from 1 MiB to 64 TiB, not %llu bytes", (unsigned long long)*size_bytes);
    *size_bytes = (*size_bytes + SIZE_STEP - 1) & ~(uint64_t)(SIZE_STEP - 1);
    return 0;
}

int volume_create(struct volumes *volumes, const char *name, uint64_t size_bytes, const char *fs,
                  const struct store_audit *audit, struct err *err)
{
    fs = fs ? fs : "";
    if (*fs && strcmp(fs, "ext4") != 0)
        return err_say(err, EINVAL, "a volume is made with the file system ext4 or with none, not '%.40s'", fs);
    int r = volume_name_check("volume", name, err);
    if (r == 0)
        r = volume_round_size(&size_bytes, err);
    if (r < 0)
        return r;
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    r = volume_check_new(volumes, name, err);
    if (r == 0)
        r = volume_make_disk(volumes, volume_file(name, "new").name, volume_file(name, "raw").name, size_bytes, fs, err);
    if (r == 0)
        r = volume_publish(volumes, name, volume_document(name, size_bytes, fs), audit, err);
    return r < 0 ? err_ctx(err, "create volume '%s'", name) : 0;
}

int volume_remove(struct volumes *volumes, const char *name, const struct store_audit *audit, struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, err);
    if (r == 0)
        r = volume_check_idle(volumes, &doc, false, err);
    if (r < 0)
        return r;
    struct volume_file file = volume_file(name, "qcow2"), gone = volume_file(name, "gone");
    if (renameat(volumes->dir_fd, file.name, volumes->dir_fd, gone.name) < 0 && errno != ENOENT)
        return err_set(err, errno, "remove '%s/%s'", volumes->dir, file.name);
    r = volume_sync_dir(volumes, err); /* before its document goes: a file without one would be taken for a volume */
    if (r == 0)
        r = volume_forget(volumes, name, doc.revision, audit, err);
    if (r < 0) {
        if (renameat(volumes->dir_fd, gone.name, volumes->dir_fd, file.name) < 0 && errno != ENOENT)
            return err_set(err, errno, "bring back '%s/%s'", volumes->dir, file.name);
        return r;
    }
    if (unlinkat(volumes->dir_fd, gone.name, 0) < 0 && errno != ENOENT)
        return err_set(err, errno, "remove '%s/%s'", volumes->dir, gone.name);
    return 0;
}

/* ---- changes inside of the image ---- */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int volume_refresh(struct volumes *volumes, const char *name, json_t *value, struct err *err)
{
    json_t *info = NULL, *snapshots = json_array(), *item;
    int r = volume_info(volumes, volume_file(name, "qcow2").name, &info, err);
    size_t i;
    json_array_foreach(json_object_get(info, "snapshots"), i, item) {
        char when[24];
        volume_time(json_integer_value(json_object_get(item, "date-sec")), when);
        json_array_append_new(snapshots, json_pack("{s:s, s:s}", "name", text_of(item, "name"), "created_at", when));
    }
    if (r == 0) {
        json_object_set(value, "size_bytes", json_object_get(info, "virtual-size"));
        json_object_set(value, "snapshots", snapshots);
    }
    json_decref(snapshots);
    json_decref(info);
    return r;
}

/* A change of an image, and its document after it. "working" in the document tells reconciliation to look into the image
 * when the host dies between. */
static int change(struct volumes *volumes, struct store_doc *doc, const char *const *args, const struct store_audit *audit,
                  struct err *err)
{
    const char *name = doc->key + strlen(VOLUME_KEY_PREFIX);
    int r = volume_check_alone(volumes, name, err);
    if (r < 0)
        return r;
    json_object_set_new(doc->value, "working", json_string(args[0]));
    r = volume_save(volumes, name, json_incref(doc->value), doc->revision, NULL, err);
    if (r < 0)
        return r;
    struct err failed = {0}, *first = &failed;
    int done = volume_img(volumes, -1, NULL, args, NULL, first);
    own_store_doc now = {0};
    r = volume_load(volumes, name, &now, err);
    if (r == 0)
        r = volume_refresh(volumes, name, now.value, err);
    if (r < 0)
        return r;
    json_object_del(now.value, "working");
    r = volume_save(volumes, name, json_incref(now.value), now.revision, done < 0 ? NULL : audit, err);
    if (done < 0 && err)
        *err = failed;
    return done < 0 ? done : r;
}

int volume_resize(struct volumes *volumes, const char *name, uint64_t size_bytes, const struct store_audit *audit,
                  struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, err);
    if (r == 0)
        r = volume_round_size(&size_bytes, err);
    if (r == 0)
        r = volume_check_idle(volumes, &doc, false, err);
    if (r < 0)
        return r;
    uint64_t old = (uint64_t)json_integer_value(json_object_get(doc.value, "size_bytes"));
    if (size_bytes < old)
        return err_say(err, EINVAL, "volume '%s' has %llu bytes and can only become larger: to have a smaller one, make it and copy",
                       name, (unsigned long long)old);
    char size[24];
    snprintf(size, sizeof size, "%llu", (unsigned long long)size_bytes);
    struct volume_file file = volume_file(name, "qcow2");
    const char *const args[] = {"resize", "-f", "qcow2", file.name, size, NULL};
    r = size_bytes == old ? 0 : change(volumes, &doc, args, audit, err);
    return r < 0 ? err_ctx(err, "resize volume '%s'", name) : 0;
}

static bool has_snapshot(const struct store_doc *doc, const char *snapshot)
{
    const json_t *list = json_object_get(doc->value, "snapshots"), *item;
    size_t i;
    json_array_foreach(list, i, item)
        if (strcmp(text_of(item, "name"), snapshot) == 0)
            return true;
    return false;
}

static int check_snapshot(const struct volumes *volumes, const struct store_doc *doc, const char *snapshot, bool exists, struct err *err)
{
    int r = volume_check_idle(volumes, doc, false, err);
    if (r < 0)
        return r;
    const char *name = doc->key + strlen(VOLUME_KEY_PREFIX);
    if (exists && !has_snapshot(doc, snapshot))
        return err_say(err, ENOENT, "volume '%s' has no snapshot '%s'", name, snapshot);
    if (!exists && has_snapshot(doc, snapshot))
        return err_say(err, EEXIST, "volume '%s' has a snapshot '%s' already", name, snapshot);
    if (!exists && json_array_size(json_object_get(doc->value, "snapshots")) >= VOLUME_SNAPSHOTS_MAX)
        return err_say(err, ENOSPC, "volume '%s' has %d snapshots, which is all it can: remove one", name, VOLUME_SNAPSHOTS_MAX);
    return 0;
}

static int work_on_snapshot(struct volumes *volumes, const char *name, const char *option, const char *snapshot,
                            const struct store_audit *audit, struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_name_check("snapshot", snapshot, err);
    if (r == 0)
        r = volume_load(volumes, name, &doc, err);
    if (r == 0)
        r = check_snapshot(volumes, &doc, snapshot, strcmp(option, "-c") != 0, err);
    if (r < 0)
        return r;
    struct volume_file file = volume_file(name, "qcow2");
    const char *const args[] = {"snapshot", "-f", "qcow2", option, snapshot, file.name, NULL};
    r = change(volumes, &doc, args, audit, err);
    return r < 0 ? err_ctx(err, "snapshot '%s' of volume '%s'", snapshot, name) : 0;
}

int volume_snapshot_create(struct volumes *volumes, const char *name, const char *snapshot,
                           const struct store_audit *audit, struct err *err)
{
    return work_on_snapshot(volumes, name, "-c", snapshot, audit, err);
}

int volume_snapshot_restore(struct volumes *volumes, const char *name, const char *snapshot,
                            const struct store_audit *audit, struct err *err)
{
    return work_on_snapshot(volumes, name, "-a", snapshot, audit, err);
}

int volume_snapshot_remove(struct volumes *volumes, const char *name, const char *snapshot,
                           const struct store_audit *audit, struct err *err)
{
    return work_on_snapshot(volumes, name, "-d", snapshot, audit, err);
}
