/* Every device class: the one list that metrics and documentation derive from. */
#include "virtio/device.h"

const struct virtio_class *const virtio_classes[] = {
    &virtio_balloon,
    &virtio_blk,
    &virtio_console,
    &virtio_net,
    &virtio_rng,
    &virtio_vsock,
    NULL,
};
