/* Pushing: blobs that the registry has not (mounted from another of its repositories where that can be), side by side; then
 * the manifest, byte by byte as it is here, so that its digest stays. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/registry_impl.h"

#define UPLOAD_TRIES 3

struct push {
    struct image_store *store;
    struct registry registry;
    struct image_meter meter;
    struct image image;
    char mount_from[256];
};

/* ---- blobs ---- */

/* Whether the registry has it: 1 or 0. */
static int has_blob(struct push *push, struct http *http, const struct image_blob *blob, struct err *err)
{
    char path[16 + IMAGE_DIGEST_SIZE];
    struct http_response response;
    snprintf(path, sizeof path, "blobs/%s", blob->digest);
    struct http_request request = {.method = "HEAD", .url = path};
    int ret = registry_call(&push->registry, http, &request, &response, err);
    if (ret < 0)
        return ret;
    ret = response.status == 200 ? 1 : response.status == 404 ? 0 : registry_refused(&push->registry, &response, "push", err);
    http_response_clear(&response);
    return ret;
}

/* Opens an upload: 1 if the blob was mounted instead. */
static int begin_upload(struct push *push, struct http *http, const struct image_blob *blob, char location[static HTTP_URL_SIZE],
                        struct err *err)
{
    char path[512];
    struct http_response response;
    snprintf(path, sizeof path, "blobs/uploads/");
    if (push->mount_from[0])
        snprintf(path, sizeof path, "blobs/uploads/?mount=%s&from=%s", blob->digest, push->mount_from);
    struct http_request request = {.method = "POST", .url = path};
    int ret = registry_call(&push->registry, http, &request, &response, err);
    if (ret < 0)
        return ret;
    if (response.status == 201)
        ret = 1;
    else if (response.status != 202 || !response.location[0])
        ret = registry_refused(&push->registry, &response, "push", err);
    memcpy(location, response.location, HTTP_URL_SIZE);
    http_response_clear(&response);
    return ret;
}

/* In one request (distribution-spec "POST then PUT"): registries forget what a broken one brought. */
static int upload(struct push *push, struct http *http, const struct image_blob *blob, int fd, struct err *err)
{
    char location[HTTP_URL_SIZE];
    struct http_response response;
    int ret = begin_upload(push, http, blob, location, err);
    if (ret == 1)
        meter_add(&push->meter, (int64_t)blob->size_bytes);
    if (ret != 0)
        return ret < 0 ? ret : 0;
    ret = url_add_query(location, "digest", blob->digest, err);
    if (ret < 0)
        return ret;
    struct http_request request = {.method = "PUT", .url = location, .content_type = "application/octet-stream",
                                   .file_fd = fd, .file_len = blob->size_bytes};
    ret = registry_call(&push->registry, http, &request, &response, err);
    if (ret != 0)
        return ret;
    if (response.status != 201)
        ret = registry_refused(&push->registry, &response, "push", err);
    if (response.status == 429 || response.status >= 500)
        ret = -ECONNRESET;
    http_response_clear(&response);
    return ret;
}

static int send_blob(struct push *push, struct http *http, const struct image_blob *blob, struct err *err)
{
    int ret = has_blob(push, http, blob, err);
    if (ret == 1)
        meter_add(&push->meter, (int64_t)blob->size_bytes);
    if (ret != 0)
        return ret < 0 ? ret : 0;
    own_fd int fd = image_blob_open(push->store, blob->digest, err);
    if (fd < 0)
        return fd;
    for (unsigned tries = UPLOAD_TRIES;;) {
        ret = upload(push, http, blob, fd, err);
        if (ret != -ECONNRESET || --tries == 0)
            return ret;
        meter_sleep(&push->meter, 500);
    }
}

/* The configuration is blob 0. */
static int push_blob(void *context, size_t index, struct err *err)
{
    struct push *push = context;
    struct http http;
    int ret = http_open(&http, push->registry.remote, &push->meter, err);
    if (ret < 0)
        return ret;
    ret = send_blob(push, &http, index ? &push->image.layers[index - 1] : &push->image.config, err);
    http_close(&http);
    return ret;
}

/* ---- the manifest ---- */

