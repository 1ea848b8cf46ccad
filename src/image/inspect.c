/* Images as JSON, for the API. */
#include <errno.h>
#include <string.h>
#include "image/image_impl.h"

static json_t *strings(char *const *list)
{
    json_t *array = json_array();
    for (size_t i = 0; list[i]; i++)
        json_array_append_new(array, json_string(list[i]));
    return array;
}

static uint64_t total_size(const struct image *image)
{
    uint64_t size = image->manifest.size_bytes + image->config.size_bytes;
    for (size_t i = 0; i < image->layer_count; i++)
        size += image->layers[i].size_bytes;
    return size;
}

/* What all images have. */
static void describe_image(json_t *object, const struct image *image)
{
    const char *kind = manifest_config_kind(image->config.media_type);
    json_object_set_new(object, "kind", json_string(kind));
    json_object_set_new(object, "digest", json_string(image->manifest.digest));
    json_object_set_new(object, "media_type", json_string(image->manifest.media_type));
    json_object_set_new(object, "config_digest", json_string(image->config.digest));
    json_object_set_new(object, "size_bytes", json_integer((json_int_t)total_size(image)));
    json_object_set_new(object, "layer_count", json_integer((json_int_t)image->layer_count));
}

static void describe_platform(json_t *object, const struct image_config *config)
{
    json_object_set_new(object, "created_at", json_string(config->created_at));
    json_object_set_new(object, "architecture", json_string(config->architecture));
    json_object_set_new(object, "os", json_string(config->os));
}

static void describe_config(json_t *object, const struct image_config *config)
{
    json_t *run = json_object();
    json_object_set_new(run, "entrypoint", strings(config->entrypoint));
    json_object_set_new(run, "cmd", strings(config->cmd));
    json_object_set_new(run, "env", strings(config->env));
    json_object_set_new(run, "user", json_string(config->user));
    json_object_set_new(run, "workdir", json_string(config->workdir));
    json_object_set_new(run, "stop_signal", json_string(config->stop_signal));
    json_object_set_new(run, "exposed_ports", strings(config->exposed_ports));
    json_object_set_new(run, "volumes", strings(config->volumes));
    json_object_set_new(run, "labels", strings(config->labels));
    json_object_set_new(object, "config", run);
}

static void describe_layers(json_t *object, const struct image *image, char *const *diff_ids)
{
    json_t *layers = json_array();
    for (size_t i = 0; i < image->layer_count; i++) {
        const struct image_blob *layer = &image->layers[i];
        json_t *entry = json_pack("{s:s, s:I, s:s}", "digest", layer->digest, "size_bytes", (json_int_t)layer->size_bytes,
                                  "media_type", layer->media_type);
        if (diff_ids && diff_ids[i])
            json_object_set_new(entry, "diff_id", json_string(diff_ids[i]));
        json_array_append_new(layers, entry);
    }
    json_object_set_new(object, "layers", layers);
}

static int describe(struct image_store *store, const struct image *image, bool all, json_t *object, struct err *err)
{
    describe_image(object, image);
    if (strcmp(manifest_config_kind(image->config.media_type), "oci") != 0) {
        if (all)
            describe_layers(object, image, NULL);
        return 0;
    }
    struct image_config config;
    int ret = image_config_get(store, image, &config, err);
    if (ret < 0)
        return ret;
    describe_platform(object, &config);
    if (all) {
        describe_config(object, &config);
        describe_layers(object, image, config.diff_ids);
    }
    image_config_clear(&config);
    return 0;
}

static void set_names(json_t *object, const char *full)
{
    struct image_ref ref;
    char text[IMAGE_REF_SIZE] = "";
    if (*full && image_ref_parse(full, &ref, NULL) == 0)
        image_ref_short(&ref, text);
    json_object_set_new(object, "ref", json_string(text));
    json_object_set_new(object, "full_ref", json_string(full));
}

int image_inspect(struct image_store *store, const char *ref, json_t **ret_image, struct err *err)
{
    struct image image;
    int ret = image_get(store, ref, &image, err);
    if (ret < 0)
        return ret;
    own_json json_t *object = json_object();
    set_names(object, image.ref);
    ret = describe(store, &image, true, object, err);
    image_clear(&image);
    if (ret == 0)
        *ret_image = TAKE(object);
    return ret;
}

/* A damaged image is a line of the list too: it can be removed by what it says. */
static json_t *list_entry(struct image_store *store, const json_t *tag)
{
    json_t *object = json_object();
    struct image image = {0};
    struct err err = {0};
    set_names(object, tag_ref(tag));
    json_object_set_new(object, "tagged_at", json_string(tag_time(tag)));
    json_object_set(object, "digest", json_object_get(tag, "digest"));
    int ret = manifest_load(store, image_json_string(tag, "digest"), &image, &err);
    if (ret == 0)
        ret = describe(store, &image, false, object, &err);
    if (ret < 0)
        json_object_set_new(object, "error", json_string(err.message));
    else if (!*image_json_string(object, "created_at")) /* disks, and archives that do not say */
        json_object_set_new(object, "created_at", json_string(tag_time(tag)));
    image_clear(&image);
    return object;
}

static int by_ref(const void *a, const void *b)
{
    return strcmp(image_json_string(*(json_t *const *)a, "ref"), image_json_string(*(json_t *const *)b, "ref"));
}

int image_list(struct image_store *store, json_t **ret_images, struct err *err)
{
    own_json json_t *tags = NULL;
    int ret = tags_load(store, &tags, err);
    if (ret < 0)
        return ret;
    size_t count = json_array_size(tags);
    own_free json_t **entries = calloc(count ? count : 1, sizeof(json_t *));
    own_json json_t *images = json_array();
    if (!entries || !images)
        return err_set(err, ENOMEM, "list of images");
    for (size_t i = 0; i < count; i++)
        entries[i] = list_entry(store, json_array_get(tags, i));
    qsort(entries, count, sizeof(json_t *), by_ref);
    for (size_t i = 0; i < count; i++)
        json_array_append_new(images, entries[i]);
    *ret_images = TAKE(images);
    return 0;
}
