/* The PCI transport as a driver sees it: through config space and BARs only, on the real bus. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "cpu/engine.h"
#include "dev/pci.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"
#include "virtio_guest.h"

#define SLOT1 (PCI_ECAM_BASE + (1 << 15))
#define NO_VECTOR 0xffff

static struct guest g;
static struct bus *memory, *ports;
static struct pci_root *root;
static struct virtio_device *dev;
static unsigned messages[8];

struct region {
    uint64_t base;
    uint32_t len, extra;
};
static struct region common, notify, isr, device;
static unsigned window;

static void send_msi(void *arg, struct msi msi)
{
    (void)arg;
    __atomic_fetch_add(&messages[msi.data & 7], 1, __ATOMIC_SEQ_CST);
}

static struct {
    uint64_t gpa;
    int fd;
} registered[8];
static unsigned registered_count;

static int fake_ioeventfd(struct engine *engine, uint64_t gpa, unsigned size, int fd, bool add)
{
    (void)engine;
    assert_int_equal(size, 2);
    if (add) {
        registered[registered_count].gpa = gpa;
        registered[registered_count++].fd = fd;
        return 0;
    }
    assert_true(registered_count > 0);
    registered_count--;
    return 0;
}

static const struct engine_class fake_class = {.name = "fake", .ioeventfd = fake_ioeventfd};
static struct engine fake_engine = {.class = &fake_class};

static uint32_t config(unsigned offset, unsigned size)
{
    return (uint32_t)bus_read(memory, SLOT1 + offset, size);
}

static void set_config(unsigned offset, unsigned size, uint32_t value)
{
    bus_write(memory, SLOT1 + offset, value, size);
}

static uint64_t bar_base(unsigned bar)
{
    return (config(0x10 + 4 * bar, 4) & ~15u) | (uint64_t)config(0x14 + 4 * bar, 4) << 32;
}

static void find_capabilities(void)
{
    unsigned seen = 0;
    for (unsigned at = config(0x34, 1); at; at = config(at + 1, 1)) {
        if (config(at, 1) != 9)
            continue;
        assert_true(config(at + 2, 1) >= 16);
        unsigned type = config(at + 3, 1);
        struct region r = {bar_base(config(at + 4, 1)) + config(at + 8, 4), config(at + 12, 4), config(at + 16, 4)};
        seen |= 1u << type;
        if (type == 1)
            common = r;
        else if (type == 2)
            notify = r;
        else if (type == 3)
            isr = r;
        else if (type == 4)
            device = r;
        else if (type == 5)
            window = at;
    }
    assert_int_equal(seen, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5);
}

static void start(void)
{
    struct err err = {0};
    memset(messages, 0, sizeof messages);
    registered_count = 0;
    guest_create(&g, 4 << 20, true);
    assert_int_equal(bus_create(&memory), 0);
    assert_int_equal(bus_create(&ports), 0);
    struct irq_sink sink = {.send_msi = send_msi};
    assert_int_equal(pci_root_create(memory, ports, sink, &root, &err), 0);
    g.host.pci = root;
    g.host.engine = &fake_engine;
    char path[] = "/tmp/polder-pci-XXXXXX";
    close(mkstemp(path));
    unlink(path);
    struct virtio_vsock_config vsock = {.guest_cid = 0x12345, .uds_path = path};
    if (virtio_vsock_create(&vsock, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    set_config(4, 2, 6); /* memory decode, bus master */
    find_capabilities();
}

static void stop(void)
{
    guest_halt(&g);
    pci_root_free(root);
    virtio_free(dev);
    bus_free(memory);
    bus_free(ports);
    guest_free(&g);
}

static uint64_t get(unsigned offset, unsigned size)
{
    return bus_read(memory, common.base + offset, size);
}

static void put(unsigned offset, unsigned size, uint64_t value)
{
    bus_write(memory, common.base + offset, value, size);
}

