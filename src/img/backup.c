/* backup: a full copy, or a copy of what a bitmap recorded on top of the backup before it. The new file has its name only when it
 * is complete and stable, and only then the bitmap starts anew: whenever this is interrupted, the next one has what is missing. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/own.h"
#include "img/img.h"

struct backup {
    struct img_walk walk; /* first */
    const struct img_options *options;
    struct block_node *from, *to;
    uint64_t previous_size; /* of the backup below; behind it there are zeroes */
    struct err *err;
};

static int copy_extent(const struct backup *b, uint64_t offset, uint64_t len, uint8_t *data)
{
    int r = img_read(b->from, offset, len, data);
    if (r < 0)
        return r;
    bool zero = img_is_zero(data, len);
    if (zero && offset >= b->previous_size)
        return 0;
    return img_write(b->to, offset, len, zero ? NULL : data);
}

static int copy_dirty(struct img_walk *walk, uint64_t offset, uint64_t len, uint8_t *data)
{
    const struct backup *b = (struct backup *)walk;
    uint64_t alike = 0;
    bool dirty = false;
    int r = 0;
    for (uint64_t at = offset; r == 0 && at < offset + len; at += alike) {
        r = block_bitmap_status(b->from, b->options->bitmap, at, b->from->size - at, &alike, &dirty);
        if (r == 0 && !dirty && at == offset)
            img_walk_skip(walk, at + alike);
        if (alike > offset + len - at)
            alike = offset + len - at;
        if (r == 0 && dirty)
            r = copy_extent(b, at, alike, data);
    }
    return r;
}

static int copy(void *arg)
{
    struct backup *b = arg;
    if (b->options->full)
        return img_copy(b->from, b->to, b->options->compress, b->options->progress);
    int r = img_walk(&b->walk);
    return r < 0 ? r : block_do(b->to, BLOCK_FLUSH, 0, NULL, 0);
}

/* The bitmap records from here on; a full backup makes it if need be. */
static int start_anew(void *arg)
{
    const struct backup *b = arg;
    struct qcow2_bitmap_change change = {.action = QCOW2_BITMAP_CLEAR, .name = b->options->bitmap};
    uint64_t len;
    bool dirty;
    if (b->options->full && block_bitmap_status(b->from, change.name, 0, BLOCK_SECTOR_SIZE, &len, &dirty) == -ENOENT)
        change.action = QCOW2_BITMAP_ADD;
    return qcow2_bitmap_change(b->from, &change, b->err);
}

static int sync_folder(const char *path)
{
    own_free char *copy = strdup(path);
    own_fd int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int previous_size(const struct img_options *options, const char *path, uint64_t *ret_size, struct err *err)
{
    struct img_image previous = {0};
    own_free char *below = img_beside(path, options->backing);
    int r = below ? img_open(options, below, "qcow2", true, true, NULL, &previous, err) : err_set(err, ENOMEM, "backup");
    if (r < 0)
        return r;
    *ret_size = previous.node->size;
    img_close(&previous);
    return 0;
}

/* Makes the file under the name `path` and fills it. */
static int make_copy(struct backup *b, struct img_image *from, const char *path)
{
    struct img_options how = *b->options;
    struct img_image to = {0};
    how.backing_format = how.backing ? "qcow2" : NULL;
    int r = how.backing ? previous_size(&how, path, &b->previous_size, b->err) : 0;
    if (r == 0)
        r = img_make(&how, "qcow2", path, from->node->size, b->err);
    if (r == 0)
        r = img_open(&how, path, "qcow2", false, false, from->ring, &to, b->err);
    if (r < 0)
        return r;
    b->to = to.node;
    r = block_run(from->ring, copy, b);
    to.ring = NULL;
    img_close(&to);
    return r;
}

static int backup(const struct img_options *options, struct img_image *from, const char *partial, struct err *err)
{
    const char *target = options->operands[1];
    struct backup b = {.walk = {.chunk = copy_dirty, .end = from->node->size, .progress = options->progress},
                       .options = options,
                       .from = from->node,
                       .err = err};
    int r = make_copy(&b, from, partial);
    if (r == 0 && rename(partial, target) < 0)
        r = -errno;
    if (r == 0)
        r = sync_folder(target);
    if (r == 0 && options->bitmap)
        r = block_run(from->ring, start_anew, &b);
    return r < 0 && !err->code ? err_set(err, -r, "backup '%s'", target) : r;
}

static int check_options(const struct img_options *o, struct err *err)
{
    if (!o->full && !o->bitmap)
        return err_say(err, EINVAL, "say --full, or --bitmap NAME -b PREVIOUS for what changed since the backup PREVIOUS");
    if (o->full && o->backing)
        return err_say(err, EINVAL, "a full backup stands on no other, leave out -b");
    if (!o->full && !o->backing)
        return err_say(err, EINVAL, "name the backup before this one: -b PREVIOUS");
    if (access(o->operands[1], F_OK) == 0)
        return err_say(err, EEXIST, "'%s' is there already; a backup replaces nothing", o->operands[1]);
    return 0;
}

static bool has_bitmap(const struct img_image *image, const char *name)
{
    struct qcow2_bitmap b;
    for (uint32_t i = 0; i < qcow2_bitmap_count(image->node); i++) {
        qcow2_get_bitmap(image->node, i, &b);
        if (strcmp(b.name, name) == 0 && b.enabled && !b.in_use)
            return true;
    }
    return false;
}

static int run_backup(const struct img_options *options, struct err *err)
{
    struct img_image from = {0};
    own_free char *partial = NULL;
    int r = check_options(options, err);
    if (r == 0)
        r = img_open(options, options->operands[0], options->format, !options->bitmap, false, NULL, &from, err);
    if (r < 0)
        return r;
    if (options->bitmap && strcmp(from.format, "qcow2") != 0)
        r = err_say(err, ENOTSUP, "'%s' is raw, and only qcow2 images have bitmaps", options->operands[0]);
    else if (!options->full && !has_bitmap(&from, options->bitmap))
        r = err_say(err, ENOENT, "'%s' has no bitmap '%s' that recorded everything; make a full backup: --full --bitmap %s",
                    options->operands[0], options->bitmap, options->bitmap);
    else if (asprintf(&partial, "%s.partial", options->operands[1]) < 0)
        r = err_set(err, ENOMEM, "backup");
    else
        r = backup(options, &from, partial, err);
    img_close(&from);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"},   {'b', "backing"},  {'o', "options"},
                                               {'c', "compress"}, {'p', "progress"}, {0, NULL}};

const struct img_command img_backup = {
    .name = "backup",
    .usage = "(--full [--bitmap NAME] [-c] | --bitmap NAME -b PREVIOUS) [-f FORMAT] [-o SETTINGS] [-p] IMAGE NEW",
    .summary = "full or incremental copy",
    .accepts = " format full bitmap backing options compress progress allow-backing ",
    .letters = letters,
    .operands_min = 2,
    .operands_max = 2,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_backup,
};
