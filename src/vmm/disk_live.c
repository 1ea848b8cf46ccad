#include "vmm/disk_live_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/own.h"

static int flush_node(struct block_node **node, void *arg)
{
    (void)arg;
    return block_do(*node, BLOCK_FLUSH, 0, NULL, 0);
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
    struct disk_facts facts;
    struct block_node *overlay = NULL;
    int r = disk_ask(dev, &facts, err);
    if (r < 0)
        return r;
    own_free char *old_path = facts.path;
    if (facts.read_only)
        return err_say(err, EINVAL, "disk '%s' is read-only: it stays as it is", dev->id);
    struct disk_image image = {.path = path, .format = "qcow2", .backing = &facts};
    r = disk_image_make(&image, disk, &facts, &overlay, err);
    if (r < 0)
        return r;
    r = virtio_blk_run(dev, false, flush_node, NULL); /* most of it, while the guest goes on */
    uint64_t start = disk_now_us();
    if (r == 0)
        r = virtio_blk_run(dev, true, switch_to_overlay, overlay);
    if (r < 0) {
        disk_image_discard(overlay, path);
        return r == -ELOOP ? err_say(err, ELOOP, "disk '%s' has too long a chain of backing files; merge some", dev->id)
                           : err_set(err, -r, "disk '%s': snapshot", dev->id);
    }
    log_info("disk '%s': snapshot '%s'; requests waited for %llu us", dev->id, old_path, (unsigned long long)(disk_now_us() - start));
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
    case DISK_SNAPSHOT_APPLY:
        return qcow2_snapshot_apply(*node, internal->name, internal->err);
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
