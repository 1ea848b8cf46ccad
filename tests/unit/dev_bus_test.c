/* Buses: routing, overlap, regions that come and go from within their own callbacks. */
#include "cmocka_all.h"

#include <errno.h>

#include "dev/bus.h"

static uint64_t echo_read(void *arg, uint64_t offset, unsigned size)
{
    (void)size;
    return *(uint64_t *)arg + offset;
}

static void echo_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    (void)offset, (void)size;
    *(uint64_t *)arg = value;
}

static const struct bus_ops echo = {.name = "echo", .read = echo_read, .write = echo_write};

static void test_routing(void **state)
{
    (void)state;
    struct bus *bus;
    uint64_t a = 0x100, b = 0x200;
    assert_int_equal(bus_create(&bus), 0);
    assert_int_equal(bus_add(bus, 0x1000, 0x10, &echo, &a), 0);
    assert_int_equal(bus_add(bus, 0x2000, 0x10, &echo, &b), 0);
    assert_int_equal(bus_read(bus, 0x1004, 4), 0x104);
    assert_int_equal(bus_read(bus, 0x200f, 1), 0x0f);
    assert_int_equal(bus_read(bus, 0x100e, 4), 0xffffffff); /* passes the end */
    assert_int_equal(bus_read(bus, 0x0fff, 1), 0xff);
    assert_int_equal(bus_read(bus, 0x1010, 2), 0xffff);
    assert_true(bus_read(bus, UINT64_MAX, 8) == UINT64_MAX);
    bus_write(bus, 0x2000, 7, 8);
    bus_write(bus, 0x3000, 9, 8);
    assert_int_equal(b, 7);
    bus_remove(bus, 0x2000);
    bus_remove(bus, 0x2000);
    bus_remove(bus, 0x1001);
    assert_int_equal(bus_read(bus, 0x2000, 1), 0xff);
    assert_int_equal(bus_read(bus, 0x1000, 2), 0x100);
    bus_free(bus);
}

static void test_overlap(void **state)
{
    (void)state;
    struct bus *bus;
    uint64_t a = 0;
    assert_int_equal(bus_create(&bus), 0);
    assert_int_equal(bus_add(bus, 0x1000, 0x1000, &echo, &a), 0);
    assert_int_equal(bus_add(bus, 0x1fff, 1, &echo, &a), -EEXIST);
    assert_int_equal(bus_add(bus, 0x0fff, 2, &echo, &a), -EEXIST);
    assert_int_equal(bus_add(bus, 0, 0x10000, &echo, &a), -EEXIST);
    assert_int_equal(bus_add(bus, 0x2000, 1, &echo, &a), 0);
    assert_int_equal(bus_add(bus, 0x0fff, 1, &echo, &a), 0);
    assert_int_equal(bus_add(bus, 0x5000, 0, &echo, &a), -EINVAL);
    assert_int_equal(bus_add(bus, UINT64_MAX, 2, &echo, &a), -EINVAL);
    assert_int_equal(bus_add(bus, UINT64_MAX, 1, &echo, &a), 0);
    bus_free(bus);
}

static struct bus *moving_bus;

static void move_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    (void)arg, (void)offset, (void)size;
    bus_remove(moving_bus, 0x1000);
    assert_int_equal(bus_add(moving_bus, value, 0x10, &echo, arg), 0);
}

static void test_moves_itself(void **state)
{
    (void)state;
    static const struct bus_ops mover = {.name = "mover", .read = echo_read, .write = move_write};
    uint64_t a = 5;
    assert_int_equal(bus_create(&moving_bus), 0);
    assert_int_equal(bus_add(moving_bus, 0x1000, 0x10, &mover, &a), 0);
    bus_write(moving_bus, 0x1000, 0x8000, 4);
    assert_int_equal(bus_read(moving_bus, 0x8001, 1), 6);
    assert_int_equal(bus_read(moving_bus, 0x1000, 1), 0xff);
    bus_free(moving_bus);
}

static void test_many(void **state)
{
    (void)state;
    struct bus *bus;
    uint64_t values[100];
    assert_int_equal(bus_create(&bus), 0);
    for (unsigned i = 0; i < 100; i++) {
        unsigned at = i * 37 % 100;
        values[at] = at * 1000;
        assert_int_equal(bus_add(bus, at * 16, 16, &echo, &values[at]), 0);
    }
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(bus_read(bus, i * 16 + 15, 1), (i * 1000 + 15) & 0xff);
    bus_free(bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_routing), cmocka_unit_test(test_overlap),
                                       cmocka_unit_test(test_moves_itself), cmocka_unit_test(test_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
