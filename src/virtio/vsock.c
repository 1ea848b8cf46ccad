/* The device, its table of connections and its listening socket. */
#include "virtio/vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fdname.h"
#include "base/own.h"
#include "virtio/limiter.h"
#include "virtio/vsock_impl.h"

#define RX 0
#define TX 1
#define QUEUE_COUNT 3
#define FIRST_PORT (UINT32_C(1) << 30)
#define TICK_NS UINT64_C(250000000)
#define CID_MIN 3u

/* ---- connections by port, and those with something to say ---- */

struct vsock_conn *vsock_find(struct vsock *vsock, uint32_t host_port, uint32_t guest_port)
{
    struct vsock_conn *c = vsock->hash[(host_port ^ guest_port) % VSOCK_HASH_SIZE];
    while (c && (c->host_port != host_port || c->guest_port != guest_port || c->state == CONN_HANDSHAKE))
        c = c->hash_next;
    return c;
}

void vsock_make_ready(struct vsock_conn *c)
{
    struct vsock *v = c->vsock;
    if (c->ready)
        return;
    c->ready = true;
    c->ready_next = NULL;
    c->ready_prev = v->ready_last;
    if (v->ready_last)
        v->ready_last->ready_next = c;
    else
        v->ready = c;
    v->ready_last = c;
}

void vsock_unready(struct vsock_conn *c)
{
    struct vsock *v = c->vsock;
    if (!c->ready)
        return;
    c->ready = false;
    if (c->ready_prev)
        c->ready_prev->ready_next = c->ready_next;
    else
        v->ready = c->ready_next;
    if (c->ready_next)
        c->ready_next->ready_prev = c->ready_prev;
    else
        v->ready_last = c->ready_prev;
}

static void each_conn(struct vsock *v, void (*fn)(struct vsock_conn *c))
{
    for (unsigned i = 0; i < VSOCK_HASH_SIZE; i++) {
        for (struct vsock_conn *c = v->hash[i], *next; c; c = next) {
            next = c->hash_next;
            fn(c);
        }
    }
}

/* ---- time, and the listening socket ---- */

void vsock_arm_timer(struct vsock *v)
{
    if (!v->timer_armed)
        loop_timer_set(v->timer, TICK_NS);
    v->timer_armed = true;
}

static void check_deadline(struct vsock_conn *c)
{
    if (!c->deadline_ns)
        return;
    if (limiter_now() >= c->deadline_ns)
        conn_expire(c);
    else
        vsock_arm_timer(c->vsock);
}

static void on_tick(void *arg)
{
    struct vsock *v = arg;
    pthread_mutex_lock(&v->dev.lock);
    v->timer_armed = false;
    if (!v->stale) {
        each_conn(v, check_deadline);
        if (virtio_live(&v->dev))
            vsock_serve_rx(v);
    }
    pthread_mutex_unlock(&v->dev.lock);
}

static bool port_in_use(struct vsock *v, uint32_t port)
{
    for (unsigned i = 0; i < VSOCK_HASH_SIZE; i++) {
        for (struct vsock_conn *c = v->hash[i]; c; c = c->hash_next) {
            if (c->host_port == port)
                return true;
        }
    }
    return false;
}

static uint32_t take_port(struct vsock *v)
{
    do {
        v->next_port = v->next_port >= UINT32_C(0x7fffffff) ? FIRST_PORT : v->next_port + 1;
    } while (port_in_use(v, v->next_port)); /* ends: there are far fewer connections than ports */
    return v->next_port;
}

static void on_listen(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct vsock *v = arg;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    pthread_mutex_lock(&v->dev.lock);
    if (!v->dev.running || v->stale) {
        close(client); /* nobody there to talk to */
    } else {
        struct vsock_conn *c = conn_create(v, client, CONN_HANDSHAKE, take_port(v), 0);
        if (c)
            conn_watch(c);
    }
    pthread_mutex_unlock(&v->dev.lock);
}

/* ---- class ---- */

static void clear_up(struct vsock *v)
{
    each_conn(v, conn_free);
    v->reset_count = 0;
    v->tx_blocked = false;
    v->stale = false;
}

static void on_stale(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct vsock *v = arg;
    uint64_t count;
    ssize_t ignored = read(fd, &count, sizeof count);
    (void)ignored;
    pthread_mutex_lock(&v->dev.lock);
    if (v->stale)
        clear_up(v);
    pthread_mutex_unlock(&v->dev.lock);
    for (unsigned i = 0; i < QUEUE_COUNT; i++)
        virtio_kick(&v->dev, i);
}

static void vsock_kicked(struct virtio_device *dev, unsigned index)
{
    struct vsock *v = (struct vsock *)dev;
    if (v->stale) /* on_stale kicks again */
        return;
    if (index == RX) {
        stat_add(&v->rx_queue_event_count, 1);
        each_conn(v, conn_watch); /* after a pause nobody is watched */
        vsock_serve_rx(v);
    } else if (index == TX) {
        stat_add(&v->tx_queue_event_count, 1);
        vsock_serve_tx(v);
        vsock_serve_rx(v);
    }
}

