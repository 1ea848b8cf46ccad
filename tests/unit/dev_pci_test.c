/* PCI: config space by both ways in, BAR sizing and moving, MSI-X, reset. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/pci.h"

struct fixture {
    struct bus *memory, *ports;
    struct pci_root *root;
    struct pci_device dev, other;
    uint64_t bar_value;
    unsigned sent, config_writes;
    struct msi last;
};

static void send(void *arg, struct msi msi)
{
    struct fixture *f = arg;
    f->sent++;
    f->last = msi;
}

static uint64_t bar_read(void *arg, uint64_t offset, unsigned size)
{
    (void)size;
    return ((struct fixture *)arg)->bar_value + offset;
}

static void bar_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    (void)offset, (void)size;
    ((struct fixture *)arg)->bar_value = value;
}

static const struct bus_ops bar_ops = {.name = "bar", .read = bar_read, .write = bar_write};

static void on_config_write(struct pci_device *dev, unsigned offset, unsigned size)
{
    (void)offset, (void)size;
    struct fixture *f = dev->bar[0].arg;
    f->config_writes++;
}

static uint64_t ecam(unsigned slot, unsigned reg)
{
    return PCI_ECAM_BASE + slot * 0x8000 + reg;
}

static uint32_t in(struct fixture *f, unsigned slot, unsigned reg, unsigned size)
{
    return (uint32_t)bus_read(f->memory, ecam(slot, reg), size);
}

static void out(struct fixture *f, unsigned slot, unsigned reg, uint64_t value, unsigned size)
{
    bus_write(f->memory, ecam(slot, reg), value, size);
}

static int set_up(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    memset(f, 0, sizeof *f);
    struct err err = {0};
    assert_int_equal(bus_create(&f->memory), 0);
    assert_int_equal(bus_create(&f->ports), 0);
    assert_int_equal(pci_root_create(f->memory, f->ports, (struct irq_sink){f, send}, &f->root, &err), 0);
    f->dev = (struct pci_device){.name = "test", .vendor_id = 0x1af4, .device_id = 0x1042, .subsystem_id = 7,
                                 .class_code = 0x018000, .revision = 1, .msix_count = 3, .msix_bar = 2,
                                 .config_written = on_config_write};
    f->dev.bar[0] = (struct pci_bar){.size = 0x4000, .ops = &bar_ops, .arg = f};
    const uint8_t body[4] = {1, 2, 3, 4}, mask[4] = {0, 0xff, 0, 0x0f};
    assert_int_equal(pci_add_capability(&f->dev, 9, body, sizeof body, mask), 0x40);
    assert_int_equal(pci_add(f->root, &f->dev, &err), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    pci_root_free(f->root);
    bus_free(f->memory);
    bus_free(f->ports);
    return 0;
}

static void test_header(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in(f, 0, 8, 4) >> 8, 0x060000); /* host bridge */
    assert_int_equal(in(f, 1, 0, 4), 0x10421af4);
    assert_int_equal(in(f, 1, 8, 4), 0x01800001);
    assert_int_equal(in(f, 1, 0x2e, 2), 7);
    assert_int_equal(in(f, 1, 6, 2) & 0x10, 0x10);
    assert_int_equal(in(f, 2, 0, 4), 0xffffffff);
    assert_int_equal(bus_read(f->memory, PCI_ECAM_BASE + 0x8000 + 0x1000, 4), 0xffffffff); /* function 1 */
    assert_int_equal(bus_read(f->memory, PCI_ECAM_BASE + 0x100000, 4), 0xffffffff);        /* bus 1 */
    out(f, 1, 0, 0, 4);
    assert_int_equal(in(f, 1, 0, 4), 0x10421af4);
    out(f, 1, 4, 0xffff, 2);
    assert_int_equal(in(f, 1, 4, 2), 0x0406);
}

