/* virtio-net over the stream protocol of the `user` backend on a socketpair: the test is both guest and network. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/log.h"
#include "net/net.h"
#include "virtio/net.h"
#include "virtio_guest.h"

#define HEADER 12
#define SLOTS 64
#define F_MRG_RXBUF 15
#define F_STATUS 16
#define F_CTRL_VQ 17
#define F_CTRL_RX 18
#define F_MAC_ADDR 23
enum { RX, TX, CTRL };

static struct guest g;
static struct virtio_device *dev;
static struct guest_queue q[8];
static int wire;
static uint64_t rx_gpa, tx_gpa;
static uint32_t slot_size;

static void start(uint64_t features, uint32_t rx_size, struct virtio_net_config config)
{
    struct err err = {0};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    wire = pair[0];
    struct timeval limit = {.tv_sec = 5};
    setsockopt(wire, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct net_options options = {.driver = "user", .fd = pair[1]};
    if (net_open(&options, &config.backend, &err) < 0)
        fail_msg("%s", err.message);
    guest_create(&g, 32 << 20, true);
    config.id = "eth0";
    if (virtio_net_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, features, q);
    slot_size = rx_size;
    rx_gpa = guest_alloc(&g, (uint64_t)SLOTS * rx_size);
    tx_gpa = guest_alloc(&g, 128 << 10);
}

static void stop(void)
{
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
    close(wire);
}

static void give_rx(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct guest_buf buf = {rx_gpa + (q[RX].avail_idx % SLOTS) * (uint64_t)slot_size, slot_size, true};
        guest_add(&q[RX], &buf, 1, false);
    }
    guest_kick(&q[RX]);
}

static void put_on_wire(const uint8_t *frame, uint32_t len)
{
    uint8_t length[4];
    store_be32(length, len);
    assert_int_equal(send(wire, length, 4, 0), 4);
    for (uint32_t at = 0; at < len;) {
        ssize_t n = send(wire, frame + at, len - at, 0);
        assert_true(n > 0);
        at += (uint32_t)n;
    }
}

static uint32_t take_from_wire(uint8_t *frame, uint32_t size)
{
    uint8_t length[4];
    assert_int_equal(recv(wire, length, 4, MSG_WAITALL), 4);
    uint32_t len = load_be32(length);
    assert_true(len <= size);
    assert_int_equal(recv(wire, frame, len, MSG_WAITALL), len);
    return len;
}

static bool wire_is_quiet(unsigned ms)
{
    struct pollfd p = {.fd = wire, .events = POLLIN};
    return poll(&p, 1, (int)ms) == 0;
}

static void make_frame(uint8_t *frame, uint32_t len, uint8_t seed)
{
    for (uint32_t i = 0; i < len; i++)
        frame[i] = (uint8_t)(seed + i * 3 + i / 200);
    memset(frame, 0xff, 6);
}

/* Reads one received frame out of the used ring, over as many buffers as the header says. */
static uint32_t receive(uint8_t *frame, unsigned *ret_buffers)
{
    uint16_t head;
    uint32_t len, total = 0;
    unsigned buffers = 1;
    for (unsigned i = 0; i < buffers; i++) {
        assert_true(guest_used(&q[RX], &head, &len, i ? 0 : 5000)); /* the first shows them all */
        uint64_t gpa = load_le64(guest_at(&g, q[RX].desc + head * 16u, 16));
        const uint8_t *p = guest_at(&g, gpa, len);
        uint32_t skip = i ? 0 : HEADER;
        if (!i)
            buffers = load_le16(p + 10);
        memcpy(frame + total, p + skip, len - skip);
        total += len - skip;
    }
    if (ret_buffers)
        *ret_buffers = buffers;
    return total;
}

static void expect_frame(uint32_t len, uint8_t seed, unsigned want_buffers)
{
    static uint8_t want[70000], got[70000];
    unsigned buffers;
    make_frame(want, len, seed);
    assert_int_equal(receive(got, &buffers), len);
    assert_memory_equal(want, got, len);
    assert_int_equal(buffers, want_buffers);
}

static void test_receive_merged(void **state)
{
    (void)state;
    static uint8_t frame[70000];
    start(VIRTIO_FEATURE(F_MRG_RXBUF), 1536, (struct virtio_net_config){0});
    give_rx(64);
    const uint32_t sizes[] = {14, 60, 1514, 1524, 1525, 9000, 65535};
    for (unsigned i = 0; i < 7; i++) {
        make_frame(frame, sizes[i], (uint8_t)i);
        put_on_wire(frame, sizes[i]);
        expect_frame(sizes[i], (uint8_t)i, (sizes[i] + HEADER + 1535) / 1536);
        give_rx((sizes[i] + HEADER + 1535) / 1536);
    }
    stop();
}

