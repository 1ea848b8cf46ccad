#include "vmm/disk_live_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"
#include "block/crypt/key.h"

/* ---- a backup's bitmap; alone ---- */

static bool has_bitmap(struct block_node *node, const char *name)
{
    for (uint32_t i = 0; i < qcow2_bitmap_count(node); i++) {
        struct qcow2_bitmap bitmap;
        qcow2_get_bitmap(node, i, &bitmap);
        if (strcmp(bitmap.name, name) == 0)
            return true;
    }
    return false;
}

static int change_bitmap(struct block_node *node, enum qcow2_bitmap_action action, const char *name, const char *source,
                         struct err *err)
{
    struct qcow2_bitmap_change change = {.action = action, .name = name, .source = source};
    return qcow2_bitmap_change(node, &change, err);
}

/* From now on the next bitmap records; the old one goes on, in case that the backup fails. */
static int begin_bitmap(struct block_node *node, const struct disk_copy *copy, bool must_exist, struct err *err)
{
    if (node->class != &block_qcow2)
        return err_say(err, EINVAL, "disk '%s' is not a qcow2 image: only those have bitmaps", copy->dev->id);
    if (must_exist && !has_bitmap(node, copy->bitmap))
        return err_say(err, ENOENT, "disk '%s' has no bitmap '%s'; a backup without base_path_on_host makes it", copy->dev->id,
                       copy->bitmap);
    int r = has_bitmap(node, copy->next_bitmap) ? change_bitmap(node, QCOW2_BITMAP_REMOVE, copy->next_bitmap, NULL, err) : 0;
    return r < 0 ? r : change_bitmap(node, QCOW2_BITMAP_ADD, copy->next_bitmap, NULL, err);
}

static int end_bitmap(struct block_node *node, const struct disk_copy *copy, bool complete)
{
    int r = 0;
    if (complete) {
        r = has_bitmap(node, copy->bitmap) ? change_bitmap(node, QCOW2_BITMAP_CLEAR, copy->bitmap, NULL, NULL)
                                           : change_bitmap(node, QCOW2_BITMAP_ADD, copy->bitmap, NULL, NULL);
        if (r == 0)
            r = change_bitmap(node, QCOW2_BITMAP_MERGE, copy->bitmap, copy->next_bitmap, NULL);
    }
    return r < 0 ? r : change_bitmap(node, QCOW2_BITMAP_REMOVE, copy->next_bitmap, NULL, NULL);
}

/* ---- copy ---- */

struct starting {
    struct disk_copy *copy;
    struct block_copy_options options;
    struct err *err;
};

static bool uses_backing(enum block_copy_mode mode)
{
    return mode == BLOCK_COPY_COMMIT || mode == BLOCK_COPY_FLATTEN || mode == BLOCK_COPY_REBASE;
}

/* The image's own backing node; of a commit it is the target. */
static int take_backing(struct block_node *disk, struct starting *starting)
{
    struct block_copy_options *options = &starting->options;
    struct disk_copy *own = starting->copy;
    struct block_node *backing = disk->class == &block_qcow2 ? qcow2_backing(disk) : NULL;
    bool commit = options->mode == BLOCK_COPY_COMMIT;
    if (!backing)
        return err_say(starting->err, EINVAL, "disk '%s' has no backing file", own->dev->id);
    if (commit && !backing->class->thaw)
        return err_say(starting->err, ENOTSUP, "disk '%s' has a backing file that cannot be written", own->dev->id);
    int r = qcow2_refuse_snapshots(disk, "", starting->err);
    if (r < 0)
        return r;
    own->now.path = strdup(commit ? backing->name : disk->name);
    if (!own->now.path)
        return -ENOMEM;
    own->now.format = !commit ? "qcow2" : backing->class == &block_file ? "raw" : backing->class->name;
    if (!commit)
        return 0;
    options->target = backing;
    r = backing->class->thaw(backing, starting->err);
    if (r == 0 && backing->size < disk->size) {
        r = block_resize(backing, disk->size, starting->err);
        if (r < 0)
            (void)backing->class->freeze(backing);
    }
    return r;
}

