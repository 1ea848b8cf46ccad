/* Manifests and indexes: image-spec v1.1 "manifest", "image-index", "descriptor"; docker's "Image Manifest V2, Schema 2",
 * whose JSON has the same shape. What a text is follows from what is in it, not from what a server calls it, and a text that
 * could be taken for both is refused (CVE-2021-41190). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/image_impl.h"

#define INDEX_DEPTH_MAX 3 /* indexes that lead to indexes */
#define SIZE_BYTES_MAX (1ULL << 40) /* of one layer */

const char *manifest_config_kind(const char *media_type)
{
    if (!strcmp(media_type, MEDIA_OCI_CONFIG) || !strcmp(media_type, MEDIA_DOCKER_CONFIG))
        return "oci";
    return strcmp(media_type, IMAGE_DISK_CONFIG_TYPE) ? NULL : "disk";
}

static bool is_index_type(const char *type)
{
    return !strcmp(type, MEDIA_OCI_INDEX) || !strcmp(type, MEDIA_DOCKER_INDEX);
}

static bool is_manifest_type(const char *type)
{
    return !strcmp(type, MEDIA_OCI_MANIFEST) || !strcmp(type, MEDIA_DOCKER_MANIFEST);
}

const char *manifest_media_type(const json_t *manifest)
{
    const char *type = image_json_string(manifest, "mediaType");
    return *type ? type : MEDIA_OCI_MANIFEST;
}

int manifest_classify(const json_t *manifest, enum manifest_kind *ret_kind, struct err *err)
{
    const char *type = image_json_string(manifest, "mediaType");
    bool index = json_object_get(manifest, "manifests"), image = json_object_get(manifest, "layers");
    json_int_t version = json_integer_value(json_object_get(manifest, "schemaVersion"));
    if (version == 1)
        return err_say(err, EINVAL, "manifest: docker's schema 1 is not read: push the image again with a tool of today");
    if (version != 2)
        return err_say(err, EINVAL, "manifest: schemaVersion is %lld, not 2", (long long)version);
    if (index == image)
        return err_say(err, EINVAL, "manifest: has %s 'manifests' and 'layers'", index ? "both" : "neither");
    if (*type && (index ? !is_index_type(type) : !is_manifest_type(type)))
        return err_say(err, EINVAL, "manifest: its mediaType '%.100s' is not what it is", type);
    *ret_kind = index ? MANIFEST_INDEX : MANIFEST_IMAGE;
    return 0;
}

int descriptor_parse(const json_t *descriptor, struct image_blob *ret_blob, struct err *err)
{
    const char *digest = image_json_string(descriptor, "digest"), *type = image_json_string(descriptor, "mediaType");
    const json_t *size = json_object_get(descriptor, "size");
    if (!image_digest_valid(digest))
        return err_say(err, EINVAL, "manifest: '%.80s' is no sha256 digest", digest);
    if (!json_is_integer(size) || json_integer_value(size) < 0 || (uint64_t)json_integer_value(size) > SIZE_BYTES_MAX)
        return err_say(err, EINVAL, "manifest: %s has no size, or one beyond 1 TiB", digest);
    if (!*type || strlen(type) >= sizeof ret_blob->media_type || strpbrk(type, "\r\n\t \x7f"))
        return err_say(err, EINVAL, "manifest: %s has no proper mediaType", digest);
    ret_blob->size_bytes = (uint64_t)json_integer_value(size);
    snprintf(ret_blob->digest, sizeof ret_blob->digest, "%s", digest);
    snprintf(ret_blob->media_type, sizeof ret_blob->media_type, "%s", type);
    return 0;
}

json_t *descriptor_json(const struct image_blob *blob)
{
    return json_pack("{s:s, s:s, s:I}", "mediaType", blob->media_type, "digest", blob->digest, "size",
                     (json_int_t)blob->size_bytes);
}

