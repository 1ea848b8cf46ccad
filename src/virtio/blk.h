/* virtio block device (VIRTIO 1.2 §5.2) over a block node, with its own I/O thread. */
#pragma once

#include "block/throttle.h"
#include "virtio/device.h"
#include "virtio/limiter.h"

struct block_node;

#define VIRTIO_BLK_MAX_QUEUES 32

struct virtio_blk_config {
    const char *id;
    struct block_node *node; /* from block_open; the device owns it once created, the caller keeps it on error */
    unsigned queues;         /* 1..VIRTIO_BLK_MAX_QUEUES; 0: 1 */
    const char *serial;      /* GET_ID answer, 20 bytes at most; NULL: `id` */
    bool unsafe;             /* flushes are acknowledged at once: fast, but a crash of the host loses data */
    bool writethrough;       /* no write cache shown to the guest: every write is stable when it completes */
    const char *io_engine;   /* "io_uring" or "sync"; NULL: the first that the host allows */
    struct limiter_config limiter;
    struct throttle_group *throttle; /* that the disk is a member of, and outlives it; NULL: none */
    struct throttle_share share;
};

must_check int virtio_blk_create(const struct virtio_blk_config *config, const struct virtio_host *host,
                                 struct virtio_device **ret_dev, struct err *err);
/* Any thread, while the guest runs. */
void virtio_blk_set_limiter(struct virtio_device *dev, const struct limiter_config *limiter);
/* The same, of its part in its group; it is in one. */
void virtio_blk_set_share(struct virtio_device *dev, const struct throttle_share *share);
/* What runs on a disk's node. It may put another node into *node, attached to the same ring, which is served from then on;
 * the old one is then the function's. */
typedef int virtio_blk_fn(struct block_node **node, void *arg);
/* Runs `fn` in a fiber of the disk's thread and waits until it has ended. `alone`: with no request of the guest in flight
 * and none taken meanwhile; only so may the node be replaced or change its size. The guest is told of a new size.
 * Returns what `fn` did, or -ENOMEM. Any other thread, while the device exists. */
int virtio_blk_run(struct virtio_device *dev, bool alone, virtio_blk_fn *fn, void *arg);
/* Serves `node` (owned) instead of the old one, which is closed. -EINVAL when it is read-only and the old one was not, or
 * the other way round. */
must_check int virtio_blk_set_node(struct virtio_device *dev, struct block_node *node, struct err *err);
