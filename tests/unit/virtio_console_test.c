/* virtio-console over socketpairs: terminals, named ports, resizes, output that blocks. */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "virtio/console.h"
#include "virtio_guest.h"

#define F_SIZE 0
#define F_MULTIPORT 1
enum { DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };

static struct guest g;
static struct virtio_device *dev;
static struct guest_queue q[6];
static int term, named;
static uint64_t gpa, control_gpa;

static size_t drop_escape(void *arg, uint8_t *data, size_t len)
{
    size_t kept = 0;
    for (size_t i = 0; i < len; i++) {
        if (data[i] == 0x1d)
            ++*(int *)arg;
        else
            data[kept++] = data[i];
    }
    return kept;
}

static int escapes;

static void start(uint64_t features)
{
    int a[2], b[2];
    struct err err = {0};
    escapes = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b), 0);
    term = a[0];
    named = b[0];
    struct timeval limit = {.tv_sec = 5};
    setsockopt(term, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct virtio_console_port ports[2] = {
        {.in_fd = a[1], .out_fd = a[1], .console = true, .cols = 80, .rows = 25},
        {.in_fd = b[1], .out_fd = b[1], .name = "org.polder.agent"}};
    struct virtio_console_config config = {
        .ports = ports, .port_count = 2, .filter = drop_escape, .filter_arg = &escapes};
    guest_create(&g, 4 << 20, true);
    if (virtio_console_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, features, q);
    gpa = guest_alloc(&g, 65536);
    control_gpa = guest_alloc(&g, 4096);
}

static void stop(void)
{
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
    close(term);
    close(named);
}

static void give(unsigned queue, uint64_t at, uint32_t len)
{
    struct guest_buf buf = {at, len, true};
    guest_add(&q[queue], &buf, 1, false);
    guest_kick(&q[queue]);
}

static void test_single_port(void **state)
{
    (void)state;
    start(VIRTIO_FEATURE(F_SIZE));
    assert_int_equal(load_le16(dev->config), 80);
    assert_int_equal(load_le16(dev->config + 2), 25);
    uint32_t len;
    char text[32];
    assert_int_equal(write(term, "typed", 5), 5);
    give(0, gpa, 3);
    assert_true(guest_used(&q[0], NULL, &len, 5000));
    assert_int_equal(len, 3);
    give(0, gpa + 16, 4096);
    assert_true(guest_used(&q[0], NULL, &len, 5000));
    assert_int_equal(len, 2);
    assert_memory_equal(guest_at(&g, gpa, 3), "typ", 3);
    assert_memory_equal(guest_at(&g, gpa + 16, 2), "ed", 2);
    give(0, gpa, 16);
    assert_int_equal(write(term, "\x1d", 1), 1); /* the escape key is the host's */
    assert_false(guest_used(&q[0], NULL, NULL, 50));
    assert_int_equal(write(term, "a\x1d" "b", 3), 3);
    assert_true(guest_used(&q[0], NULL, &len, 5000));
    assert_int_equal(len, 2);
    assert_int_equal(escapes, 2);
    memcpy(guest_at(&g, gpa + 100, 6), "output", 6);
    struct guest_buf out[2] = {{gpa + 100, 2, false}, {gpa + 102, 4, false}};
    assert_int_equal(guest_do(&q[1], out, 2), 0);
    assert_int_equal(recv(term, text, 6, MSG_WAITALL), 6);
    assert_memory_equal(text, "output", 6);
    virtio_console_resize(dev, 0, 132, 50);
    assert_int_equal(guest_config_interrupts(), 2); /* the first one at the start */
    assert_int_equal(load_le16(dev->config), 132);
    stop();
}

static void tell(uint32_t port, uint16_t event, uint16_t value)
{
    uint8_t *p = guest_at(&g, control_gpa, 8);
    store_le32(p, port);
    store_le16(p + 4, event);
    store_le16(p + 6, value);
    struct guest_buf buf = {control_gpa, 8, false};
    guest_do(&q[3], &buf, 1);
}

static void expect(uint32_t port, uint16_t event, uint16_t value, const void *more, uint32_t more_len)
{
    uint32_t len;
    give(2, control_gpa + 64, 128);
    assert_true(guest_used(&q[2], NULL, &len, 5000));
    const uint8_t *p = guest_at(&g, control_gpa + 64, 128);
    assert_int_equal(load_le32(p), port);
    assert_int_equal(load_le16(p + 4), event);
    assert_int_equal(load_le16(p + 6), value);
    assert_int_equal(len, 8 + more_len);
    assert_memory_equal(p + 8, more, more_len);
}

