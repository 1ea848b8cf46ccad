/* One connection: credit, half-closed states, the CONNECT handshake, and the bounded buffer towards the host. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/iov.h"
#include "virtio/limiter.h"
#include "virtio/vsock_impl.h"

#define DATA_MAX 65536u

static void on_socket(void *arg, int fd, uint32_t events);

static uint32_t credit(const struct vsock_conn *c)
{
    uint32_t in_flight = c->sent - c->guest_fwd_cnt;
    return in_flight < c->guest_buf_alloc ? c->guest_buf_alloc - in_flight : 0;
}

static bool wants_input(const struct vsock_conn *c)
{
    if (c->state == CONN_HANDSHAKE)
        return true;
    return c->state == CONN_ESTABLISHED && !c->host_done && !(c->pending & PENDING_DATA) &&
           !(c->guest_shutdown & VSOCK_SHUTDOWN_RECEIVE) && credit(c);
}

/* Hang-up cannot be masked in epoll: without a wish the source goes away. */
void conn_watch(struct vsock_conn *c)
{
    uint32_t events = (wants_input(c) ? (uint32_t)EPOLLIN : 0) | (c->buffer_len ? (uint32_t)EPOLLOUT : 0);
    if (c->fd < 0 || !virtio_live(&c->vsock->dev))
        events = 0;
    if (events == c->events && (c->source || !events))
        return;
    c->events = events;
    if (!events) {
        loop_remove(c->source);
        c->source = NULL;
    } else if (c->source) {
        loop_source_set_events(c->source, events);
    } else {
        c->source = loop_add_fd(c->vsock->dev.host.loop, c->fd, events, on_socket, c);
    }
}

static void tell(struct vsock_conn *c, unsigned what)
{
    c->pending |= what;
    vsock_make_ready(c);
}

static void set_deadline(struct vsock_conn *c)
{
    c->deadline_ns = limiter_now() + VSOCK_TIMEOUT_NS;
    vsock_arm_timer(c->vsock);
}

static struct vsock_conn **bucket(struct vsock_conn *c)
{
    return &c->vsock->hash[(c->host_port ^ c->guest_port) % VSOCK_HASH_SIZE];
}

static void link_hash(struct vsock_conn *c)
{
    c->hash_next = *bucket(c);
    *bucket(c) = c;
}

static void unlink_hash(struct vsock_conn *c)
{
    struct vsock_conn **at = bucket(c);
    while (*at != c)
        at = &(*at)->hash_next;
    *at = c->hash_next;
}

struct vsock_conn *conn_create(struct vsock *vsock, int fd, enum conn_state state, uint32_t host_port, uint32_t guest_port)
{
    struct vsock_conn *c = vsock->conn_count < VSOCK_CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
    if (!c) {
        close(fd);
        return NULL;
    }
    *c = (struct vsock_conn){
        .vsock = vsock, .fd = fd, .state = state, .host_port = host_port, .guest_port = guest_port};
    link_hash(c);
    vsock->conn_count++;
    stat_add(&vsock->conns_added, 1);
    if (state != CONN_ESTABLISHED)
        set_deadline(c);
    return c;
}

void conn_free(struct vsock_conn *c)
{
    unlink_hash(c);
    vsock_unready(c);
    c->vsock->conn_count--;
    stat_add(&c->vsock->conns_removed, 1);
    loop_remove(c->source);
    close(c->fd);
    free(c->buffer);
    free(c);
}

/* The guest hears RST and the connection ends with it. */
static void kill_conn(struct vsock_conn *c)
{
    stat_add(&c->vsock->conns_killed, 1);
    c->host_done = true;
    c->buffer_len = 0;
    c->pending = PENDING(OP_RST);
    vsock_make_ready(c);
}

void conn_expire(struct vsock_conn *c)
{
    c->deadline_ns = 0;
    if (c->state == CONN_HANDSHAKE)
        conn_free(c); /* the guest never heard of it */
    else
        kill_conn(c);
}

/* ---- towards the host ---- */

static void after_forwarding(struct vsock_conn *c)
{
    if (c->forwarded - c->told_forwarded >= VSOCK_BUFFER_SIZE / 4)
        tell(c, PENDING(OP_CREDIT_UPDATE));
    if (c->buffer_len || !(c->guest_shutdown & VSOCK_SHUTDOWN_SEND))
        return;
    if (c->guest_shutdown == VSOCK_SHUTDOWN_BOTH) {
        c->pending = PENDING(OP_RST); /* the clean end: all was handed on */
        c->host_done = true;
        vsock_make_ready(c);
    } else if (!c->shutdown_passed) {
        c->shutdown_passed = true;
        shutdown(c->fd, SHUT_WR);
    }
}

