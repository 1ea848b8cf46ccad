/* The device's queues: packets of connections into the guest's buffers, packets from the guest to their connections. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "base/own.h"
#include "virtio/vsock_impl.h"

#define RX 0
#define TX 1
#define QUEUE_SIZE VSOCK_QUEUE_SIZE
#define PACKETS_PER_EVENT 256u

/* ---- headers ---- */

static void header_decode(const uint8_t *h, struct vsock_packet *p)
{
    *p = (struct vsock_packet){.src_cid = load_le64(h),
                               .dst_cid = load_le64(h + 8),
                               .src_port = load_le32(h + 16),
                               .dst_port = load_le32(h + 20),
                               .len = load_le32(h + 24),
                               .type = load_le16(h + 28),
                               .op = load_le16(h + 30),
                               .flags = load_le32(h + 32),
                               .buf_alloc = load_le32(h + 36),
                               .fwd_cnt = load_le32(h + 40)};
}

static void header_encode(uint8_t *h, const struct vsock_packet *p)
{
    store_le64(h, p->src_cid);
    store_le64(h + 8, p->dst_cid);
    store_le32(h + 16, p->src_port);
    store_le32(h + 20, p->dst_port);
    store_le32(h + 24, p->len);
    store_le16(h + 28, p->type);
    store_le16(h + 30, p->op);
    store_le32(h + 32, p->flags);
    store_le32(h + 36, p->buf_alloc);
    store_le32(h + 40, p->fwd_cnt);
}

/* ---- towards the guest ---- */

static bool fill_reset(struct vsock *v, struct vsock_packet *p)
{
    if (!v->reset_count)
        return false;
    v->reset_count--;
    *p = (struct vsock_packet){.src_cid = VSOCK_HOST_CID,
                               .dst_cid = v->guest_cid,
                               .src_port = v->resets[v->reset_count].host_port,
                               .dst_port = v->resets[v->reset_count].guest_port,
                               .type = VSOCK_TYPE_STREAM,
                               .op = OP_RST};
    return true;
}

/* The next packet of whoever's turn it is, its data into `iov`. */
static bool next_packet(struct vsock *v, const struct iovec *iov, unsigned count, size_t room, struct vsock_packet *p)
{
    if (fill_reset(v, p))
        return true;
    while (v->ready) {
        struct vsock_conn *c = v->ready;
        bool last = false;
        vsock_unready(c);
        bool some = conn_fill(c, iov, count, room, p, &last);
        if (last) {
            conn_free(c);
            return true;
        }
        if (c->pending)
            vsock_make_ready(c);
        conn_watch(c);
        if (some)
            return true;
    }
    return false;
}

/* Fills one buffer of the guest. False when nothing is left to say. */
static bool fill_buffer(struct vsock *v, struct virtq_chain *chain)
{
    struct iovec iov[QUEUE_SIZE];
    memcpy(iov, chain->in, chain->in_count * sizeof *iov);
    struct iovec *data = iov;
    unsigned count = chain->in_count;
    iov_advance(&data, &count, VSOCK_HEADER_SIZE);
    struct vsock_packet p;
    uint8_t header[VSOCK_HEADER_SIZE];
    if (!next_packet(v, data, count, chain->in_len - VSOCK_HEADER_SIZE, &p))
        return false;
    header_encode(header, &p);
    iov_write(chain->in, chain->in_count, 0, header, sizeof header);
    virtq_push(&v->dev.queues[RX], chain, VSOCK_HEADER_SIZE + p.len);
    stat_add(&v->rx_packets_count, 1);
    stat_add(&v->rx_bytes_count, p.len);
    return true;
}

static bool anything_to_say(const struct vsock *v)
{
    return v->ready || v->reset_count;
}

