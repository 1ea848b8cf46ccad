/* qcow2: counts of every width, fibers, names that images may use, and images that lie. The files are temporary. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

static char folder[64], path[96];

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/polder-qcow2-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/disk.qcow2", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void make(const char *backing)
{
    struct err err = {0};
    struct qcow2_create create = {.path = path,
                                  .size = 1 << 20,
                                  .version = 3,
                                  .cluster_size = 4096,
                                  .refcount_bits = 16,
                                  .backing = backing,
                                  .backing_format = backing ? "raw" : NULL};
    assert_int_equal(qcow2_create(&create, &err), 0);
}

static void poke(uint64_t offset, const void *bytes, size_t len)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pwrite(fd, bytes, len, (off_t)offset) == (ssize_t)len);
    close(fd);
}

static void poke64(uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    poke(offset, bytes, sizeof bytes);
}

static void poke32(uint64_t offset, uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    poke(offset, bytes, sizeof bytes);
}

static int open_image(struct block_options options, struct block_node **ret_node, struct err *err)
{
    options.driver = "qcow2";
    options.path = path;
    options.fd = -1;
    return block_open(&options, ret_node, err);
}

/* Opening fails with these words. */
static void refused(const char *words)
{
    struct err err = {0};
    struct block_node *node;
    assert_true(open_image((struct block_options){0}, &node, &err) < 0);
    if (!strstr(err.message, words))
        fail_msg("'%s' does not say '%s'", err.message, words);
}

/* ---- fibers ---- */

struct steps {
    struct fiber *fiber;
    struct fiber_lock *lock;
    char text[32];
};

static void step(struct steps *steps, const char *what)
{
    strcat(steps->text, what);
}

static void two_waits(void *arg)
{
    struct steps *steps = arg;
    steps->fiber = fiber_current();
    step(steps, "a");
    fiber_wait();
    step(steps, "c");
    fiber_wait();
    step(steps, "e");
}

static void test_fibers_take_turns(void **state)
{
    (void)state;
    struct fiber_pool pool = {0};
    struct steps steps = {0};
    assert_null(fiber_current());
    assert_int_equal(fiber_start(&pool, two_waits, &steps), 0);
    step(&steps, "b");
    fiber_resume(steps.fiber);
    step(&steps, "d");
    assert_null(pool.free);
    fiber_resume(steps.fiber);
    assert_string_equal(steps.text, "abcde");
    assert_non_null(pool.free);
    fiber_pool_drain(&pool);
}

static void locked_wait(void *arg)
{
    struct steps *steps = arg;
    fiber_lock(steps->lock);
    steps->fiber = fiber_current();
    step(steps, "in");
    fiber_wait();
    fiber_unlock(steps->lock);
}

static void test_a_lock_is_handed_over(void **state)
{
    (void)state;
    struct fiber_pool pool = {0};
    struct fiber_lock lock = {0};
    struct steps first = {.lock = &lock}, second = {.lock = &lock};
    assert_int_equal(fiber_start(&pool, locked_wait, &first), 0);
    assert_int_equal(fiber_start(&pool, locked_wait, &second), 0);
    assert_string_equal(second.text, "");
    fiber_resume(first.fiber);
    assert_string_equal(second.text, "in");
    assert_true(lock.held);
    fiber_resume(second.fiber);
    assert_false(lock.held);
    fiber_pool_drain(&pool);
}

/* ---- tables ---- */

static void test_refcounts_of_every_width(void **state)
{
    (void)state;
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[512] = {0};
        uint32_t count = 4096u >> order;
        uint64_t most = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
        for (uint32_t i = 0; i < count; i++)
            refcount_store(block, order, i, (i * UINT64_C(0x9e3779b97f4a7c15)) & most);
        for (uint32_t i = 0; i < count; i++)
            assert_int_equal(refcount_load(block, order, i), (i * UINT64_C(0x9e3779b97f4a7c15)) & most);
        refcount_store(block, order, 3, most);
        refcount_store(block, order, 3, 0);
        assert_int_equal(refcount_load(block, order, 4), (4 * UINT64_C(0x9e3779b97f4a7c15)) & most);
    }
    uint8_t bits[1] = {0};
    refcount_store(bits, 0, 1, 1); /* from the lowest bit on */
    assert_int_equal(bits[0], 2);
}