static void test_receive_unmerged(void **state)
{
    (void)state;
    static uint8_t frame[70000];
    start(0, 2000, (struct virtio_net_config){0});
    assert_false(virtio_has(dev, F_MRG_RXBUF));
    give_rx(8);
    make_frame(frame, 3000, 1);
    put_on_wire(frame, 3000); /* too long for a buffer: dropped */
    make_frame(frame, 1988, 2);
    put_on_wire(frame, 1988);
    expect_frame(1988, 2, 1);
    stop();
}

/* Frames wait in the host while the guest has no buffers, and are whole when it has. */
static void test_receive_starved(void **state)
{
    (void)state;
    static uint8_t frame[70000];
    start(VIRTIO_FEATURE(F_MRG_RXBUF), 1024, (struct virtio_net_config){0});
    for (unsigned i = 0; i < 20; i++) {
        make_frame(frame, 3000, (uint8_t)i);
        put_on_wire(frame, 3000);
    }
    usleep(20000);
    assert_false(guest_used(&q[RX], NULL, NULL, 0));
    for (unsigned i = 0; i < 20; i++) {
        give_rx(1);
        usleep(1000);
        give_rx(2);
        expect_frame(3000, (uint8_t)i, 3);
    }
    stop();
}

static uint32_t send_frame(const uint8_t *frame, uint32_t len, unsigned pieces)
{
    struct guest_buf bufs[12];
    memset(guest_at(&g, tx_gpa, HEADER), 0, HEADER);
    memcpy(guest_at(&g, tx_gpa + HEADER, len), frame, len);
    uint32_t total = len + HEADER, at = 0;
    for (unsigned i = 0; i < pieces; i++) {
        uint32_t n = i + 1 == pieces ? total - at : (uint32_t)(5 + i * 3);
        bufs[i] = (struct guest_buf){tx_gpa + at, n, false};
        at += n;
    }
    return guest_do(&q[TX], bufs, pieces);
}

static void test_send(void **state)
{
    (void)state;
    static uint8_t frame[70000], got[70000];
    start(0, 2000, (struct virtio_net_config){0});
    for (unsigned pieces = 1; pieces < 12; pieces += 2) {
        make_frame(frame, 1000 + pieces, (uint8_t)pieces);
        assert_int_equal(send_frame(frame, 1000 + pieces, pieces), 0);
        assert_int_equal(take_from_wire(got, sizeof got), 1000 + pieces);
        assert_memory_equal(frame, got, 1000 + pieces);
    }
    send_frame(frame, 13, 1); /* shorter than an Ethernet header */
    send_frame(frame, 70000 - HEADER, 1);
    struct guest_buf stub = {tx_gpa, 5, false};
    assert_int_equal(guest_do(&q[TX], &stub, 1), 0);
    assert_true(wire_is_quiet(30));
    make_frame(frame, 65535, 9);
    send_frame(frame, 65535, 2);
    assert_int_equal(take_from_wire(got, sizeof got), 65535);
    assert_memory_equal(frame, got, 65535);
    stop();
}

/* The network does not read: frames wait in the queue, none is lost or torn. */
static void test_send_blocked(void **state)
{
    (void)state;
    static uint8_t frame[70000], got[70000];
    start(0, 2000, (struct virtio_net_config){0});
    make_frame(frame, 60000, 1);
    memset(guest_at(&g, tx_gpa, HEADER), 0, HEADER);
    memcpy(guest_at(&g, tx_gpa + HEADER, 60000), frame, 60000);
    struct guest_buf buf = {tx_gpa, 60000 + HEADER, false};
    for (unsigned i = 0; i < 200; i++)
        guest_add(&q[TX], &buf, 1, false);
    guest_kick(&q[TX]);
    usleep(20000);
    unsigned done = 0;
    while (guest_used(&q[TX], NULL, NULL, 0))
        done++;
    assert_in_range(done, 1, 199);
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(take_from_wire(got, sizeof got), 60000);
        assert_memory_equal(frame, got, 60000);
    }
    for (; done < 200; done++)
        assert_true(guest_used(&q[TX], NULL, NULL, 5000));
    stop();
}

