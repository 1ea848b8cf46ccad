/* Private to disk_*.c: what a disk is, and new images for it. */
#pragma once

#include <time.h>
#include "vmm/disk_live.h"

static inline uint64_t disk_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

struct disk_facts {
    uint64_t size;
    char *path;         /* owned */
    const char *format; /* "raw", "qcow2" or "luks" */
    bool read_only, encrypted, copied;
};
/* Asks in the disk's own thread. -EBUSY while it is being copied. The caller frees the path. */
must_check int disk_ask(struct virtio_device *dev, struct disk_facts *ret_facts, struct err *err);

struct disk_image {
    const char *path, *format;
    uint64_t size;
    const struct disk_facts *backing; /* NULL: none */
    bool direct;
    const struct block_key *key; /* encrypted by it; NULL: not */
};
/* A new image for a disk, where no file is yet; as encrypted as the disk is. The caller fills in path, format and backing. */
must_check int disk_image_make(struct disk_image *image, const struct vm_disk *disk, const struct disk_facts *facts,
                               struct block_node **ret_node, struct err *err);
void disk_image_discard(struct block_node *node, const char *path);
/* A backing file's name as it has to stand in an image at `image`: a bare name in the same folder, else a full path. NULL and
 * errno. The caller frees it. */
char *disk_backing_name(const char *image, const char *backing);
