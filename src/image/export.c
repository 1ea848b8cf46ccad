/* Exporting: one tar that is an OCI layout and, by manifest.json, a docker-archive as well; both name the same blobs. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/image_impl.h"

struct export {
    struct image_store *store;
    struct image_meter meter;
    struct image image;
    struct archive *archive;
    json_t *written; /* set of digests */
};

static int archive_failed(struct export *export, struct err *err)
{
    int code = archive_errno(export->archive);
    return err_say(err, code > 0 ? code : EIO, "write the archive: %.150s", archive_error_string(export->archive));
}

/* Header of a file; no times, so that equal images give equal archives. */
static int begin_file(struct export *export, const char *path, uint64_t size_bytes, struct err *err)
{
    struct archive_entry *entry = archive_entry_new();
    if (!entry)
        return err_set(err, ENOMEM, "archive");
    archive_entry_set_pathname(entry, path);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, (la_int64_t)size_bytes);
    archive_entry_set_mtime(entry, 0, 0);
    int status = archive_write_header(export->archive, entry);
    archive_entry_free(entry);
    return status == ARCHIVE_OK ? 0 : archive_failed(export, err);
}

static int write_data(struct export *export, const void *data, size_t length, struct err *err)
{
    return archive_write_data(export->archive, data, length) == (la_ssize_t)length ? 0 : archive_failed(export, err);
}

static int write_json(struct export *export, const char *path, json_t *json, struct err *err)
{
    own_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!text)
        return err_set(err, ENOMEM, "archive");
    int ret = begin_file(export, path, strlen(text), err);
    return ret == 0 ? write_data(export, text, strlen(text), err) : ret;
}

static int copy_blob(struct export *export, int fd, uint64_t size_bytes, struct err *err)
{
    own_free char *buffer = malloc(IMAGE_IO_SIZE);
    if (!buffer)
        return err_set(err, ENOMEM, "archive");
    while (size_bytes) {
        size_t length = size_bytes < IMAGE_IO_SIZE ? (size_t)size_bytes : IMAGE_IO_SIZE;
        ssize_t n = read(fd, buffer, length);
        int ret = n <= 0 ? err_set(err, n < 0 ? errno : EIO, "read a blob") : meter_check(&export->meter, err);
        if (ret == 0)
            ret = write_data(export, buffer, (size_t)n, err);
        if (ret < 0)
            return ret;
        size_bytes -= (uint64_t)n;
        meter_add(&export->meter, n);
    }
    return 0;
}

static int write_blob(struct export *export, const struct image_blob *blob, struct err *err)
{
    char path[sizeof "blobs/sha256/" + IMAGE_DIGEST_SIZE];
    if (json_object_get(export->written, blob->digest))
        return 0;
    json_object_set_new(export->written, blob->digest, json_true());
    snprintf(path, sizeof path, "blobs/sha256/%s", IMAGE_SHA256_HEX(blob->digest));
    own_fd int fd = image_blob_open(export->store, blob->digest, err);
    if (fd < 0)
        return fd;
    int ret = begin_file(export, path, blob->size_bytes, err);
    return ret == 0 ? copy_blob(export, fd, blob->size_bytes, err) : ret;
}

/* ---- the two tables of contents ---- */

static json_t *layout_index(const struct image *image, const struct image_ref *ref)
{
    json_t *entry = descriptor_json(&image->manifest);
    if (image->ref[0] && entry)
        json_object_set_new(entry, "annotations", json_pack("{s:s, s:s}", "io.containerd.image.name", image->ref,
                                                            "org.opencontainers.image.ref.name", ref->tag));
    return json_pack("{s:i, s:s, s:[o]}", "schemaVersion", 2, "mediaType", MEDIA_OCI_INDEX, "manifests", entry);
}

static json_t *blob_path(const struct image_blob *blob)
{
    return json_sprintf("blobs/sha256/%s", IMAGE_SHA256_HEX(blob->digest));
}

static json_t *docker_manifest(const struct image *image, const struct image_ref *ref)
{
    char name[IMAGE_REF_SIZE];
    json_t *layers = json_array(), *names = json_array();
    for (size_t i = 0; i < image->layer_count; i++)
        json_array_append_new(layers, blob_path(&image->layers[i]));
    if (ref->tag[0]) {
        struct image_ref tagged = *ref;
        tagged.digest[0] = '\0';
        image_ref_short(&tagged, name);
        json_array_append_new(names, json_string(name));
    }
    return json_pack("[{s:o, s:o, s:o}]", "Config", blob_path(&image->config), "RepoTags", names, "Layers", layers);
}

static int write_all(struct export *export, struct err *err)
{
    const struct image *image = &export->image;
    struct image_ref ref = {0};
    int ret = image->ref[0] ? image_ref_parse(image->ref, &ref, err) : 0;
    if (ret == 0)
        ret = write_json(export, "oci-layout", json_pack("{s:s}", "imageLayoutVersion", "1.0.0"), err);
    if (ret == 0)
        ret = write_json(export, "index.json", layout_index(image, &ref), err);
    if (ret == 0 && !strcmp(manifest_config_kind(image->config.media_type), "oci"))
        ret = write_json(export, "manifest.json", docker_manifest(image, &ref), err);
    if (ret == 0)
        ret = write_blob(export, &image->manifest, err);
    if (ret == 0)
        ret = write_blob(export, &image->config, err);
    for (size_t i = 0; ret == 0 && i < image->layer_count; i++)
        ret = write_blob(export, &image->layers[i], err);
    if (ret == 0 && archive_write_close(export->archive) != ARCHIVE_OK)
        ret = archive_failed(export, err);
    return ret;
}

static int export_to(struct export *export, int fd, struct err *err)
{
    export->archive = archive_write_new();
    export->written = json_object();
    if (!export->archive || !export->written)
        return err_set(err, ENOMEM, "archive");
    archive_write_set_format_pax_restricted(export->archive);
    archive_write_set_bytes_in_last_block(export->archive, 1);
    int status = archive_write_open_fd(export->archive, fd);
    int ret = status == ARCHIVE_OK ? write_all(export, err) : archive_failed(export, err);
    if (ret < 0)
        archive_write_fail(export->archive); /* no end is written: a broken archive should look broken */
    return ret;
}

int image_export(struct image_store *store, const char *ref, int fd, const struct image_progress *progress, struct err *err)
{
    own_fd int use = image_store_use(store, err);
    if (use < 0)
        return use;
    struct export export = {.store = store};
    int ret = image_get(store, ref, &export.image, err);
    if (ret < 0)
        return ret;
    uint64_t total = export.image.manifest.size_bytes + export.image.config.size_bytes;
    for (size_t i = 0; i < export.image.layer_count; i++)
        total += export.image.layers[i].size_bytes;
    meter_init(&export.meter, progress, "export", total);
    ret = export_to(&export, fd, err);
    meter_end(&export.meter);
    archive_write_free(export.archive);
    json_decref(export.written);
    image_clear(&export.image);
    return ret;
}
