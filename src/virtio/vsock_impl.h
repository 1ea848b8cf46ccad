/* Private to vsock*.c. The device (vsock.c) owns the listening socket, vsock_queue.c moves packets, a connection
 * (vsock_conn.c) is one stream between a guest port and a unix socket. Everything runs in the loop's thread under the device's lock, except
 * that a reset on another thread sets `stale`, and the loop's thread then clears up. */
#pragma once

#include "virtio/vsock.h"

#define VSOCK_HOST_CID 2u
#define VSOCK_QUEUE_SIZE 256u
#define VSOCK_HEADER_SIZE 44u
#define VSOCK_TYPE_STREAM 1u
#define VSOCK_CONNECTIONS_MAX 512u /* half of the descriptors that a process has: the rest is for disks, the API, new connections */
#define VSOCK_BUFFER_SIZE (128u * 1024) /* what a guest may send ahead of the host's reader, a connection */
#define VSOCK_RESETS_MAX 256u           /* answers to strangers that wait for buffers */
#define VSOCK_HASH_SIZE 256u
#define VSOCK_TIMEOUT_NS UINT64_C(2000000000)
#define VSOCK_SHUTDOWN_RECEIVE 1u
#define VSOCK_SHUTDOWN_SEND 2u
#define VSOCK_SHUTDOWN_BOTH 3u

enum vsock_op {
    OP_REQUEST = 1,
    OP_RESPONSE,
    OP_RST,
    OP_SHUTDOWN,
    OP_RW,
    OP_CREDIT_UPDATE,
    OP_CREDIT_REQUEST,
};

/* A packet header, decoded. */
struct vsock_packet {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, len;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
};

enum conn_state {
    CONN_HANDSHAKE,   /* a host program has not said CONNECT yet */
    CONN_REQUESTED,   /* the guest has not answered yet */
    CONN_ESTABLISHED,
    CONN_CLOSING,     /* we said that the host is gone; the guest confirms with RST */
};

/* What a connection has to tell the guest, bit 1 << op; DATA: its socket may be readable. */
#define PENDING(op) (1u << (op))
#define PENDING_DATA 1u

struct vsock_conn {
    struct vsock *vsock;
    struct vsock_conn *hash_next;
    struct vsock_conn *ready_next, *ready_prev; /* in vsock->ready while pending */
    bool ready;
    enum conn_state state;
    uint32_t host_port, guest_port;
    int fd;
    struct loop_source *source; /* NULL while nothing is waited for */
    uint32_t events;
    unsigned pending;
    uint64_t deadline_ns; /* 0: none */
    bool host_done;       /* no more bytes come from the host */
    unsigned guest_shutdown; /* VSOCK_SHUTDOWN_* the guest has said */
    bool shutdown_passed; /* ... and its end of sending was passed on */
    char line[32];        /* CONN_HANDSHAKE: what came so far */
    unsigned line_len;
    /* Credit (§5.10.6.3), 32-bit counters that wrap. */
    uint32_t guest_buf_alloc, guest_fwd_cnt, sent; /* towards the guest */
    uint32_t received, forwarded, told_forwarded;  /* from the guest; what it last heard of */
    uint8_t *buffer; /* bytes the socket did not take yet; NULL while empty */
    uint32_t buffer_start, buffer_len;
};

struct vsock {
    struct virtio_device dev; /* first */
    char *path;
    bool given; /* the socket, as a descriptor: it has no path for the guest's own connections, and stays */
    int listen_fd, stale_fd;
    struct loop_source *listen_source, *stale_source, *timer;
    bool timer_armed;
    bool stale; /* connections of before a reset are still there */
    uint64_t guest_cid;
    uint32_t next_port;
    unsigned conn_count;
    struct vsock_conn *hash[VSOCK_HASH_SIZE];
    struct vsock_conn *ready, *ready_last;
    unsigned reset_count;
    struct {
        uint32_t host_port, guest_port;
    } resets[VSOCK_RESETS_MAX];
    bool tx_blocked; /* resets were full: the send queue waits */

    uint64_t rx_queue_event_count, tx_queue_event_count, rx_bytes_count, tx_bytes_count, rx_packets_count,
        tx_packets_count, conns_added, conns_killed, conns_removed, rx_read_fails, tx_write_fails, tx_flush_fails;
};

/* ---- vsock.c ---- */

/* The connection has something for the guest. */
void vsock_make_ready(struct vsock_conn *conn);
void vsock_unready(struct vsock_conn *conn);
struct vsock_conn *vsock_find(struct vsock *vsock, uint32_t host_port, uint32_t guest_port);
void vsock_arm_timer(struct vsock *vsock);

/* ---- vsock_queue.c ---- */

/* Moves what is pending into the guest's buffers. */
void vsock_serve_rx(struct vsock *vsock);
void vsock_serve_tx(struct vsock *vsock);

/* ---- vsock_conn.c ---- */

/* Takes over fd. NULL when memory is out or there are too many; fd is closed then. */
struct vsock_conn *conn_create(struct vsock *vsock, int fd, enum conn_state state, uint32_t host_port, uint32_t guest_port);
/* Closes and frees at once. */
void conn_free(struct vsock_conn *conn);
/* A packet from the guest for this connection; `payload` has packet->len bytes. May free it. */
void conn_receive(struct vsock_conn *conn, const struct vsock_packet *packet, struct iovec *payload, unsigned count);
/* Fills the next packet for the guest: header in *ret_packet, data in iov (`room` bytes). False when there is none now.
 * *ret_last: the connection is over and is to be freed once the packet is sent. */
bool conn_fill(struct vsock_conn *conn, const struct iovec *iov, unsigned count, size_t room,
               struct vsock_packet *ret_packet, bool *ret_last);
/* Waits for what its state asks for. */
void conn_watch(struct vsock_conn *conn);
void conn_expire(struct vsock_conn *conn);