void vsock_serve_rx(struct vsock *v)
{
    struct iovec iov[QUEUE_SIZE];
    struct virtq_chain chain;
    struct virtq *q = &v->dev.queues[RX];
    unsigned budget = PACKETS_PER_EVENT;
    while (anything_to_say(v) && budget--) {
        if (!virtio_pop(&v->dev, RX, &chain, iov, QUEUE_SIZE)) {
            if (!virtio_live(&v->dev) || !virtq_listen(q))
                break;
            continue;
        }
        if (chain.in_len <= VSOCK_HEADER_SIZE || chain.out_count) {
            virtio_fail(&v->dev, "receive buffer of %u bytes", chain.in_len);
            break;
        }
        if (!fill_buffer(v, &chain)) {
            virtq_unpop(q, 1);
            break;
        }
    }
    if (anything_to_say(v) && virtq_pending(q))
        virtio_kick(&v->dev, RX);
    virtio_signal(&v->dev, RX);
    if (v->tx_blocked && v->reset_count < VSOCK_RESETS_MAX / 2) {
        v->tx_blocked = false;
        virtio_kick(&v->dev, TX);
    }
}

/* ---- from the guest ---- */

static void answer_reset(struct vsock *v, const struct vsock_packet *p)
{
    v->resets[v->reset_count].host_port = p->dst_port;
    v->resets[v->reset_count].guest_port = p->src_port;
    v->reset_count++;
}

/* The host's listener for a guest's port: PATH_PORT. */
static int connect_host(const struct vsock *v, uint32_t port)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (v->given)
        return -ECONNREFUSED;
    int n = snprintf(address.sun_path, sizeof address.sun_path, "%s_%u", v->path, port);
    if (n < 0 || (size_t)n >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    return TAKE_FD(fd);
}

static void guest_connects(struct vsock *v, const struct vsock_packet *p)
{
    int fd = connect_host(v, p->dst_port);
    struct vsock_conn *c = fd < 0 ? NULL : conn_create(v, fd, CONN_ESTABLISHED, p->dst_port, p->src_port);
    if (!c) {
        answer_reset(v, p);
        return;
    }
    c->guest_buf_alloc = p->buf_alloc;
    c->guest_fwd_cnt = p->fwd_cnt;
    c->pending = PENDING(OP_RESPONSE);
    vsock_make_ready(c);
    conn_watch(c);
}

static void dispatch(struct vsock *v, const struct vsock_packet *p, struct iovec *payload, unsigned count)
{
    struct vsock_conn *c = vsock_find(v, p->dst_port, p->src_port);
    bool foreign = p->src_cid != v->guest_cid || p->dst_cid != VSOCK_HOST_CID || p->type != VSOCK_TYPE_STREAM;
    if (!foreign && c)
        conn_receive(c, p, payload, count);
    else if (!foreign && p->op == OP_REQUEST)
        guest_connects(v, p);
    else if (p->op != OP_RST)
        answer_reset(v, p);
}

static bool receive(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct vsock *v = (struct vsock *)dev;
    if (v->reset_count == VSOCK_RESETS_MAX) { /* the guest does not read our answers: it has to wait */
        virtq_unpop(&dev->queues[index], 1);
        v->tx_blocked = true;
        return false;
    }
    uint8_t header[VSOCK_HEADER_SIZE];
    struct vsock_packet p;
    if (iov_read(chain->out, chain->out_count, 0, header, sizeof header) < sizeof header) {
        virtio_fail(dev, "packet of %u bytes", chain->out_len);
        return false;
    }
    header_decode(header, &p);
    if (p.len > chain->out_len - VSOCK_HEADER_SIZE) {
        virtio_fail(dev, "packet claims %u bytes in a buffer of %u", p.len, chain->out_len);
        return false;
    }
    struct iovec *payload = chain->out;
    unsigned count = chain->out_count;
    iov_advance(&payload, &count, VSOCK_HEADER_SIZE);
    count = iov_truncate(payload, count, p.len);
    dispatch(v, &p, payload, count);
    stat_add(&v->tx_packets_count, 1);
    stat_add(&v->tx_bytes_count, p.len);
    virtq_push_head(&dev->queues[index], chain->head, 0);
    return true;
}

void vsock_serve_tx(struct vsock *v)
{
    virtio_serve(&v->dev, TX, receive);
}
