/* virtio-vsock against real unix sockets: both directions, credit, half-closed streams, refusals, hostile packets. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/log.h"
#include "virtio/vsock.h"
#include "virtio_guest.h"

#define HEADER 44
#define CID 3
#define RX_BUFFERS 32
#define RX_SIZE 4096u
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

static struct guest g;
static struct virtio_device *dev;
static struct guest_queue q[3];
static char dir[32], path[64];
static uint64_t rx_gpa, tx_gpa;
static uint32_t buf_alloc, fwd_cnt;

struct packet {
    uint32_t src_port, dst_port, len, flags, buf_alloc, fwd_cnt;
    uint16_t op;
    uint8_t data[RX_SIZE];
};

static void give_rx(unsigned slot)
{
    struct guest_buf bufs[2] = {{rx_gpa + slot * (RX_SIZE + 64), HEADER, true},
                                {rx_gpa + slot * (RX_SIZE + 64) + 64, RX_SIZE, true}};
    guest_add(&q[0], bufs, 2, false);
}

static void start(unsigned rx_buffers)
{
    struct err err = {0};
    strcpy(dir, "/tmp/polder-vsock-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/v", dir);
    guest_create(&g, 4 << 20, true);
    struct virtio_vsock_config config = {.guest_cid = CID, .uds_path = path};
    if (virtio_vsock_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, 0, q);
    rx_gpa = guest_alloc(&g, RX_BUFFERS * (RX_SIZE + 64));
    tx_gpa = guest_alloc(&g, 65536 + 64);
    buf_alloc = 65536;
    fwd_cnt = 0;
    for (unsigned i = 0; i < rx_buffers; i++)
        give_rx(i);
    guest_kick(&q[0]);
}

static void stop(void)
{
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
    assert_int_equal(access(path, F_OK), -1); /* the socket is gone */
    assert_int_equal(rmdir(dir), 0);
}

static void send_raw(uint64_t src, uint64_t dst, uint16_t type, uint16_t op, uint32_t src_port, uint32_t dst_port,
                     uint32_t flags, const void *data, uint32_t len)
{
    uint8_t *h = guest_at(&g, tx_gpa, HEADER + 65536);
    store_le64(h, src);
    store_le64(h + 8, dst);
    store_le32(h + 16, src_port);
    store_le32(h + 20, dst_port);
    store_le32(h + 24, len);
    store_le16(h + 28, type);
    store_le16(h + 30, op);
    store_le32(h + 32, flags);
    store_le32(h + 36, buf_alloc);
    store_le32(h + 40, fwd_cnt);
    if (len)
        memcpy(h + HEADER, data, len);
    struct guest_buf buf = {tx_gpa, HEADER + len, false};
    guest_do(&q[1], &buf, 1);
}

static void send_packet(uint16_t op, uint32_t src_port, uint32_t dst_port, uint32_t flags, const void *data, uint32_t len)
{
    send_raw(CID, 2, 1, op, src_port, dst_port, flags, data, len);
}

/* The next packet for the guest; its buffer is given back. */
static bool receive(struct packet *p, unsigned timeout_ms)
{
    uint16_t head;
    uint32_t len;
    if (!guest_used(&q[0], &head, &len, timeout_ms))
        return false;
    const uint8_t *desc = guest_at(&g, q[0].desc + head * 16u, 16);
    uint64_t gpa = load_le64(desc);
    const uint8_t *h = guest_at(&g, gpa, HEADER);
    assert_int_equal(load_le64(h), 2);
    assert_int_equal(load_le64(h + 8), CID);
    *p = (struct packet){.src_port = load_le32(h + 16),
                         .dst_port = load_le32(h + 20),
                         .len = load_le32(h + 24),
                         .op = load_le16(h + 30),
                         .flags = load_le32(h + 32),
                         .buf_alloc = load_le32(h + 36),
                         .fwd_cnt = load_le32(h + 40)};
    assert_int_equal(len, HEADER + p->len);
    assert_true(p->len <= RX_SIZE);
    memcpy(p->data, guest_at(&g, gpa + 64, RX_SIZE), p->len);
    give_rx((unsigned)((gpa - rx_gpa) / (RX_SIZE + 64)));
    guest_kick(&q[0]);
    return true;
}

static void expect(uint16_t op, struct packet *p)
{
    if (!receive(p, 5000))
        fail_msg("no packet where op %u was due", op);
    assert_int_equal(p->op, op);
}

static int host_socket(const char *at, bool listening)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", at);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (listening) {
        assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
        assert_int_equal(listen(fd, 8), 0);
    } else {
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    }
    struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

