/* virtio socket device (VIRTIO 1.2 §5.10) with Firecracker's mapping to unix sockets:
 * a host program connects to `uds_path`, sends "CONNECT <port>\n", and gets "OK <host port>\n" once a guest listens;
 * a guest that connects to CID 2 port P reaches the host's listener at `uds_path`_P. Stream sockets only. */
#pragma once

#include "virtio/device.h"

struct virtio_vsock_config {
    const char *id; /* NULL: "vsock" */
    uint32_t guest_cid; /* 3 or more */
    /* Created here, removed by virtio_free; an error if something is there already. "fd:N": a listening socket; the guest
     * cannot connect to the host then. */
    const char *uds_path;
};

must_check int virtio_vsock_create(const struct virtio_vsock_config *config, const struct virtio_host *host,
                                   struct virtio_device **ret_dev, struct err *err);
