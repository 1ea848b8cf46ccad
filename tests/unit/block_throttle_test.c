/* Groups on a clock of the test's own: disks that always have a request, or sometimes, and what each of them gets. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "block/throttle.h"

#define SECOND UINT64_C(1000000000)
#define DISKS_MAX 4

struct disk {
    struct throttle_member *member;
    uint64_t bytes;     /* of each request; 0: this disk asks for nothing */
    bool is_write, woken;
    uint64_t ask_at_ns; /* its timer */
    uint64_t done;
};

struct simulation {
    struct throttle_group *group;
    struct disk disks[DISKS_MAX];
    unsigned count;
    uint64_t now_ns;
};

static void on_wake(void *arg)
{
    ((struct disk *)arg)->woken = true;
}

static void begin(struct simulation *s, const struct throttle_limits *limits)
{
    *s = (struct simulation){.group = throttle_group_new(limits), .now_ns = 5 * SECOND};
    assert_non_null(s->group);
}

static struct disk *join(struct simulation *s, struct throttle_share share, uint64_t bytes)
{
    struct disk *disk = &s->disks[s->count++];
    disk->bytes = bytes;
    disk->member = throttle_join(s->group, &share, on_wake, disk);
    assert_non_null(disk->member);
    return disk;
}

static void end(struct simulation *s)
{
    for (unsigned i = 0; i < s->count; i++)
        throttle_leave(s->disks[i].member);
    throttle_group_free(s->group);
}

/* All that can go at this instant. */
static void serve(struct simulation *s, struct disk *disk)
{
    if (!disk->bytes || (!disk->woken && disk->ask_at_ns > s->now_ns))
        return;
    disk->woken = false;
    uint64_t wait_ns;
    while ((wait_ns = throttle_take(disk->member, disk->is_write, disk->bytes, s->now_ns)) == 0)
        disk->done++;
    disk->ask_at_ns = s->now_ns + wait_ns;
}

static void run(struct simulation *s, uint64_t ns)
{
    uint64_t end_ns = s->now_ns + ns;
    while (s->now_ns < end_ns) {
        uint64_t next_ns = end_ns;
        for (unsigned i = 0; i < s->count; i++)
            serve(s, &s->disks[i]);
        for (unsigned i = 0; i < s->count; i++) {
            const struct disk *disk = &s->disks[i];
            uint64_t at_ns = disk->woken ? s->now_ns : disk->ask_at_ns;
            if (disk->bytes && at_ns < next_ns)
                next_ns = at_ns;
        }
        s->now_ns = next_ns;
    }
}

static void run_fresh(struct simulation *s, uint64_t ns)
{
    for (unsigned i = 0; i < s->count; i++)
        s->disks[i].done = 0;
    run(s, ns);
}

static void assert_near(uint64_t value, double wanted, double percent)
{
    if ((double)value < wanted * (1 - percent / 100) || (double)value > wanted * (1 + percent / 100))
        fail_msg("%llu is not within %g %% of %g", (unsigned long long)value, percent, wanted);
}

static void test_one_disk_gets_the_rate(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 1000}});
    struct disk *disk = join(&s, (struct throttle_share){0}, 4096);
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(disk->done, 10000, 0.1);
    end(&s);
}

static void test_bytes_of_reads_and_writes(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){
                  .rates = {[THROTTLE_READ_BPS] = {.rate = 1 << 20}, [THROTTLE_WRITE_BPS] = {.rate = 4 << 20}}});
    struct disk *reader = join(&s, (struct throttle_share){0}, 65536), *writer = join(&s, (struct throttle_share){0}, 65536);
    writer->is_write = true;
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(reader->done, 160, 2);
    assert_near(writer->done, 640, 2);
    end(&s);
}

static void test_burst_has_a_length(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 100, .burst = 1000, .burst_s = 5}});
    struct disk *disk = join(&s, (struct throttle_share){0}, 4096);
    run(&s, 5 * SECOND);
    assert_near(disk->done, 5000, 3);
    run_fresh(&s, 10 * SECOND);
    assert_near(disk->done, 1000, 3); /* spent: the rate, without end */
    end(&s);
}

static void test_weights(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 6000}});
    struct disk *one = join(&s, (struct throttle_share){.weight = 100}, 4096),
                *two = join(&s, (struct throttle_share){.weight = 200}, 4096),
                *three = join(&s, (struct throttle_share){.weight = 300}, 4096);
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(one->done, 10000, 1);
    assert_near(two->done, 20000, 1);
    assert_near(three->done, 30000, 1);
    two->bytes = 0; /* asks for nothing: the others share what it leaves */
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(one->done, 15000, 1);
    assert_near(three->done, 45000, 1);
    two->bytes = 4096; /* it is back, and is owed nothing */
    run_fresh(&s, SECOND);
    assert_near(two->done, 2000, 3);
    end(&s);
}

static void test_reservation_and_limit(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 2000}});
    struct disk *small = join(&s, (struct throttle_share){.weight = 1, .reservation = 500}, 4096),
                *large = join(&s, (struct throttle_share){.weight = 1000}, 4096),
                *limited = join(&s, (struct throttle_share){.weight = 1000, .limit = 200}, 4096);
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(small->done, 5000, 2);
    assert_near(limited->done, 2000, 2);
    assert_near(large->done, 13000, 2);
    end(&s);
}

