#include "vmm/disk_live.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"
#include "block/crypt/key.h"

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- the disk, asked in its own thread ---- */

struct facts {
    uint64_t size;
    char *path;         /* owned */
    const char *format; /* "raw", "qcow2" or "luks" */
    bool read_only, encrypted, copied;
};

static int get_facts(struct block_node **node, void *arg)
{
    struct facts *facts = arg;
    struct block_node *n = *node;
    struct qcow2_info info = {0};
    if (n->class == &block_qcow2)
        qcow2_get_info(n, &info);
    *facts = (struct facts){.size = n->size,
                            .path = strdup(n->name),
                            .format = n->class == &block_file ? "raw" : n->class->name,
                            .read_only = n->read_only,
                            .encrypted = info.encrypted || n->class == &block_luks,
                            .copied = block_is_copy(n)};
    return facts->path ? 0 : -ENOMEM;
}

static int ask(struct virtio_device *dev, struct facts *ret_facts, struct err *err)
{
    int r = virtio_blk_run(dev, false, get_facts, ret_facts);
    if (r < 0)
        return err_set(err, -r, "disk '%s'", dev->id);
    if (!ret_facts->copied)
        return 0;
    free(ret_facts->path);
    ret_facts->path = NULL;
    return err_say(err, EBUSY, "disk '%s' is being copied; wait, or cancel the copy", dev->id);
}

static int flush_node(struct block_node **node, void *arg)
{
    (void)arg;
    return block_do(*node, BLOCK_FLUSH, 0, NULL, 0);
}

/* ---- new images ---- */

/* An empty file where there was none, so that nothing is ever overwritten. */
static int claim(const char *path, uint64_t size, struct err *err)
{
    own_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? err_say(err, EEXIST, "'%s' exists; name a new file", path) : err_set(err, errno, "'%s'", path);
    if (size && ftruncate(fd, (off_t)size) < 0) {
        int code = errno;
        unlink(path);
        return err_set(err, code, "'%s'", path);
    }
    return 0;
}

/* As it has to stand in an image at `image`: a bare name in the same folder, else a full path. */
static char *backing_name(const char *image, const char *backing)
{
    own_free char *a = strdup(image), *b = strdup(backing);
    own_free char *image_folder = a ? realpath(dirname(a), NULL) : NULL, *real = b ? realpath(backing, NULL) : NULL;
    if (!image_folder || !real)
        return NULL;
    size_t len = strlen(image_folder);
    bool same = strncmp(real, image_folder, len) == 0 && real[len] == '/' && !strchr(real + len + 1, '/');
    return strdup(same ? real + len + 1 : real);
}

struct new_image {
    const char *path, *format;
    uint64_t size;
    const struct facts *backing; /* NULL: none */
    bool direct;
    const struct block_key *key; /* encrypted by it; NULL: not */
};

static int fill_image(const struct new_image *image, struct block_node **ret_node, struct err *err)
{
    own_free char *name = image->backing ? backing_name(image->path, image->backing->path) : NULL;
    if (image->backing && !name)
        return err_set(err, errno, "'%s'", image->path);
    struct qcow2_create create = {.path = image->path,
                                  .size = image->size,
                                  .version = 3,
                                  .cluster_size = 65536,
                                  .refcount_bits = 16,
                                  .encrypt = image->key,
                                  .key = image->key,
                                  .backing = name,
                                  .backing_format = image->backing ? image->backing->format : NULL};
    struct block_options options = {
        .driver = image->format, .path = image->path, .fd = -1, .direct = image->direct, .no_backing = true, .key = image->key};
    int r = strcmp(image->format, "qcow2") == 0 ? qcow2_create(&create, err) : 0;
    return r < 0 ? r : block_open(&options, ret_node, err);
}