static void test_ports(void **state)
{
    struct fixture *f = *state;
    bus_write(f->ports, 0xcf8, 0x80000800, 4);
    assert_int_equal(bus_read(f->ports, 0xcf8, 4), 0x80000800);
    assert_int_equal(bus_read(f->ports, 0xcfc, 4), 0x10421af4);
    assert_int_equal(bus_read(f->ports, 0xcfe, 2), 0x1042);
    assert_int_equal(bus_read(f->ports, 0xcff, 1), 0x10);
    bus_write(f->ports, 0xcf8, 0x80000804, 4);
    bus_write(f->ports, 0xcfc, 0x0002, 2);
    assert_int_equal(in(f, 1, 4, 2), 2);
    bus_write(f->ports, 0xcf8, 0x00000800, 4);
    assert_int_equal(bus_read(f->ports, 0xcfc, 4), 0xffffffff);
    bus_write(f->ports, 0xcf8, 0x80001000, 4);
    assert_int_equal(bus_read(f->ports, 0xcfc, 4), 0xffffffff);
    bus_write(f->ports, 0xcf8, 0xffffffff, 4);
    assert_int_equal(bus_read(f->ports, 0xcfc, 4), 0xffffffff);
}

static void test_bars(void **state)
{
    struct fixture *f = *state;
    uint64_t home = in(f, 1, 0x10, 4) & ~0xfu;
    assert_in_range(home, PCI_MMIO32_BASE, PCI_MMIO32_BASE + PCI_MMIO32_SIZE - 1);
    assert_int_equal(in(f, 1, 0x10, 4) & 0xf, 0xc);
    assert_int_equal(bus_read(f->memory, home, 4), 0xffffffff); /* not decoded yet */
    out(f, 1, 0x10, 0xffffffff, 4);
    out(f, 1, 0x14, 0xffffffff, 4);
    assert_int_equal(in(f, 1, 0x10, 4), 0xffffc00c);
    assert_int_equal(in(f, 1, 0x14, 4), 0xffffffff);
    out(f, 1, 0x10, (uint32_t)home, 4);
    out(f, 1, 0x14, 0, 4);
    out(f, 1, 4, 2, 2);
    f->bar_value = 0x1000;
    assert_int_equal(bus_read(f->memory, home + 8, 4), 0x1008);
    out(f, 1, 0x10, 0xd0000000, 4); /* moves while decoded */
    assert_int_equal(bus_read(f->memory, home + 8, 4), 0xffffffff);
    assert_int_equal(bus_read(f->memory, 0xd0000008, 4), 0x1008);
    out(f, 1, 0x10, (uint32_t)PCI_ECAM_BASE, 4); /* collides: nowhere, and the ECAM stays */
    assert_int_equal(in(f, 1, 0, 4), 0x10421af4);
    out(f, 1, 0x10, 0, 4);
    out(f, 1, 0x14, 0x40, 4);
    assert_int_equal(bus_read(f->memory, 0x4000000008, 4), 0x1008);
    out(f, 1, 4, 0, 2);
    assert_int_equal(bus_read(f->memory, 0x4000000008, 4), 0xffffffff);
    pci_root_reset(f->root);
    assert_int_equal(in(f, 1, 0x10, 4) & ~0xfu, home);
    assert_int_equal(in(f, 1, 0x14, 4), 0);
}

static void test_capabilities(void **state)
{
    struct fixture *f = *state;
    unsigned at = in(f, 1, 0x34, 1), seen = 0;
    while (at && seen < 10) {
        seen |= in(f, 1, at, 1) == 0x11 ? 1u : in(f, 1, at, 1) == 9 ? 2u : 4u;
        at = in(f, 1, at + 1, 1);
    }
    assert_int_equal(seen, 3);
    out(f, 1, 0x40, 0xffffffff, 4);
    out(f, 1, 0x44, 0xffffffff, 4);
    assert_int_equal(in(f, 1, 0x40, 1), 9);
    assert_int_equal(in(f, 1, 0x42, 4), 0x0f03ff01);
    assert_int_equal(f->config_writes, 2);
    bus_read(f->memory, ecam(1, 0xffe), 4); /* passes the end of config space */
}

static uint64_t map_msix(struct fixture *f)
{
    out(f, 1, 4, 6, 2);
    return in(f, 1, 0x18, 4) & ~0xfu;
}

static unsigned msix_capability(struct fixture *f)
{
    unsigned at = in(f, 1, 0x34, 1);
    while (in(f, 1, at, 1) != 0x11)
        at = in(f, 1, at + 1, 1);
    return at;
}

