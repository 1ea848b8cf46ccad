/* virtio-balloon: pages really go back to the host, statistics, reporting and hinting. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "virtio/balloon.h"
#include "virtio_guest.h"

#define MIB (UINT64_C(1) << 20)

static struct guest g;
static struct virtio_device *dev;
static struct guest_queue q[5];

static void start(struct virtio_balloon_config config)
{
    struct err err = {0};
    guest_create(&g, 64 * MIB, true);
    if (virtio_balloon_create(&config, &g.host, &dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&g);
    guest_start_device(&g, dev, UINT64_MAX, q);
}

static void stop(void)
{
    guest_halt(&g);
    virtio_free(dev);
    guest_free(&g);
}

/* What the host really gives. */
static uint64_t resident(void)
{
    static unsigned char pages[64 * MIB / 4096];
    const struct mem_slot *slot = mem_slot(g.mem, 0);
    uint64_t bytes = 0;
    assert_true(slot->len <= 64 * MIB);
    assert_int_equal(mincore(slot->hva, slot->len, pages), 0);
    for (uint64_t i = 0; i < slot->len / 4096; i++)
        bytes += (pages[i] & 1) * UINT64_C(4096);
    return bytes;
}

/* Rings that are touched for the first time take a few pages themselves. */
static void expect_freed(uint64_t before, uint64_t bytes)
{
    uint64_t now = resident();
    assert_true(now < before);
    assert_in_range(before - now, bytes - 65536, bytes);
}

static void test_inflate_returns_memory(void **state)
{
    (void)state;
    start((struct virtio_balloon_config){.target_mib = 16, .deflate_on_oom = true});
    assert_int_equal(dev->queue_count, 2);
    assert_int_equal(load_le32(dev->config), 16 * 256);
    memset(guest_at(&g, 16 * MIB, 32 * MIB), 0xaa, 32 * MIB);
    uint64_t before = resident();
    uint64_t list = guest_alloc(&g, 4096);
    uint8_t *pfns = guest_at(&g, list, 1024);
    for (unsigned at = 0; at < 16 * 256; at += 256) {
        for (unsigned i = 0; i < 256; i++) /* backwards, with a jump: as kernels hand pages out */
            store_le32(pfns + i * 4, (uint32_t)(16 * 256 + at + (i < 100 ? 99 - i : i)));
        struct guest_buf buf = {list, 1024, false};
        assert_int_equal(guest_do(&q[0], &buf, 1), 0);
    }
    expect_freed(before, 16 * MIB);
    assert_int_equal(*(uint8_t *)guest_at(&g, 17 * MIB, 1), 0);
    assert_int_equal(*(uint8_t *)guest_at(&g, 32 * MIB, 1), 0xaa);
    struct guest_buf back = {list, 1024, false};
    assert_int_equal(guest_do(&q[1], &back, 1), 0);
    memset(guest_at(&g, 16 * MIB, MIB), 1, MIB); /* usable again */
    stop();
}

static void test_rubbish_pages(void **state)
{
    (void)state;
    start((struct virtio_balloon_config){0});
    uint64_t list = guest_alloc(&g, 128 * 1024);
    memset(guest_at(&g, list, 1024), 0xff, 1024);
    struct guest_buf buf = {list, 1023, false};
    guest_do(&q[0], &buf, 1);
    store_le32(guest_at(&g, list, 4), 64 * 256); /* first page beyond memory */
    store_le32(guest_at(&g, list + 4, 4), 0xc0000);
    buf.len = 8;
    guest_do(&q[0], &buf, 1);
    assert_int_equal(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET, 0);
    buf.len = 128 * 1024;
    guest_add(&q[0], &buf, 1, false);
    guest_kick(&q[0]);
    assert_true(guest_until(guest_status(dev) & VIRTIO_STATUS_NEEDS_RESET));
    stop();
}

static void put_stats(uint64_t gpa, uint64_t free_bytes)
{
    uint8_t *p = guest_at(&g, gpa, 30);
    store_le16(p, 4); /* free */
    store_le64(p + 2, free_bytes);
    store_le16(p + 10, 99); /* unknown: skipped */
    store_le64(p + 12, 7);
    store_le16(p + 20, 5); /* total */
    store_le64(p + 22, 64 * MIB);
    struct guest_buf buf = {gpa, 30, false};
    guest_add(&q[2], &buf, 1, false);
    guest_kick(&q[2]);
}