static int put_manifest(struct push *push, struct http *http, const char *text, size_t length, struct err *err)
{
    char path[16 + IMAGE_DIGEST_SIZE + sizeof push->registry.ref->tag];
    const struct image_ref *ref = push->registry.ref;
    struct http_response response;
    snprintf(path, sizeof path, "manifests/%s", ref->tag[0] ? ref->tag : ref->digest);
    struct http_request request = {.method = "PUT", .url = path, .content_type = push->image.manifest.media_type, .body = text,
                                   .body_len = length};
    int ret = registry_call(&push->registry, http, &request, &response, err);
    if (ret < 0)
        return ret;
    if (response.status != 201)
        ret = registry_refused(&push->registry, &response, "push", err);
    else if (response.digest[0] && strcmp(response.digest, push->image.manifest.digest) != 0)
        ret = err_say(err, EBADMSG, "the registry has kept another manifest (%s) than was sent", response.digest);
    http_response_clear(&response);
    return ret;
}

static int push_manifest(struct push *push, struct err *err)
{
    own_free char *text = NULL;
    size_t length;
    struct http http;
    int ret = blob_read_text(push->store, push->image.manifest.digest, &text, &length, err);
    if (ret == 0)
        ret = http_open(&http, push->registry.remote, &push->meter, err);
    if (ret < 0)
        return ret;
    ret = put_manifest(push, &http, text, length, err);
    http_close(&http);
    return ret;
}

/* ---- the whole ---- */

/* Another repository of the same registry that this image came from or went to. */
static int find_mount(struct push *push, struct err *err)
{
    own_json json_t *tags = NULL;
    int ret = tags_load(push->store, &tags, err);
    size_t i;
    json_t *tag;
    json_array_foreach (tags, i, tag) {
        struct image_ref ref;
        const struct image_ref *target = push->registry.ref;
        if (!strcmp(image_json_string(tag, "digest"), push->image.manifest.digest) && image_ref_parse(tag_ref(tag), &ref, NULL) == 0 &&
            !strcmp(ref.registry, target->registry) && strcmp(ref.repository, target->repository) != 0) {
            memcpy(push->mount_from, ref.repository, sizeof push->mount_from);
            push->registry.mount_from = push->mount_from;
            break;
        }
    }
    return ret;
}

static int push_all(struct push *push, struct err *err)
{
    uint64_t total = push->image.config.size_bytes;
    for (size_t i = 0; i < push->image.layer_count; i++)
        total += push->image.layers[i].size_bytes;
    meter_total(&push->meter, total);
    int ret = find_mount(push, err);
    if (ret < 0)
        return ret;
    ret = registry_open(&push->registry, err);
    if (ret == 0)
        ret = parallel_run(push_blob, push, push->image.layer_count + 1, &push->meter, err);
    if (ret == 0)
        ret = push_manifest(push, err);
    registry_close(&push->registry);
    return ret;
}

/* A digest in the target must be that of what is sent. */
static int parse_target(const char *target, const struct image *image, struct image_ref *ret_ref, struct err *err)
{
    int ret = image_ref_parse(target, ret_ref, err);
    if (ret == 0 && ret_ref->digest[0] && strcmp(ret_ref->digest, image->manifest.digest) != 0)
        ret = err_say(err, EINVAL, "'%.100s' has not the digest of the image: leave it out", target);
    return ret;
}

int image_push(struct image_store *store, const char *ref, const char *target, const struct image_remote *remote,
               const struct image_progress *progress, struct err *err)
{
    char what[IMAGE_REF_SIZE + 8];
    struct image_ref parsed;
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    struct push push = {.store = store};
    int ret = image_get(store, ref, &push.image, err);
    if (ret < 0)
        return ret;
    ret = parse_target(target ? target : ref, &push.image, &parsed, err);
    if (ret == 0) {
        push.registry = (struct registry){.ref = &parsed, .remote = remote, .meter = &push.meter, .actions = "pull,push"};
        snprintf(what, sizeof what, "push %s", target ? target : ref);
        meter_init(&push.meter, progress, what, 0);
        ret = push_all(&push, err);
        meter_end(&push.meter);
    }
    image_clear(&push.image);
    return ret < 0 ? err_ctx(err, "push '%s'", target ? target : ref) : 0;
}
