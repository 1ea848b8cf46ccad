/* RTC and power registers. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dev/power.h"
#include "dev/rtc.h"

struct fixture {
    struct bus *bus;
    struct rtc *rtc;
    struct power *power;
    unsigned events, pulses;
    enum power_event last;
};

static void happened(void *arg, enum power_event event)
{
    struct fixture *f = arg;
    f->events++;
    f->last = event;
}

static void ged_line(void *arg, bool asserted)
{
    ((struct fixture *)arg)->pulses += asserted;
}

static int set_up(void **state)
{
    static struct fixture fixture;
    struct fixture *f = &fixture;
    memset(f, 0, sizeof *f);
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(rtc_create(f->bus, &f->rtc), 0);
    assert_int_equal(power_create(f->bus, (struct irq_line){f, ged_line}, (struct power_host){f, happened}, &f->power), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    power_free(f->power);
    rtc_free(f->rtc);
    bus_free(f->bus);
    return 0;
}

static uint8_t cmos(struct fixture *f, uint8_t index)
{
    bus_write(f->bus, 0x70, index, 1);
    return (uint8_t)bus_read(f->bus, 0x71, 1);
}

static void set_cmos(struct fixture *f, uint8_t index, uint8_t value)
{
    bus_write(f->bus, 0x70, index, 1);
    bus_write(f->bus, 0x71, value, 1);
}

static int from_bcd(uint8_t value)
{
    return (value >> 4) * 10 + (value & 15);
}

static time_t guest_time(struct fixture *f)
{
    struct tm tm = {.tm_sec = from_bcd(cmos(f, 0)),
                    .tm_min = from_bcd(cmos(f, 2)),
                    .tm_hour = from_bcd(cmos(f, 4)),
                    .tm_mday = from_bcd(cmos(f, 7)),
                    .tm_mon = from_bcd(cmos(f, 8)) - 1,
                    .tm_year = from_bcd(cmos(f, 0x32)) * 100 + from_bcd(cmos(f, 9)) - 1900};
    return timegm(&tm);
}

static void test_time(void **state)
{
    struct fixture *f = *state;
    assert_true(labs((long)(guest_time(f) - time(NULL))) <= 2);
    assert_int_equal(cmos(f, 0x0d), 0x80);
    assert_int_equal(cmos(f, 0x0b), 0x02);
    assert_int_equal(cmos(f, 0x0a) & 0x7f, 0x26);
}

static void test_set_time(void **state)
{
    struct fixture *f = *state;
    set_cmos(f, 0x0b, 0x82); /* SET: collect */
    const uint8_t values[][2] = {{0, 0x30}, {2, 0x59}, {4, 0x23}, {7, 0x31}, {8, 0x12}, {9, 0x30}, {0x32, 0x20}};
    for (unsigned i = 0; i < 7; i++)
        set_cmos(f, values[i][0], values[i][1]);
    for (unsigned i = 0; i < 7; i++)
        assert_int_equal(cmos(f, values[i][0]), values[i][1]);
    set_cmos(f, 0x0b, 0x02);
    struct tm wanted = {.tm_sec = 30, .tm_min = 59, .tm_hour = 23, .tm_mday = 31, .tm_mon = 11, .tm_year = 130};
    assert_true(labs((long)(guest_time(f) - timegm(&wanted))) <= 1);
    set_cmos(f, 4, 0x01); /* without SET */
    assert_int_equal(from_bcd(cmos(f, 4)), 1);
}

static void test_formats(void **state)
{
    struct fixture *f = *state;
    set_cmos(f, 0x0b, 0x82);
    const uint8_t noon[][2] = {{0, 0x10}, {2, 0x20}, {4, 0x15}, {7, 0x15}, {8, 0x06}, {9, 0x24}, {0x32, 0x20}};
    for (unsigned i = 0; i < 7; i++)
        set_cmos(f, noon[i][0], noon[i][1]);
    set_cmos(f, 0x0b, 0x02);
    set_cmos(f, 0x0b, 0x00); /* 12 hours: 3 pm */
    assert_int_equal(cmos(f, 4), 0x83);
    set_cmos(f, 0x0b, 0x06); /* binary */
    assert_int_equal(cmos(f, 4), 15);
    assert_int_equal(cmos(f, 2), 20);
    assert_int_equal(cmos(f, 9), 24);
}

static void test_memory(void **state)
{
    struct fixture *f = *state;
    set_cmos(f, 0x40, 0xa5);
    assert_int_equal(cmos(f, 0x40), 0xa5);
    assert_int_equal(cmos(f, 0xc0), 0xa5); /* the index has seven bits */
    set_cmos(f, 0x0d, 0);
    assert_int_equal(cmos(f, 0x0d), 0x80);
    for (unsigned i = 0; i < 128; i++) { /* nonsense dates do no harm */
        set_cmos(f, (uint8_t)i, 0xff);
        cmos(f, (uint8_t)i);
    }
    bus_write(f->bus, 0x70, 0x5a41, 2);
    assert_int_equal(cmos(f, 0x41), 0x5a);
    assert_int_equal(bus_read(f->bus, 0x70, 1), 0xff);
}

static void test_power_registers(void **state)
{
    struct fixture *f = *state;
    bus_write(f->bus, POWER_PORT, 0x20, 1); /* sleep type 0 */
    bus_write(f->bus, POWER_PORT, 0x14, 1); /* without the enable bit */
    bus_write(f->bus, POWER_PORT, 0x34, 2);
    bus_write(f->bus, POWER_PORT + POWER_RESET, 0, 1);
    assert_int_equal(f->events, 0);
    bus_write(f->bus, POWER_PORT, 0x34, 1);
    assert_int_equal(f->events, 1);
    assert_int_equal(f->last, POWER_OFF);
    bus_write(f->bus, POWER_PORT + POWER_RESET, POWER_RESET_VALUE, 1);
    assert_int_equal(f->last, POWER_REBOOT);
    bus_write(f->bus, 0x64, 0xfe, 1);
    assert_int_equal(f->events, 3);
    bus_write(f->bus, 0x64, 0xd1, 1);
    assert_int_equal(f->events, 3);
    assert_int_equal(bus_read(f->bus, 0x64, 1), 0);
    assert_int_equal(bus_read(f->bus, POWER_PANIC_PORT, 1), 3);
    bus_write(f->bus, POWER_PANIC_PORT, 2, 1);
    assert_int_equal(f->last, POWER_CRASH_LOADED);
    bus_write(f->bus, POWER_PANIC_PORT, 1, 1);
    assert_int_equal(f->last, POWER_GUEST_PANIC);
}

static void test_event_device(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(bus_read(f->bus, POWER_PORT + POWER_GED_EVENTS, 1), 0);
    power_signal(f->power, POWER_GED_BUTTON);
    power_signal(f->power, POWER_GED_GENERATION);
    assert_int_equal(f->pulses, 2);
    assert_int_equal(bus_read(f->bus, POWER_PORT + POWER_GED_EVENTS, 1), 3);
    assert_int_equal(bus_read(f->bus, POWER_PORT + POWER_GED_EVENTS, 1), 0);
    power_signal(f->power, POWER_GED_BUTTON);
    power_reset(f->power);
    assert_int_equal(bus_read(f->bus, POWER_PORT + POWER_GED_EVENTS, 1), 0);
}

#define WITH_BOARD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_BOARD(test_time),   WITH_BOARD(test_set_time),        WITH_BOARD(test_formats),
                                       WITH_BOARD(test_memory), WITH_BOARD(test_power_registers), WITH_BOARD(test_event_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