static void flush(struct vsock_conn *c)
{
    while (c->buffer_len) {
        uint32_t run = VSOCK_BUFFER_SIZE - c->buffer_start;
        run = run < c->buffer_len ? run : c->buffer_len;
        ssize_t n = send(c->fd, c->buffer + c->buffer_start, run, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n < 0) {
            stat_add(&c->vsock->tx_flush_fails, 1);
            kill_conn(c);
            return;
        }
        c->buffer_start = (c->buffer_start + (uint32_t)n) % VSOCK_BUFFER_SIZE;
        c->buffer_len -= (uint32_t)n;
        c->forwarded += (uint32_t)n;
        if (c->buffer_len && c->guest_shutdown == VSOCK_SHUTDOWN_BOTH)
            set_deadline(c); /* it reads, if slowly */
    }
    if (!c->buffer_len) {
        free(c->buffer);
        c->buffer = NULL;
    }
    after_forwarding(c);
}

/* Keeps what the socket did not take. The credit check has made sure that it fits. */
static bool keep(struct vsock_conn *c, const struct iovec *iov, unsigned count, size_t skip, size_t len)
{
    if (!c->buffer) {
        c->buffer = malloc(VSOCK_BUFFER_SIZE);
        c->buffer_start = 0;
    }
    if (!c->buffer || len > VSOCK_BUFFER_SIZE - c->buffer_len)
        return false;
    while (len) {
        uint32_t at = (c->buffer_start + c->buffer_len) % VSOCK_BUFFER_SIZE;
        size_t run = VSOCK_BUFFER_SIZE - at < len ? VSOCK_BUFFER_SIZE - at : len;
        iov_read(iov, count, skip, c->buffer + at, run);
        c->buffer_len += (uint32_t)run;
        skip += run;
        len -= run;
    }
    return true;
}

static void forward(struct vsock_conn *c, struct iovec *iov, unsigned count, uint32_t len)
{
    size_t sent = 0;
    if (len > VSOCK_BUFFER_SIZE - (c->received - c->forwarded)) { /* beyond its credit */
        stat_add(&c->vsock->tx_write_fails, 1);
        kill_conn(c);
        return;
    }
    c->received += len;
    if (!c->buffer_len) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            stat_add(&c->vsock->tx_write_fails, 1);
            kill_conn(c);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
        c->forwarded += (uint32_t)sent;
    }
    if (sent < len && !keep(c, iov, count, sent, len - sent)) {
        kill_conn(c);
        return;
    }
    after_forwarding(c);
}

/* ---- from the guest ---- */

static void accepted_by_guest(struct vsock_conn *c)
{
    char line[32];
    int len = snprintf(line, sizeof line, "OK %u\n", c->host_port);
    c->state = CONN_ESTABLISHED;
    c->deadline_ns = 0;
    if (send(c->fd, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) != len)
        kill_conn(c);
}

static void guest_shuts_down(struct vsock_conn *c, unsigned flags)
{
    c->guest_shutdown |= flags & VSOCK_SHUTDOWN_BOTH;
    if (c->guest_shutdown & VSOCK_SHUTDOWN_RECEIVE)
        c->pending &= ~PENDING_DATA;
    after_forwarding(c);
    if (c->buffer_len && c->guest_shutdown == VSOCK_SHUTDOWN_BOTH)
        set_deadline(c); /* for a host that does not read any more */
}

static void receive_established(struct vsock_conn *c, const struct vsock_packet *p, struct iovec *payload, unsigned count)
{
    switch (p->op) {
    case OP_RW:
        if (!(c->guest_shutdown & VSOCK_SHUTDOWN_SEND))
            forward(c, payload, count, p->len);
        break;
    case OP_SHUTDOWN:
        guest_shuts_down(c, p->flags);
        break;
    case OP_CREDIT_REQUEST:
        tell(c, PENDING(OP_CREDIT_UPDATE));
        break;
    case OP_CREDIT_UPDATE:
        break;
    default:
        kill_conn(c);
    }
}

void conn_receive(struct vsock_conn *c, const struct vsock_packet *p, struct iovec *payload, unsigned count)
{
    if (p->op == OP_RST) {
        conn_free(c);
        return;
    }
    c->guest_buf_alloc = p->buf_alloc;
    c->guest_fwd_cnt = p->fwd_cnt;
    if (!(c->pending & PENDING(OP_RST))) { /* after that, only the guest's own RST matters */
        if (c->state == CONN_REQUESTED && p->op == OP_RESPONSE)
            accepted_by_guest(c);
        else if (c->state == CONN_ESTABLISHED || c->state == CONN_CLOSING)
            receive_established(c, p, payload, count);
        else
            kill_conn(c);
    }
    conn_watch(c);
}

/* ---- towards the guest ---- */

static void fill_header(struct vsock_conn *c, struct vsock_packet *p, enum vsock_op op)
{
    *p = (struct vsock_packet){.src_cid = VSOCK_HOST_CID,
                               .dst_cid = c->vsock->guest_cid,
                               .src_port = c->host_port,
                               .dst_port = c->guest_port,
                               .type = VSOCK_TYPE_STREAM,
                               .op = (uint16_t)op,
                               .buf_alloc = VSOCK_BUFFER_SIZE,
                               .fwd_cnt = c->forwarded};
    c->told_forwarded = c->forwarded;
    c->pending &= ~PENDING(OP_CREDIT_UPDATE);
}

