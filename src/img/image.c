/* What commands do alike: opening images, sizes, JSON. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/size.h"
#include "block/workers.h"
#include "img/img.h"

int img_guess(const char *path, const char *format, const char **ret_format, struct err *err)
{
    int r = format ? 0 : block_guess_format(path, &format);
    if (r < 0 && r != -EINVAL)
        return err_set(err, -r, "disk '%s'", path);
    if (r < 0)
        return err_say(err, EINVAL, "'%s' has a qcow2 header and no such name; say -f qcow2, or -f raw if a guest wrote it", path);
    if (strcmp(format, "raw") != 0 && !block_find_class(format))
        return err_say(err, EINVAL,
                       "format '%s' is not supported, give raw, qcow2, luks, vmdk, vhd, vhdx or vdi (qemu-img converts others)",
                       format);
    *ret_format = format;
    return 0;
}

int img_block_options(const struct img_options *options, const char *path, const char *format, bool read_only,
                      struct block_options *ret_open, struct err *err)
{
    if (block_is_nbd_uri(path)) {
        if (format && strcmp(format, "raw") != 0)
            return err_say(err, EINVAL, "over NBD images are raw; leave out -f %s", format);
        *ret_open = (struct block_options){.driver = block_nbd.name, .path = path, .fd = -1, .read_only = read_only};
        return 0;
    }
    int r = img_guess(path, format, &format, err);
    if (r == 0)
        *ret_open = (struct block_options){.driver = format,
                                           .path = path,
                                           .fd = -1,
                                           .read_only = read_only,
                                           .below = strcmp(format, "raw") == 0,
                                           .key = options->key,
                                           .allow_dirs = options->allow_dirs};
    return r;
}

int img_open_as(const struct block_options *open, struct block_ring *ring, struct img_image *ret_image, struct err *err)
{
    bool remote = strcmp(open->driver, block_nbd.name) == 0;
    struct img_image image = {.ring = ring, .format = remote ? "raw" : open->driver};
    int r = remote ? block_nbd.open(open, &image.node, err) : block_open(open, &image.node, err);
    if (r < 0)
        return r;
    if (!ring)
        r = block_ring_create(NULL, &image.ring, err);
    if (r == 0 && !ring)
        r = block_workers_create(image.ring, (unsigned)sysconf(_SC_NPROCESSORS_ONLN), err);
    if (r == 0 && !ring)
        r = block_ring_start(image.ring, err);
    if (r == 0)
        r = block_attach(image.node, image.ring, err);
    if (r < 0) {
        img_close(&image);
        return r;
    }
    *ret_image = image;
    return 0;
}

int img_open(const struct img_options *options, const char *path, const char *format, bool read_only, bool repair,
             struct block_ring *ring, struct img_image *ret_image, struct err *err)
{
    struct block_options open = {0};
    int r = img_block_options(options, path, format, read_only, &open, err);
    open.repair = open.no_backing = open.no_key = repair;
    return r < 0 ? r : img_open_as(&open, ring, ret_image, err);
}

int img_open_served(const struct img_options *options, const char *path, struct block_ring *ring, struct img_image *ret_image,
                    struct err *err)
{
    struct block_options open = {0};
    int r = img_block_options(options, path, options->format, options->read_only || options->snapshot, &open, err);
    if (r < 0)
        return r;
    if (options->snapshot && strcmp(open.driver, "qcow2") != 0)
        return err_say(err, EINVAL, "image '%s' is %s, which has no snapshots", path, open.driver);
    open.below = false;
    open.snapshot = options->snapshot;
    return img_open_as(&open, ring, ret_image, err);
}

void img_close(struct img_image *image)
{
    block_close(image->node);
    block_ring_free(image->ring);
    *image = (struct img_image){0};
}

char *img_beside(const char *image, const char *name)
{
    const char *slash = strrchr(image, '/');
    char *path = NULL;
    if (name[0] == '/' || !slash)
        return strdup(name);
    return asprintf(&path, "%.*s/%s", (int)(slash - image), image, name) < 0 ? NULL : path;
}

int img_parse_size(const char *text, uint64_t *ret_bytes, struct err *err)
{
    if (!size_parse(text, 1, ret_bytes))
        return err_say(err, EINVAL, "'%s' is not a size such as 512M or 20G", text);
    return 0;
}

int img_print_json(json_t *json)
{
    char *text = json ? json_dumps(json, JSON_INDENT(4)) : NULL;
    json_decref(json);
    if (!text)
        return -ENOMEM;
    puts(text);
    free(text);
    return 0;
}

bool img_is_zero(const void *data, size_t len)
{
    const unsigned char *bytes = data;
    return !len || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}