static void test_long_requests_count_for_more(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 1000}});
    struct disk *small = join(&s, (struct throttle_share){0}, 4096),
                *large = join(&s, (struct throttle_share){0}, 4 * THROTTLE_REQUEST_BYTES);
    run(&s, SECOND);
    run_fresh(&s, 10 * SECOND);
    assert_near(small->done, 8000, 1);
    assert_near(large->done, 2000, 1);
    end(&s);
}

/* A guest that was reset, or is paused, holds nobody up. */
static void test_a_turn_that_is_not_taken(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 1000}});
    struct disk *gone = join(&s, (struct throttle_share){.weight = 10000}, 4096), *disk = join(&s, (struct throttle_share){0}, 4096);
    run(&s, SECOND);
    gone->bytes = 0;
    run_fresh(&s, 10 * SECOND);
    assert_near(disk->done, 10000, 1);
    throttle_leave(gone->member);
    s.disks[0] = s.disks[--s.count];
    throttle_leave(s.disks[0].member);
    s.count = 0;
    end(&s);
}

static void test_new_limits_count_at_once(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 10}});
    struct disk *disk = join(&s, (struct throttle_share){0}, 4096);
    run(&s, SECOND);
    throttle_group_set(s.group, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 5000}}, s.now_ns);
    assert_true(disk->woken);
    run_fresh(&s, 2 * SECOND);
    assert_near(disk->done, 10000, 7);
    throttle_group_set(s.group, &(struct throttle_limits){0}, s.now_ns);
    for (unsigned i = 0; i < 100000; i++) /* no limit at all */
        assert_int_equal(throttle_take(disk->member, false, 1 << 20, s.now_ns + SECOND), 0);
    end(&s);
}

/* Neither a burst that was used up nor a request that took long at the old pace holds up the new one. */
static void test_a_new_pace_forgives(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 10, .burst = 1000, .burst_s = 5}});
    struct disk *disk = join(&s, (struct throttle_share){0}, 4096);
    run(&s, 5 * SECOND);
    throttle_group_set(s.group, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 100}}, s.now_ns);
    run_fresh(&s, 5 * SECOND);
    assert_near(disk->done, 500, 3);
    throttle_group_set(s.group, &(struct throttle_limits){.rates[THROTTLE_BPS] = {.rate = 4096}}, s.now_ns);
    while (throttle_take(disk->member, false, 64 << 20, s.now_ns)) /* four hours' worth */
        s.now_ns += SECOND;
    throttle_group_set(s.group, &(struct throttle_limits){.rates[THROTTLE_BPS] = {.rate = 4096000}}, s.now_ns);
    run_fresh(&s, 5 * SECOND);
    assert_near(disk->done, 5000, 3);
    end(&s);
}

static void test_new_shares_count_at_once(void **state)
{
    (void)state;
    struct simulation s;
    begin(&s, &(struct throttle_limits){.rates[THROTTLE_IOPS] = {.rate = 2000}});
    struct disk *one = join(&s, (struct throttle_share){.limit = 1}, 4096), *two = join(&s, (struct throttle_share){0}, 4096);
    run(&s, SECOND);
    throttle_set_share(one->member, &(struct throttle_share){.weight = 300}, s.now_ns);
    run_fresh(&s, 10 * SECOND);
    assert_near(one->done, 15000, 2);
    throttle_set_share(two->member, &(struct throttle_share){.reservation = 1500}, s.now_ns);
    run_fresh(&s, 10 * SECOND);
    assert_near(two->done, 15000, 2); /* more than its quarter */
    throttle_set_share(two->member, &(struct throttle_share){.limit = 100}, s.now_ns);
    run_fresh(&s, 10 * SECOND);
    assert_near(two->done, 1000, 2);
    end(&s);
}

static void test_what_cannot_be(void **state)
{
    (void)state;
    static const struct throttle_limits bad[] = {
        {.rates[THROTTLE_IOPS] = {.burst = 5}},
        {.rates[THROTTLE_BPS] = {.rate = 10, .burst = 10}},
        {.rates[THROTTLE_READ_IOPS] = {.rate = UINT64_MAX}},
        {.rates[THROTTLE_WRITE_BPS] = {.rate = 1, .burst = 2, .burst_s = 4000}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(throttle_check(&bad[i], NULL, 0, NULL), -EINVAL);
    const struct throttle_limits limits = {.rates[THROTTLE_IOPS] = {.rate = 100}};
    const struct throttle_share much[] = {{.reservation = 60}, {.reservation = 41}}, odd = {.reservation = 5, .limit = 4},
                                heavy = {.weight = 10001};
    assert_int_equal(throttle_check(&limits, much, 2, NULL), -EINVAL);
    assert_int_equal(throttle_check(&limits, much, 1, NULL), 0);
    assert_int_equal(throttle_check(&limits, &odd, 1, NULL), -EINVAL);
    assert_int_equal(throttle_check(&limits, &heavy, 1, NULL), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_disk_gets_the_rate), cmocka_unit_test(test_bytes_of_reads_and_writes),
        cmocka_unit_test(test_burst_has_a_length),     cmocka_unit_test(test_weights),
        cmocka_unit_test(test_reservation_and_limit),  cmocka_unit_test(test_long_requests_count_for_more),
        cmocka_unit_test(test_a_turn_that_is_not_taken), cmocka_unit_test(test_new_limits_count_at_once),
        cmocka_unit_test(test_a_new_pace_forgives),    cmocka_unit_test(test_new_shares_count_at_once),
        cmocka_unit_test(test_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