static void test_compressed_descriptors(void **state)
{
    (void)state;
    struct qcow2 q = {.cluster_bits = 16};
    uint64_t offset, len;
    compressed_range(&q, ENTRY_COMPRESSED | UINT64_C(3) << 54 | 0x12345, &offset, &len);
    assert_int_equal(offset, 0x12345);
    assert_int_equal(len, 4 * 512 - 0x145);
    q.cluster_bits = 9;
    compressed_range(&q, ENTRY_COMPRESSED | UINT64_C(1) << 61 | 0x200, &offset, &len);
    assert_int_equal(offset, 0x200);
    assert_int_equal(len, 1024);
}

/* ---- images that lie ---- */

static void test_numbers_beyond_bounds_are_refused(void **state)
{
    (void)state;
    make(NULL);
    poke64(H_SIZE, UINT64_C(1) << 63);
    refused("L1 entries");
    make(NULL);
    poke64(H_REFTABLE_OFFSET, UINT64_C(1) << 40);
    refused("refcount table lies beyond the end");
    make(NULL);
    poke32(H_REFTABLE_CLUSTERS, UINT32_MAX);
    refused("more than any image needs");
    make(NULL);
    poke32(H_L1_SIZE, UINT32_MAX);
    refused("more than any image needs");
    make(NULL);
    poke32(H_SNAPSHOT_COUNT, 65537);
    refused("snapshots");
    make(NULL);
    poke32(H_CLUSTER_BITS, 22);
    refused("between 512 bytes and 2 MiB");
    make(NULL);
    poke32(H_REFCOUNT_ORDER, 7);
    refused("too wide");
    make(NULL);
    poke32(H_CRYPT, 1);
    refused("needs its key");
    poke32(H_CRYPT, 2); /* without the extension that says where its header is */
    refused("disagree");
    poke32(H_CRYPT, 3);
    refused("not known");
}

static void test_unknown_features_are_named(void **state)
{
    (void)state;
    make(NULL);
    poke64(H_INCOMPATIBLE, UINT64_C(1) << 40);
    refused("bit 40");
    make(NULL);
    /* the table of names begins behind the header: make "corrupt bit" the name of bit 41 */
    uint8_t bit = 41;
    poke(QCOW2_HEADER_LEN + 8 + 48 + 1, &bit, 1);
    poke64(H_INCOMPATIBLE, UINT64_C(1) << 41);
    refused("'corrupt bit'");
}

static void test_a_corrupt_image_is_not_written(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    make(NULL);
    poke64(H_INCOMPATIBLE, INCOMPATIBLE_CORRUPT);
    refused("check -r all");
    assert_int_equal(open_image((struct block_options){.read_only = true}, &node, &err), 0);
    block_close(node);
}

static void test_a_dirty_image_is_repaired(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    make(NULL);
    poke64(H_INCOMPATIBLE, INCOMPATIBLE_DIRTY);
    poke(2 * 4096, "\0\0\0\0", 4); /* header and refcount table are not counted */
    assert_int_equal(open_image((struct block_options){0}, &node, &err), 0);
    block_close(node);
    uint8_t header[104];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, header, sizeof header, 0), sizeof header);
    close(fd);
    assert_int_equal(load_be64(header + H_INCOMPATIBLE), 0);
}

struct checking {
    struct block_node *node;
    enum qcow2_repair repair;
    struct qcow2_check check;
};

static int check_image(void *arg)
{
    struct checking *checking = arg;
    checking->check = (struct qcow2_check){0};
    return qcow2_check(checking->node, checking->repair, &checking->check, NULL);
}

/* As a crash leaves it between the count and the write that makes the file longer. */
static void test_a_count_behind_the_end_is_a_leak(void **state)
{
    (void)state;
    struct err err = {0};
    struct checking checking = {.repair = QCOW2_REPAIR_LEAKS};
    make(NULL);
    poke(2 * 4096 + 2 * 100, "\0\1", 2);
    assert_int_equal(open_image((struct block_options){0}, &checking.node, &err), 0);
    assert_int_equal(block_run_alone(checking.node, check_image, &checking, &err), 0);
    assert_int_equal(checking.check.leaks_fixed, 1);
    assert_true(checking.check.image_end < 100 * 4096);
    checking.repair = QCOW2_CHECK_ONLY;
    assert_int_equal(block_run_alone(checking.node, check_image, &checking, &err), 0);
    assert_int_equal(checking.check.leaks + checking.check.corruptions, 0);
    block_close(checking.node);
}

/* ---- freezing ---- */

static int add_bitmap(void *arg)
{
    struct qcow2_bitmap_change change = {.action = QCOW2_BITMAP_ADD, .name = "day"};
    return qcow2_bitmap_change(arg, &change, NULL);
}

static int fail_to_freeze(struct block_node *node)
{
    (void)node;
    return -EBUSY;
}