static void test_msix(void **state)
{
    struct fixture *f = *state;
    uint64_t table = map_msix(f);
    unsigned capability = msix_capability(f);
    assert_int_equal(in(f, 1, capability + 2, 2), 2); /* three vectors */
    assert_int_equal(in(f, 1, capability + 4, 4) & 7, 2);
    pci_msix_send(&f->dev, 0);
    assert_int_equal(f->sent, 0);
    assert_false(pci_msix_enabled(&f->dev));
    bus_write(f->memory, table + 16, 0xfee01000, 4);
    bus_write(f->memory, table + 20, 0, 4);
    bus_write(f->memory, table + 24, 0x4021, 8); /* data and unmasked */
    out(f, 1, capability + 2, 0x8000, 2);
    assert_true(pci_msix_enabled(&f->dev));
    pci_msix_send(&f->dev, 1);
    assert_int_equal(f->sent, 1);
    assert_int_equal(f->last.address, 0xfee01000);
    assert_int_equal(f->last.data, 0x4021);
    bus_write(f->memory, table + 28, 1, 4);
    pci_msix_send(&f->dev, 1);
    assert_int_equal(f->sent, 1);
    assert_int_equal(bus_read(f->memory, table + 0x800, 8), 2); /* pending */
    bus_write(f->memory, table + 28, 0, 4);
    assert_int_equal(f->sent, 2);
    assert_int_equal(bus_read(f->memory, table + 0x800, 8), 0);
    out(f, 1, capability + 2, 0xc000, 2); /* all masked */
    pci_msix_send(&f->dev, 1);
    assert_int_equal(f->sent, 2);
    out(f, 1, capability + 2, 0x8000, 2);
    assert_int_equal(f->sent, 3);
    pci_msix_send(&f->dev, 3);
    pci_msix_send(&f->dev, 1000000);
    assert_int_equal(f->sent, 3);
    bus_write(f->memory, table + 3 * 16, 0xffffffff, 4); /* beyond the table */
    assert_int_equal(bus_read(f->memory, table + 3 * 16, 4), 0);
    bus_write(f->memory, table + 0xffc, ~0ull, 4);
    pci_root_reset(f->root);
    assert_false(pci_msix_enabled(&f->dev));
}

static void test_full_bus(void **state)
{
    struct fixture *f = *state;
    static struct pci_device devices[PCI_MAX_DEVICES];
    struct err err = {0};
    memset(devices, 0, sizeof devices);
    unsigned added = 0;
    while (added < PCI_MAX_DEVICES) {
        devices[added].name = "filler";
        if (pci_add(f->root, &devices[added], &err) < 0)
            break;
        added++;
    }
    assert_int_equal(added, PCI_MAX_DEVICES - 2);
    assert_non_null(strstr(err.message, "slot"));
}

/* A device may be freed before its bus. */
static void test_remove(void **state)
{
    struct fixture *f = *state;
    struct pci_device *dev = calloc(1, sizeof *dev);
    struct err err = {0};
    assert_non_null(dev);
    dev->name = "short-lived";
    dev->device_id = 0x1234;
    dev->bar[0] = (struct pci_bar){.size = 0x1000, .ops = &bar_ops, .arg = f};
    assert_int_equal(pci_add(f->root, dev, &err), 0);
    f->bar_value = 5;
    out(f, 2, 4, 2, 2);
    uint64_t bar = in(f, 2, 0x10, 4) & ~0xfu;
    assert_int_equal(bus_read(f->memory, bar, 4), 5);
    pci_remove(dev);
    free(dev);
    assert_int_equal(in(f, 2, 0, 4), 0xffffffff);
    assert_int_equal(bus_read(f->memory, bar, 4), 0xffffffff);
    pci_root_reset(f->root);
}

#define WITH_PCI(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_PCI(test_header),       WITH_PCI(test_ports), WITH_PCI(test_bars),
                                       WITH_PCI(test_capabilities), WITH_PCI(test_msix),  WITH_PCI(test_full_bus),
                                       WITH_PCI(test_remove)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
