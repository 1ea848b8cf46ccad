/* IOAPIC: registers, edge and level lines, masking, ends of interrupt. */
#include "cmocka_all.h"

#include <string.h>

#include "dev/ioapic.h"

struct fixture {
    struct bus *bus;
    struct ioapic *ioapic;
    unsigned sent;
    struct msi last;
};

static void send(void *arg, struct msi msi)
{
    struct fixture *f = arg;
    f->sent++;
    f->last = msi;
}

static void out(struct fixture *f, uint8_t index, uint32_t value)
{
    bus_write(f->bus, IOAPIC_BASE, index, 4);
    bus_write(f->bus, IOAPIC_BASE + 0x10, value, 4);
}

static uint32_t in(struct fixture *f, uint8_t index)
{
    bus_write(f->bus, IOAPIC_BASE, index, 4);
    return (uint32_t)bus_read(f->bus, IOAPIC_BASE + 0x10, 4);
}

static int set_up(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    memset(f, 0, sizeof *f);
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(ioapic_create(f->bus, (struct irq_sink){f, send}, &f->ioapic), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    ioapic_free(f->ioapic);
    bus_free(f->bus);
    return 0;
}

static void test_registers(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in(f, 1), 0x170020);
    out(f, 0, 0x05000000);
    assert_int_equal(in(f, 0), 0x05000000);
    assert_int_equal(in(f, 2), 0x05000000);
    assert_int_equal(in(f, 0x10), 0x10000); /* masked */
    out(f, 0x10, 0xffffffff);
    out(f, 0x11, 0xffffffff);
    assert_int_equal(in(f, 0x10), 0x0001afff); /* pending and remote IRR are read-only */
    assert_int_equal(in(f, 0x11), 0xff000000);
    assert_int_equal(in(f, 0x40), 0); /* beyond the table */
    out(f, 0x40, 0xffffffff);
    out(f, 0xff, 0xffffffff);
    assert_int_equal(in(f, 0x0f), 0);
}

static void test_edge(void **state)
{
    struct fixture *f = *state;
    out(f, 0x10 + 2 * 4 + 1, 0x03000000);
    out(f, 0x10 + 2 * 4, 0x00000044);
    ioapic_set_line(f->ioapic, 4, true);
    assert_int_equal(f->sent, 1);
    assert_int_equal(f->last.address, 0xfee03000);
    assert_int_equal(f->last.data, 0x44);
    ioapic_set_line(f->ioapic, 4, true);
    assert_int_equal(f->sent, 1);
    ioapic_set_line(f->ioapic, 4, false);
    ioapic_set_line(f->ioapic, 4, true);
    assert_int_equal(f->sent, 2);
    out(f, 0x10 + 2 * 4, 0x00010044);
    struct irq_line line = ioapic_line(f->ioapic, 4);
    line.set(line.arg, false);
    line.set(line.arg, true);
    assert_int_equal(f->sent, 2);
    out(f, 0x10 + 2 * 4, 0x00000944); /* logical destination, lowest priority */
    line.set(line.arg, false);
    line.set(line.arg, true);
    assert_int_equal(f->last.address, 0xfee03004);
    assert_int_equal(f->last.data, 0x144);
}

static void test_level(void **state)
{
    struct fixture *f = *state;
    out(f, 0x10 + 2 * 9, 0x00008055);
    ioapic_set_line(f->ioapic, 9, true);
    assert_int_equal(f->sent, 1);
    assert_int_equal(f->last.data & 0xc0ff, 0xc055);
    assert_int_equal(in(f, 0x10 + 2 * 9), 0x0000c055); /* remote IRR */
    ioapic_set_line(f->ioapic, 9, false);
    ioapic_set_line(f->ioapic, 9, true);
    assert_int_equal(f->sent, 1);
    ioapic_eoi(f->ioapic, 0x54);
    assert_int_equal(f->sent, 1);
    ioapic_eoi(f->ioapic, 0x55);
    assert_int_equal(f->sent, 2); /* still asserted */
    ioapic_set_line(f->ioapic, 9, false);
    bus_write(f->bus, IOAPIC_BASE + 0x40, 0x55, 4);
    assert_int_equal(f->sent, 2);
    assert_int_equal(in(f, 0x10 + 2 * 9), 0x00008055);
    /* Asserted while masked: fires when unmasked. */
    out(f, 0x10 + 2 * 9, 0x00018055);
    ioapic_set_line(f->ioapic, 9, true);
    assert_int_equal(f->sent, 2);
    out(f, 0x10 + 2 * 9, 0x00008055);
    assert_int_equal(f->sent, 3);
    ioapic_reset(f->ioapic);
    assert_int_equal(in(f, 0x10 + 2 * 9), 0x10000);
}

#define WITH_IOAPIC(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_IOAPIC(test_registers), WITH_IOAPIC(test_edge), WITH_IOAPIC(test_level)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