static uint8_t control(uint8_t class, uint8_t command, const void *data, uint32_t len)
{
    uint64_t gpa = tx_gpa + 100000;
    uint8_t *p = guest_at(&g, gpa, 2100);
    p[0] = class;
    p[1] = command;
    memcpy(p + 2, data, len);
    p[2050] = 0xee;
    struct guest_buf bufs[3] = {{gpa, 2, false}, {gpa + 2, len, false}, {gpa + 2050, 1, true}};
    if (!len)
        bufs[1] = bufs[2];
    assert_int_equal(guest_do(&q[CTRL], bufs, len ? 3 : 2), 1);
    return p[2050];
}

static void expect_passes(const uint8_t *mac, bool passes)
{
    static uint8_t frame[64], got[100];
    memset(frame, 0, sizeof frame);
    memcpy(frame, mac, 6);
    put_on_wire(frame, 60);
    memset(frame, 0xff, 6); /* a broadcast behind it always comes */
    put_on_wire(frame, 60);
    assert_int_equal(receive(got, NULL), 60);
    assert_memory_equal(got, passes ? mac : frame, 6);
    if (passes)
        assert_int_equal(receive(got, NULL), 60);
    give_rx(passes ? 2 : 1);
}

static void test_receive_filter(void **state)
{
    (void)state;
    const uint8_t own[6] = {2, 0, 0, 0, 0, 1}, other[6] = {2, 0, 0, 0, 0, 2}, multi[6] = {1, 0, 0x5e, 0, 0, 1};
    uint8_t on = 1, off = 0;
    start(VIRTIO_FEATURE(F_CTRL_VQ) | VIRTIO_FEATURE(F_CTRL_RX) | VIRTIO_FEATURE(F_MAC_ADDR), 2000,
          (struct virtio_net_config){.has_mac = true, .mac = {2, 0, 0, 0, 0, 1}});
    assert_memory_equal(dev->config, own, 6);
    give_rx(8);
    expect_passes(other, true);
    assert_int_equal(control(0, 0, &off, 1), 0); /* no longer promiscuous */
    expect_passes(own, true);
    expect_passes(other, false);
    expect_passes(multi, false);
    assert_int_equal(control(0, 1, &on, 1), 0); /* all multicast */
    expect_passes(multi, true);
    assert_int_equal(control(0, 1, &off, 1), 0);
    uint8_t table[4 + 6 + 4 + 6] = {1, 0, 0, 0, 2, 0, 0, 0, 0, 2, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1};
    assert_int_equal(control(1, 0, table, sizeof table), 0);
    expect_passes(other, true);
    expect_passes(multi, true);
    assert_int_equal(control(1, 1, other, 6), 0); /* new address, empty table */
    uint8_t empty[8] = {0};
    assert_int_equal(control(1, 0, empty, sizeof empty), 0);
    expect_passes(other, true);
    expect_passes(own, false);
    /* refusals */
    uint8_t lies[8] = {0xff, 0xff, 0xff, 0xff};
    assert_int_equal(control(1, 0, lies, sizeof lies), 1);
    assert_int_equal(control(1, 0, empty, 7), 1);
    assert_int_equal(control(0, 2, &on, 1), 1); /* not negotiated */
    assert_int_equal(control(4, 0, "\1\0", 2), 1);
    assert_int_equal(control(5, 0, empty, 8), 1);
    assert_int_equal(control(77, 0, "", 0), 1);
    static uint8_t huge[2048];
    expect_passes(multi, false);
    store_le32(huge, 300); /* longer than what is read of a command: all addresses pass */
    assert_int_equal(control(1, 0, huge, 2048), 0);
    expect_passes(multi, true);
    assert_int_equal(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET, 0);
    struct guest_buf stub = {tx_gpa, 1, false};
    guest_add(&q[CTRL], &stub, 1, false);
    guest_kick(&q[CTRL]);
    assert_true(guest_until(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET));
    stop();
}

/* Frames that are in the backend's buffer already, where the socket tells nothing of them, behind more that are dropped than are
 * looked at in a row. */
static void test_receive_behind_many(void **state)
{
    (void)state;
    static uint8_t frames[600][64];
    uint8_t off = 0;
    start(VIRTIO_FEATURE(F_CTRL_VQ) | VIRTIO_FEATURE(F_CTRL_RX), 2000,
          (struct virtio_net_config){.has_mac = true, .mac = {2, 0, 0, 0, 0, 1}});
    assert_int_equal(control(0, 0, &off, 1), 0); /* not promiscuous */
    for (unsigned i = 0; i < 600; i++) {
        store_be32(frames[i], 60);
        make_frame(frames[i] + 4, 60, (uint8_t)i);
        if (i && i < 599)
            frames[i][4] = 4; /* another's */
    }
    assert_int_equal(send(wire, frames, sizeof frames, MSG_DONTWAIT), sizeof frames);
    usleep(20000);
    give_rx(2);
    expect_frame(60, 0, 1);
    expect_frame(60, (uint8_t)599, 1);
    stop();
}

