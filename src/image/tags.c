/* Tags: index.json of the layout, one descriptor a tag. Replaced whole by a rename, under a lock, so that a reader needs none. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include "image/image_impl.h"

#define INDEX_MAX (64 << 20) /* bytes: some 100,000 tags */
#define REF_ANNOTATION "org.opencontainers.image.ref.name"
#define TIME_ANNOTATION "org.opencontainers.image.created"

const char *tag_ref(const json_t *tag)
{
    return image_json_string(json_object_get(tag, "annotations"), REF_ANNOTATION);
}

const char *tag_time(const json_t *tag)
{
    return image_json_string(json_object_get(tag, "annotations"), TIME_ANNOTATION);
}

static int damaged(const struct image_store *store, struct err *err)
{
    return err_say(err, EBADMSG, "'%s/index.json' is damaged: move it away and pull or import the images again (their blobs stay)",
                   store->dir);
}

int tags_load(struct image_store *store, json_t **ret_tags, struct err *err)
{
    own_fd int fd = openat(store->dir_fd, "index.json", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno != ENOENT)
        return err_set(err, errno, "open '%s/index.json'", store->dir);
    struct stat st;
    if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_size > INDEX_MAX))
        return damaged(store, err);
    own_json json_t *index = fd < 0 ? json_pack("{s:[]}", "manifests") : json_loadfd(fd, JSON_REJECT_DUPLICATES, NULL);
    json_t *tags = json_object_get(index, "manifests"), *tag;
    if (!json_is_array(tags))
        return damaged(store, err);
    size_t i;
    struct image_blob blob;
    json_array_foreach (tags, i, tag)
        if (!tag_ref(tag)[0] || descriptor_parse(tag, &blob, NULL) < 0)
            return damaged(store, err);
    *ret_tags = json_incref(tags);
    return 0;
}

static int save(struct image_store *store, const json_t *tags, struct err *err)
{
    own_json json_t *index = json_pack("{s:i, s:s, s:O}", "schemaVersion", 2, "mediaType", MEDIA_OCI_INDEX, "manifests", tags);
    char name[16];
    snprintf(name, sizeof name, "%u", atomic_fetch_add(&store->tmp_next, 1));
    own_fd int fd = openat(store->tmp_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (!index || fd < 0 || json_dumpfd(index, fd, JSON_INDENT(1)) < 0 || fsync(fd) < 0 ||
        renameat(store->tmp_fd, name, store->dir_fd, "index.json") < 0 || fsync(store->dir_fd) < 0) {
        int code = errno;
        unlinkat(store->tmp_fd, name, 0);
        return err_set(err, code, "write '%s/index.json'", store->dir);
    }
    return 0;
}

static int lock_index(struct image_store *store, struct err *err)
{
    own_fd int fd = openat(store->dir_fd, "index.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    while (fd >= 0 && flock(fd, LOCK_EX) < 0 && errno == EINTR)
        continue;
    return fd < 0 ? err_set(err, errno, "open '%s/index.lock'", store->dir) : TAKE_FD(fd);
}

static json_t *make_tag(const char *ref, const struct image_blob *manifest)
{
    char now[32];
    struct tm tm;
    time_t seconds = time(NULL);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &tm));
    json_t *tag = descriptor_json(manifest);
    if (tag)
        json_object_set_new(tag, "annotations", json_pack("{s:s, s:s}", REF_ANNOTATION, ref, TIME_ANNOTATION, now));
    return tag;
}

/* Removes tags with that reference or digest; returns how many. */
static size_t drop(json_t *tags, const char *ref_or_digest)
{
    size_t dropped = 0;
    for (size_t i = json_array_size(tags); i-- > 0;) {
        const json_t *tag = json_array_get(tags, i);
        if (!strcmp(tag_ref(tag), ref_or_digest) || !strcmp(image_json_string(tag, "digest"), ref_or_digest)) {
            json_array_remove(tags, i);
            dropped++;
        }
    }
    return dropped;
}

