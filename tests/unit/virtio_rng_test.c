/* virtio-rng, and the token buckets it shares with disks and networks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "virtio/limiter.h"
#include "virtio/rng.h"
#include "virtio_guest.h"

#define SECOND UINT64_C(1000000000)

static void test_bucket_refills(void **state)
{
    (void)state;
    struct limiter l;
    struct limiter_config c = {.bandwidth = {.size = 1000, .refill_time_ms = 1000}};
    limiter_init(&l, &c, SECOND);
    assert_true(limiter_active(&l));
    assert_int_equal(limiter_take(&l, 1000, SECOND), 0);
    assert_int_equal(limiter_take(&l, 500, SECOND), SECOND / 2);
    assert_int_equal(limiter_take(&l, 500, SECOND * 3 / 2 - 1), 1000000); /* a token short */
    assert_int_equal(limiter_take(&l, 500, SECOND * 3 / 2), 0);
    /* small steps lose nothing to rounding */
    limiter_init(&l, &c, 0);
    assert_int_equal(limiter_take(&l, 1000, 0), 0);
    for (uint64_t t = 0; t <= SECOND / 2; t += 999)
        limiter_take(&l, 1000, t);
    assert_int_equal(limiter_take(&l, 500, SECOND / 2), 0);
}

static void test_bucket_burst_and_debt(void **state)
{
    (void)state;
    struct limiter l;
    struct limiter_config c = {.bandwidth = {.size = 100, .one_time_burst = 1000, .refill_time_ms = 1000},
                               .ops = {.size = 3, .refill_time_ms = 1000}};
    limiter_init(&l, &c, 0);
    assert_int_equal(limiter_take(&l, 1000, 0), 0); /* all burst */
    assert_int_equal(limiter_take(&l, 300, 0), 0);  /* larger than the bucket: goes, and leaves a debt of 200 */
    assert_int_equal(limiter_take(&l, 1, 0), SECOND * 201 / 100);
    assert_int_equal(limiter_take(&l, 0, 0), 0); /* asks for no bytes: the debt is not its own */
    assert_int_equal(limiter_take(&l, 1, SECOND * 201 / 100), 0);
    limiter_init(&l, &c, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(limiter_take(&l, 1, 0), 0);
    assert_int_equal(limiter_take(&l, 1, 0), SECOND / 3 + 1);
}

static void test_bucket_extremes(void **state)
{
    (void)state;
    struct limiter l;
    struct limiter_config off = {.bandwidth = {.size = 0, .refill_time_ms = 5}, .ops = {.size = 5}};
    limiter_init(&l, &off, 0);
    assert_false(limiter_active(&l));
    assert_int_equal(limiter_take(&l, UINT64_MAX, 0), 0);
    struct limiter_config huge = {.bandwidth = {UINT64_MAX, UINT64_MAX, UINT64_MAX}, .ops = {1, 0, UINT64_MAX}};
    limiter_init(&l, &huge, 0);
    assert_int_equal(limiter_take(&l, 1, 0), 0);
    assert_true(limiter_take(&l, 1, UINT64_MAX / 2) > 0);
}

static void test_fills_buffers(void **state)
{
    (void)state;
    struct guest g;
    struct virtio_device *dev;
    struct guest_queue q;
    guest_create(&g, 1 << 20, true);
    assert_int_equal(virtio_rng_create(&(struct virtio_rng_config){0}, &g.host, &dev, NULL), 0);
    guest_run(&g);
    guest_start_device(&g, dev, 0, &q);
    uint64_t a = guest_alloc(&g, 4096), b = guest_alloc(&g, 70000);
    uint8_t *p = guest_at(&g, a, 4096);
    struct guest_buf bufs[2] = {{a, 100, true}, {a + 200, 28, true}};
    assert_int_equal(guest_do(&q, bufs, 2), 128);
    assert_true(guest_until(guest_interrupts(&q) >= 1)); /* waited for: one may stand for several buffers */
    unsigned zero = 0, touched = 0;
    for (unsigned i = 0; i < 28; i++)
        zero += p[200 + i] == 0;
    for (unsigned i = 100; i < 200; i++)
        touched += p[i] != 0;
    assert_true(zero < 20);
    assert_int_equal(touched, 0);
    struct guest_buf large = {b, 70000, true};
    assert_int_equal(guest_do(&q, &large, 1), 65536); /* bounded: the driver asks again */
    assert_true(guest_until(guest_interrupts(&q) >= 2));
    struct guest_buf none = {a, 16, false};
    assert_int_equal(guest_do(&q, &none, 1), 0); /* nothing to write to */
    assert_true(guest_until(guest_interrupts(&q) >= 3));
    assert_int_equal(virtio_stat_value(dev, &dev->class->stats[0]), 128 + 65536);
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
}

static void test_rate_limited(void **state)
{
    (void)state;
    struct guest g;
    struct virtio_device *dev;
    struct guest_queue q;
    guest_create(&g, 1 << 20, true);
    struct virtio_rng_config config = {.limiter = {.bandwidth = {.size = 1000, .refill_time_ms = 100}}};
    assert_int_equal(virtio_rng_create(&config, &g.host, &dev, NULL), 0);
    guest_run(&g);
    guest_start_device(&g, dev, 0, &q);
    struct guest_buf buf = {guest_alloc(&g, 1000), 1000, true};
    uint64_t before = limiter_now();
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(guest_do(&q, &buf, 1), 1000);
    assert_in_range((limiter_now() - before) / 1000000, 290, 450);
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
}

/* A driver that writes rubbish gets NEEDS_RESET, and a working device after it resets. */
static void test_malformed_then_reset(void **state)
{
    (void)state;
    struct guest g;
    struct virtio_device *dev;
    struct guest_queue q;
    guest_create(&g, 1 << 20, true);
    assert_int_equal(virtio_rng_create(&(struct virtio_rng_config){0}, &g.host, &dev, NULL), 0);
    guest_run(&g);
    for (unsigned round = 0; round < 3; round++) {
        guest_start_device(&g, dev, 0, &q);
        struct guest_buf good = {guest_alloc(&g, 64), 64, true}, bad = {UINT64_MAX - 10, 64, true};
        assert_int_equal(guest_do(&q, &good, 1), 64);
        guest_add(&q, &bad, 1, false);
        guest_kick(&q);
        assert_true(guest_until(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET));
        assert_int_equal(guest_config_interrupts(), 1);
        guest_add(&q, &good, 1, false);
        guest_kick(&q);
        assert_false(guest_used(&q, NULL, NULL, 30));
        guest_set_status(dev, 0);
        assert_int_equal(guest_status(dev), 0);
    }
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
}

static void test_feature_negotiation(void **state)
{
    (void)state;
    struct guest g;
    struct virtio_device *dev;
    guest_create(&g, 1 << 20, false);
    assert_int_equal(virtio_rng_create(&(struct virtio_rng_config){0}, &g.host, &dev, NULL), 0);
    guest_set_status(dev, 3);
    dev->accepted = VIRTIO_FEATURE(VIRTIO_F_VERSION_1) | VIRTIO_FEATURE(5); /* never offered */
    guest_set_status(dev, 3 | VIRTIO_STATUS_FEATURES_OK);
    assert_int_equal(guest_status(dev), 3);
    dev->accepted = 0; /* a legacy driver */
    guest_set_status(dev, 3 | VIRTIO_STATUS_FEATURES_OK);
    assert_int_equal(guest_status(dev), 3);
    guest_set_status(dev, 3 | VIRTIO_STATUS_DRIVER_OK); /* without FEATURES_OK */
    assert_true(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET);
    assert_false(dev->running);
    virtio_free(dev);
    guest_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bucket_refills),      cmocka_unit_test(test_bucket_burst_and_debt),
        cmocka_unit_test(test_bucket_extremes),     cmocka_unit_test(test_fills_buffers),
        cmocka_unit_test(test_rate_limited),        cmocka_unit_test(test_malformed_then_reset),
        cmocka_unit_test(test_feature_negotiation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
