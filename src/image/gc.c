/* Garbage: blobs that no tag and no pinned manifest leads to. Alone in the store while it marks and sweeps. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "image/image_impl.h"

/* A manifest and what it names. One that is lost or damaged keeps nothing alive, and must not keep all else from being
 * collected; but where reading fails for another reason, nothing may go. */
static int mark(struct image_store *store, const char *digest, json_t *live, struct err *err)
{
    struct image image;
    struct err reason = {0};
    json_object_set_new(live, digest, json_true());
    int ret = manifest_load(store, digest, &image, &reason);
    if (ret == -ENOENT || ret == -EBADMSG || ret == -EINVAL)
        return 0;
    if (ret < 0) {
        if (err)
            *err = reason;
        return ret;
    }
    json_object_set_new(live, image.config.digest, json_true());
    for (size_t i = 0; i < image.layer_count; i++)
        json_object_set_new(live, image.layers[i].digest, json_true());
    image_clear(&image);
    return 0;
}

static int mark_all(struct image_store *store, const char *const *pins, size_t pin_count, json_t *live, struct err *err)
{
    own_json json_t *tags = NULL;
    int ret = tags_load(store, &tags, err);
    for (size_t i = 0; ret == 0 && i < json_array_size(tags); i++)
        ret = mark(store, image_json_string(json_array_get(tags, i), "digest"), live, err);
    for (size_t i = 0; ret == 0 && i < pin_count; i++)
        ret = mark(store, pins[i], live, err);
    return ret;
}

static void sweep_one(struct image_store *store, const char *name, const json_t *live, struct image_gc_result *result)
{
    char digest[IMAGE_DIGEST_SIZE];
    struct stat st;
    snprintf(digest, sizeof digest, "sha256:%.64s", name);
    if (json_object_get(live, digest) || fstatat(store->blobs_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
        !S_ISREG(st.st_mode) || unlinkat(store->blobs_fd, name, 0) < 0)
        return;
    result->blobs++;
    result->bytes += (uint64_t)st.st_size;
}

static int sweep(struct image_store *store, const json_t *live, struct image_gc_result *result, struct err *err)
{
    int fd = openat(store->blobs_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return err_set(err, code, "read '%s/blobs/sha256'", store->dir);
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        sweep_one(store, entry->d_name, live, result);
    closedir(dir);
    return 0;
}

int image_gc(struct image_store *store, const char *const *pins, size_t pin_count, struct image_gc_result *ret_result,
             struct err *err)
{
    own_fd int alone = image_store_use_alone(store, err);
    if (alone < 0)
        return alone;
    own_json json_t *live = json_object();
    if (!live)
        return err_set(err, ENOMEM, "garbage collection");
    struct image_gc_result result = {0};
    int ret = mark_all(store, pins, pin_count, live, err);
    if (ret == 0)
        ret = sweep(store, live, &result, err);
    if (ret == 0)
        *ret_result = result;
    return ret;
}