static int insert_copy(struct block_node **node, void *arg)
{
    struct starting *starting = arg;
    const struct disk_copy *own = starting->copy;
    struct block_copy_options *options = &starting->options;
    struct block_node *copy = NULL, *disk = *node;
    options->source = disk;
    int r = uses_backing(options->mode) ? take_backing(disk, starting) : 0;
    if (r == 0 && options->target && options->mode != BLOCK_COPY_COMMIT)
        r = block_attach(options->target, disk->ring, starting->err);
    if (r == 0 && own->bitmap)
        r = begin_bitmap(disk, own, options->based, starting->err);
    if (r < 0)
        return r;
    r = block_copy_create(options, &copy, starting->err);
    if (r == 0)
        r = block_copy_start(copy);
    if (r == 0) {
        *node = copy;
        return 0;
    }
    if (copy)
        block_copy_take(copy, &options->source, &options->target);
    if (own->bitmap)
        (void)end_bitmap(disk, own, false);
    if (options->mode == BLOCK_COPY_COMMIT)
        (void)options->target->class->freeze(options->target);
    return r;
}

static int read_status(struct block_node **node, void *arg)
{
    block_copy_status(*node, arg);
    return 0;
}

struct ending {
    struct disk_copy *copy;
    enum { GIVE_UP, MOVE, KEEP } how; /* no target; the disk becomes it; it is a backup */
    struct block_copy_status status;
    struct block_node *unused; /* the node that is not the disk's any more */
    char **name;               /* MOVE: of a mirror from then on; then the one that it had. Owned */
    int error, bitmap_error;
};

/* While the guest goes on. The image reads the same with its old backing file and with the new one (NULL: none): its header may
 * already name the other one. */
static int stop_copy(struct block_node **node, void *arg)
{
    struct ending *ending = arg;
    const struct disk_copy *copy = ending->copy;
    block_copy_stop(*node);
    if (ending->how == KEEP && (copy->now.mode == BLOCK_COPY_FLATTEN || copy->now.mode == BLOCK_COPY_REBASE))
        ending->error = qcow2_set_backing(block_copy_source(*node), copy->base, copy->base_format, NULL);
    return 0;
}

static struct block_node *change_backing(struct block_node *disk, struct block_node *base)
{
    struct block_node *old = qcow2_backing(disk);
    qcow2_detach_backing(disk);
    int r = base ? qcow2_attach_backing(disk, base) : 0;
    assert(r == 0); /* the base was opened as this image's, so its chain is short enough */
    return old;
}

static void change_name(struct block_node *node, char **name)
{
    char *old = node->name;
    node->name = *name;
    *name = old;
}

/* The base holds all that the overlay does. */
static struct block_node *leave_overlay(struct block_node *overlay)
{
    qcow2_detach_backing(overlay);
    return overlay;
}

static int remove_copy(struct block_node **node, void *arg)
{
    struct ending *ending = arg;
    struct block_node *source, *target;
    block_copy_status(*node, &ending->status);
    bool move = ending->how == MOVE;
    if (move && ending->status.state != BLOCK_COPY_READY)
        return -EBUSY; /* a write to the target failed just now */
    block_copy_take(*node, &source, &target);
    *node = move ? target : source;
    switch (ending->copy->now.mode) {
    case BLOCK_COPY_COMMIT:
        ending->unused = move ? leave_overlay(source) : NULL;
        if (!move)
            ending->error = target->class->freeze(target);
        break;
    case BLOCK_COPY_FLATTEN:
    case BLOCK_COPY_REBASE:
        ending->unused = ending->how == KEEP && !ending->error ? change_backing(source, target) : target;
        break;
    case BLOCK_COPY_MIRROR:
    case BLOCK_COPY_BACKUP:
        ending->unused = move ? source : target;
        if (move)
            change_name(target, ending->name);
        break;
    }
    if (ending->copy->bitmap)
        ending->bitmap_error = end_bitmap(source, ending->copy, ending->how == KEEP);
    return 0;
}

/* Lock held. What is in the target is complete: gives it its name. */
static int publish(struct disk_copy *copy, struct err *err)
{
    if (!copy->part || renameat2(AT_FDCWD, copy->part, AT_FDCWD, copy->now.path, RENAME_NOREPLACE) == 0)
        return 0;
    return errno == EEXIST ? err_say(err, EEXIST, "'%s' exists; the copy is '%s'", copy->now.path, copy->part)
                           : err_set(err, errno, "'%s'", copy->now.path);
}

static int close_unused(struct block_node **node, void *arg)
{
    (void)node;
    block_close(arg);
    return 0;
}

