/* virtio-blk on temporary files, through both I/O engines. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/block.h"
#include "virtio/blk.h"
#include "virtio_guest.h"

#define DISK_SIZE (UINT64_C(8) << 20)
#define F_FLUSH 9
#define F_CONFIG_WCE 11

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };

struct fixture {
    struct guest g;
    struct virtio_device *dev;
    struct guest_queue q[4];
    char path[64];
    uint64_t header, data, status;
};

static struct fixture f;
static const char *engine; /* the I/O engine of this round */

static struct block_node *open_node(const char *path, bool read_only, bool direct)
{
    struct err err = {0};
    struct block_node *node = NULL;
    struct block_options options = {.path = path, .fd = -1, .read_only = read_only, .direct = direct};
    if (block_open(&options, &node, &err) < 0) {
        print_message("%s\n", err.message);
        return NULL;
    }
    return node;
}

static void make_image(char *path, uint64_t size)
{
    strcpy(path, "/tmp/polder-blk-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

static void create(struct virtio_blk_config config, uint64_t features)
{
    struct err err = {0};
    config.io_engine = engine;
    guest_create(&f.g, 64 << 20, true);
    if (virtio_blk_create(&config, &f.g.host, &f.dev, &err) < 0)
        fail_msg("%s", err.message);
    guest_run(&f.g);
    guest_start_device(&f.g, f.dev, features, f.q);
    f.header = guest_alloc(&f.g, 16);
    f.status = guest_alloc(&f.g, 1);
    f.data = guest_alloc(&f.g, 4 << 20);
}

static void destroy(void)
{
    guest_halt(&f.g);
    virtio_free(f.dev);
    guest_free(&f.g);
    unlink(f.path);
}

static void start(bool read_only, bool direct)
{
    make_image(f.path, DISK_SIZE);
    struct block_node *node = open_node(f.path, read_only, direct);
    assert_non_null(node);
    create((struct virtio_blk_config){.id = "disk", .node = node, .queues = 2, .serial = "serial-0123456789abcdef"},
           UINT64_MAX);
}

static void set_header(uint32_t type, uint64_t sector)
{
    uint8_t *h = guest_at(&f.g, f.header, 16);
    store_le32(h, type);
    store_le32(h + 4, 0);
    store_le64(h + 8, sector);
    *(uint8_t *)guest_at(&f.g, f.status, 1) = 0xee;
}

/* One request with `len` data bytes at f.data; returns the status. */
static uint8_t request(unsigned queue, uint32_t type, uint64_t sector, uint32_t len, uint32_t *ret_used)
{
    bool in = type == T_IN || type == T_GET_ID;
    set_header(type, sector);
    struct guest_buf bufs[3] = {{f.header, 16, false}, {f.data, len, in}, {f.status, 1, true}};
    if (!len)
        bufs[1] = bufs[2];
    uint32_t used = guest_do(&f.q[queue], bufs, len ? 3 : 2);
    if (ret_used)
        *ret_used = used;
    return *(uint8_t *)guest_at(&f.g, f.status, 1);
}

static uint8_t *data(void)
{
    return guest_at(&f.g, f.data, 4 << 20);
}

static void fill(uint8_t seed, size_t len)
{
    for (size_t i = 0; i < len; i++)
        data()[i] = (uint8_t)(seed + i * 7 + i / 251);
}

static void check(uint8_t seed, size_t len)
{
    for (size_t i = 0; i < len; i++)
        assert_int_equal(data()[i], (uint8_t)(seed + i * 7 + i / 251));
}

static void read_write(void)
{
    uint32_t used;
    fill(1, 1 << 20);
    assert_int_equal(request(0, T_OUT, 100, 1 << 20, &used), 0);
    assert_int_equal(used, 1);
    memset(data(), 0, 1 << 20);
    assert_int_equal(request(1, T_IN, 100, 1 << 20, &used), 0);
    assert_int_equal(used, (1 << 20) + 1);
    check(1, 1 << 20);
    assert_int_equal(request(0, T_FLUSH, 0, 0, NULL), 0);
    int fd = open(f.path, O_RDONLY);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, 100 * 512 + 5), 1);
    assert_int_equal(byte, (uint8_t)(1 + 5 * 7));
    close(fd);
}