static int freeze(void *arg)
{
    struct block_node *node = arg;
    return node->class->freeze(node);
}

static uint32_t first_bitmap_flags(const struct qcow2 *q)
{
    uint8_t flags[4];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, flags, sizeof flags, (off_t)q->bitmaps.directory + 12), sizeof flags);
    close(fd);
    return load_be32(flags);
}

/* Who writes goes on writing: should it die, the bitmap has missed something. */
static void test_a_bitmap_is_in_use_after_a_freeze_that_failed(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    make(NULL);
    assert_int_equal(open_image((struct block_options){0}, &node, &err), 0);
    assert_int_equal(block_run_alone(node, add_bitmap, node, &err), 0);
    struct block_node *file = qcow2_of(node)->file;
    struct block_class class = *file->class;
    class.freeze = fail_to_freeze;
    file->class = &class;
    assert_int_equal(block_run_alone(node, freeze, node, &err), -EBUSY);
    assert_true(first_bitmap_flags(qcow2_of(node)) & BITMAP_IN_USE);
    file->class = &block_file;
    assert_int_equal(block_run_alone(node, freeze, node, &err), 0);
    assert_false(first_bitmap_flags(qcow2_of(node)) & BITMAP_IN_USE);
    block_close(node);
}

/* ---- requests ---- */

static void count_done(struct block_request *request, int result)
{
    assert_int_equal(result, 0);
    ++*(unsigned *)request->user;
}

static struct block_ring *attach(struct block_node *node, const char *engine)
{
    struct err err = {0};
    struct block_ring *ring;
    assert_int_equal(block_ring_create(engine, &ring, &err), 0);
    assert_int_equal(block_ring_start(ring, &err), 0);
    assert_int_equal(block_attach(node, ring, &err), 0);
    return ring;
}

/* Both writes need the same new cluster; the second has the lock when the first comes back from its data, behind a flush. */
static void test_writes_to_one_cluster_around_a_flush(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    unsigned done = 0;
    static uint8_t data[2][512] = {{1}, {2}}, back[1024];
    struct iovec iov[2] = {{data[0], 512}, {data[1], 512}}, whole = {back, sizeof back};
    make(NULL);
    assert_int_equal(open_image((struct block_options){0}, &node, &err), 0);
    struct block_ring *ring = attach(node, "sync");
    struct block_request requests[] = {
        {.op = BLOCK_WRITE, .len = 512, .iov = &iov[0], .iov_count = 1},
        {.op = BLOCK_FLUSH},
        {.op = BLOCK_WRITE, .offset = 512, .len = 512, .iov = &iov[1], .iov_count = 1},
        {.op = BLOCK_READ, .len = 1024, .iov = &whole, .iov_count = 1},
    };
    for (unsigned i = 0; i < 4; i++) {
        requests[i].user = &done;
        requests[i].done = count_done;
        while (i == 3 && done < 3) {
            block_ring_wait(ring, 0);
            block_ring_dispatch(ring);
        }
        block_submit(node, &requests[i]);
    }
    while (done < 4) {
        block_ring_wait(ring, 0);
        block_ring_dispatch(ring);
    }
    assert_int_equal(back[0], 1);
    assert_int_equal(back[512], 2);
    block_close(node);
    block_ring_free(ring);
}

