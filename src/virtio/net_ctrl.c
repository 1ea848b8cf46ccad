/* The control queue: receive filter, MAC address, number of queue pairs, offloads (VIRTIO 1.2 §5.1.6.5). */
#include <string.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "virtio/net_impl.h"

#define CTRL_RX 0
#define CTRL_MAC 1
#define CTRL_MQ 4
#define CTRL_GUEST_OFFLOADS 5

#define MAC_TABLE_SET 0
#define MAC_ADDR_SET 1
#define COMMAND_MAX 1024u

struct command {
    uint8_t class, code;
    const uint8_t *data;
    size_t len;
    bool cut; /* there was more */
};

static const struct {
    unsigned feature, offload;
} offload_bits[] = {
    {F_GUEST_CSUM, NET_OFFLOAD_CSUM}, {F_GUEST_TSO4, NET_OFFLOAD_TSO4}, {F_GUEST_TSO6, NET_OFFLOAD_TSO6},
    {F_GUEST_ECN, NET_OFFLOAD_ECN},   {F_GUEST_USO4, NET_OFFLOAD_USO4}, {F_GUEST_USO6, NET_OFFLOAD_USO6},
};

void net_apply_offloads(struct virtio_net *net, uint64_t features)
{
    unsigned offloads = 0;
    for (unsigned i = 0; i < sizeof offload_bits / sizeof offload_bits[0]; i++) {
        if (features >> offload_bits[i].feature & 1)
            offloads |= offload_bits[i].offload;
    }
    if (!(offloads & NET_OFFLOAD_CSUM)) /* segments need it */
        offloads = 0;
    if (!(offloads & (NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6)))
        offloads &= ~NET_OFFLOAD_ECN;
    unsigned uso = NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6;
    if ((offloads & uso) != uso) /* the kernel takes both or none */
        offloads &= ~uso;
    if (net->backend->class->set_offloads && net->backend->class->set_offloads(net->backend, offloads) < 0)
        stat_add(&net->ctrl_fails, 1);
}

void net_filter_reset(struct virtio_net *net)
{
    net->filter = (struct net_filter){.promiscuous = true}; /* until the driver says otherwise */
    memcpy(net->mac, net->dev.config, sizeof net->mac);
}

static bool in_table(const struct net_filter *filter, const uint8_t *mac)
{
    for (unsigned i = 0; i < filter->count; i++) {
        if (memcmp(filter->macs[i], mac, 6) == 0)
            return true;
    }
    return filter->overflow;
}

bool net_filter_passes(const struct virtio_net *net, const uint8_t *frame)
{
    const struct net_filter *f = &net->filter;
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (f->promiscuous)
        return true;
    if (memcmp(frame, broadcast, 6) == 0)
        return !f->no_broadcast;
    if (frame[0] & 1)
        return !f->no_multicast && (f->all_multicast || in_table(f, frame));
    return !f->no_unicast && (f->all_unicast || memcmp(frame, net->mac, 6) == 0 || in_table(f, frame));
}

static bool set_rx_mode(struct virtio_net *net, const struct command *c)
{
    bool *const modes[] = {&net->filter.promiscuous,  &net->filter.all_multicast, &net->filter.all_unicast,
                           &net->filter.no_multicast, &net->filter.no_unicast,    &net->filter.no_broadcast};
    unsigned known = virtio_has(&net->dev, F_CTRL_RX_EXTRA) ? 6 : 2;
    if (c->code >= known || c->len < 1)
        return false;
    *modes[c->code] = c->data[0];
    return true;
}

/* One of the two tables: a 32-bit count and that many addresses. Returns its length, 0 when it does not fit. */
static size_t read_macs(struct net_filter *filter, const uint8_t *data, size_t len)
{
    if (len < 4)
        return 0;
    uint32_t count = load_le32(data);
    if (count > (len - 4) / 6)
        return 0;
    for (uint32_t i = 0; i < count; i++) {
        if (filter->count == FILTER_MACS_MAX) {
            filter->overflow = true;
            break;
        }
        memcpy(filter->macs[filter->count++], data + 4 + i * 6, 6);
    }
    return 4 + (size_t)count * 6;
}

static bool set_mac_table(struct virtio_net *net, const struct command *c)
{
    struct net_filter filter = net->filter;
    filter.count = 0;
    filter.overflow = c->cut; /* far more than the table holds */
    if (c->cut) {
        net->filter = filter;
        return true;
    }
    size_t unicast = read_macs(&filter, c->data, c->len);
    if (!unicast || !read_macs(&filter, c->data + unicast, c->len - unicast))
        return false;
    net->filter = filter;
    return true;
}

static bool set_mac(struct virtio_net *net, const struct command *c)
{
    if (c->code == MAC_TABLE_SET)
        return virtio_has(&net->dev, F_CTRL_RX) && set_mac_table(net, c);
    if (c->code != MAC_ADDR_SET || c->len < 6 || !virtio_has(&net->dev, F_CTRL_MAC_ADDR))
        return false;
    memcpy(net->mac, c->data, 6);
    return true;
}

static bool set_pairs(struct virtio_net *net, const struct command *c)
{
    if (c->code != 0 || c->len < 2)
        return false;
    unsigned pairs = load_le16(c->data);
    if (!pairs || pairs > net->pairs)
        return false;
    net->active_pairs = pairs;
    return true;
}

static bool set_offloads(struct virtio_net *net, const struct command *c)
{
    if (c->code != 0 || c->len < 8)
        return false;
    uint64_t wanted = load_le64(c->data);
    if (wanted & ~net->dev.accepted)
        return false;
    net_apply_offloads(net, wanted);
    return true;
}

static bool run(struct virtio_net *net, const struct command *c)
{
    switch (c->class) {
    case CTRL_RX:
        return virtio_has(&net->dev, F_CTRL_RX) && set_rx_mode(net, c);
    case CTRL_MAC:
        return set_mac(net, c);
    case CTRL_MQ:
        return virtio_has(&net->dev, F_MQ) && set_pairs(net, c);
    case CTRL_GUEST_OFFLOADS:
        return virtio_has(&net->dev, F_CTRL_GUEST_OFFLOADS) && set_offloads(net, c);
    default:
        return false;
    }
}

static bool serve(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    uint8_t raw[COMMAND_MAX];
    size_t len = iov_read(chain->out, chain->out_count, 0, raw, sizeof raw);
    if (len < 2 || !chain->in_len) {
        virtio_fail(dev, "control command without header or acknowledgement");
        return false;
    }
    struct command c = {.class = raw[0], .code = raw[1], .data = raw + 2, .len = len - 2, .cut = chain->out_len > len};
    uint8_t ack = run(net, &c) ? 0 : 1;
    stat_add(ack ? &net->ctrl_fails : &net->ctrl_count, 1);
    virtq_push(&dev->queues[index], chain, (uint32_t)iov_write(chain->in, chain->in_count, 0, &ack, 1));
    return true;
}

void net_serve_ctrl(struct virtio_net *net, unsigned index)
{
    virtio_serve(&net->dev, index, serve);
}