static void test_read_write(void **state)
{
    (void)state;
    start(false, false);
    read_write();
    destroy();
}

static void test_direct_misaligned(void **state)
{
    (void)state;
    start(false, true);
    f.data += 3; /* the file wants more: goes through the bounce buffer */
    uint32_t used;
    fill(9, 2 << 20);
    assert_int_equal(request(0, T_OUT, 8, 2 << 20, &used), 0);
    memset(data(), 0, 2 << 20);
    assert_int_equal(request(0, T_IN, 8, 2 << 20, &used), 0);
    check(9, 2 << 20);
    f.data -= 3;
    read_write();
    destroy();
}

static void test_get_id(void **state)
{
    (void)state;
    start(false, false);
    uint32_t used;
    memset(data(), 0x55, 32);
    assert_int_equal(request(0, T_GET_ID, 0, 20, &used), 0);
    assert_int_equal(used, 21);
    assert_memory_equal(data(), "serial-0123456789abc", 20);
    assert_int_equal(data()[20], 0x55);
    destroy();
}

static void set_range(unsigned i, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    store_le64(data() + i * 16, sector);
    store_le32(data() + i * 16 + 8, sectors);
    store_le32(data() + i * 16 + 12, flags);
}

static void test_discard_and_zeroes(void **state)
{
    (void)state;
    start(false, false);
    fill(3, 4 << 20);
    assert_int_equal(request(0, T_OUT, 0, 4 << 20, NULL), 0);
    assert_int_equal(request(0, T_FLUSH, 0, 0, NULL), 0);
    struct stat before, after;
    stat(f.path, &before);
    set_range(0, 0, 2048, 0);
    set_range(1, 4096, 2048, 0);
    assert_int_equal(request(0, T_DISCARD, 0, 32, NULL), 0);
    set_range(0, 2048, 100, 0);
    set_range(1, 2148, 1, 1);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 32, NULL), 0);
    stat(f.path, &after);
    assert_true(before.st_blocks - after.st_blocks >= 2 * 2048);
    memset(data(), 0xff, 102 * 512);
    assert_int_equal(request(0, T_IN, 2048, 102 * 512, NULL), 0);
    for (unsigned i = 0; i < 101 * 512; i++)
        assert_int_equal(data()[i], 0);
    assert_int_not_equal(data()[101 * 512 + 1], 0);
    destroy();
}

static void test_bad_requests(void **state)
{
    (void)state;
    start(false, false);
    uint64_t sectors = DISK_SIZE / 512;
    assert_int_equal(request(0, 99, 0, 512, NULL), 2);
    assert_int_equal(request(0, T_IN, sectors, 512, NULL), 1);
    assert_int_equal(request(0, T_IN, sectors - 1, 1024, NULL), 1);
    assert_int_equal(request(0, T_IN, UINT64_MAX, 512, NULL), 1);
    assert_int_equal(request(0, T_IN, UINT64_MAX / 512 + 1, 512, NULL), 1);
    assert_int_equal(request(0, T_OUT, 0, 511, NULL), 1);
    assert_int_equal(request(0, T_IN, 0, 513, NULL), 1);
    set_range(0, sectors, 1, 0);
    assert_int_equal(request(0, T_DISCARD, 0, 16, NULL), 1);
    set_range(0, 0, UINT32_MAX, 0);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 16, NULL), 1);
    set_range(0, 0, 1, 1); /* unmap is not for discard */
    assert_int_equal(request(0, T_DISCARD, 0, 16, NULL), 2);
    set_range(0, 0, 1, 0x80);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 16, NULL), 2);
    assert_int_equal(request(0, T_DISCARD, 0, 15, NULL), 1);
    assert_int_equal(request(0, T_DISCARD, 0, 17 * 16, NULL), 1);
    assert_int_equal(guest_status(f.dev) & VIRTIO_STATUS_NEEDS_RESET, 0);
    read_write();
    /* no status byte at all */
    struct guest_buf bufs[1] = {{f.header, 16, false}};
    guest_add(&f.q[0], bufs, 1, false);
    guest_kick(&f.q[0]);
    assert_true(guest_until(guest_status(f.dev) & VIRTIO_STATUS_NEEDS_RESET));
    assert_int_equal(guest_config_interrupts(), 1);
    /* and a driver that starts over finds it working */
    guest_set_status(f.dev, 0);
    assert_int_equal(guest_status(f.dev), 0);
    guest_start_device(&f.g, f.dev, UINT64_MAX, f.q);
    read_write();
    destroy();
}

