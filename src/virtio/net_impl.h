/* Private to net*.c: the device's state, and what data path and control queue offer each other. */
#pragma once

#include "net/net.h"
#include "virtio/net.h"

#define F_CSUM 0
#define F_GUEST_CSUM 1
#define F_CTRL_GUEST_OFFLOADS 2
#define F_MTU 3
#define F_MAC 5
#define F_GUEST_TSO4 7
#define F_GUEST_TSO6 8
#define F_GUEST_ECN 9
#define F_HOST_TSO4 11
#define F_HOST_TSO6 12
#define F_HOST_ECN 13
#define F_MRG_RXBUF 15
#define F_STATUS 16
#define F_CTRL_VQ 17
#define F_CTRL_RX 18
#define F_CTRL_RX_EXTRA 20
#define F_MQ 22
#define F_CTRL_MAC_ADDR 23
#define F_GUEST_USO4 54
#define F_GUEST_USO6 55
#define F_HOST_USO 56

#define NET_QUEUE_SIZE 256u
#define FILTER_MACS_MAX 64u

/* What the driver asked to receive (§5.1.6.5.1). */
struct net_filter {
    bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
    bool overflow; /* more addresses than the table holds: all of them pass */
    unsigned count;
    uint8_t macs[FILTER_MACS_MAX][6];
};

/* One queue of the backend. */
struct net_port {
    struct virtio_net *net;
    unsigned index;
    struct loop_source *source;
    uint32_t events;   /* what the source waits for */
    uint8_t *frame;    /* received and not delivered yet, NET_FRAME_MAX bytes */
    size_t frame_len;  /* 0: none */
    bool allowed;      /* the rate limiter let that frame pass already */
    bool send_allowed; /* and the next one of the send queue of this number */
};

struct virtio_net {
    struct virtio_device dev; /* first */
    struct net_backend *backend;
    unsigned pairs, active_pairs;
    bool link_up, backend_gone; /* as the user set it; what makes it down all the same */
    unsigned retry_ms, retries;
    uint64_t opened_ns; /* when the backend was opened last */
    struct loop_source *retry_timer;
    uint8_t mac[6]; /* the current one; config space keeps the first */
    struct net_filter filter;
    struct limiter rx, tx;
    struct loop_source *rx_timer, *tx_timer;
    struct net_port ports[VIRTIO_NET_MAX_PAIRS];

    uint64_t rx_bytes_count, rx_packets_count, rx_fails, rx_filtered, no_rx_avail_buffer, tx_bytes_count,
        tx_packets_count, tx_fails, tx_malformed_frames, rx_rate_limiter_throttled, tx_rate_limiter_throttled,
        rx_event_rate_limiter_count, tx_event_rate_limiter_count, ctrl_count, ctrl_fails, backend_event_count;
};

/* net_data.c */
void net_rx(struct net_port *port);
void net_serve_tx(struct virtio_net *net, unsigned index);
/* Which of EPOLLIN and EPOLLOUT the port waits for; loop thread. */
void net_port_wait(struct net_port *port, uint32_t events);

/* net.c */
loop_fd_fn net_on_backend;
void net_kick_all(struct virtio_net *net);

/* net_link.c */
must_check int net_link_init(struct virtio_net *net, unsigned retry_ms);
/* The backend has ended: no more polling, link down; it may be opened again later. Lock held. */
void net_backend_lost(struct net_port *port);

/* net_ctrl.c */
void net_serve_ctrl(struct virtio_net *net, unsigned index);
void net_filter_reset(struct virtio_net *net);
bool net_filter_passes(const struct virtio_net *net, const uint8_t *frame);
/* Tells the backend which offloads frames for the guest may use, from feature bits. */
void net_apply_offloads(struct virtio_net *net, uint64_t features);