/* Lock held, a copy runs. `ending` says how it shall end, and then how it did. */
static int end_copy(struct disk_copy *copy, struct ending *ending)
{
    ending->copy = copy;
    virtio_blk_run(copy->dev, false, stop_copy, ending);
    uint64_t start = disk_now_us();
    int r = virtio_blk_run(copy->dev, true, remove_copy, ending);
    if (r < 0)
        return r;
    log_info("disk '%s': a copy has ended; requests waited for %llu us", copy->dev->id, (unsigned long long)(disk_now_us() - start));
    copy->now.copied = ending->status.copied;
    copy->now.error = ending->status.error;
    if (virtio_blk_run(copy->dev, false, close_unused, ending->unused) < 0) /* in a jail its thread alone writes disks */
        block_close(ending->unused);
    copy->dev = NULL;
    return 0;
}

static void remove_part(const struct disk_copy *copy)
{
    if (copy->part && unlink(copy->part) < 0)
        log_warn("'%s' could not be removed: %s", copy->part, strerror(errno));
}

/* Lock held. Everything is copied: gives a backup its name, and then starts its bitmap anew. */
static void finish(struct disk_copy *copy)
{
    struct err err = {0};
    struct ending ending = {.how = publish(copy, &err) < 0 ? GIVE_UP : KEEP};
    end_copy(copy, &ending);
    copy->now.error = err.code ? -err.code : ending.error;
    copy->now.state = copy->now.error ? DISK_COPY_FAILED : DISK_COPY_DONE;
    if (err.code)
        log_error("copy of a disk: %s", err.message);
    if (ending.bitmap_error < 0)
        log_error("disk '%s': bitmap '%s': %s; the next backup is larger", copy->now.path, copy->bitmap, strerror(-ending.bitmap_error));
}

/* In the loop: the copy said that something has changed. */
static void settle(void *arg)
{
    struct disk_copy *copy = arg;
    struct block_copy_status status = {0};
    struct ending ending = {.how = GIVE_UP};
    pthread_mutex_lock(&copy->lock);
    if (copy->dev)
        virtio_blk_run(copy->dev, false, read_status, &status);
    if (copy->dev && status.state == BLOCK_COPY_DONE) {
        finish(copy);
    } else if (copy->dev && status.state == BLOCK_COPY_FAILED) {
        end_copy(copy, &ending);
        copy->now.state = DISK_COPY_FAILED;
        remove_part(copy);
        log_error("copy to '%s': %s", copy->now.path, strerror(-copy->now.error));
    }
    pthread_mutex_unlock(&copy->lock);
}

static void on_change(void *arg)
{
    struct disk_copy *copy = arg;
    loop_call(copy->loop, settle, copy);
}

static void forget(struct disk_copy *copy)
{
    free(copy->now.path);
    free(copy->part);
    free(copy->bitmap);
    free(copy->next_bitmap);
    free(copy->base);
    free(copy->base_format);
    copy->now = (struct disk_copy_status){0};
    copy->part = copy->bitmap = copy->next_bitmap = copy->base = copy->base_format = NULL;
}

static int remember(struct disk_copy *copy, const struct disk_copy_request *request, struct err *err)
{
    const char *bitmap = request->bitmap;
    forget(copy);
    copy->now.mode = request->mode;
    copy->now.format = request->format && strcmp(request->format, "raw") == 0 ? "raw" : "qcow2";
    bool fine = !request->path || ((copy->now.path = strdup(request->path)) && asprintf(&copy->part, "%s.part", request->path) >= 0);
    if (fine && bitmap)
        fine = (copy->bitmap = strdup(bitmap)) && asprintf(&copy->next_bitmap, "%s.next", bitmap) >= 0;
    return fine ? 0 : err_set(err, ENOMEM, "copy");
}

static int check_rebase(const struct disk_copy_request *request, struct err *err)
{
    if (!request->base || request->bitmap)
        return err_say(err, EINVAL, "a rebase needs base_path_on_host and has no bitmap; Flatten leaves the image without a base");
    bool given = fdname_parse(request->base) >= 0;
    if (given != (request->base_name != NULL) || (given && !request->format))
        return err_say(err, EINVAL, "a base that is a descriptor (fd:N) needs a base_name and a format, and only it has a base_name");
    return 0;
}

