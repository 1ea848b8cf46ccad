/* Importing: OCI layouts (image-spec v1.1 "image-layout") and docker-archive ("docker save": moby's "Image Tarball
 * Specification v1.2") in a tar. What of it is an image is looked up among the staged files; only that is kept. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/stage.h"

#define ARCHIVE_CONTAINERD_NAME "io.containerd.image.name"
#define ARCHIVE_REF_NAME "org.opencontainers.image.ref.name"

struct import {
    struct image_store *store;
    struct image_meter meter;
    struct stage stage;
    struct image image;
    char *manifest; /* its text; NULL: to be made */
    char name[IMAGE_REF_SIZE]; /* as the archive says it, or empty */
};

static int lacks(const char *what, struct err *err)
{
    return err_say(err, EINVAL, "archive: '%.100s' is missing or damaged", what);
}

/* A staged JSON text, an array or an object. */
static int parse_staged(struct import *import, const char *path, json_t **ret_json, struct err *err)
{
    own_free char *text = NULL;
    struct staged *file = stage_by_path(&import->stage, path);
    int ret = file ? stage_text(file, &text, err) : lacks(path, err);
    if (ret < 0)
        return ret;
    *ret_json = json_loadb(text, (size_t)file->writer.size_bytes, JSON_REJECT_DUPLICATES, NULL);
    return *ret_json ? 0 : err_say(err, EINVAL, "archive: '%.80s' is no JSON", path);
}

/* ---- OCI layout ---- */

static int fetch_staged(void *context, const char *version, char **ret_text, size_t *ret_len,
                        char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct import *import = context;
    struct staged *file = stage_by_digest(&import->stage, version);
    int ret = file ? stage_text(file, ret_text, err) : lacks(version, err);
    if (ret < 0)
        return ret;
    *ret_len = (size_t)file->writer.size_bytes;
    memcpy(ret_digest, file->digest, IMAGE_DIGEST_SIZE);
    return 0;
}

/* The name that the entry with that digest has. */
static void take_name(struct import *import, const json_t *index, const char *digest)
{
    size_t i;
    json_t *entry;
    json_array_foreach (json_object_get(index, "manifests"), i, entry) {
        const json_t *notes = json_object_get(entry, "annotations");
        const char *name = image_json_string(notes, ARCHIVE_CONTAINERD_NAME), *ref = image_json_string(notes, ARCHIVE_REF_NAME);
        if (strcmp(image_json_string(entry, "digest"), digest) != 0)
            continue;
        if (!*name && strpbrk(ref, ":/")) /* else it is a tag alone */
            name = ref;
        if (strlen(name) < sizeof import->name)
            snprintf(import->name, sizeof import->name, "%s", name);
        return;
    }
}

static int find_in_layout(struct import *import, struct err *err)
{
    own_json json_t *index = NULL;
    struct image_blob blob;
    int ret = parse_staged(import, "index.json", &index, err);
    if (ret == 0)
        ret = manifest_choose(index, &blob, err);
    if (ret < 0)
        return ret;
    take_name(import, index, blob.digest);
    return manifest_find(fetch_staged, import, blob.digest, &import->image, &import->manifest, err);
}

/* ---- docker-archive ---- */

static void fill_blob(struct image_blob *blob, const struct staged *file, const char *media_type)
{
    memcpy(blob->digest, file->digest, IMAGE_DIGEST_SIZE);
    blob->size_bytes = file->writer.size_bytes;
    snprintf(blob->media_type, sizeof blob->media_type, "%s", media_type);
}

/* A layer that is not compressed must be the one that the configuration means. */
static int add_docker_layer(struct import *import, const char *path, const char *diff_id, struct err *err)
{
    const char *type;
    struct staged *file = stage_by_path(&import->stage, path);
    int ret = file ? stage_layer_type(file, &type, err) : lacks(path, err);
    if (ret < 0)
        return ret;
    if (!strcmp(type, MEDIA_OCI_LAYER) && strcmp(file->digest, diff_id) != 0)
        return err_say(err, EBADMSG, "archive: layer '%.100s' does not have the digest that the configuration says", path);
    fill_blob(&import->image.layers[import->image.layer_count++], file, type);
    return 0;
}