/* Guest port 1000 connects to the host's port 52. */
static int connect_from_guest(void)
{
    char at[80];
    struct packet p;
    snprintf(at, sizeof at, "%s_52", path);
    int listener = host_socket(at, true);
    send_packet(REQUEST, 1000, 52, 0, NULL, 0);
    expect(RESPONSE, &p);
    assert_int_equal(p.src_port, 52);
    assert_int_equal(p.dst_port, 1000);
    assert_true(p.buf_alloc >= 65536);
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    close(listener);
    unlink(at);
    return fd;
}

static int connect_from_host(uint32_t *ret_port)
{
    struct packet p;
    char line[32] = "";
    int fd = host_socket(path, false);
    assert_int_equal(write(fd, "CONNECT 77\n", 11), 11);
    expect(REQUEST, &p);
    assert_int_equal(p.dst_port, 77);
    *ret_port = p.src_port;
    send_packet(RESPONSE, 77, p.src_port, 0, NULL, 0);
    char want[32];
    int len = snprintf(want, sizeof want, "OK %u\n", p.src_port);
    assert_int_equal(recv(fd, line, (size_t)len, MSG_WAITALL), len);
    assert_string_equal(line, want);
    return fd;
}

static void test_guest_to_host(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    char data[16];
    int fd = connect_from_guest();
    send_packet(RW, 1000, 52, 0, "hello", 5);
    assert_int_equal(recv(fd, data, sizeof data, 0), 5);
    assert_memory_equal(data, "hello", 5);
    assert_int_equal(write(fd, "world!", 6), 6);
    expect(RW, &p);
    assert_int_equal(p.len, 6);
    assert_int_equal(p.fwd_cnt, 5);
    assert_memory_equal(p.data, "world!", 6);
    /* the guest closes: the host sees the end, the guest a reset */
    send_packet(SHUTDOWN, 1000, 52, 3, NULL, 0);
    expect(RST, &p);
    assert_int_equal(recv(fd, data, sizeof data, 0), 0);
    close(fd);
    stop();
}

static void test_host_to_guest(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    uint32_t port;
    int fd = connect_from_host(&port);
    assert_int_equal(write(fd, "abc", 3), 3);
    expect(RW, &p);
    assert_int_equal(p.src_port, port);
    assert_memory_equal(p.data, "abc", 3);
    close(fd);
    expect(SHUTDOWN, &p);
    assert_int_equal(p.flags, 3);
    send_packet(RST, 77, port, 0, NULL, 0);
    assert_false(receive(&p, 50));
    /* a second connection has another port */
    uint32_t other;
    fd = connect_from_host(&other);
    assert_int_not_equal(port, other);
    close(fd);
    stop();
}

static void test_half_close(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    char data[16];
    int fd = connect_from_guest();
    assert_int_equal(write(fd, "last", 4), 4);
    shutdown(fd, SHUT_WR);
    expect(RW, &p);
    expect(SHUTDOWN, &p);
    assert_int_equal(p.flags, 2); /* the host will not send; it still listens */
    send_packet(RW, 1000, 52, 0, "answer", 6);
    assert_int_equal(recv(fd, data, sizeof data, 0), 6);
    send_packet(SHUTDOWN, 1000, 52, 2, NULL, 0);
    assert_int_equal(recv(fd, data, sizeof data, 0), 0);
    send_packet(SHUTDOWN, 1000, 52, 3, NULL, 0);
    expect(RST, &p);
    close(fd);
    stop();
}

static void test_refusals(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    send_packet(REQUEST, 1000, 99, 0, NULL, 0); /* nobody listens on the host */
    expect(RST, &p);
    assert_int_equal(p.src_port, 99);
    assert_int_equal(p.dst_port, 1000);
    send_packet(RW, 5, 6, 0, "x", 1); /* no such connection */
    expect(RST, &p);
    send_raw(CID, 2, 2, REQUEST, 5, 6, 0, NULL, 0); /* not a stream */
    expect(RST, &p);
    send_raw(CID, 1, 1, REQUEST, 5, 6, 0, NULL, 0); /* not the host */
    expect(RST, &p);
    send_raw(CID + 1, 2, 1, REQUEST, 5, 6, 0, NULL, 0); /* not itself */
    expect(RST, &p);
    send_packet(RST, 5, 6, 0, NULL, 0);
    assert_false(receive(&p, 50)); /* a reset is never answered */
    /* the guest has no listener */
    int fd = host_socket(path, false);
    assert_int_equal(write(fd, "connect 5\n", 10), 10);
    expect(REQUEST, &p);
    send_packet(RST, 5, p.src_port, 0, NULL, 0);
    char byte;
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
    close(fd);
    /* rubbish instead of CONNECT */
    const char *bad[] = {"HELLO 5\n", "CONNECT x\n", "CONNECT 99999999999\n", "CONNECT -1\n", "CONNECT 5x\n",
                         "CONNECT 000000000000000000000000000000000000000000005\n"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        fd = host_socket(path, false);
        assert_int_equal(write(fd, bad[i], strlen(bad[i])), strlen(bad[i]));
        ssize_t n = recv(fd, &byte, 1, 0);
        assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
        close(fd);
    }
    assert_false(receive(&p, 50));
    stop();
}