/* What a request must be like whatever the disk is. */
static int check_request(const struct disk_copy_request *request, struct disk_facts *ret_base, struct err *err)
{
    bool new_image = request->mode == BLOCK_COPY_MIRROR || request->mode == BLOCK_COPY_BACKUP;
    if (new_image != (request->path != NULL))
        return err_say(err, EINVAL, "a mirror or backup needs path_on_host, other copies have none");
    if (new_image && access(request->path, F_OK) == 0)
        return err_say(err, EEXIST, "'%s' exists; name a new file", request->path);
    if (request->mode == BLOCK_COPY_REBASE)
        return check_rebase(request, err);
    if ((request->bitmap || request->base || request->base_name) && request->mode != BLOCK_COPY_BACKUP)
        return err_say(err, EINVAL, "only a backup has a bitmap and a base");
    if (!request->base)
        return 0;
    if (request->base_name || !request->bitmap || strcmp(request->format, "qcow2") != 0)
        return err_say(err, EINVAL, "a backup with a base has format qcow2 and a bitmap, and no base_name");
    const char *format;
    int r = block_guess_format(request->base, &format);
    if (r < 0 && r != -EINVAL)
        return err_set(err, -r, "'%s'", request->base);
    if (r < 0)
        return err_say(err, EINVAL, "'%s' has a qcow2 header; if it is a qcow2 image give it a name that ends in .qcow2", request->base);
    *ret_base = (struct disk_facts){.path = (char *)(uintptr_t)request->base, .format = format};
    return 0;
}

/* The new base, as the disk will open it the next time. */
static int open_base(struct disk_copy *copy, const struct vm_disk *disk, const struct disk_facts *facts,
                     const struct disk_copy_request *request, struct block_node **ret_node, struct err *err)
{
    const char *format = request->format, *const given[] = {request->base, NULL};
    int r = format ? 0 : block_guess_format(request->base, &format);
    if (r < 0)
        return r == -EINVAL ? err_say(err, EINVAL, "'%s' has a qcow2 header and no such name; say which format it has", request->base)
                            : err_set(err, -r, "'%s'", request->base);
    copy->base = request->base_name ? strdup(request->base_name) : disk_backing_name(facts->path, request->base);
    copy->base_format = strdup(format);
    if (!copy->base || !copy->base_format)
        return err_set(err, errno, "'%s'", request->base);
    struct block_key *key = NULL;
    r = disk->key_path ? block_key_read(disk->key_path, &key, err) : 0;
    struct block_options image = {.path = facts->path,
                                  .direct = disk->direct,
                                  .allow_dirs = request->allow_dirs,
                                  .backing = request->base_name ? given : NULL,
                                  .key = key};
    if (r == 0)
        r = qcow2_open_base(&image, copy->base, copy->base_format, ret_node, err);
    block_key_free(key);
    return r;
}

/* The copy's target, or a rebase's new base. */
static int open_other(struct disk_copy *copy, const struct vm_disk *disk, const struct disk_facts *facts,
                      const struct disk_copy_request *request, const struct disk_facts *base, struct block_node **ret_node,
                      struct err *err)
{
    struct disk_image image = {.path = copy->part, .format = request->format, .backing = base};
    if (request->mode == BLOCK_COPY_REBASE)
        return open_base(copy, disk, facts, request, ret_node, err);
    return copy->part ? disk_image_make(&image, disk, facts, ret_node, err) : 0;
}

static int start_copy(struct disk_copy *copy, const struct vm_disk *disk, const struct disk_facts *facts,
                      const struct disk_copy_request *request, const struct disk_facts *base, struct err *err)
{
    bool based = request->mode == BLOCK_COPY_BACKUP && request->base;
    struct starting starting = {.copy = copy,
                                .options = {.mode = request->mode,
                                            .based = based,
                                            .bitmap = based ? request->bitmap : NULL,
                                            .changed = on_change,
                                            .arg = copy},
                                .err = err};
    struct block_node *other = NULL;
    int r = open_other(copy, disk, facts, request, base, &other, err);
    if (r < 0)
        return r;
    starting.options.target = other;
    r = virtio_blk_run(copy->dev, true, insert_copy, &starting);
    if (r == 0)
        return 0;
    block_close(other);
    remove_part(copy);
    return err->code ? r : err_set(err, -r, "disk '%s': copy", copy->dev->id);
}