static void test_multiport(void **state)
{
    (void)state;
    start(VIRTIO_FEATURE(F_SIZE) | VIRTIO_FEATURE(F_MULTIPORT));
    uint32_t len;
    char text[32];
    uint8_t size[4] = {80, 0, 25, 0};
    assert_int_equal(load_le32(dev->config + 4), 2);
    tell(0, DEVICE_READY, 1);
    expect(0, DEVICE_ADD, 1, "", 0);
    expect(1, DEVICE_ADD, 1, "", 0);
    tell(0, PORT_READY, 1);
    expect(0, CONSOLE_PORT, 1, "", 0);
    expect(0, RESIZE, 0, size, 4);
    expect(0, PORT_OPEN, 1, "", 0);
    tell(1, PORT_READY, 1);
    expect(1, PORT_NAME, 1, "org.polder.agent", 17);
    expect(1, PORT_OPEN, 1, "", 0);
    tell(7, PORT_READY, 1); /* no such port */
    tell(1, 99, 1);
    /* nothing is read before the guest opens the port */
    give(4, gpa, 100);
    assert_int_equal(write(named, "request", 7), 7);
    assert_false(guest_used(&q[4], NULL, NULL, 50));
    tell(1, PORT_OPEN, 1);
    assert_true(guest_used(&q[4], NULL, &len, 5000));
    assert_int_equal(len, 7);
    memcpy(guest_at(&g, gpa + 100, 5), "reply", 5);
    struct guest_buf out = {gpa + 100, 5, false};
    guest_do(&q[5], &out, 1);
    assert_int_equal(recv(named, text, 5, MSG_WAITALL), 5);
    assert_memory_equal(text, "reply", 5);
    virtio_console_resize(dev, 0, 100, 40);
    uint8_t resized[4] = {100, 0, 40, 0};
    expect(0, RESIZE, 0, resized, 4);
    for (unsigned i = 0; i < 200; i++) /* a guest that does not read its messages: bounded */
        virtio_console_resize(dev, 0, (uint16_t)i, 1);
    tell(0, PORT_READY, 1);
    stop();
}

static void test_output_blocks(void **state)
{
    (void)state;
    start(VIRTIO_FEATURE(F_SIZE));
    uint8_t *p = guest_at(&g, gpa, 65536);
    for (unsigned i = 0; i < 65536; i++)
        p[i] = (uint8_t)(i * 7 + i / 256);
    struct guest_buf bufs[2] = {{gpa, 30000, false}, {gpa + 30000, 35536, false}};
    for (unsigned i = 0; i < 40; i++)
        guest_add(&q[1], bufs, 2, false);
    guest_kick(&q[1]);
    usleep(50000);
    unsigned done = 0;
    while (guest_used(&q[1], NULL, NULL, 0))
        done++;
    assert_in_range(done, 0, 39);
    static uint8_t got[65536];
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(recv(term, got, sizeof got, MSG_WAITALL), sizeof got);
        assert_memory_equal(got, p, sizeof got);
    }
    for (; done < 40; done++)
        assert_true(guest_used(&q[1], NULL, NULL, 5000));
    stop();
}

static void test_host_hangs_up(void **state)
{
    (void)state;
    start(VIRTIO_FEATURE(F_SIZE));
    give(0, gpa, 100);
    close(term);
    struct guest_buf out = {gpa, 10, false};
    guest_do(&q[1], &out, 1); /* dropped, not stuck */
    guest_do(&q[1], &out, 1);
    assert_false(guest_used(&q[0], NULL, NULL, 20));
    term = -1;
    stop();
}

static uint64_t tx_bytes(void)
{
    const struct virtio_stat *stat = virtio_console.stats;
    while (strcmp(stat->name, "tx_bytes") != 0)
        stat++;
    return virtio_stat_value(dev, stat);
}

/* What the loop's other work sees of the output between its turns, from the first byte on. */
static uint64_t seen_between;

static void look(void *arg)
{
    uint64_t bytes = tx_bytes();
    if (bytes)
        __atomic_store_n(&seen_between, bytes, __ATOMIC_RELEASE);
    else
        loop_call(g.host.loop, look, arg);
}

/* One chain of 128 MiB, all of the same page over and over, to a file that takes it at once. */
static void test_endless_chain_leaves_turns(void **state)
{
    (void)state;
    enum { PARTS = 128, PART = 1 << 20 };
    struct err err = {0};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct virtio_console_port port = {.in_fd = -1, .out_fd = null, .console = true};
    struct virtio_console_config config = {.ports = &port, .port_count = 1};
    guest_create(&g, 4 << 20, true);
    if (virtio_console_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, 0, q);
    gpa = guest_alloc(&g, PART);
    struct guest_buf bufs[PARTS];
    for (unsigned i = 0; i < PARTS; i++)
        bufs[i] = (struct guest_buf){gpa, PART, false};
    seen_between = 0;
    loop_call(g.host.loop, look, NULL);
    guest_add(&q[1], bufs, PARTS, false);
    guest_kick(&q[1]);
    assert_true(guest_used(&q[1], NULL, NULL, 60000));
    assert_int_equal(tx_bytes(), (uint64_t)PARTS * PART);
    guest_until(__atomic_load_n(&seen_between, __ATOMIC_ACQUIRE));
    assert_in_range(seen_between, 1, PARTS * PART - 1);
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
    close(null);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_port), cmocka_unit_test(test_multiport),
        cmocka_unit_test(test_output_blocks), cmocka_unit_test(test_host_hangs_up),
        cmocka_unit_test(test_endless_chain_leaves_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