int tags_set(struct image_store *store, const char *ref, const struct image_blob *manifest, struct err *err)
{
    own_fd int lock = lock_index(store, err);
    if (lock < 0)
        return lock;
    own_json json_t *tags = NULL;
    int ret = tags_load(store, &tags, err);
    if (ret < 0)
        return ret;
    drop(tags, ref);
    json_t *tag = make_tag(ref, manifest);
    if (!tag || json_array_append_new(tags, tag) < 0)
        return err_set(err, ENOMEM, "tag '%s'", ref);
    return save(store, tags, err);
}

/* The full form of a reference; digests stay as they are. */
static int full_form(const char *ref, char ret_full[static IMAGE_REF_SIZE], struct err *err)
{
    struct image_ref parsed;
    if (image_digest_valid(ref)) {
        snprintf(ret_full, IMAGE_REF_SIZE, "%s", ref);
        return 0;
    }
    int ret = image_ref_parse(ref, &parsed, err);
    if (ret == 0)
        image_ref_format(&parsed, ret_full);
    return ret;
}

int image_ref_tag_form(const char *ref, char ret_full[static IMAGE_REF_SIZE], struct err *err)
{
    struct image_ref parsed;
    int ret = image_ref_parse(ref, &parsed, err);
    if (ret < 0)
        return ret;
    if (parsed.digest[0])
        return err_say(err, EINVAL, "'%.100s': a new image's name has no digest", ref);
    image_ref_format(&parsed, ret_full);
    return 0;
}

static int not_here(const char *ref, struct err *err)
{
    return err_say(err, ENOENT, "no image '%.100s' is here: 'polder image ls' lists them, 'polder image pull' fetches one", ref);
}

int image_remove(struct image_store *store, const char *ref, struct err *err)
{
    char full[IMAGE_REF_SIZE];
    int ret = full_form(ref, full, err);
    if (ret < 0)
        return ret;
    own_fd int lock = lock_index(store, err);
    if (lock < 0)
        return lock;
    own_json json_t *tags = NULL;
    ret = tags_load(store, &tags, err);
    if (ret < 0)
        return ret;
    return drop(tags, full) ? save(store, tags, err) : not_here(ref, err);
}

/* The digest that a reference stands for. */
static int resolve(struct image_store *store, const char *ref, char full[static IMAGE_REF_SIZE],
                   char digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    own_json json_t *tags = NULL;
    int ret = full_form(ref, full, err);
    if (ret == 0)
        ret = tags_load(store, &tags, err);
    if (ret < 0)
        return ret;
    size_t i;
    json_t *tag;
    json_array_foreach (tags, i, tag)
        if (!strcmp(tag_ref(tag), full)) {
            snprintf(digest, IMAGE_DIGEST_SIZE, "%s", image_json_string(tag, "digest"));
            return 0;
        }
    if (!image_digest_valid(full))
        return not_here(ref, err);
    memcpy(digest, full, IMAGE_DIGEST_SIZE);
    full[0] = '\0';
    return 0;
}

int image_get(struct image_store *store, const char *ref, struct image *ret_image, struct err *err)
{
    char full[IMAGE_REF_SIZE], digest[IMAGE_DIGEST_SIZE];
    int ret = resolve(store, ref, full, digest, err);
    if (ret == 0)
        ret = manifest_load(store, digest, ret_image, err);
    if (ret == 0)
        memcpy(ret_image->ref, full, IMAGE_REF_SIZE);
    return ret;
}

int image_tag(struct image_store *store, const char *ref, const char *target, struct err *err)
{
    char full[IMAGE_REF_SIZE];
    int ret = image_ref_tag_form(target, full, err);
    if (ret < 0)
        return ret;
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    struct image image;
    ret = image_get(store, ref, &image, err);
    if (ret < 0)
        return ret;
    ret = tags_set(store, full, &image.manifest, err);
    image_clear(&image);
    return ret;
}