static int new_file(const char *name, off_t size)
{
    char file[128];
    snprintf(file, sizeof file, "%s/%s", folder, name);
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static void dispatch_until(struct block_ring *ring, const unsigned *done, unsigned count)
{
    while (*done < count) {
        block_ring_wait(ring, UINT64_MAX);
        block_ring_dispatch(ring);
    }
}

/* The read finds nothing behind the end of the file, which has grown when its completion is looked at. */
static void test_a_read_beside_the_write_that_makes_the_file_longer(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    unsigned done = 0;
    static uint8_t data[4096] = {1}, back[4096] = {2};
    struct iovec to = {back, sizeof back}, from = {data, sizeof data};
    struct block_options options = {.path = "grows", .fd = new_file("grows", 0), .below = true};
    assert_int_equal(block_open(&options, &node, &err), 0);
    struct block_ring *ring = attach(node, NULL);
    struct block_request requests[] = {
        {.op = BLOCK_READ, .offset = 4096, .len = 4096, .iov = &to, .iov_count = 1, .done = count_done, .user = &done},
        {.op = BLOCK_WRITE, .offset = 8192, .len = 4096, .iov = &from, .iov_count = 1, .done = count_done, .user = &done},
    };
    for (unsigned i = 0; i < 2; i++)
        block_submit(node, &requests[i]);
    dispatch_until(ring, &done, 2);
    assert_int_equal(back[0], 0);
    block_close(node);
    block_ring_free(ring);
}

/* The same past the cache, where the file ended in the midst of a block: direct I/O cannot go on there. (XFS refuses it; ext4 takes
 * the cache.) */
static void test_a_direct_read_across_an_odd_end(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    unsigned done = 0;
    static uint8_t data[5000], back[4096] __attribute__((aligned(4096)));
    struct iovec to = {back, sizeof back};
    struct block_options options = {.path = "odd", .fd = new_file("odd", 0), .below = true, .direct = true};
    assert_int_equal(write(options.fd, data, sizeof data), sizeof data);
    if (fcntl(options.fd, F_SETFL, O_DIRECT) < 0)
        skip(); /* tmpfs of older kernels */
    memset(back, 2, sizeof back);
    assert_int_equal(block_open(&options, &node, &err), 0);
    struct block_ring *ring = attach(node, NULL);
    struct block_request request = {
        .op = BLOCK_READ, .offset = 4096, .len = 4096, .iov = &to, .iov_count = 1, .done = count_done, .user = &done};
    block_submit(node, &request);
    block_ring_wait(ring, UINT64_MAX); /* it has read 904 bytes */
    assert_int_equal(block_resize(node, 12288, &err), 0);
    dispatch_until(ring, &done, 1);
    for (unsigned i = 0; i < sizeof back; i++)
        assert_int_equal(back[i], 0);
    block_close(node);
    block_ring_free(ring);
}

/* ---- names ---- */

static void make_file(const char *name)
{
    close(new_file(name, 8192));
}

static void test_backing_files_stay_in_the_folder(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    make_file("base");
    make("base");
    assert_int_equal(open_image((struct block_options){0}, &node, &err), 0);
    block_close(node);
    make("/etc/hostname");
    refused("--allow-backing");
    make("../../etc/hostname");
    refused("--allow-backing");
    char link[128];
    snprintf(link, sizeof link, "%s/link", folder);
    assert_int_equal(symlink("/etc/hostname", link), 0);
    make("link");
    refused("--allow-backing");
    const char *const dirs[] = {"/etc", NULL};
    assert_int_equal(open_image((struct block_options){.allow_dirs = dirs}, &node, &err), 0);
    block_close(node);
    make("json:{}");
    refused("only files");
    make("/dev/null");
    refused("neither a regular file");
}

static void test_an_image_that_backs_itself(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_node *node;
    struct qcow2_create create = {.path = path,
                                  .size = 1 << 20,
                                  .version = 3,
                                  .cluster_size = 4096,
                                  .refcount_bits = 16,
                                  .backing = "disk.qcow2",
                                  .backing_format = "qcow2"};
    assert_int_equal(qcow2_create(&create, &err), 0);
    assert_true(open_image((struct block_options){.read_only = true}, &node, &err) == -ELOOP);
}

static void test_guesses(void **state)
{
    (void)state;
    const char *format;
    char other[128];
    make(NULL);
    assert_int_equal(block_guess_format(path, &format), 0);
    assert_string_equal(format, "qcow2");
    snprintf(other, sizeof other, "%s/disk.img", folder);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(block_guess_format(other, &format), -EINVAL);
    make_file("plain.qcow2");
    snprintf(other, sizeof other, "%s/plain.qcow2", folder);
    assert_int_equal(block_guess_format(other, &format), 0);
    assert_string_equal(format, "raw");
    assert_int_equal(block_guess_format("/nope/x.qcow2", &format), -ENOENT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fibers_take_turns),
        cmocka_unit_test(test_a_lock_is_handed_over),
        cmocka_unit_test(test_refcounts_of_every_width),
        cmocka_unit_test(test_compressed_descriptors),
        cmocka_unit_test_setup_teardown(test_a_read_beside_the_write_that_makes_the_file_longer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_direct_read_across_an_odd_end, set_up, tear_down),
        TEST(test_numbers_beyond_bounds_are_refused),
        TEST(test_unknown_features_are_named),
        TEST(test_a_corrupt_image_is_not_written),
        TEST(test_a_dirty_image_is_repaired),
        TEST(test_a_count_behind_the_end_is_a_leak),
        TEST(test_a_bitmap_is_in_use_after_a_freeze_that_failed),
        TEST(test_writes_to_one_cluster_around_a_flush),
        TEST(test_backing_files_stay_in_the_folder),
        TEST(test_an_image_that_backs_itself),
        TEST(test_guesses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