static void test_guest_never_answers(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    char byte;
    int fd = host_socket(path, false), silent = host_socket(path, false);
    assert_int_equal(write(fd, "CONNECT 5\n", 10), 10);
    expect(REQUEST, &p);
    assert_int_equal(recv(fd, &byte, 1, 0), 0); /* within 5 s */
    expect(RST, &p);
    assert_int_equal(recv(silent, &byte, 1, 0), 0);
    close(fd);
    close(silent);
    stop();
}

/* The bytes of a stream from offset `at` on: each direction has its own pattern. */
static void fill(uint8_t *bytes, size_t count, uint32_t at, bool to_host)
{
    for (uint32_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)(to_host ? (at + i) * 31 / 7 : (at + i) * 13 / 5);
}

static void assert_filled(const uint8_t *bytes, size_t count, uint32_t at, bool to_host)
{
    static uint8_t wanted[65536];
    assert_true(count <= sizeof wanted);
    fill(wanted, count, at, to_host);
    assert_memory_equal(bytes, wanted, count);
}

/* More than any buffer holds, both ways at once, with a guest that reads slowly. */
static void test_bulk_and_credit(void **state)
{
    (void)state;
    start(4);
    enum { TOTAL = 1 << 20 };
    struct packet p;
    int fd = connect_from_guest();
    fcntl(fd, F_SETFL, O_NONBLOCK);
    static uint8_t block[32768], back[65536];
    uint32_t to_host = 0, got_host = 0, to_guest = 0, got_guest = 0, device_fwd = 0, device_buf = 65536;
    buf_alloc = 20000;
    send_packet(CREDIT_UPDATE, 1000, 52, 0, NULL, 0);
    for (unsigned idle = 0; (got_host < TOTAL || got_guest < TOTAL) && idle < 2000;) {
        bool moved = false;
        if (to_host < TOTAL && device_buf - (to_host - device_fwd) >= sizeof block) {
            fill(block, sizeof block, to_host, true);
            send_packet(RW, 1000, 52, 0, block, sizeof block);
            to_host += (uint32_t)sizeof block;
            moved = true;
        }
        while (to_guest < TOTAL) {
            uint8_t out[1000];
            fill(out, sizeof out, to_guest, false);
            size_t want = TOTAL - to_guest < sizeof out ? TOTAL - to_guest : sizeof out;
            ssize_t n = write(fd, out, want);
            if (n <= 0)
                break;
            to_guest += (uint32_t)n;
            moved = true;
        }
        ssize_t n = to_host - got_host > 60000 || to_host == TOTAL ? read(fd, back, sizeof back) : 0;
        if (n > 0) {
            assert_filled(back, (size_t)n, got_host, true);
            got_host += (uint32_t)n, moved = true;
        }
        while (receive(&p, 0)) {
            moved = true;
            device_fwd = p.fwd_cnt;
            device_buf = p.buf_alloc;
            if (p.op == CREDIT_REQUEST) {
                send_packet(CREDIT_UPDATE, 1000, 52, 0, NULL, 0);
                continue;
            }
            if (p.op == CREDIT_UPDATE)
                continue;
            assert_int_equal(p.op, RW);
            assert_filled(p.data, p.len, got_guest, false);
            got_guest += p.len;
            assert_true(got_guest - fwd_cnt <= buf_alloc); /* never more than we allowed */
            if (got_guest - fwd_cnt > 15000) {
                fwd_cnt = got_guest;
                send_packet(CREDIT_UPDATE, 1000, 52, 0, NULL, 0);
            }
        }
        if (!moved) {
            idle++;
            usleep(1000);
            if (to_host - device_fwd > device_buf / 2)
                send_packet(CREDIT_REQUEST, 1000, 52, 0, NULL, 0);
        } else {
            idle = 0;
        }
    }
    assert_int_equal(got_host, TOTAL);
    assert_int_equal(got_guest, TOTAL);
    close(fd);
    stop();
}

