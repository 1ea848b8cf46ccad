/* The device: features, configuration, life cycle. Frames are in net_data.c, the control queue in net_ctrl.c, the link in net_link.c.
 * Queues: receive and send alternating for each pair, then control. All run in the loop's thread. */
#include "virtio/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "base/bytes.h"
#include "virtio/net_impl.h"

#define C_MAX_PAIRS 8
#define C_MTU 10
#define CONFIG_LEN 12

static unsigned ctrl_index(const struct virtio_net *net)
{
    return virtio_has(&net->dev, F_MQ) ? 2 * net->pairs : 2; /* §5.1.2: N is 1 without MQ */
}

static void serve_rx(struct virtio_net *net, unsigned pair)
{
    for (unsigned i = 0; i < net->backend->queues; i++) {
        if (i % net->active_pairs == pair)
            net_rx(&net->ports[i]);
    }
}

static void net_kicked(struct virtio_device *dev, unsigned index)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    if (virtio_has(dev, F_CTRL_VQ) && index == ctrl_index(net))
        net_serve_ctrl(net, index);
    else if (index % 2)
        net_serve_tx(net, index);
    else if (index / 2 < net->active_pairs)
        serve_rx(net, index / 2);
}

void net_on_backend(void *arg, int fd, uint32_t events)
{
    (void)fd;
    struct net_port *port = arg;
    struct virtio_net *net = port->net;
    pthread_mutex_lock(&net->dev.lock);
    stat_add(&net->backend_event_count, 1);
    if (events & EPOLLOUT) {
        if (net->backend->class->writable)
            net->backend->class->writable(net->backend, port->index);
        if (!net->backend->backlog)
            net_port_wait(port, port->events & ~(uint32_t)EPOLLOUT);
        for (unsigned i = 0; i < net->pairs; i++) {
            if (i % net->backend->queues == port->index)
                virtio_kick(&net->dev, 2 * i + 1);
        }
    }
    if (events & ~(uint32_t)EPOLLOUT)
        net_rx(port);
    if ((events & (EPOLLHUP | EPOLLERR)) && (!virtio_live(&net->dev) || port->frame_len) && port->source) {
        struct iovec iov = {port->frame, NET_FRAME_MAX}; /* nobody else reads it to its end now, or not before the guest has buffers */
        port->frame_len = 0;
        port->allowed = false;
        if (net->backend->class->receive(net->backend, port->index, &iov, 1) == -EPIPE || (events & EPOLLERR))
            net_backend_lost(port);
    }
    pthread_mutex_unlock(&net->dev.lock);
}

static void kick_all(struct virtio_net *net, unsigned first)
{
    for (unsigned i = 0; i < net->pairs; i++)
        virtio_kick(&net->dev, 2 * i + first);
}

void net_kick_all(struct virtio_net *net)
{
    kick_all(net, 0);
    kick_all(net, 1);
}

static void on_rx_timer(void *arg)
{
    struct virtio_net *net = arg;
    stat_add(&net->rx_event_rate_limiter_count, 1);
    kick_all(net, 0);
}

static void on_tx_timer(void *arg)
{
    struct virtio_net *net = arg;
    stat_add(&net->tx_event_rate_limiter_count, 1);
    kick_all(net, 1);
}

static void net_start(struct virtio_device *dev)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    net_apply_offloads(net, dev->accepted);
}

static void net_reset(struct virtio_device *dev)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    net->active_pairs = 1;
    net_filter_reset(net);
    net_apply_offloads(net, 0);
    for (unsigned i = 0; i < net->backend->queues; i++) {
        struct net_port *port = &net->ports[i];
        port->frame_len = 0;
        port->allowed = port->send_allowed = false;
    }
}

static void net_free(struct virtio_device *dev)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    for (unsigned i = 0; i < VIRTIO_NET_MAX_PAIRS; i++) {
        loop_remove(net->ports[i].source);
        free(net->ports[i].frame);
    }
    loop_remove(net->rx_timer);
    loop_remove(net->tx_timer);
    loop_remove(net->retry_timer);
    net_close(net->backend);
    virtio_release(dev);
    free(net);
}

#define STAT(field) {#field, offsetof(struct virtio_net, field)}
static const struct virtio_stat net_stats[] = {STAT(rx_bytes_count),
                                               STAT(rx_packets_count),
                                               STAT(rx_fails),
                                               STAT(rx_filtered),
                                               STAT(no_rx_avail_buffer),
                                               STAT(tx_bytes_count),
                                               STAT(tx_packets_count),
                                               STAT(tx_fails),
                                               STAT(tx_malformed_frames),
                                               STAT(rx_rate_limiter_throttled),
                                               STAT(tx_rate_limiter_throttled),
                                               STAT(rx_event_rate_limiter_count),
                                               STAT(tx_event_rate_limiter_count),
                                               STAT(ctrl_count),
                                               STAT(ctrl_fails),
                                               STAT(backend_event_count),
                                               {0}};

const struct virtio_class virtio_net = {
    .name = "virtio-net",
    .type = 1,
    .pci_class = 0x020000, /* Ethernet controller */
    .stats = net_stats,
    .start = net_start,
    .kicked = net_kicked,
    .reset = net_reset,
    .free = net_free,
};

/* ---- creation ---- */

