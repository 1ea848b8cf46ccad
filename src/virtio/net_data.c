/* Frames between backend and queues, in the loop's thread.
 *
 * Receiving: a frame lands in the port's own buffer, then goes into as many guest buffers as it needs, shown to the
 * driver all at once. While there are no buffers or rate tokens it stays and the backend is not polled.
 * Sending: straight from guest memory. */
#include <errno.h>
#include <sys/epoll.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "mem/mem.h"
#include "virtio/net_impl.h"

#define FRAMES_PER_EVENT 128u
#define FRAME_MIN (NET_HEADER_SIZE + 14u)
#define HEADER_NUM_BUFFERS 10u

void net_port_wait(struct net_port *port, uint32_t events)
{
    if (!port->source || port->events == events)
        return;
    port->events = events;
    loop_source_set_events(port->source, events);
}

enum delivery { DELIVERED, NO_BUFFERS, TOO_BIG };

/* The header's num_buffers is known only at the end: remember where it lies. */
struct header_place {
    struct iovec iov[4];
    unsigned count;
};

static void remember_header(struct header_place *place, const struct virtq_chain *chain)
{
    place->count = chain->in_count < 4 ? chain->in_count : 4;
    for (unsigned i = 0; i < place->count; i++)
        place->iov[i] = chain->in[i];
}

static void mark(struct mem *mem, const struct virtq_chain *chain, size_t len)
{
    for (unsigned i = 0; len && i < chain->in_count; i++) {
        size_t n = chain->in[i].iov_len < len ? chain->in[i].iov_len : len;
        mem_mark_dirty(mem, mem_gpa_of(mem, chain->in[i].iov_base), n);
        len -= n;
    }
}

/* Takes back what was staged of a frame that cannot be delivered whole. */
static enum delivery undeliver(struct virtq *q, unsigned buffers, enum delivery why)
{
    virtq_unpop(q, buffers);
    q->staged = 0;
    return why;
}

static enum delivery deliver(struct virtio_net *net, unsigned index, const uint8_t *frame, size_t len)
{
    struct virtio_device *dev = &net->dev;
    struct virtq *q = &dev->queues[index];
    bool merge = virtio_has(dev, F_MRG_RXBUF);
    struct iovec iov[NET_QUEUE_SIZE];
    struct virtq_chain chain;
    struct header_place header = {0};
    size_t done = 0;
    unsigned buffers = 0;
    while (done < len) {
        if (buffers == q->size || (buffers && !merge))
            return undeliver(q, buffers, TOO_BIG);
        if (!virtio_pop(dev, index, &chain, iov, NET_QUEUE_SIZE))
            return undeliver(q, buffers, NO_BUFFERS);
        if (!buffers)
            remember_header(&header, &chain);
        size_t n = iov_write(chain.in, chain.in_count, 0, frame + done, len - done);
        mark(dev->host.mem, &chain, n);
        virtq_stage(q, chain.head, (uint32_t)n);
        done += n;
        buffers++;
    }
    uint8_t count[2];
    store_le16(count, (uint16_t)buffers);
    iov_write(header.iov, header.count, HEADER_NUM_BUFFERS, count, sizeof count);
    virtq_publish(q);
    return DELIVERED;
}

/* False when the frame has to wait for a token. */
static bool rx_allowed(struct virtio_net *net, size_t len)
{
    uint64_t wait_ns = limiter_take(&net->rx, len, limiter_now());
    if (!wait_ns)
        return true;
    stat_add(&net->rx_rate_limiter_throttled, 1);
    loop_timer_set(net->rx_timer, wait_ns);
    return false;
}