/* Layers that a manifest may have: tars, whose bytes the registry itself has ("foreign" ones it has not). */
static bool is_layer_type(const char *type)
{
    static const char *const types[] = {MEDIA_OCI_LAYER, MEDIA_OCI_LAYER "+gzip", MEDIA_OCI_LAYER "+zstd",
        "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(type, types[i]))
            return true;
    return false;
}

static int parse_layers(const json_t *layers, bool tars, struct image *image, struct err *err)
{
    size_t count = json_array_size(layers);
    if (!json_is_array(layers) || count > IMAGE_LAYERS_MAX)
        return err_say(err, EINVAL, "manifest: 'layers' is no list of at most %d", IMAGE_LAYERS_MAX);
    image->layers = calloc(count ? count : 1, sizeof *image->layers);
    if (!image->layers)
        return err_set(err, ENOMEM, "manifest");
    for (image->layer_count = 0; image->layer_count < count; image->layer_count++) {
        struct image_blob *layer = &image->layers[image->layer_count];
        int ret = descriptor_parse(json_array_get(layers, image->layer_count), layer, err);
        if (ret < 0)
            return ret;
        if (tars && !is_layer_type(layer->media_type))
            return err_say(err, EINVAL, "manifest: layers of type '%.100s' are not handled", layer->media_type);
    }
    return 0;
}

int manifest_parse(const json_t *manifest, struct image *ret_image, struct err *err)
{
    struct image image = {0};
    int ret = descriptor_parse(json_object_get(manifest, "config"), &image.config, err);
    if (ret < 0)
        return ret;
    const char *kind = manifest_config_kind(image.config.media_type);
    if (!kind)
        return err_say(err, EINVAL, "manifest: is of something else than an image ('%.100s')", image.config.media_type);
    if (image.config.size_bytes > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "manifest: a configuration has at most %u bytes", IMAGE_JSON_MAX);
    ret = parse_layers(json_object_get(manifest, "layers"), !strcmp(kind, "oci"), &image, err);
    if (ret < 0) {
        image_clear(&image);
        return ret;
    }
    *ret_image = image;
    return 0;
}

void image_clear(struct image *image)
{
    free(image->layers);
    *image = (struct image){0};
}

/* How well an entry's platform fits: 0 not at all. */
static int platform_fit(const json_t *entry)
{
    const json_t *platform = json_object_get(entry, "platform");
    if (!platform)
        return 1;
    if (strcmp(image_json_string(platform, "os"), "linux") != 0 || strcmp(image_json_string(platform, "architecture"), "amd64") != 0)
        return 0;
    return *image_json_string(platform, "variant") ? 2 : 3;
}

int manifest_choose(const json_t *index, struct image_blob *ret_blob, struct err *err)
{
    const json_t *entries = json_object_get(index, "manifests"), *best = NULL;
    int best_fit = 0;
    size_t i;
    json_t *entry;
    json_array_foreach (entries, i, entry) {
        const char *type = image_json_string(entry, "mediaType");
        int fit = is_manifest_type(type) || is_index_type(type) ? platform_fit(entry) : 0;
        if (fit > best_fit) {
            best = entry;
            best_fit = fit;
        }
    }
    if (!best)
        return err_say(err, ENOENT, "the image is not made for linux/amd64");
    int ret = descriptor_parse(best, ret_blob, err);
    if (ret == 0 && ret_blob->size_bytes > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "manifest: at most %u bytes are taken", IMAGE_JSON_MAX);
    return ret;
}

/* One step: 1 and the next version, if it is an index. */
static int follow(manifest_fetch_fn fetch, void *context, char version[static 2 * IMAGE_DIGEST_SIZE], struct image *ret_image,
                  char **ret_text, struct err *err)
{
    own_free char *text = NULL;
    own_json json_t *json = NULL;
    size_t length = 0;
    enum manifest_kind kind = MANIFEST_IMAGE;
    struct image_blob blob = {0};
    int ret = fetch(context, version, &text, &length, blob.digest, err);
    if (ret == 0)
        ret = image_json_parse(text ? text : "", length, "manifest", &json, err);
    if (ret == 0)
        ret = manifest_classify(json, &kind, err);
    if (ret == 0 && kind == MANIFEST_INDEX) {
        ret = manifest_choose(json, &blob, err);
        memcpy(version, blob.digest, IMAGE_DIGEST_SIZE);
        return ret == 0 ? 1 : ret;
    }
    if (ret == 0)
        ret = manifest_parse(json, ret_image, err);
    if (ret < 0)
        return ret;
    snprintf(blob.media_type, sizeof blob.media_type, "%s", manifest_media_type(json));
    blob.size_bytes = length;
    ret_image->manifest = blob;
    *ret_text = TAKE(text);
    return 0;
}

int manifest_find(manifest_fetch_fn fetch, void *context, const char *version, struct image *ret_image, char **ret_text,
                  struct err *err)
{
    char at[2 * IMAGE_DIGEST_SIZE];
    snprintf(at, sizeof at, "%s", version);
    for (unsigned depth = 0; depth <= INDEX_DEPTH_MAX; depth++) {
        int ret = follow(fetch, context, at, ret_image, ret_text, err);
        if (ret != 1)
            return ret;
    }
    return err_say(err, EINVAL, "manifest: indexes lead to indexes to indexes, and to no image");
}

int manifest_make(struct image_store *store, struct image *image, struct err *err)
{
    own_json json_t *layers = json_array();
    for (size_t i = 0; i < image->layer_count; i++)
        json_array_append_new(layers, descriptor_json(&image->layers[i]));
    own_json json_t *manifest = json_pack("{s:i, s:s, s:o, s:O}", "schemaVersion", 2, "mediaType", MEDIA_OCI_MANIFEST, "config",
                                          descriptor_json(&image->config), "layers", layers);
    own_free char *text = manifest ? json_dumps(manifest, JSON_COMPACT) : NULL;
    if (!text)
        return err_set(err, ENOMEM, "manifest");
    int ret = blob_add_text(store, text, strlen(text), image->manifest.digest, err);
    if (ret < 0)
        return ret;
    image->manifest.size_bytes = strlen(text);
    snprintf(image->manifest.media_type, sizeof image->manifest.media_type, "%s", MEDIA_OCI_MANIFEST);
    return 0;
}

int manifest_load(struct image_store *store, const char *digest, struct image *ret_image, struct err *err)
{
    own_free char *text = NULL;
    size_t length;
    int ret = blob_read_text(store, digest, &text, &length, err);
    own_json json_t *json = NULL;
    if (ret == 0)
        ret = image_json_parse(text, length, "manifest", &json, err);
    enum manifest_kind kind;
    if (ret == 0)
        ret = manifest_classify(json, &kind, err);
    if (ret == 0 && kind != MANIFEST_IMAGE)
        ret = err_say(err, EINVAL, "%s is an index, not an image", digest);
    if (ret == 0)
        ret = manifest_parse(json, ret_image, err);
    if (ret < 0)
        return ret;
    snprintf(ret_image->manifest.digest, IMAGE_DIGEST_SIZE, "%s", digest);
    snprintf(ret_image->manifest.media_type, sizeof ret_image->manifest.media_type, "%s", manifest_media_type(json));
    ret_image->manifest.size_bytes = length;
    return 0;
}
