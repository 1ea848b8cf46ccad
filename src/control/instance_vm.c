/* A virtual machine from a disk image, with an init of its own: kernel and initrd of the image, an overlay on its disk, and
 * what cloud-init reads on a small seed disk (NoCloud: a volume named CIDATA with meta-data, user-data, network-config). */
#include "control/instance_launch.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include "base/child.h"
#include "base/own.h"
#include "image/image.h"
#include "image/rootfs.h"

/* ---- the image ---- */

static int read_config(struct image_store *store, const struct image *image, json_t **ret_config, struct err *err)
{
    own_fd int fd = image_blob_open(store, image->config.digest, err);
    if (fd < 0)
        return fd;
    if (strcmp(image->config.media_type, IMAGE_DISK_CONFIG_TYPE) != 0 || image->config.size_bytes > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "the image is no disk image: run it without kind vm");
    *ret_config = json_loadfd(fd, 0, NULL);
    return *ret_config ? 0 : err_say(err, EBADMSG, "the image's configuration is no JSON");
}

static int add_blob(struct launch *launch, const char *option, const char *digest, struct err *err)
{
    unsigned number;
    if (!image_digest_valid(digest))
        return err_say(err, EINVAL, "the image has no %s of its own", option);
    int fd = image_blob_open(launch->instance->owner->config.images, digest, err);
    int ret = fd < 0 ? fd : launch_pass(launch, fd, &number, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--%s=fd:%u", option, number);
}

/* ---- the root disk: the image's own is never written to ---- */

static int make_overlay(struct launch *launch, const char *path, struct err *err)
{
    const struct instances *instances = launch->instance->owner;
    own_free char *size = NULL;
    own_free char *part = NULL;
    if (asprintf(&size, "%lld", (long long)json_number(launch->spec, "disk_bytes")) < 0 ||
        asprintf(&part, "%s.part", path) < 0)
        return err_set(err, ENOMEM, "disk");
    const char *argv[] = {instances->runtime->img, "create", "-f", "qcow2", part, size, NULL};
    struct child child = {CHILD_INIT, .argv = argv};
    unlink(part);
    int ret = child_run(&child, NULL, err);
    if (!ret && rename(part, path) < 0)
        ret = err_set(err, errno, "rename '%s'", part);
    return ret;
}

static int add_disk(struct launch *launch, const struct image *image, struct err *err)
{
    const struct instances_config *config = &launch->instance->owner->config;
    own_free char *path = instance_path(config->state_dir, launch->instance->id, "root.qcow2");
    unsigned disk = 0, base = 0;
    if (!path || !image->layer_count)
        return err_say(err, EINVAL, "the image has no disk");
    int ret = access(path, F_OK) < 0 ? make_overlay(launch, path, err) : 0;
    int fd = ret < 0 ? ret : image_blob_open(config->images, image->layers[0].digest, err);
    if (!ret)
        ret = fd < 0 ? fd : launch_pass(launch, fd, &base, err);
    if (!ret)
        ret = launch_open(launch, path, O_RDWR, &disk, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--disk=fd:%u,format=qcow2,backing=fd:%u", disk, base);
}

/* ---- the seed ---- */

static int write_entry(struct archive *archive, const char *name, const char *text)
{
    struct archive_entry *entry = archive_entry_new();
    if (!entry)
        return ARCHIVE_FATAL;
    archive_entry_set_pathname(entry, name);
    archive_entry_set_size(entry, (la_int64_t)strlen(text));
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0444);
    int ret = archive_write_header(archive, entry);
    if (ret == ARCHIVE_OK && archive_write_data(archive, text, strlen(text)) < 0)
        ret = ARCHIVE_FATAL;
    archive_entry_free(entry);
    return ret;
}

static int write_seed(const struct launch *launch, struct archive *archive)
{
    char meta[256];
    const char *hostname = json_text(launch->spec, "hostname"), *user_data = json_text(launch->spec, "user_data");
    snprintf(meta, sizeof meta, "instance-id: %s\nlocal-hostname: %s\n", launch->instance->id,
             *hostname ? hostname : json_text(launch->doc, "name"));
    int ret = write_entry(archive, "meta-data", meta);
    if (ret == ARCHIVE_OK)
        ret = write_entry(archive, "user-data", *user_data ? user_data : "#cloud-config\n{}\n");
    if (ret == ARCHIVE_OK)
        ret = write_entry(archive, "network-config",
                          "version: 2\nethernets:\n  all:\n    match:\n      name: \"e*\"\n    dhcp4: true\n");
    return ret;
}

/* ISO 9660 with Rock Ridge and the volume id that cloud-init looks for. */
static int make_seed(const struct launch *launch, const char *path, struct err *err)
{
    struct archive *archive = archive_write_new();
    if (!archive)
        return err_set(err, ENOMEM, "seed");
    int ret = archive_write_set_format_iso9660(archive);
    if (ret == ARCHIVE_OK)
        ret = archive_write_set_options(archive, "volume-id=CIDATA");
    if (ret == ARCHIVE_OK)
        ret = archive_write_open_filename(archive, path);
    if (ret == ARCHIVE_OK)
        ret = write_seed(launch, archive);
    if (ret == ARCHIVE_OK)
        ret = archive_write_close(archive);
    if (ret != ARCHIVE_OK)
        err_say(err, EIO, "seed disk: %.160s", archive_error_string(archive));
    archive_write_free(archive);
    return ret == ARCHIVE_OK ? 0 : -EIO;
}

static int add_seed(struct launch *launch, struct err *err)
{
    own_free char *path = instance_path(launch->instance->owner->config.state_dir, launch->instance->id, "seed.iso");
    unsigned number = 0;
    int ret = path ? make_seed(launch, path, err) : err_set(err, ENOMEM, "seed");
    if (!ret)
        ret = launch_open(launch, path, O_RDONLY, &number, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--disk=fd:%u,format=raw,ro", number);
}

/* ---- the whole ---- */

static int add_all(struct launch *launch, const struct image *image, struct err *err)
{
    own_json json_t *config = NULL;
    int ret = read_config(launch->instance->owner->config.images, image, &config, err);
    if (!ret)
        ret = add_blob(launch, "kernel", json_text(config, "kernel"), err);
    if (!ret)
        ret = add_blob(launch, "initrd", json_text(config, "initrd"), err);
    if (!ret)
        ret = launch_arg(launch, err, "--cmdline=%.2000s", json_text(config, "cmdline"));
    if (!ret)
        ret = add_disk(launch, image, err);
    if (!ret)
        ret = add_seed(launch, err);
    return ret < 0 ? ret : launch_volumes(launch, err);
}

int launch_vm(struct launch *launch, struct err *err)
{
    struct image image = {0};
    int ret = image_get(launch->instance->owner->config.images, json_text(launch->spec, "image"), &image, err);
    if (!ret)
        ret = add_all(launch, &image, err);
    image_clear(&image);
    return ret;
}