/* The network dies while a frame waits for the guest to have buffers. */
static void test_loss_while_starved(void **state)
{
    (void)state;
    static uint8_t frame[100];
    start(VIRTIO_FEATURE(F_MRG_RXBUF) | VIRTIO_FEATURE(F_STATUS), 2000, (struct virtio_net_config){0});
    make_frame(frame, 100, 1);
    put_on_wire(frame, 100);
    usleep(20000);
    shutdown(wire, SHUT_RDWR);
    assert_true(guest_until(guest_config_interrupts() == 1));
    assert_int_equal(load_le16(dev->config + 6), 0);
    stop();
}

static void test_rate_limits(void **state)
{
    (void)state;
    static uint8_t frame[2000], got[2000];
    struct limiter_config limit = {.ops = {.size = 10, .refill_time_ms = 100}};
    start(VIRTIO_FEATURE(F_MRG_RXBUF), 2000, (struct virtio_net_config){.rx = limit, .tx = limit});
    give_rx(40);
    make_frame(frame, 1000, 1);
    uint64_t before = limiter_now();
    for (unsigned i = 0; i < 40; i++)
        put_on_wire(frame, 1000);
    for (unsigned i = 0; i < 40; i++)
        expect_frame(1000, 1, 1);
    assert_in_range((limiter_now() - before) / 1000000, 280, 500);
    before = limiter_now();
    for (unsigned i = 0; i < 40; i++)
        send_frame(frame, 1000, 1);
    assert_in_range((limiter_now() - before) / 1000000, 280, 500);
    for (unsigned i = 0; i < 40; i++)
        assert_int_equal(take_from_wire(got, sizeof got), 1000);
    stop();
}

static void test_link_and_loss(void **state)
{
    (void)state;
    static uint8_t frame[2000];
    start(VIRTIO_FEATURE(F_MRG_RXBUF) | VIRTIO_FEATURE(F_STATUS), 2000, (struct virtio_net_config){.mtu = 1400});
    assert_int_equal(load_le16(dev->config + 10), 1400);
    assert_int_equal(dev->config[0] & 3, 2);
    give_rx(8);
    virtio_net_set_link(dev, false);
    assert_int_equal(load_le16(dev->config + 6), 0);
    assert_int_equal(guest_config_interrupts(), 1);
    make_frame(frame, 100, 1);
    put_on_wire(frame, 100);
    send_frame(frame, 100, 1);
    assert_true(wire_is_quiet(30));
    assert_false(guest_used(&q[RX], NULL, NULL, 0));
    virtio_net_set_link(dev, true);
    make_frame(frame, 100, 2);
    put_on_wire(frame, 100);
    expect_frame(100, 2, 1);
    shutdown(wire, SHUT_RDWR); /* the network dies: link down, sends are dropped, nothing spins */
    assert_true(guest_until(guest_config_interrupts() == 3));
    assert_int_equal(load_le16(dev->config + 6), 0);
    send_frame(frame, 100, 1);
    virtio_net_set_link(dev, true); /* nothing to plug in */
    assert_int_equal(load_le16(dev->config + 6), 0);
    stop();
}

static void test_oversized_from_the_network(void **state)
{
    (void)state;
    static uint8_t frame[200000];
    start(VIRTIO_FEATURE(F_MRG_RXBUF), 2000, (struct virtio_net_config){0});
    give_rx(8);
    put_on_wire(frame, sizeof frame);
    put_on_wire(frame, 5);
    put_on_wire(frame, 0);
    make_frame(frame, 100, 2);
    put_on_wire(frame, 100);
    expect_frame(100, 2, 1);
    stop();
}

static void test_pause_and_reset(void **state)
{
    (void)state;
    static uint8_t frame[2000];
    start(VIRTIO_FEATURE(F_MRG_RXBUF), 2000, (struct virtio_net_config){0});
    give_rx(8);
    virtio_pause(dev);
    make_frame(frame, 100, 2);
    put_on_wire(frame, 100);
    assert_false(guest_used(&q[RX], NULL, NULL, 30));
    virtio_resume(dev);
    expect_frame(100, 2, 1);
    virtio_reset(dev);
    put_on_wire(frame, 100);
    usleep(20000);
    guest_start_device(&g, dev, VIRTIO_FEATURE(F_MRG_RXBUF), q);
    give_rx(8);
    expect_frame(100, 2, 1);
    stop();
}