static void test_read_only(void **state)
{
    (void)state;
    start(true, false);
    assert_int_equal(request(0, T_IN, 0, 512, NULL), 0);
    assert_int_equal(request(0, T_OUT, 0, 512, NULL), 1);
    set_range(0, 0, 1, 0);
    assert_int_equal(request(0, T_DISCARD, 0, 16, NULL), 1);
    assert_int_equal(request(0, T_FLUSH, 0, 0, NULL), 0);
    destroy();
}

/* Header, data and status split over odd boundaries in an indirect table. */
static void test_odd_layout(void **state)
{
    (void)state;
    start(false, false);
    fill(7, 4096);
    set_header(T_OUT, 4);
    struct guest_buf w[] = {{f.header, 5, false}, {f.header + 5, 11, false}, {f.data, 1, false},
                            {f.data + 1, 4000, false}, {f.data + 4001, 95, false}, {f.status, 1, true}};
    uint16_t head = guest_add(&f.q[0], w, 6, true), got;
    guest_kick(&f.q[0]);
    uint32_t len;
    assert_true(guest_used(&f.q[0], &got, &len, 5000));
    assert_int_equal(got, head);
    assert_int_equal(*(uint8_t *)guest_at(&f.g, f.status, 1), 0);
    memset(data(), 0, 8192);
    set_header(T_IN, 4);
    struct guest_buf r[] = {{f.header, 16, false}, {f.data, 100, true}, {f.data + 100, 3997, true}};
    guest_add(&f.q[0], r, 3, true); /* the status is the last byte of the last buffer */
    guest_kick(&f.q[0]);
    assert_true(guest_used(&f.q[0], &got, &len, 5000));
    assert_int_equal(len, 4097);
    check(7, 4096);
    assert_int_equal(data()[4096], 0);
    destroy();
}

/* Many requests at once, on two queues, out of two places. */
static void test_depth(void **state)
{
    (void)state;
    start(false, false);
    uint64_t headers = guest_alloc(&f.g, 16 * 160), statuses = guest_alloc(&f.g, 160);
    memset(guest_at(&f.g, statuses, 160), 0xee, 160);
    for (unsigned i = 0; i < 160; i++) {
        uint8_t *h = guest_at(&f.g, headers + i * 16, 16);
        store_le32(h, T_OUT);
        store_le64(h + 8, i * 8);
        memset(data() + i * 4096, (int)i, 4096);
        struct guest_buf bufs[3] = {{headers + i * 16, 16, false}, {f.data + i * 4096, 4096, false},
                                    {statuses + i, 1, true}};
        guest_add(&f.q[i % 2], bufs, 3, false);
    }
    guest_kick(&f.q[0]);
    guest_kick(&f.q[1]);
    for (unsigned i = 0; i < 160; i++)
        assert_true(guest_used(&f.q[i % 2], NULL, NULL, 5000));
    for (unsigned i = 0; i < 160; i++)
        assert_int_equal(*(uint8_t *)guest_at(&f.g, statuses + i, 1), 0);
    memset(data(), 0xff, 160 * 4096);
    assert_int_equal(request(0, T_IN, 0, 160 * 4096, NULL), 0);
    for (unsigned i = 0; i < 160; i++)
        assert_int_equal(data()[i * 4096 + 17], i);
    destroy();
}