/* A new image for a disk; as encrypted as the disk is. */
static int make_image(struct new_image *image, const struct vm_disk *disk, const struct facts *facts, struct block_node **ret_node,
                      struct err *err)
{
    bool raw = strcmp(image->format, "raw") == 0;
    struct block_key *key = NULL;
    if (facts->encrypted && raw)
        return err_say(err, EINVAL, "disk '%s' is encrypted, and a raw image would not be; choose format qcow2", disk->id);
    int r = facts->encrypted ? block_key_read(disk->key_path, &key, err) : 0;
    if (r == 0)
        r = claim(image->path, raw ? facts->size : 0, err);
    if (r == 0) {
        image->key = key;
        image->size = facts->size;
        image->direct = disk->direct;
        r = fill_image(image, ret_node, err);
        if (r < 0)
            unlink(image->path);
    }
    block_key_free(key);
    return r;
}

static void discard_image(struct block_node *node, const char *path)
{
    block_close(node);
    if (unlink(path) < 0)
        log_warn("'%s' could not be removed: %s", path, strerror(errno));
}

/* ---- snapshot ---- */

/* What is recorded of the old image goes on in the new one. */
static int carry_bitmaps(struct block_node *overlay, struct block_node *old)
{
    int r = 0;
    uint32_t count = old->class == &block_qcow2 ? qcow2_bitmap_count(old) : 0;
    for (uint32_t i = 0; r == 0 && i < count; i++) {
        struct qcow2_bitmap bitmap;
        qcow2_get_bitmap(old, i, &bitmap);
        if (!bitmap.enabled || !bitmap.granularity || bitmap.in_use)
            continue;
        struct qcow2_bitmap_change change = {
            .action = QCOW2_BITMAP_ADD, .name = bitmap.name, .granularity = (uint32_t)bitmap.granularity};
        r = qcow2_bitmap_change(overlay, &change, NULL);
        change.action = QCOW2_BITMAP_MERGE;
        change.source = bitmap.name;
        change.source_node = old;
        if (r == 0)
            r = qcow2_bitmap_change(overlay, &change, NULL);
    }
    return r;
}

static int switch_to_overlay(struct block_node **node, void *arg)
{
    struct block_node *overlay = arg, *old = *node;
    int r = qcow2_attach_backing(overlay, old);
    if (r == 0)
        r = block_attach(overlay, old->ring, NULL);
    if (r == 0)
        r = carry_bitmaps(overlay, old);
    if (r == 0)
        r = old->class->freeze(old);
    if (r < 0)
        qcow2_detach_backing(overlay);
    else
        *node = overlay;
    return r;
}

int disk_snapshot(struct virtio_device *dev, const struct vm_disk *disk, const char *path, struct err *err)
{
    struct facts facts;
    struct block_node *overlay = NULL;
    int r = ask(dev, &facts, err);
    if (r < 0)
        return r;
    own_free char *old_path = facts.path;
    if (facts.read_only)
        return err_say(err, EINVAL, "disk '%s' is read-only: it stays as it is", dev->id);
    struct new_image image = {.path = path, .format = "qcow2", .backing = &facts};
    r = make_image(&image, disk, &facts, &overlay, err);
    if (r < 0)
        return r;
    r = virtio_blk_run(dev, false, flush_node, NULL); /* most of it, while the guest goes on */
    uint64_t start = now_us();
    if (r == 0)
        r = virtio_blk_run(dev, true, switch_to_overlay, overlay);
    if (r < 0) {
        discard_image(overlay, path);
        return r == -ELOOP ? err_say(err, ELOOP, "disk '%s' has too long a chain of backing files; merge some", dev->id)
                           : err_set(err, -r, "disk '%s': snapshot", dev->id);
    }
    log_info("disk '%s': snapshot '%s'; requests waited for %llu us", dev->id, old_path, (unsigned long long)(now_us() - start));
    return 0;
}

struct internal {
    enum disk_snapshot_action action;
    const char *name;
    struct qcow2_snapshots *list;
    struct err *err;
};

static int run_internal(struct block_node **node, void *arg)
{
    struct internal *internal = arg;
    if ((*node)->class->stop)
        return err_say(internal->err, EBUSY, "the disk is being copied; wait, or cancel the copy");
    if ((*node)->class != &block_qcow2)
        return err_say(internal->err, EINVAL, "the disk is not a qcow2 image: only those hold snapshots; give path_on_host");
    switch (internal->action) {
    case DISK_SNAPSHOT_CREATE:
        return qcow2_snapshot_create(*node, internal->name, internal->err);
    case DISK_SNAPSHOT_DELETE:
        return qcow2_snapshot_delete(*node, internal->name, internal->err);
    case DISK_SNAPSHOT_LIST:
        return qcow2_snapshots_load(*node, internal->list, internal->err);
    }
    return -EINVAL;
}