static void vsock_start(struct virtio_device *dev)
{
    (void)dev;
}

/* Connections have sources in the loop, which only its thread may remove. */
static void vsock_reset(struct virtio_device *dev)
{
    struct vsock *v = (struct vsock *)dev;
    uint64_t one = 1;
    v->stale = true;
    ssize_t ignored = write(v->stale_fd, &one, sizeof one);
    (void)ignored;
}

static void vsock_free(struct virtio_device *dev)
{
    struct vsock *v = (struct vsock *)dev;
    each_conn(v, conn_free);
    loop_remove(v->listen_source);
    loop_remove(v->stale_source);
    loop_remove(v->timer);
    if (v->listen_fd >= 0) {
        close(v->listen_fd);
        if (!v->given)
            unlink(v->path);
    }
    if (v->stale_fd >= 0)
        close(v->stale_fd);
    virtio_release(dev);
    free(v->path);
    free(v);
}

#define STAT(field) {#field, offsetof(struct vsock, field)}
static const struct virtio_stat vsock_stats[] = {STAT(rx_queue_event_count),
                                                 STAT(tx_queue_event_count),
                                                 STAT(rx_bytes_count),
                                                 STAT(tx_bytes_count),
                                                 STAT(rx_packets_count),
                                                 STAT(tx_packets_count),
                                                 STAT(conns_added),
                                                 STAT(conns_killed),
                                                 STAT(conns_removed),
                                                 STAT(rx_read_fails),
                                                 STAT(tx_write_fails),
                                                 STAT(tx_flush_fails),
                                                 {0}};

const struct virtio_class virtio_vsock = {
    .name = "virtio-vsock",
    .type = 19,
    .pci_class = 0x078000, /* communication controller, other */
    .stats = vsock_stats,
    .start = vsock_start,
    .kicked = vsock_kicked,
    .reset = vsock_reset,
    .free = vsock_free,
};

/* ---- creation ---- */

static int listen_at(struct vsock *v, struct err *err)
{
    const size_t longest = sizeof ((struct sockaddr_un *)0)->sun_path - sizeof "_4294967295"; /* comes behind it */
    if (strlen(v->path) > longest)
        return err_say(err, ENAMETOOLONG, "vsock: socket path '%s' is longer than %zu bytes", v->path, longest);
    v->given = fdname_parse(v->path) >= 0;
    return fdname_listen(v->path, "vsock", 128, &v->listen_fd, err);
}

static int build(struct vsock *v, const struct virtio_vsock_config *config, struct err *err)
{
    struct loop *loop = v->dev.host.loop;
    v->path = strdup(config->uds_path);
    if (!v->path)
        return err_set(err, ENOMEM, "vsock");
    int r = listen_at(v, err);
    if (r < 0)
        return r;
    v->stale_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->stale_fd < 0)
        return err_set(err, errno, "vsock");
    v->listen_source = loop_add_fd(loop, v->listen_fd, EPOLLIN, on_listen, v);
    v->stale_source = loop_add_fd(loop, v->stale_fd, EPOLLIN, on_stale, v);
    v->timer = loop_add_timer(loop, on_tick, v);
    if (!v->listen_source || !v->stale_source || !v->timer)
        return err_set(err, ENOMEM, "vsock");
    store_le64(v->dev.config, v->guest_cid);
    return virtio_attach(&v->dev, err);
}

int virtio_vsock_create(const struct virtio_vsock_config *config, const struct virtio_host *host,
                        struct virtio_device **ret_dev, struct err *err)
{
    if (config->guest_cid < CID_MIN || config->guest_cid == UINT32_MAX)
        return err_say(err, EINVAL, "vsock: guest CID %u is reserved; use 3 or more", config->guest_cid);
    struct vsock *v = calloc(1, sizeof *v);
    if (!v)
        return err_set(err, ENOMEM, "vsock");
    static const uint16_t sizes[QUEUE_COUNT] = {VSOCK_QUEUE_SIZE, VSOCK_QUEUE_SIZE, VSOCK_QUEUE_SIZE};
    struct virtio_setup setup = {
        .id = config->id ? config->id : "vsock", .queue_count = QUEUE_COUNT, .queue_sizes = sizes, .config_len = 8};
    int r = virtio_init(&v->dev, &virtio_vsock, host, &setup, err);
    if (r < 0) {
        free(v);
        return r;
    }
    v->listen_fd = v->stale_fd = -1;
    v->guest_cid = config->guest_cid;
    v->next_port = FIRST_PORT;
    r = build(v, config, err);
    if (r < 0) {
        vsock_free(&v->dev);
        return r;
    }
    *ret_dev = &v->dev;
    return 0;
}