static uint64_t now_ms(void)
{
    return limiter_now() / 1000000;
}

static void test_rate_limit(void **state)
{
    (void)state;
    start(false, false);
    struct limiter_config limit = {.bandwidth = {.size = 1 << 20, .refill_time_ms = 200}};
    virtio_blk_set_limiter(f.dev, &limit);
    uint64_t before = now_ms();
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(request(0, T_OUT, 0, 1 << 20, NULL), 0);
    uint64_t took = now_ms() - before;
    assert_in_range(took, 550, 900);
    limit = (struct limiter_config){.ops = {.size = 10, .one_time_burst = 10, .refill_time_ms = 100}};
    virtio_blk_set_limiter(f.dev, &limit);
    before = now_ms();
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(request(0, T_OUT, 0, 512, NULL), 0);
    took = now_ms() - before;
    assert_in_range(took, 270, 500);
    destroy();
}

static void test_errors_from_the_host(void **state)
{
    (void)state;
    start(false, false);
    assert_int_equal(truncate(f.path, 1 << 20), 0); /* the image shrinks under the guest: EIO, not a crash */
    assert_int_equal(request(0, T_IN, 4096, 4096, NULL), 1);
    assert_int_equal(request(0, T_IN, 2040, 8192, NULL), 1); /* crosses the new end */
    assert_int_equal(request(0, T_IN, 0, 4096, NULL), 0);
    destroy();
}

static void test_no_space(void **state)
{
    (void)state;
    char dir[] = "/tmp/polder-full-XXXXXX", command[160];
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof command, "mount -t tmpfs -o size=1m none %s 2>/dev/null", dir);
    if (geteuid() != 0 || system(command) != 0) {
        rmdir(dir);
        print_message("SKIP: no right to mount a small file system\n");
        skip();
    }
    snprintf(f.path, sizeof f.path, "%s/image", dir);
    int fd = open(f.path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, DISK_SIZE), 0);
    close(fd);
    create((struct virtio_blk_config){.id = "full", .node = open_node(f.path, false, false)}, UINT64_MAX);
    assert_int_equal(request(0, T_OUT, 0, 2 << 20, NULL), 1);
    set_range(0, 0, 4096, 0);
    assert_int_equal(request(0, T_DISCARD, 0, 16, NULL), 0);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 16, NULL), 1); /* no holes allowed: needs the space */
    set_range(0, 0, 4096, 1);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 16, NULL), 0);
    assert_int_equal(request(0, T_OUT, 0, 4096, NULL), 0);
    destroy();
    snprintf(command, sizeof command, "umount %s", dir);
    assert_int_equal(system(command), 0);
    rmdir(dir);
}

static void test_locks(void **state)
{
    (void)state;
    char path[64];
    make_image(path, DISK_SIZE);
    struct block_node *writer = open_node(path, false, false);
    assert_non_null(writer);
    assert_null(open_node(path, false, false));
    assert_null(open_node(path, true, false));
    block_close(writer);
    struct block_node *a = open_node(path, true, false), *b = open_node(path, true, false);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(open_node(path, false, false));
    block_close(a);
    block_close(b);
    unlink(path);
}

static void expect_open_error(const char *path, const char *words)
{
    struct err err = {0};
    struct block_node *node = NULL;
    struct block_options options = {.path = path, .fd = -1};
    assert_true(block_open(&options, &node, &err) < 0);
    if (!strstr(err.message, words))
        fail_msg("'%s' does not say '%s'", err.message, words);
    assert_null(node);
}

static void test_open_errors(void **state)
{
    (void)state;
    char path[64];
    make_image(path, 1000);
    expect_open_error(path, "not a multiple of 512");
    assert_int_equal(truncate(path, 0), 0);
    expect_open_error(path, "empty");
    unlink(path);
    expect_open_error(path, "No such file");
    expect_open_error("/tmp", "neither");
    expect_open_error("/dev/null", "neither");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_open_error(path, "neither");
    unlink(path);
}