int disk_internal_snapshot(struct virtio_device *dev, enum disk_snapshot_action action, const char *name,
                           struct qcow2_snapshots *ret_list, struct err *err)
{
    struct internal internal = {.action = action, .name = name, .list = ret_list, .err = err};
    int r = action == DISK_SNAPSHOT_LIST ? 0 : virtio_blk_run(dev, false, flush_node, NULL); /* most of it, while the guest goes on */
    if (r == 0)
        r = virtio_blk_run(dev, true, run_internal, &internal);
    return r < 0 && !err->code ? err_set(err, -r, "disk '%s': snapshot '%s'", dev->id, name ? name : "") : r;
}

/* ---- size ---- */

struct resizing {
    uint64_t size;
    struct err *err;
};

static int resize_node(struct block_node **node, void *arg)
{
    struct resizing *resizing = arg;
    if (resizing->size < (*node)->size)
        return err_say(resizing->err, EINVAL, "the disk has %llu bytes and can only grow", (unsigned long long)(*node)->size);
    return block_resize(*node, resizing->size, resizing->err);
}

int disk_resize(struct virtio_device *dev, uint64_t size, struct err *err)
{
    struct resizing resizing = {.size = size, .err = err};
    int r = virtio_blk_run(dev, true, resize_node, &resizing);
    return r < 0 && !err->code ? err_set(err, -r, "disk '%s'", dev->id) : r;
}

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

/* COMMIT, FLATTEN: the image's own backing node. */
static int take_backing(struct block_node *disk, struct starting *starting)
{
    struct block_copy_options *options = &starting->options;
    struct disk_copy *own = starting->copy;
    struct block_node *backing = disk->class == &block_qcow2 ? qcow2_backing(disk) : NULL;
    if (!backing)
        return err_say(starting->err, EINVAL, "disk '%s' has no backing file", own->dev->id);
    own->now.path = strdup(options->mode == BLOCK_COPY_COMMIT ? backing->name : disk->name);
    if (!own->now.path)
        return -ENOMEM;
    if (!backing->class->thaw)
        return err_say(starting->err, ENOTSUP, "disk '%s' has a backing file that cannot be written", own->dev->id);
    if (options->mode == BLOCK_COPY_FLATTEN)
        return 0;
    own->now.format = backing->class == &block_file ? "raw" : backing->class->name;
    options->target = backing;
    int r = backing->class->thaw(backing, starting->err);
    if (r == 0 && backing->size < disk->size)
        r = block_resize(backing, disk->size, starting->err);
    return r;
}