static void test_statistics(void **state)
{
    (void)state;
    start((struct virtio_balloon_config){.stats_interval_s = 1, .target_mib = 5});
    struct virtio_balloon_stats stats;
    struct err err = {0};
    uint64_t gpa = guest_alloc(&g, 64);
    put_stats(gpa, 1000);
    assert_true(guest_until(virtio_balloon_stats(dev, &stats, &err) == 0 && stats.known == (1 << 4 | 1 << 5)));
    assert_int_equal(stats.value[4], 1000);
    assert_int_equal(stats.value[5], 64 * MIB);
    assert_int_equal(stats.target_pages, 5 * 256);
    assert_true(guest_used(&q[2], NULL, NULL, 3000)); /* the next round begins */
    put_stats(gpa, 2000);
    assert_true(guest_until(virtio_balloon_stats(dev, &stats, &err) == 0 && stats.value[4] == 2000));
    assert_int_equal(virtio_balloon_set_stats_interval(dev, 0, &err), -ENOTSUP);
    assert_int_equal(virtio_balloon_set_stats_interval(dev, 2, &err), 0);
    stop();
    start((struct virtio_balloon_config){0});
    assert_int_equal(virtio_balloon_stats(dev, &stats, &err), -ENOTSUP);
    assert_int_equal(virtio_balloon_set_stats_interval(dev, 1, &err), -ENOTSUP);
    assert_int_equal(virtio_balloon_set_target(dev, 65, &err), -EINVAL);
    assert_int_equal(virtio_balloon_set_target(dev, 64, &err), 0);
    assert_int_equal(guest_config_interrupts(), 1);
    assert_int_equal(virtio_balloon_hinting_start(dev, true, &err), -ENOTSUP);
    stop();
}

/* Without statistics and hinting the reporting queue is number 2. */
static void test_reporting(void **state)
{
    (void)state;
    start((struct virtio_balloon_config){.free_page_reporting = true});
    assert_int_equal(dev->queue_count, 3);
    memset(guest_at(&g, 32 * MIB, 8 * MIB), 1, 8 * MIB);
    uint64_t before = resident();
    struct guest_buf bufs[2] = {{32 * MIB, 4 * MIB, true}, {38 * MIB, 2 * MIB, true}};
    guest_do(&q[2], bufs, 2);
    expect_freed(before, 6 * MIB);
    assert_int_equal(*(uint8_t *)guest_at(&g, 36 * MIB, 1), 1);
    stop();
}

static void send_cmd(uint32_t cmd, uint64_t gpa)
{
    store_le32(guest_at(&g, gpa, 4), cmd);
    struct guest_buf buf = {gpa, 4, false};
    guest_do(&q[2], &buf, 1);
}

static void test_hinting(void **state)
{
    (void)state;
    struct err err = {0};
    start((struct virtio_balloon_config){.free_page_hinting = true, .free_page_reporting = true});
    struct virtio_balloon_hinting h;
    uint64_t gpa = guest_alloc(&g, 8);
    memset(guest_at(&g, 32 * MIB, 8 * MIB), 1, 8 * MIB);
    uint64_t before = resident();
    struct guest_buf pages = {32 * MIB, 4 * MIB, true};
    guest_do(&q[2], &pages, 1); /* before any run: not ours to take */
    assert_in_range(resident() - before, 0, 65536);
    assert_int_equal(virtio_balloon_hinting_start(dev, true, &err), 0);
    assert_int_equal(load_le32(dev->config + 8), 2);
    send_cmd(2, gpa);
    guest_do(&q[2], &pages, 1);
    expect_freed(before, 4 * MIB);
    send_cmd(0, gpa); /* the guest is through: we let it have its pages */
    assert_int_equal(virtio_balloon_hinting_status(dev, &h, &err), 0);
    assert_true(h.guest_cmd_known);
    assert_int_equal(h.host_cmd, 1);
    assert_int_equal(h.guest_cmd, 0);
    assert_int_equal(virtio_balloon_hinting_start(dev, false, &err), 0);
    assert_int_equal(load_le32(dev->config + 8), 3);
    send_cmd(0, gpa);
    assert_int_equal(load_le32(dev->config + 8), 3);
    assert_int_equal(virtio_balloon_hinting_stop(dev, &err), 0);
    assert_int_equal(load_le32(dev->config + 8), 1);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inflate_returns_memory), cmocka_unit_test(test_rubbish_pages),
        cmocka_unit_test(test_statistics),             cmocka_unit_test(test_reporting),
        cmocka_unit_test(test_hinting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