static void test_identity(void **state)
{
    (void)state;
    start();
    assert_int_equal(config(0, 2), 0x1af4);
    assert_int_equal(config(2, 2), 0x1040 + 19);
    assert_int_equal(config(8, 1), 1);
    assert_int_equal(notify.extra, 4);
    assert_int_equal(common.len, 56);
    assert_int_equal(get(18, 2), 3); /* queues */
    assert_int_equal(bus_read(memory, device.base, 8), 0x12345);
    assert_int_equal(bus_read(memory, device.base, 4), 0x12345);
    assert_int_equal(bus_read(memory, device.base + 2, 2), 1);
    assert_int_equal(bus_read(memory, device.base + 6, 8), 0); /* past the end reads zero */
    put(0, 4, 1);
    assert_int_equal(get(4, 4), 1); /* VERSION_1 */
    put(0, 4, 0);
    assert_int_equal(get(4, 4), 3u << 28);
    put(0, 4, 2);
    assert_int_equal(get(4, 4), 0);
    bus_write(memory, device.base, 99, 8); /* read-only */
    assert_int_equal(bus_read(memory, device.base, 8), 0x12345);
    stop();
}

static void set_up_queue(unsigned index, uint64_t desc, uint64_t avail, uint64_t used, bool halves)
{
    put(22, 2, index);
    assert_int_equal(get(24, 2), 256);
    put(24, 2, 8);
    assert_int_equal(get(30, 2), index);
    if (halves) {
        put(32, 4, (uint32_t)desc);
        put(36, 4, desc >> 32);
        put(40, 4, (uint32_t)avail);
        put(44, 4, avail >> 32);
        put(48, 4, (uint32_t)used);
        put(52, 4, used >> 32);
    } else {
        put(32, 8, desc);
        put(40, 8, avail);
        put(48, 8, used);
    }
    put(28, 2, 1);
}

static void negotiate(void)
{
    put(20, 1, 0);
    assert_int_equal(get(20, 1), 0);
    put(20, 1, 3);
    put(8, 4, 1);
    put(12, 4, 1);
    put(8, 4, 0);
    put(12, 4, 0);
    put(20, 1, 11);
    assert_int_equal(get(20, 1), 11);
}

static void enable_msix(void)
{
    for (unsigned at = config(0x34, 1); at; at = config(at + 1, 1)) {
        if (config(at, 1) != 0x11)
            continue;
        uint64_t table = bar_base(config(at + 4, 4) & 7);
        for (unsigned i = 0; i < 4; i++) {
            bus_write(memory, table + i * 16, 0xfee00000, 4);
            bus_write(memory, table + i * 16 + 8, i, 4);
            bus_write(memory, table + i * 16 + 12, 0, 4);
        }
        set_config(at + 2, 2, 0x8000);
        return;
    }
    fail();
}

/* The whole dance, one packet that gets an answer, both interrupts. */
static void test_drive(void **state)
{
    (void)state;
    start();
    enable_msix();
    negotiate();
    put(16, 2, 3);
    assert_int_equal(get(16, 2), 3);
    put(16, 2, 4); /* there are vectors 0..3 */
    assert_int_equal(get(16, 2), NO_VECTOR);
    put(16, 2, 3);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t base = 0x10000 + i * 0x3000;
        set_up_queue(i, base, base + 0x1000, base + 0x2000, i % 2);
        assert_int_equal(get(28, 2), 1);
        assert_int_equal(get(32, 8), base);
        assert_int_equal(get(40, 4), base + 0x1000);
        assert_int_equal(get(44, 4), 0);
        put(26, 2, i);
        assert_int_equal(get(26, 2), i);
        put(24, 2, 4); /* final once enabled */
        assert_int_equal(get(24, 2), 8);
        put(32, 8, 0);
        assert_int_equal(get(32, 8), base);
    }
    put(22, 2, 3); /* no such queue */
    assert_int_equal(get(24, 2), 0);
    put(24, 2, 8);
    put(28, 2, 1);
    assert_int_equal(get(28, 2), 0);
    put(20, 1, 15);
    assert_int_equal(get(20, 1), 15);
    /* a receive buffer, then a packet to nobody: a reset comes back */
    uint8_t *m = guest_at(&g, 0, 1 << 20);
    store_le64(m + 0x10000, 0x40000);
    store_le32(m + 0x10008, 4096);
    store_le16(m + 0x1000c, 2);
    store_le16(m + 0x11002, 1);
    store_le64(m + 0x13000, 0x50000);
    store_le32(m + 0x13008, 44);
    store_le64(m + 0x50000, 0x12345);
    store_le64(m + 0x50008, 2);
    store_le16(m + 0x5001c, 1);
    store_le16(m + 0x5001e, 5);
    store_le16(m + 0x14002, 1);
    bus_write(memory, notify.base, 0, 2);
    bus_write(memory, notify.base + 4, 1, 2);
    assert_true(guest_until(__atomic_load_n((uint16_t *)(void *)(m + 0x12002), __ATOMIC_ACQUIRE) == 1));
    assert_int_equal(load_le16(m + 0x4001e), 3);
    assert_true(guest_until(__atomic_load_n(&messages[0], __ATOMIC_SEQ_CST) == 1 &&
                            __atomic_load_n(&messages[1], __ATOMIC_SEQ_CST) == 1));
    assert_int_equal(bus_read(memory, isr.base, 1), 1);
    assert_int_equal(bus_read(memory, isr.base, 1), 0);
    /* rubbish in the ring: NEEDS_RESET and the configuration vector */
    store_le16(m + 0x14002, 100);
    bus_write(memory, notify.base + 4, 1, 2);
    assert_true(guest_until(get(20, 1) == (15 | 64)));
    assert_int_equal(messages[3], 1);
    assert_int_equal(bus_read(memory, isr.base, 1), 2);
    put(20, 1, 0);
    assert_int_equal(get(20, 1), 0);
    put(22, 2, 0);
    assert_int_equal(get(28, 2), 0);
    assert_int_equal(get(24, 2), 256);
    assert_int_equal(get(16, 2), NO_VECTOR);
    stop();
}

