/* Images made here: layers from descriptors, configuration and manifest around them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "image/image_impl.h"

struct addition {
    struct image_store *store;
    struct image_meter *meter;
    struct image image;
    json_t *diff_ids; /* NULL: the configuration is not an OCI image's */
};

static int copy_in(struct addition *add, int fd, struct blob_writer *writer, struct err *err)
{
    own_free char *buffer = malloc(IMAGE_IO_SIZE);
    if (!buffer)
        return err_set(err, ENOMEM, "layer");
    for (;;) {
        int ret = meter_check(add->meter, err);
        if (ret < 0)
            return ret;
        ssize_t n = read(fd, buffer, IMAGE_IO_SIZE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? err_set(err, errno, "read a layer") : 0;
        ret = blob_writer_add(writer, buffer, (size_t)n, err);
        if (ret < 0)
            return ret;
        meter_add(add->meter, n);
    }
}

/* Media type and, of an OCI image's layer, what it unpacks to; then the name in blobs/. */
static int settle_layer(struct addition *add, const struct image_layer_source *source, struct blob_writer *writer, struct err *err)
{
    struct image_blob *layer = &add->image.layers[add->image.layer_count];
    const char *type = source->media_type;
    int ret = blob_writer_finish(writer, layer->digest, err);
    if (ret == 0 && !type)
        ret = layer_media_type(writer->fd, &type, err);
    if (ret < 0)
        return ret;
    snprintf(layer->media_type, sizeof layer->media_type, "%s", type);
    layer->size_bytes = writer->size_bytes;
    if (add->diff_ids) {
        char diff_id[IMAGE_DIGEST_SIZE];
        ret = layer_diff_id(writer->fd, add->meter, diff_id, err);
        if (ret < 0)
            return ret;
        json_array_append_new(add->diff_ids, json_string(diff_id));
    }
    ret = blob_writer_commit(writer, layer->digest, err);
    if (ret == 0)
        add->image.layer_count++;
    return ret;
}

static int add_layer(struct addition *add, const struct image_layer_source *source, struct err *err)
{
    struct blob_writer writer;
    int ret = blob_writer_open(add->store, &writer, err);
    if (ret < 0)
        return ret;
    ret = copy_in(add, source->fd, &writer, err);
    if (ret == 0)
        ret = settle_layer(add, source, &writer, err);
    blob_writer_close(&writer);
    return ret;
}

static void set_default(json_t *config, const char *key, const char *value)
{
    if (!json_object_get(config, key))
        json_object_set_new(config, key, json_string(value));
}

/* What an OCI image's configuration must say. */
static void complete_config(json_t *config, json_t *diff_ids)
{
    char now[32];
    struct tm tm;
    time_t seconds = time(NULL);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &tm));
    set_default(config, "created", now);
    set_default(config, "architecture", "amd64");
    set_default(config, "os", "linux");
    json_object_set_new(config, "rootfs", json_pack("{s:s, s:O}", "type", "layers", "diff_ids", diff_ids));
}

static int add_config(struct addition *add, const json_t *config, const char *media_type, struct err *err)
{
    own_json json_t *whole = config ? json_deep_copy(config) : json_object();
    if (whole && add->diff_ids)
        complete_config(whole, add->diff_ids);
    own_free char *text = whole ? json_dumps(whole, JSON_COMPACT) : NULL;
    if (!text)
        return err_set(err, ENOMEM, "configuration");
    if (strlen(text) > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "configuration: at most %u bytes are taken", IMAGE_JSON_MAX);
    add->image.config.size_bytes = strlen(text);
    snprintf(add->image.config.media_type, sizeof add->image.config.media_type, "%s", media_type);
    return blob_add_text(add->store, text, strlen(text), add->image.config.digest, err);
}

static int add_parts(struct addition *add, const struct image_layer_source *layers, size_t count, const json_t *config,
                     const char *config_media_type, struct err *err)
{
    add->image.layers = calloc(count ? count : 1, sizeof *add->image.layers);
    if (!add->image.layers)
        return err_set(err, ENOMEM, "image");
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = add_layer(add, &layers[i], err);
    if (ret == 0)
        ret = add_config(add, config, config_media_type, err);
    if (ret == 0)
        ret = image_config_check(add->store, &add->image, err);
    return ret == 0 ? manifest_make(add->store, &add->image, err) : ret;
}

int image_add(struct image_store *store, const char *ref, const struct image_layer_source *layers, size_t layer_count,
              const json_t *config, const char *config_media_type, const struct image_progress *progress,
              char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    const char *type = config_media_type ? config_media_type : MEDIA_OCI_CONFIG, *kind = manifest_config_kind(type);
    char full[IMAGE_REF_SIZE];
    int ret = image_ref_tag_form(ref, full, err);
    if (ret < 0)
        return ret;
    if (!kind || layer_count > IMAGE_LAYERS_MAX)
        return err_say(err, EINVAL, "an image of %zu layers and configuration type '%.80s' is not handled", layer_count, type);
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    struct image_meter meter;
    meter_init(&meter, progress, ref, 0);
    struct addition add = {.store = store, .meter = &meter, .diff_ids = strcmp(kind, "oci") ? NULL : json_array()};
    ret = add_parts(&add, layers, layer_count, config, type, err);
    if (ret == 0)
        ret = tags_set(store, full, &add.image.manifest, err);
    if (ret == 0)
        memcpy(ret_digest, add.image.manifest.digest, IMAGE_DIGEST_SIZE);
    json_decref(add.diff_ids);
    image_clear(&add.image);
    meter_end(&meter);
    return ret;
}