/* The next frame into port->frame; false when there is none, or so many were looked at that *budget is used up. */
static bool fetch(struct net_port *port, unsigned *budget)
{
    struct virtio_net *net = port->net;
    while (!port->frame_len) {
        if (!*budget)
            return false;
        --*budget;
        struct iovec iov = {port->frame, NET_FRAME_MAX};
        ssize_t n = net->backend->class->receive(net->backend, port->index, &iov, 1);
        if (n == -EAGAIN)
            return false;
        if (n == -EPIPE) {
            net_backend_lost(port);
            return false;
        }
        if (n < (ssize_t)FRAME_MIN)
            stat_add(&net->rx_fails, 1);
        else if (!net->link_up || !net_filter_passes(net, port->frame + NET_HEADER_SIZE))
            stat_add(&net->rx_filtered, 1);
        else
            port->frame_len = (size_t)n;
    }
    return true;
}

/* False when no more can go to the guest for now. */
static bool deliver_pending(struct net_port *port, unsigned index)
{
    struct virtio_net *net = port->net;
    struct virtq *q = &net->dev.queues[index];
    if (!port->allowed && !rx_allowed(net, port->frame_len))
        return false;
    port->allowed = true;
    enum delivery how;
    unsigned seen;
    do {
        seen = virtq_pending(q);
        how = deliver(net, index, port->frame, port->frame_len);
    } while (how == NO_BUFFERS && virtio_live(&net->dev) && virtq_listen_more(q, seen));
    if (how == NO_BUFFERS) {
        stat_add(&net->no_rx_avail_buffer, 1);
        return false;
    }
    stat_add(how == DELIVERED ? &net->rx_packets_count : &net->rx_fails, 1);
    if (how == DELIVERED)
        stat_add(&net->rx_bytes_count, port->frame_len);
    port->frame_len = 0;
    port->allowed = false;
    return true;
}

void net_rx(struct net_port *port)
{
    struct virtio_net *net = port->net;
    unsigned index = 2 * (port->index % net->active_pairs);
    unsigned budget = FRAMES_PER_EVENT;
    bool room = true;
    while (room && virtio_live(&net->dev) && fetch(port, &budget))
        room = deliver_pending(port, index);
    virtio_signal(&net->dev, index);
    if (!budget) /* passt's frames may all be in our buffer by now, where no descriptor tells of them */
        virtio_kick(&net->dev, index);
    uint32_t out = port->events & EPOLLOUT;
    net_port_wait(port, (room && virtio_live(&net->dev) ? (uint32_t)EPOLLIN : 0) | out);
}

/* ---- sending ---- */

static struct net_port *tx_port(struct virtio_net *net, unsigned index)
{
    return &net->ports[index / 2 % net->backend->queues];
}

static bool send_chain(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    struct virtq *q = &dev->queues[index];
    if (chain->out_len < FRAME_MIN || chain->out_len > NET_FRAME_MAX || chain->in_count) {
        stat_add(&net->tx_malformed_frames, 1);
        virtq_push(q, chain, 0);
        return true;
    }
    bool *allowed = &net->ports[index / 2].send_allowed;
    uint64_t wait_ns = *allowed ? 0 : limiter_take(&net->tx, chain->out_len, limiter_now());
    *allowed = !wait_ns;
    if (wait_ns) {
        stat_add(&net->tx_rate_limiter_throttled, 1);
        loop_timer_set(net->tx_timer, wait_ns);
        virtq_unpop(q, 1);
        return false;
    }
    struct net_port *port = tx_port(net, index);
    int r = net->link_up ? net->backend->class->send(net->backend, port->index, chain->out, chain->out_count) : 0;
    if (r == -EAGAIN && port->source) {
        virtq_unpop(q, 1);
        net_port_wait(port, port->events | EPOLLOUT);
        return false;
    }
    *allowed = false;
    if (net->backend->backlog)
        net_port_wait(port, port->events | EPOLLOUT);
    stat_add(r < 0 ? &net->tx_fails : &net->tx_packets_count, 1);
    if (r == 0)
        stat_add(&net->tx_bytes_count, chain->out_len);
    virtq_push(q, chain, 0);
    return true;
}

void net_serve_tx(struct virtio_net *net, unsigned index)
{
    virtio_serve(&net->dev, index, send_chain);
}
