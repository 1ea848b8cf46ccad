/* 16550A as drivers use it: probing, FIFOs, each interrupt with its cause, backpressure. */
#include "cmocka_all.h"

#include <string.h>

#include "dev/serial.h"

#define BASE 0x3f8
enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH };

struct fixture {
    struct bus *bus;
    struct serial *serial;
    bool line;
    unsigned rises, output_ready, input_wanted;
};

static void set_line(void *arg, bool asserted)
{
    struct fixture *f = arg;
    f->rises += asserted && !f->line;
    f->line = asserted;
}

static void output_ready(void *arg)
{
    ((struct fixture *)arg)->output_ready++;
}

static void input_wanted(void *arg)
{
    ((struct fixture *)arg)->input_wanted++;
}

static uint8_t in(struct fixture *f, unsigned reg)
{
    return (uint8_t)bus_read(f->bus, BASE + reg, 1);
}

static void out(struct fixture *f, unsigned reg, uint8_t value)
{
    bus_write(f->bus, BASE + reg, value, 1);
}

static int set_up(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    memset(f, 0, sizeof *f);
    assert_int_equal(bus_create(&f->bus), 0);
    struct serial_host host = {.arg = f, .output_ready = output_ready, .input_wanted = input_wanted};
    assert_int_equal(serial_create(f->bus, BASE, (struct irq_line){f, set_line}, host, &f->serial), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    serial_free(f->serial);
    bus_free(f->bus);
    return 0;
}

static void test_probe(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in(f, LSR), 0x60);
    out(f, SCRATCH, 0x5a);
    assert_int_equal(in(f, SCRATCH), 0x5a);
    assert_int_equal(in(f, IIR), 0x01);
    out(f, IIR, 0x01);
    assert_int_equal(in(f, IIR), 0xc1); /* a 16550A */
    out(f, IIR, 0);
    assert_int_equal(in(f, IIR), 0x01);
    out(f, IER, 0xff);
    assert_int_equal(in(f, IER), 0x0f);
    out(f, LCR, 0x80);
    out(f, DATA, 0x01);
    out(f, IER, 0x00);
    assert_int_equal(in(f, DATA), 0x01);
    out(f, LCR, 0x03);
    assert_int_equal(in(f, IER), 0x0f);
    out(f, LSR, 0);
    assert_int_equal(in(f, LSR), 0x60);
}

static void test_loopback(void **state)
{
    struct fixture *f = *state;
    out(f, MCR, 0x1f);
    assert_int_equal(in(f, MSR) & 0xf0, 0xf0);
    out(f, MCR, 0x10);
    uint8_t msr = in(f, MSR);
    assert_int_equal(msr & 0xf0, 0);
    assert_int_equal(msr & 0x0f, 0x0f); /* all lines changed */
    out(f, DATA, 'x');
    assert_int_equal(in(f, LSR) & 1, 1);
    assert_int_equal(in(f, DATA), 'x');
    assert_int_equal(f->output_ready, 0);
    out(f, DATA, '1'); /* no FIFO: the second byte overruns */
    out(f, DATA, '2');
    assert_int_equal(in(f, LSR) & 2, 2);
    assert_int_equal(in(f, LSR) & 2, 0);
    assert_int_equal(serial_receive(f->serial, (const uint8_t *)"z", 1), 0);
    in(f, DATA);
    out(f, MCR, 0);
    assert_int_equal(f->input_wanted, 1);
}

static void test_transmit_interrupt(void **state)
{
    struct fixture *f = *state;
    out(f, IIR, 0x01);
    assert_false(f->line);
    out(f, IER, 0x02); /* empty already: at once */
    assert_true(f->line);
    assert_int_equal(in(f, IIR), 0xc2);
    assert_false(f->line); /* reading IIR acknowledges */
    assert_int_equal(in(f, IIR), 0xc1);
    out(f, DATA, 'a');
    assert_true(f->line);
    assert_int_equal(in(f, IIR), 0xc2);
    out(f, IER, 0);
    out(f, DATA, 'b');
    assert_false(f->line);
    uint8_t text[8];
    assert_int_equal(serial_take_output(f->serial, text, sizeof text), 2);
    assert_memory_equal(text, "ab", 2);
    assert_int_equal(f->output_ready, 1);
}

static void test_receive_interrupt(void **state)
{
    struct fixture *f = *state;
    out(f, IIR, 0xc1); /* trigger at 14 */
    out(f, IER, 0x01);
    assert_int_equal(serial_receive(f->serial, (const uint8_t *)"hi", 2), 2);
    assert_true(f->line);
    assert_int_equal(in(f, IIR), 0xcc); /* below the trigger: time-out */
    assert_int_equal(serial_receive(f->serial, (const uint8_t *)"0123456789abcdefgh", 18), 14);
    assert_int_equal(in(f, IIR), 0xc4);
    const char *expected = "hi0123456789abcd";
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(in(f, LSR) & 1, 1);
        assert_int_equal(in(f, DATA), expected[i]);
    }
    assert_int_equal(f->input_wanted, 1); /* when room came, once */
    assert_false(f->line);
    assert_int_equal(in(f, LSR) & 1, 0);
    assert_int_equal(in(f, DATA), 0);
    assert_int_equal(serial_receive(f->serial, (const uint8_t *)"x", 1), 1);
    out(f, IIR, 0xc3); /* clears the FIFO */
    assert_int_equal(in(f, LSR) & 1, 0);
    assert_false(f->line);
}

static void test_backpressure(void **state)
{
    struct fixture *f = *state;
    unsigned sent = 0;
    while (in(f, LSR) & 0x20) {
        out(f, DATA, (uint8_t)sent++);
        assert_true(sent < 100000);
    }
    out(f, DATA, 0xee); /* the guest ignores it: lost, no harm */
    out(f, IER, 0x02);
    assert_false(f->line); /* not empty, so no interrupt */
    static uint8_t data[100000];
    assert_int_equal(serial_take_output(f->serial, data, sizeof data), sent);
    for (unsigned i = 0; i < sent; i++)
        assert_int_equal(data[i], (uint8_t)i);
    assert_true(f->line);
    assert_int_equal(in(f, LSR) & 0x60, 0x60);
}

static void test_reset_and_wide_access(void **state)
{
    struct fixture *f = *state;
    out(f, IER, 0x0f);
    out(f, SCRATCH, 9);
    serial_receive(f->serial, (const uint8_t *)"x", 1);
    assert_true(f->line);
    serial_reset(f->serial);
    assert_false(f->line);
    assert_int_equal(in(f, SCRATCH), 0);
    assert_int_equal(in(f, LSR), 0x60);
    bus_write(f->bus, BASE + MCR, 0x00000303, 4);
    assert_int_equal(bus_read(f->bus, BASE + LCR, 2), 0x0300);
}

#define WITH_PORT(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_PORT(test_probe), WITH_PORT(test_loopback), WITH_PORT(test_transmit_interrupt),
                                       WITH_PORT(test_receive_interrupt), WITH_PORT(test_backpressure),
                                       WITH_PORT(test_reset_and_wide_access)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