static void fill_end(struct vsock_conn *c, struct vsock_packet *p)
{
    struct pollfd state = {.fd = c->fd, .events = POLLIN};
    bool all = poll(&state, 1, 0) > 0 && (state.revents & POLLHUP);
    c->host_done = true;
    c->pending &= ~PENDING_DATA;
    fill_header(c, p, OP_SHUTDOWN);
    p->flags = all ? VSOCK_SHUTDOWN_BOTH : VSOCK_SHUTDOWN_SEND;
    if (all) {
        c->state = CONN_CLOSING;
        set_deadline(c);
    }
}

/* Data from the socket straight into the guest's buffer. False when there is none. */
static bool fill_data(struct vsock_conn *c, const struct iovec *iov, unsigned count, size_t room, struct vsock_packet *p)
{
    uint32_t allowed = credit(c);
    if (!allowed) { /* the guest speaks up when it has read something */
        c->pending &= ~PENDING_DATA;
        fill_header(c, p, OP_CREDIT_REQUEST);
        return true;
    }
    if (room > allowed)
        room = allowed;
    if (room > DATA_MAX)
        room = DATA_MAX;
    struct iovec cut[256];
    memcpy(cut, iov, count * sizeof *iov);
    struct msghdr message = {.msg_iov = cut, .msg_iovlen = iov_truncate(cut, count, room)};
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT);
    if (n < 0) {
        c->pending &= ~PENDING_DATA;
        if (errno == EAGAIN || errno == EINTR)
            return false;
        stat_add(&c->vsock->rx_read_fails, 1);
        fill_end(c, p);
        return true;
    }
    if (n == 0) {
        fill_end(c, p);
        return true;
    }
    c->sent += (uint32_t)n;
    fill_header(c, p, OP_RW);
    p->len = (uint32_t)n;
    return true;
}

bool conn_fill(struct vsock_conn *c, const struct iovec *iov, unsigned count, size_t room,
               struct vsock_packet *ret_packet, bool *ret_last)
{
    static const enum vsock_op before_data[] = {OP_RST, OP_REQUEST, OP_RESPONSE};
    for (unsigned i = 0; i < 3; i++) {
        if (!(c->pending & PENDING(before_data[i])))
            continue;
        c->pending &= ~PENDING(before_data[i]);
        fill_header(c, ret_packet, before_data[i]);
        *ret_last = before_data[i] == OP_RST;
        return true;
    }
    bool some = (c->pending & PENDING_DATA) && room && fill_data(c, iov, count, room, ret_packet);
    if (!some && (c->pending & PENDING(OP_CREDIT_UPDATE))) {
        fill_header(c, ret_packet, OP_CREDIT_UPDATE);
        some = true;
    }
    return some;
}

/* ---- the socket ---- */

/* One byte at a time, so that nothing behind the line is taken. 1: complete, 0: not yet, -1: not for us. */
static int read_line(struct vsock_conn *c)
{
    for (;;) {
        ssize_t n = recv(c->fd, c->line + c->line_len, 1, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (n <= 0 || c->line_len + 2 == sizeof c->line)
            return -1;
        if (c->line[c->line_len++] == '\n') {
            c->line[c->line_len - 1] = '\0';
            return 1;
        }
    }
}

/* "CONNECT <port>" */
static bool parse_line(const char *line, uint32_t *ret_port)
{
    char *end;
    if (strncasecmp(line, "connect ", 8) != 0 || line[8] < '0' || line[8] > '9')
        return false;
    errno = 0;
    unsigned long port = strtoul(line + 8, &end, 10);
    if (errno || *end || port > UINT32_MAX)
        return false;
    *ret_port = (uint32_t)port;
    return true;
}

static void read_handshake(struct vsock_conn *c)
{
    uint32_t port;
    int r = read_line(c);
    if (r == 0)
        return;
    if (r < 0 || !parse_line(c->line, &port)) {
        conn_free(c);
        return;
    }
    unlink_hash(c);
    c->guest_port = port;
    link_hash(c);
    c->state = CONN_REQUESTED;
    set_deadline(c);
    tell(c, PENDING(OP_REQUEST));
    conn_watch(c);
}

static void on_socket(void *arg, int fd, uint32_t events)
{
    (void)fd;
    struct vsock_conn *c = arg;
    struct vsock *vsock = c->vsock;
    pthread_mutex_lock(&vsock->dev.lock);
    if (vsock->stale || !virtio_live(&vsock->dev)) {
        conn_watch(c); /* stops watching; a resume or the clearing-up takes over */
    } else if (c->state == CONN_HANDSHAKE) {
        read_handshake(c);
        vsock_serve_rx(vsock);
    } else {
        if (c->events & EPOLLOUT)
            flush(c);
        if ((events & ~(uint32_t)EPOLLOUT) && wants_input(c))
            tell(c, PENDING_DATA);
        conn_watch(c);
        vsock_serve_rx(vsock);
    }
    pthread_mutex_unlock(&vsock->dev.lock);
}