static uint64_t features_for(const struct virtio_net_config *config)
{
    unsigned offloads = config->backend->offloads;
    uint64_t f = VIRTIO_FEATURE(F_MAC) | VIRTIO_FEATURE(F_STATUS) | VIRTIO_FEATURE(F_MRG_RXBUF) |
                 VIRTIO_FEATURE(F_CTRL_VQ) | VIRTIO_FEATURE(F_CTRL_RX) | VIRTIO_FEATURE(F_CTRL_RX_EXTRA) |
                 VIRTIO_FEATURE(F_CTRL_MAC_ADDR);
    if (config->backend->queues > 1)
        f |= VIRTIO_FEATURE(F_MQ);
    if (config->mtu)
        f |= VIRTIO_FEATURE(F_MTU);
    if (offloads & NET_OFFLOAD_CSUM)
        f |= VIRTIO_FEATURE(F_CSUM) | VIRTIO_FEATURE(F_GUEST_CSUM) | VIRTIO_FEATURE(F_CTRL_GUEST_OFFLOADS);
    if (offloads & NET_OFFLOAD_TSO4)
        f |= VIRTIO_FEATURE(F_GUEST_TSO4) | VIRTIO_FEATURE(F_HOST_TSO4);
    if (offloads & NET_OFFLOAD_TSO6)
        f |= VIRTIO_FEATURE(F_GUEST_TSO6) | VIRTIO_FEATURE(F_HOST_TSO6);
    if (offloads & NET_OFFLOAD_ECN)
        f |= VIRTIO_FEATURE(F_GUEST_ECN) | VIRTIO_FEATURE(F_HOST_ECN);
    if ((offloads & NET_OFFLOAD_USO4) && (offloads & NET_OFFLOAD_USO6))
        f |= VIRTIO_FEATURE(F_GUEST_USO4) | VIRTIO_FEATURE(F_GUEST_USO6) | VIRTIO_FEATURE(F_HOST_USO);
    return f;
}

static int fill_config(struct virtio_net *net, const struct virtio_net_config *config)
{
    uint8_t *c = net->dev.config;
    if (config->has_mac) {
        memcpy(c, config->mac, 6);
    } else {
        if (getrandom(c, 6, 0) != 6)
            return -EIO;
        c[0] = (uint8_t)((c[0] & 0xfc) | 0x02); /* unicast, locally administered */
    }
    store_le16(c + C_MAX_PAIRS, (uint16_t)net->pairs);
    store_le16(c + C_MTU, config->mtu);
    return 0;
}

static int open_port(struct virtio_net *net, unsigned index)
{
    struct net_port *port = &net->ports[index];
    int fd = net->backend->fd[index];
    *port = (struct net_port){.net = net, .index = index, .frame = malloc(NET_FRAME_MAX)};
    if (!port->frame)
        return -ENOMEM;
    if (fd < 0)
        return 0;
    port->source = loop_add_fd(net->dev.host.loop, fd, 0, net_on_backend, port); /* polled once the driver is there */
    return port->source ? 0 : -ENOMEM;
}

static int build(struct virtio_net *net, const struct virtio_net_config *config, struct err *err)
{
    struct loop *loop = net->dev.host.loop;
    int r = fill_config(net, config);
    if (r == 0)
        r = net_link_init(net, config->retry_ms);
    for (unsigned i = 0; r == 0 && i < net->backend->queues; i++)
        r = open_port(net, i);
    net->rx_timer = loop_add_timer(loop, on_rx_timer, net);
    net->tx_timer = loop_add_timer(loop, on_tx_timer, net);
    if (r == 0 && (!net->rx_timer || !net->tx_timer))
        r = -ENOMEM;
    if (r < 0)
        return err_set(err, -r, "virtio-net '%s'", net->dev.id);
    limiter_init(&net->rx, &config->rx, limiter_now());
    limiter_init(&net->tx, &config->tx, limiter_now());
    net_filter_reset(net);
    return virtio_attach(&net->dev, err);
}

int virtio_net_create(const struct virtio_net_config *config, const struct virtio_host *host,
                      struct virtio_device **ret_dev, struct err *err)
{
    struct virtio_net *net = calloc(1, sizeof *net);
    if (!net)
        return err_set(err, ENOMEM, "virtio-net");
    uint16_t sizes[2 * VIRTIO_NET_MAX_PAIRS + 1];
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        sizes[i] = NET_QUEUE_SIZE;
    struct virtio_setup setup = {.id = config->id,
                                 .features = features_for(config),
                                 .queue_count = 2 * config->backend->queues + 1,
                                 .queue_sizes = sizes,
                                 .config_len = CONFIG_LEN};
    int r = virtio_init(&net->dev, &virtio_net, host, &setup, err);
    if (r < 0) {
        free(net);
        return r;
    }
    net->backend = config->backend;
    net->pairs = config->backend->queues;
    net->active_pairs = 1;
    r = build(net, config, err);
    if (r < 0) {
        net->backend = NULL; /* stays the caller's */
        net_free(&net->dev);
        return r;
    }
    *ret_dev = &net->dev;
    return 0;
}

/* ---- changes while the guest runs ---- */

void virtio_net_set_limiters(struct virtio_device *dev, const struct limiter_config *rx,
                             const struct limiter_config *tx)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    pthread_mutex_lock(&dev->lock);
    if (rx)
        limiter_init(&net->rx, rx, limiter_now());
    if (tx)
        limiter_init(&net->tx, tx, limiter_now());
    pthread_mutex_unlock(&dev->lock);
    net_kick_all(net);
}