static void test_refusals(void **state)
{
    (void)state;
    start();
    put(20, 1, 3);
    put(8, 4, 1);
    put(12, 4, 3); /* a feature never offered */
    put(20, 1, 11);
    assert_int_equal(get(20, 1), 3);
    negotiate();
    put(8, 4, 1);
    put(12, 4, 0); /* too late to change one's mind */
    assert_int_equal(get(12, 4), 1);
    set_up_queue(0, 0x10000, 0x11001, 0x12000, false);
    assert_int_equal(get(28, 2), 0);
    assert_int_equal(get(20, 1), 11 | 64);
    /* odd accesses */
    for (unsigned offset = 0; offset < 0x60; offset++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            get(offset, size);
            put(offset, size, 0x0101010101010101u * offset);
        }
    }
    for (uint64_t offset = 0x38; offset < 0x4000 - 8; offset += 61) {
        bus_read(memory, common.base + offset, 8);
        bus_write(memory, common.base + offset, UINT64_MAX, 8);
    }
    stop();
}

/* The same registers through config space. */
static void test_window(void **state)
{
    (void)state;
    start();
    set_config(window + 4, 1, 0);
    set_config(window + 8, 4, 18);
    set_config(window + 12, 4, 2);
    assert_int_equal(config(window + 16, 4), 3); /* number of queues */
    set_config(window + 8, 4, 20);
    set_config(window + 12, 4, 1);
    set_config(window + 16, 4, 3);
    assert_int_equal(get(20, 1), 3);
    const uint32_t offsets[] = {0x4000, 0xffffffff, 0x3fff, 1}, lens[] = {0, 3, 4, 8, 0xffffffff};
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned k = 0; k < 5; k++) {
            set_config(window + 8, 4, offsets[i]);
            set_config(window + 12, 4, lens[k]);
            config(window + 16, 4);
            set_config(window + 16, 4, 0);
        }
    }
    set_config(window + 4, 1, 2); /* only BAR 0 is ours */
    config(window + 16, 4);
    assert_int_equal(get(20, 1), 3);
    stop();
}

static void test_ioeventfd_follows_the_bar(void **state)
{
    (void)state;
    start();
    assert_int_equal(registered_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(registered[i].gpa, notify.base + 4 * i);
        assert_int_equal(registered[i].fd, dev->kick_fd[i]);
    }
    set_config(4, 2, 0);
    assert_int_equal(registered_count, 0);
    set_config(0x10, 4, 0xd0000000);
    set_config(4, 2, 2);
    find_capabilities();
    assert_int_equal(registered_count, 3);
    assert_int_equal(registered[2].gpa, 0xd0000000 + 0x3000 + 8);
    assert_int_equal(get(18, 2), 3);
    pci_root_reset(root);
    assert_int_equal(registered_count, 0);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity), cmocka_unit_test(test_drive),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_window),
        cmocka_unit_test(test_ioeventfd_follows_the_bar),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