/* A backend that ends when the far end of its socket closes, and can be opened again as often as `reopens_allowed` says. */
static struct {
    struct net_backend backend; /* first */
    int far, reopens, reopens_allowed;
} flaky;

static void flaky_connect(void)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    flaky.backend.fd[0] = pair[0];
    __atomic_store_n(&flaky.far, pair[1], __ATOMIC_RELEASE);
}

/* The loop's thread connects, the test's hangs up: TSan does not see that the close comes before. */
static int flaky_far(void)
{
    return __atomic_load_n(&flaky.far, __ATOMIC_ACQUIRE);
}

static int flaky_reopen(struct net_backend *backend, struct err *err)
{
    close(backend->fd[0]);
    backend->fd[0] = -1;
    if (__atomic_add_fetch(&flaky.reopens, 1, __ATOMIC_ACQ_REL) > flaky.reopens_allowed)
        return err_say(err, EIO, "flaky: no more");
    flaky_connect();
    return 0;
}

static ssize_t flaky_receive(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    ssize_t n = readv(backend->fd[queue], iov, (int)count);
    return n > 0 ? n : n < 0 && errno == EAGAIN ? -EAGAIN : -EPIPE;
}

static int flaky_send(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    return writev(backend->fd[queue], iov, (int)count) < 0 ? -errno : 0;
}

static void flaky_close(struct net_backend *backend)
{
    if (backend->fd[0] >= 0)
        close(backend->fd[0]);
}

static uint16_t link_status(void)
{
    pthread_mutex_lock(&dev->lock);
    uint16_t status = load_le16(dev->config + 6);
    pthread_mutex_unlock(&dev->lock);
    return status;
}

static bool link_becomes(uint16_t status)
{
    for (unsigned waited = 0; link_status() != status && waited < 5000; waited++)
        poll(NULL, 0, 1);
    return link_status() == status;
}

static void test_backend_is_opened_again(void **state)
{
    (void)state;
    static const struct net_class class = {.name = "flaky", .close = flaky_close, .receive = flaky_receive, .send = flaky_send,
                                           .reopen = flaky_reopen};
    struct err err = {0};
    flaky.backend = (struct net_backend){.class = &class, .queues = 1};
    flaky.reopens = 0;
    flaky.reopens_allowed = 1;
    flaky_connect();
    struct virtio_net_config config = {.id = "eth0", .backend = &flaky.backend, .retry_ms = 1};
    guest_create(&g, 32 << 20, true);
    if (virtio_net_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, VIRTIO_FEATURE(F_STATUS) | VIRTIO_FEATURE(F_MRG_RXBUF), q);
    slot_size = 2048;
    rx_gpa = guest_alloc(&g, (uint64_t)SLOTS * slot_size);
    give_rx(4);
    assert_int_equal(link_status(), 1);
    close(flaky_far());
    while (__atomic_load_n(&flaky.reopens, __ATOMIC_ACQUIRE) < 1)
        poll(NULL, 0, 1);
    assert_true(link_becomes(1));
    assert_int_equal(guest_config_interrupts(), 2); /* down and up */
    uint8_t frame[HEADER + 60] = {0}, got[60];
    make_frame(frame + HEADER, 60, 7);
    assert_int_equal(send(flaky_far(), frame, sizeof frame, 0), sizeof frame);
    assert_int_equal(receive(got, NULL), 60);
    assert_memory_equal(got, frame + HEADER, 60);
    close(flaky_far()); /* now for good: ten tries in a row, two of them used */
    assert_true(link_becomes(0));
    for (unsigned waited = 0; __atomic_load_n(&flaky.reopens, __ATOMIC_ACQUIRE) < 10 && waited < 10000; waited++)
        poll(NULL, 0, 1);
    poll(NULL, 0, 1100); /* as long as another pause would be */
    assert_int_equal(__atomic_load_n(&flaky.reopens, __ATOMIC_ACQUIRE), 10);
    virtio_net_set_link(dev, true);
    assert_int_equal(link_status(), 0);
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
}

int main(void)
{
    log_threshold = LOG_ERROR;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_receive_merged),  cmocka_unit_test(test_receive_unmerged),
        cmocka_unit_test(test_receive_starved), cmocka_unit_test(test_send),
        cmocka_unit_test(test_send_blocked),    cmocka_unit_test(test_receive_filter),
        cmocka_unit_test(test_receive_behind_many), cmocka_unit_test(test_loss_while_starved),
        cmocka_unit_test(test_rate_limits),     cmocka_unit_test(test_link_and_loss),
        cmocka_unit_test(test_oversized_from_the_network), cmocka_unit_test(test_pause_and_reset),
        cmocka_unit_test(test_backend_is_opened_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
