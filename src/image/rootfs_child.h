/* Unpacks layers by a program that can do no harm: polder-unpack. */
#pragma once

#include "image/rootfs.h"

struct rootfs_work {
    int root_fd;       /* an empty folder */
    const int *layers; /* descriptors, from the bottom up */
    size_t layer_count;
    uint64_t total_bytes; /* of the layers as they are stored */
    const struct image_progress *progress;
    const char *what; /* for progress */
};

/* Where it is not root, all files become the caller's. The error's code is that of what went wrong; -EIO when the program did not say.
 * Any thread; the program ends with it. */
must_check int rootfs_work_run(const struct rootfs_work *work, struct err *err);