static void test_pause_resume_reset(void **state)
{
    (void)state;
    start(false, false);
    virtio_pause(f.dev);
    fill(5, 4096);
    set_header(T_OUT, 0);
    struct guest_buf bufs[3] = {{f.header, 16, false}, {f.data, 4096, false}, {f.status, 1, true}};
    guest_add(&f.q[0], bufs, 3, false);
    guest_kick(&f.q[0]);
    assert_false(guest_used(&f.q[0], NULL, NULL, 50));
    virtio_resume(f.dev);
    assert_true(guest_used(&f.q[0], NULL, NULL, 5000));
    virtio_reset(f.dev);
    assert_int_equal(guest_status(f.dev), 0);
    guest_start_device(&f.g, f.dev, UINT64_MAX, f.q);
    read_write();
    destroy();
}

static void test_replace_node(void **state)
{
    (void)state;
    start(false, false);
    fill(1, 4096);
    assert_int_equal(request(0, T_OUT, 0, 4096, NULL), 0);
    char other[64];
    make_image(other, DISK_SIZE / 2);
    struct err err = {0};
    assert_int_equal(virtio_blk_set_node(f.dev, open_node(other, false, false), &err), 0);
    assert_int_equal(guest_config_interrupts(), 1);
    assert_int_equal(load_le64(f.dev->config), DISK_SIZE / 2 / 512);
    assert_int_equal(request(0, T_IN, 0, 4096, NULL), 0);
    assert_int_equal(data()[1], 0);
    assert_int_equal(request(0, T_IN, DISK_SIZE / 2 / 512, 512, NULL), 1);
    struct block_node *ro = open_node(f.path, true, false); /* the old one was let go */
    assert_non_null(ro);
    assert_int_equal(virtio_blk_set_node(f.dev, ro, &err), -EINVAL);
    block_close(ro);
    destroy();
    unlink(other);
}

static void test_cache_modes(void **state)
{
    (void)state;
    make_image(f.path, DISK_SIZE);
    create((struct virtio_blk_config){.id = "wt", .node = open_node(f.path, false, false), .queues = 2, .writethrough = true},
           UINT64_MAX);
    assert_false(virtio_has(f.dev, F_FLUSH));
    read_write();
    set_range(0, 0, 8, 1);
    assert_int_equal(request(0, T_WRITE_ZEROES, 0, 16, NULL), 0);
    destroy();
    start(false, false);
    pthread_mutex_lock(&f.dev->lock);
    uint8_t off = 0;
    virtio_config_write(f.dev, 32, &off, 1);
    virtio_config_write(f.dev, 0, &off, 1); /* capacity is not the guest's to change */
    pthread_mutex_unlock(&f.dev->lock);
    assert_int_equal(load_le64(f.dev->config), DISK_SIZE / 512);
    read_write();
    destroy();
}

int main(void)
{
    log_threshold = LOG_ERROR;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_write),         cmocka_unit_test(test_direct_misaligned),
        cmocka_unit_test(test_get_id),             cmocka_unit_test(test_discard_and_zeroes),
        cmocka_unit_test(test_bad_requests),       cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_odd_layout),         cmocka_unit_test(test_depth),
        cmocka_unit_test(test_rate_limit),         cmocka_unit_test(test_errors_from_the_host),
        cmocka_unit_test(test_no_space),           cmocka_unit_test(test_locks),
        cmocka_unit_test(test_open_errors),        cmocka_unit_test(test_pause_resume_reset),
        cmocka_unit_test(test_replace_node),       cmocka_unit_test(test_cache_modes),
    };
    struct block_ring *probe;
    int failed = 0;
    const char *const engines[] = {"sync", "io_uring"};
    for (unsigned i = 0; i < 2; i++) {
        engine = engines[i];
        if (block_ring_create(engine, &probe, NULL) < 0) {
            print_message("SKIP: no %s here\n", engine);
            continue;
        }
        block_ring_free(probe);
        failed |= cmocka_run_group_tests_name(engine, tests, NULL, NULL);
    }
    return failed;
}
