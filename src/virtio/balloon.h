/* virtio memory balloon (VIRTIO 1.2 §5.5): inflate, deflate, statistics, free page reporting and hinting. */
#pragma once

#include "virtio/device.h"

struct virtio_balloon_config {
    const char *id; /* NULL: "balloon" */
    uint32_t target_mib;
    bool deflate_on_oom;
    uint32_t stats_interval_s; /* 0: no statistics queue */
    bool free_page_reporting;
    bool free_page_hinting;
};

/* What the guest last reported; a field is known when its bit (1 << tag) is set in `known`. Tags in VIRTIO 1.2 order:
 * swap_in, swap_out, major_faults, minor_faults, free, total, available, caches, hugetlb allocations and failures. */
#define VIRTIO_BALLOON_STAT_COUNT 10
struct virtio_balloon_stats {
    uint32_t target_mib, actual_mib, target_pages, actual_pages;
    uint32_t known;
    uint64_t value[VIRTIO_BALLOON_STAT_COUNT];
};

struct virtio_balloon_hinting {
    uint32_t host_cmd;      /* the run asked for */
    uint32_t guest_cmd;     /* the run the guest works on */
    bool guest_cmd_known;
};

must_check int virtio_balloon_create(const struct virtio_balloon_config *config, const struct virtio_host *host,
                                     struct virtio_device **ret_dev, struct err *err);

/* All below: any thread. -EINVAL when the target is beyond guest memory. */
must_check int virtio_balloon_set_target(struct virtio_device *dev, uint32_t target_mib, struct err *err);
/* -ENOTSUP when the device was made without statistics. */
must_check int virtio_balloon_stats(struct virtio_device *dev, struct virtio_balloon_stats *ret_stats, struct err *err);
/* Changes the interval. -ENOTSUP from 0 to non-zero or back (the queue exists or it does not). */
must_check int virtio_balloon_set_stats_interval(struct virtio_device *dev, uint32_t interval_s, struct err *err);
/* Free page hinting: one run asks the guest for all of its free pages and gives them back to the host. With
 * `acknowledge_on_stop` the guest may reuse the pages as soon as its run ends. -ENOTSUP without the feature. */
must_check int virtio_balloon_hinting_start(struct virtio_device *dev, bool acknowledge_on_stop, struct err *err);
must_check int virtio_balloon_hinting_stop(struct virtio_device *dev, struct err *err);
must_check int virtio_balloon_hinting_status(struct virtio_device *dev, struct virtio_balloon_hinting *ret,
                                             struct err *err);