/* What the disk must be like for it. */
static int check_disk(const struct disk_facts *facts, enum block_copy_mode mode, const char *id, struct err *err)
{
    if (mode != BLOCK_COPY_BACKUP && facts->read_only)
        return err_say(err, EINVAL, "disk '%s' is read-only: copy the file, and give the disk its new path", id);
    return 0;
}

static int start_locked(struct disk_copy *copy, struct virtio_device *dev, const struct vm_disk *disk,
                        const struct disk_copy_request *request, struct err *err)
{
    struct disk_facts facts, base = {0};
    int r = check_request(request, &base, err);
    if (r == 0)
        r = disk_ask(dev, &facts, err);
    if (r < 0)
        return r;
    own_free char *path = facts.path;
    r = check_disk(&facts, request->mode, dev->id, err);
    if (r == 0)
        r = remember(copy, request, err);
    if (r < 0)
        return r;
    copy->dev = dev;
    copy->now.size = facts.size;
    copy->now.state = DISK_COPY_RUNNING;
    r = start_copy(copy, disk, &facts, request, request->base ? &base : NULL, err);
    if (r < 0) {
        copy->dev = NULL;
        forget(copy);
    }
    return r;
}

int disk_copy_start(struct disk_copy *copy, struct virtio_device *dev, const struct vm_disk *disk,
                    const struct disk_copy_request *request, struct err *err)
{
    pthread_mutex_lock(&copy->lock);
    int r = start_locked(copy, dev, disk, request, err);
    pthread_mutex_unlock(&copy->lock);
    return r;
}

void disk_copy_status(struct disk_copy *copy, struct disk_copy_status *ret_status)
{
    struct block_copy_status status;
    pthread_mutex_lock(&copy->lock);
    if (copy->dev) {
        virtio_blk_run(copy->dev, false, read_status, &status);
        copy->now.copied = status.copied;
        copy->now.state = status.state == BLOCK_COPY_READY ? DISK_COPY_READY : DISK_COPY_RUNNING; /* else settle() ends it soon */
    }
    *ret_status = copy->now;
    ret_status->path = copy->now.path ? strdup(copy->now.path) : NULL;
    pthread_mutex_unlock(&copy->lock);
}

static int complete_locked(struct disk_copy *copy, struct err *err)
{
    struct block_copy_status status;
    own_free char *name = NULL;
    struct ending ending = {.how = MOVE, .name = &name};
    if (!copy->dev || (copy->now.mode != BLOCK_COPY_MIRROR && copy->now.mode != BLOCK_COPY_COMMIT))
        return err_say(err, EINVAL, "no mirror or commit of this disk runs");
    virtio_blk_run(copy->dev, false, read_status, &status);
    if (status.state != BLOCK_COPY_READY)
        return err_say(err, EBUSY, "it is not ready: %llu of %llu bytes are copied", (unsigned long long)status.copied,
                       (unsigned long long)status.size);
    if (!(name = strdup(copy->now.path)))
        return err_set(err, ENOMEM, "copy");
    int r = publish(copy, err);
    if (r < 0)
        return r;
    r = end_copy(copy, &ending);
    if (r < 0) {
        if (copy->part)
            unlink(copy->now.path); /* settle() says the rest */
        return err_set(err, -r, "the copy failed");
    }
    copy->now.state = DISK_COPY_DONE;
    return 0;
}

int disk_copy_complete(struct disk_copy *copy, struct err *err)
{
    pthread_mutex_lock(&copy->lock);
    int r = complete_locked(copy, err);
    pthread_mutex_unlock(&copy->lock);
    return r;
}

int disk_copy_cancel(struct disk_copy *copy, struct err *err)
{
    struct ending ending = {.how = GIVE_UP};
    int r = 0;
    pthread_mutex_lock(&copy->lock);
    if (!copy->dev) {
        r = err_say(err, EINVAL, "no copy of this disk runs");
    } else {
        r = end_copy(copy, &ending);
        copy->now.state = DISK_COPY_CANCELLED;
        remove_part(copy);
    }
    pthread_mutex_unlock(&copy->lock);
    return r;
}

void disk_copy_clear(struct disk_copy *copy)
{
    struct err err;
    if (copy->dev && disk_copy_cancel(copy, &err) == 0)
        log_warn("the copy to '%s' was not complete; it is gone", copy->now.path);
    forget(copy);
    pthread_mutex_destroy(&copy->lock);
}