static int add_docker_layers(struct import *import, const json_t *layers, const struct image_config *config, struct err *err)
{
    size_t count = json_array_size(layers), known = 0;
    while (config->diff_ids[known])
        known++;
    if (count > IMAGE_LAYERS_MAX || count != known)
        return err_say(err, EINVAL, "archive: has %zu layers, its configuration %zu, at most %d are taken", count, known,
                       IMAGE_LAYERS_MAX);
    import->image.layers = calloc(count ? count : 1, sizeof *import->image.layers);
    int ret = import->image.layers ? 0 : err_set(err, ENOMEM, "archive");
    for (size_t i = 0; ret == 0 && i < count; i++) {
        const char *path = json_string_value(json_array_get(layers, i));
        ret = path ? add_docker_layer(import, path, config->diff_ids[i], err) : lacks("Layers", err);
    }
    return ret;
}

static int find_in_docker_archive(struct import *import, struct err *err)
{
    own_json json_t *list = NULL, *json = NULL;
    struct image_config config;
    int ret = parse_staged(import, "manifest.json", &list, err);
    if (ret < 0)
        return ret;
    const json_t *first = json_array_get(list, 0);
    const char *path = image_json_string(first, "Config");
    const char *name = json_string_value(json_array_get(json_object_get(first, "RepoTags"), 0));
    ret = parse_staged(import, path, &json, err);
    if (ret == 0)
        ret = image_config_parse(json, &config, err);
    if (ret < 0)
        return ret;
    if (name && strlen(name) < sizeof import->name)
        snprintf(import->name, sizeof import->name, "%s", name);
    fill_blob(&import->image.config, stage_by_path(&import->stage, path), MEDIA_OCI_CONFIG);
    ret = add_docker_layers(import, json_object_get(first, "Layers"), &config, err);
    image_config_clear(&config);
    return ret;
}

/* ---- keeping ---- */

static int keep(struct import *import, const struct image_blob *blob, struct err *err)
{
    struct staged *file = stage_by_digest(&import->stage, blob->digest);
    if (file && file->writer.size_bytes == blob->size_bytes)
        return stage_keep(file, err);
    return blob_here(import->store, blob->digest, blob->size_bytes) ? 0 : lacks(blob->digest, err);
}

static int keep_all(struct import *import, struct err *err)
{
    struct image *image = &import->image;
    int ret = keep(import, &image->config, err);
    if (ret == 0)
        ret = image_config_check(import->store, image, err);
    for (size_t i = 0; ret == 0 && i < image->layer_count; i++)
        ret = keep(import, &image->layers[i], err);
    if (ret < 0)
        return ret;
    if (!import->manifest)
        return manifest_make(import->store, image, err);
    char digest[IMAGE_DIGEST_SIZE];
    return blob_add_text(import->store, import->manifest, image->manifest.size_bytes, digest, err);
}

static int import_staged(struct import *import, const char *ref, char full[static IMAGE_REF_SIZE], struct err *err)
{
    int ret;
    if (stage_by_path(&import->stage, "index.json"))
        ret = find_in_layout(import, err);
    else if (stage_by_path(&import->stage, "manifest.json"))
        ret = find_in_docker_archive(import, err);
    else
        ret = err_say(err, EINVAL, "archive: neither an OCI layout (index.json) nor a docker-archive (manifest.json)");
    if (ret < 0)
        return ret;
    if (!ref && !import->name[0])
        return err_say(err, EINVAL, "archive: does not say what its image is called: give it a name");
    ret = image_ref_tag_form(ref ? ref : import->name, full, err);
    if (ret == 0)
        ret = keep_all(import, err);
    return ret == 0 ? tags_set(import->store, full, &import->image.manifest, err) : ret;
}

int image_import(struct image_store *store, int fd, const char *ref, const struct image_progress *progress,
                 char ret_ref[static IMAGE_REF_SIZE], struct err *err)
{
    char full[IMAGE_REF_SIZE];
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    struct import import = {.store = store, .stage = {.store = store}};
    meter_init(&import.meter, progress, "import", 0);
    int ret = stage_read(&import.stage, fd, &import.meter, err);
    if (ret == 0)
        ret = import_staged(&import, ref, full, err);
    if (ret == 0)
        memcpy(ret_ref, full, IMAGE_REF_SIZE);
    meter_end(&import.meter);
    stage_clear(&import.stage);
    image_clear(&import.image);
    free(import.manifest);
    return ret;
}