static void test_credit_violation(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    int fd = connect_from_guest();
    static uint8_t block[65536];
    for (unsigned i = 0; i < 40; i++) /* the host never reads */
        send_packet(RW, 1000, 52, 0, block, sizeof block);
    do {
        assert_true(receive(&p, 5000));
    } while (p.op == CREDIT_UPDATE);
    assert_int_equal(p.op, RST);
    close(fd);
    stop();
}

static void test_malformed_packets(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    uint8_t *h = guest_at(&g, tx_gpa, HEADER);
    memset(h, 0, HEADER);
    struct guest_buf bad = {tx_gpa, HEADER - 1, false};
    guest_add(&q[1], &bad, 1, false);
    guest_kick(&q[1]);
    assert_true(guest_until(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET));
    guest_set_status(dev, 0);
    guest_start_device(&g, dev, 0, q);
    store_le32(h + 24, 100); /* longer than its buffer */
    bad.len = HEADER + 99;
    guest_add(&q[1], &bad, 1, false);
    guest_kick(&q[1]);
    assert_true(guest_until(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET));
    stop();
}

/* A guest that floods and never reads: bounded, and it goes on once it reads. */
static void test_reset_flood(void **state)
{
    (void)state;
    start(0);
    uint8_t *h = guest_at(&g, tx_gpa, HEADER);
    memset(h, 0, HEADER);
    store_le64(h, CID);
    store_le64(h + 8, 2);
    store_le16(h + 28, 1);
    store_le16(h + 30, RW);
    struct guest_buf buf = {tx_gpa, HEADER, false};
    unsigned done = 0;
    for (unsigned i = 0; i < 300; i++) {
        guest_add(&q[1], &buf, 1, false);
        guest_kick(&q[1]);
        if (!guest_used(&q[1], NULL, NULL, 100))
            break;
        done++;
    }
    assert_int_equal(done, 256);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_rx(i);
    guest_kick(&q[0]);
    struct packet p;
    for (unsigned i = 0; i < 257; i++)
        expect(RST, &p);
    assert_true(guest_used(&q[1], NULL, NULL, 5000));
    stop();
}

static void test_reset_drops_connections(void **state)
{
    (void)state;
    start(RX_BUFFERS);
    struct packet p;
    char byte;
    uint32_t port;
    int a = connect_from_guest(), b = connect_from_host(&port);
    virtio_reset(dev);
    assert_int_equal(recv(a, &byte, 1, 0), 0);
    assert_int_equal(recv(b, &byte, 1, 0), 0);
    close(a);
    close(b);
    guest_start_device(&g, dev, 0, q);
    for (unsigned i = 0; i < RX_BUFFERS; i++)
        give_rx(i);
    guest_kick(&q[0]);
    a = connect_from_guest();
    virtio_pause(dev);
    assert_int_equal(write(a, "x", 1), 1);
    assert_false(receive(&p, 50));
    virtio_resume(dev);
    expect(RW, &p);
    close(a);
    stop();
}

static void test_creation_errors(void **state)
{
    (void)state;
    struct err err = {0};
    char long_path[120];
    guest_create(&g, 1 << 20, false);
    struct virtio_vsock_config config = {.guest_cid = 2, .uds_path = "/tmp/never"};
    assert_int_equal(virtio_vsock_create(&config, &g.host, &dev, &err), -EINVAL);
    config = (struct virtio_vsock_config){.guest_cid = 3, .uds_path = "/tmp"};
    assert_int_equal(virtio_vsock_create(&config, &g.host, &dev, &err), -EADDRINUSE);
    assert_non_null(strstr(err.message, "exists already"));
    config.uds_path = "/nope/v";
    assert_int_equal(virtio_vsock_create(&config, &g.host, &dev, &err), -ENOENT);
    memset(long_path, 'a', sizeof long_path - 1);
    long_path[0] = '/';
    long_path[sizeof long_path - 1] = '\0';
    config.uds_path = long_path;
    assert_int_equal(virtio_vsock_create(&config, &g.host, &dev, &err), -ENAMETOOLONG);
    guest_free(&g);
}

int main(void)
{
    log_threshold = LOG_ERROR;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guest_to_host),     cmocka_unit_test(test_host_to_guest),
        cmocka_unit_test(test_half_close),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_guest_never_answers), cmocka_unit_test(test_bulk_and_credit),
        cmocka_unit_test(test_credit_violation),  cmocka_unit_test(test_malformed_packets),
        cmocka_unit_test(test_reset_flood),       cmocka_unit_test(test_reset_drops_connections),
        cmocka_unit_test(test_creation_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