static int insert_copy(struct block_node **node, void *arg)
{
    struct starting *starting = arg;
    const struct disk_copy *own = starting->copy;
    struct block_copy_options *options = &starting->options;
    struct block_node *copy = NULL, *disk = *node;
    options->source = disk;
    int r = options->target ? block_attach(options->target, disk->ring, starting->err) : take_backing(disk, starting);
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

static int stop_copy(struct block_node **node, void *arg)
{
    (void)arg;
    block_copy_stop(*node);
    return 0;
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
    int error, bitmap_error;
};

/* The image has everything itself. */
static struct block_node *drop_backing(struct block_node *disk, struct ending *ending)
{
    struct block_node *backing = qcow2_backing(disk);
    ending->error = qcow2_set_backing(disk, NULL, NULL, NULL);
    if (ending->error < 0)
        return NULL;
    qcow2_detach_backing(disk);
    return backing;
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
        ending->unused = ending->how == KEEP ? drop_backing(source, ending) : NULL;
        break;
    case BLOCK_COPY_MIRROR:
    case BLOCK_COPY_BACKUP:
        ending->unused = move ? source : target;
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
    virtio_blk_run(copy->dev, false, stop_copy, NULL); /* while the guest goes on */
    int r = virtio_blk_run(copy->dev, true, remove_copy, ending);
    if (r < 0)
        return r;
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
    copy->now = (struct disk_copy_status){0};
    copy->part = copy->bitmap = copy->next_bitmap = NULL;
}

static int remember(struct disk_copy *copy, const struct disk_copy_request *request, struct err *err)
{
    const char *bitmap = request->bitmap;
    forget(copy);
    copy->now.mode = request->mode;
    copy->now.format = strcmp(request->format, "raw") == 0 ? "raw" : "qcow2";
    bool fine = !request->path || ((copy->now.path = strdup(request->path)) && asprintf(&copy->part, "%s.part", request->path) >= 0);
    if (fine && bitmap)
        fine = (copy->bitmap = strdup(bitmap)) && asprintf(&copy->next_bitmap, "%s.next", bitmap) >= 0;
    return fine ? 0 : err_set(err, ENOMEM, "copy");
}

/* What a request must be like whatever the disk is. */
static int check_request(const struct disk_copy_request *request, struct facts *ret_base, struct err *err)
{
    bool new_image = request->mode == BLOCK_COPY_MIRROR || request->mode == BLOCK_COPY_BACKUP;
    if (new_image != (request->path != NULL))
        return err_say(err, EINVAL, "a mirror or backup needs path_on_host, other copies have none");
    if (new_image && access(request->path, F_OK) == 0)
        return err_say(err, EEXIST, "'%s' exists; name a new file", request->path);
    if ((request->bitmap || request->base) && request->mode != BLOCK_COPY_BACKUP)
        return err_say(err, EINVAL, "only a backup has a bitmap and a base");
    if (!request->base)
        return 0;
    if (!request->bitmap || strcmp(request->format, "qcow2") != 0)
        return err_say(err, EINVAL, "a backup with a base has format qcow2 and a bitmap");
    const char *format;
    int r = block_guess_format(request->base, &format);
    if (r < 0 && r != -EINVAL)
        return err_set(err, -r, "'%s'", request->base);
    if (r < 0)
        return err_say(err, EINVAL, "'%s' has a qcow2 header; if it is a qcow2 image give it a name that ends in .qcow2", request->base);
    *ret_base = (struct facts){.path = (char *)(uintptr_t)request->base, .format = format};
    return 0;
}

static int start_copy(struct disk_copy *copy, const struct vm_disk *disk, const struct facts *facts,
                      const struct disk_copy_request *request, const struct facts *base, struct err *err)
{
    struct starting starting = {.copy = copy,
                                .options = {.mode = request->mode,
                                            .based = request->base,
                                            .bitmap = request->base ? request->bitmap : NULL,
                                            .changed = on_change,
                                            .arg = copy},
                                .err = err};
    struct new_image image = {.path = copy->part, .format = request->format, .backing = base};
    int r = copy->part ? make_image(&image, disk, facts, &starting.options.target, err) : 0;
    if (r < 0)
        return r;
    r = virtio_blk_run(copy->dev, true, insert_copy, &starting);
    if (r == 0)
        return 0;
    if (copy->part)
        discard_image(starting.options.target, copy->part);
    return err->code ? r : err_set(err, -r, "disk '%s': copy", copy->dev->id);
}

static int start_locked(struct disk_copy *copy, struct virtio_device *dev, const struct vm_disk *disk,
                        const struct disk_copy_request *request, struct err *err)
{
    struct facts facts, base = {0};
    int r = check_request(request, &base, err);
    if (r == 0)
        r = ask(dev, &facts, err);
    if (r < 0)
        return r;
    free(facts.path);
    if (request->mode != BLOCK_COPY_BACKUP && facts.read_only)
        return err_say(err, EINVAL, "disk '%s' is read-only: copy the file, and give the disk its new path", dev->id);
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
    struct ending ending = {.how = MOVE};
    if (!copy->dev || (copy->now.mode != BLOCK_COPY_MIRROR && copy->now.mode != BLOCK_COPY_COMMIT))
        return err_say(err, EINVAL, "no mirror or commit of this disk runs");
    virtio_blk_run(copy->dev, false, read_status, &status);
    if (status.state != BLOCK_COPY_READY)
        return err_say(err, EBUSY, "it is not ready: %llu of %llu bytes are copied", (unsigned long long)status.copied,
                       (unsigned long long)status.size);
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
