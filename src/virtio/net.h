/* virtio network device (VIRTIO 1.2 §5.1) over a packet backend. */
#pragma once

#include "virtio/device.h"
#include "virtio/limiter.h"

struct net_backend;

#define VIRTIO_NET_MAX_PAIRS 16

struct virtio_net_config {
    const char *id;
    struct net_backend *backend; /* from net_open; owned once created, the caller keeps it on error */
    bool has_mac;                /* else one is made up at random, locally administered */
    uint8_t mac[6];
    uint16_t mtu; /* 0: not advertised */
    unsigned retry_ms; /* before a backend that ended is opened again; twice that the next time. 0: 100 */
    struct limiter_config rx, tx;
};

/* One pair of queues for each queue of the backend. */
must_check int virtio_net_create(const struct virtio_net_config *config, const struct virtio_host *host,
                                 struct virtio_device **ret_dev, struct err *err);
/* Any thread, while the guest runs; NULL leaves that direction as it is. */
void virtio_net_set_limiters(struct virtio_device *dev, const struct limiter_config *rx,
                             const struct limiter_config *tx);
/* Any thread. Carrier as the guest sees it. */
void virtio_net_set_link(struct virtio_device *dev, bool up);
