/* virtio entropy device (VIRTIO 1.2 §5.4), fed by getrandom(2). */
#pragma once

#include "virtio/device.h"
#include "virtio/limiter.h"

struct virtio_rng_config {
    const char *id; /* NULL: "rng" */
    struct limiter_config limiter;
};

must_check int virtio_rng_create(const struct virtio_rng_config *config, const struct virtio_host *host,
                                 struct virtio_device **ret_dev, struct err *err);
