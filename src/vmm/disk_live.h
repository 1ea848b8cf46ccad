/* What is done to a disk while its guest runs: a snapshot, a new size, a copy.
 *
 * The guest's requests wait only while nodes are exchanged, a few milliseconds. Threads: any but the disk's own. Calls for
 * one disk exclude each other. */
#pragma once

#include <pthread.h>
#include "base/loop.h"
#include "block/copy.h"
#include "block/qcow2/qcow2.h"
#include "virtio/blk.h"
#include "vmm/config.h"

/* The disk as it is now becomes the backing file of a new qcow2 image `path`, which takes all writes from here on. The old
 * image is complete, and others may open it for reading. On an error all is as it was, and there is no new file. */
must_check int disk_snapshot(struct virtio_device *dev, const struct vm_disk *disk, const char *path, struct err *err);
/* Snapshots inside of a qcow2 image. */
enum disk_snapshot_action { DISK_SNAPSHOT_CREATE, DISK_SNAPSHOT_DELETE, DISK_SNAPSHOT_APPLY, DISK_SNAPSHOT_LIST };
/* APPLY: the machine is paused, and its guest restarts before it runs again: what it has in memory is not of this disk.
 * LIST: the caller frees ret_list by qcow2_snapshots_free; NULL otherwise, as `name` is for LIST. */
must_check int disk_internal_snapshot(struct virtio_device *dev, enum disk_snapshot_action action, const char *name,
                                      struct qcow2_snapshots *ret_list, struct err *err);
/* The images below the disk, nearest first, by the names they were opened by; NULL behind the last. The caller frees them. */
must_check int disk_chain(struct virtio_device *dev, char *ret_names[VM_MAX_BACKING + 1], struct err *err);
/* Makes it larger, to `size` bytes; the guest is told. */
must_check int disk_resize(struct virtio_device *dev, uint64_t size, struct err *err);

enum disk_copy_state { DISK_COPY_NONE, DISK_COPY_RUNNING, DISK_COPY_READY, DISK_COPY_DONE, DISK_COPY_FAILED, DISK_COPY_CANCELLED };

struct disk_copy_status {
    enum block_copy_mode mode;
    enum disk_copy_state state;
    int error;             /* FAILED: -errno */
    uint64_t copied, size; /* bytes */
    char *path;            /* the target, which may be the disk; owned */
    const char *format;    /* of the target; static */
};

/* A disk's copy that runs, or how its last one ended. Zero-initialised but for lock and loop. */
struct disk_copy {
    pthread_mutex_t lock; /* covers the rest */
    struct loop *loop;
    struct virtio_device *dev; /* while it runs */
    char *part;                /* what a new target is called until it is complete */
    char *bitmap, *next_bitmap; /* of the disk; `next` records since the copy began. NULL: none */
    char *base, *base_format;   /* REBASE: as the image is to name the new one */
    struct disk_copy_status now;
};

struct disk_copy_request {
    enum block_copy_mode mode;
    const char *path;   /* of a new image; NULL for COMMIT, FLATTEN and REBASE, which need none */
    const char *format; /* of it: "raw" or "qcow2". REBASE: of the base; NULL: as block_guess_format says */
    /* Backups of a qcow2 disk. The bitmap records what the guest writes from now on; after a backup that failed, also what
     * it recorded before. With `base` (the backup before this one, becomes the backing file of the new image), only what
     * the bitmap has recorded until now is copied. NULL: none. */
    const char *bitmap;
    const char *base; /* also of REBASE: the new one, or "fd:N" for it */
    const char *base_name; /* REBASE to "fd:N": as the image is to name it */
    const char *const *allow_dirs; /* REBASE: as in struct block_options */
};
/* Begins. A backup, flattening and rebase end by themselves, in the loop, which must run. */
must_check int disk_copy_start(struct disk_copy *copy, struct virtio_device *dev, const struct vm_disk *disk,
                               const struct disk_copy_request *request, struct err *err);
/* The caller frees the path; NULL: there was no copy. */
void disk_copy_status(struct disk_copy *copy, struct disk_copy_status *ret_status);
/* Moves the disk to the target of a mirror or commit. -EBUSY while it is not ready. */
must_check int disk_copy_complete(struct disk_copy *copy, struct err *err);
/* Ends a copy that runs; its target goes. */
must_check int disk_copy_cancel(struct disk_copy *copy, struct err *err);
/* When the program ends: as cancel, where there is something to cancel, and frees. */
void disk_copy_clear(struct disk_copy *copy);
