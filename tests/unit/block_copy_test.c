/* Copies of disks that are written meanwhile: random requests from several fibers, with and without a target that fails.
 * A node of the test's own holds the bytes, answers late and in random order, and says what was done to it. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/iov.h"
#include "block/copy.h"
#include "block/fiber.h"

#define SIZE (20u << 20 | 20480) /* more than is copied at once; the last chunk is cut */
#define MASK ((1u << 20) - 1)
#define WRITERS 6u
#define WRITES 120u

struct late_node {
    struct block_node node; /* first */
    uint8_t *bytes;
    struct block_request *waiting;
    unsigned fail_in; /* writes until one fails; 0: never */
};

static struct late_node nodes[2];
static unsigned random_state;

static unsigned pick(unsigned below)
{
    random_state = random_state * 1103515245u + 12345u;
    return (random_state >> 8) % below;
}

static void late_submit(struct block_node *node, struct block_request *request)
{
    struct late_node *late = (struct late_node *)node;
    request->next = late->waiting;
    late->waiting = request;
}

static int late_do(struct late_node *late, struct block_request *r)
{
    if (r->op == BLOCK_WRITE_ZEROES && r->fast)
        return -ENOTSUP;
    if (r->op != BLOCK_READ && late->fail_in && --late->fail_in == 0)
        return -ENOSPC;
    assert_true(r->offset <= SIZE && r->len <= SIZE - r->offset);
    if (r->op == BLOCK_READ)
        iov_write(r->iov, r->iov_count, 0, late->bytes + r->offset, r->len);
    else if (r->op == BLOCK_WRITE)
        iov_read(r->iov, r->iov_count, 0, late->bytes + r->offset, r->len);
    else
        memset(late->bytes + r->offset, 0, r->len);
    return 0;
}

/* Serves one request of those that wait. */
static bool late_step(struct late_node *late)
{
    struct block_request **at = &late->waiting;
    for (unsigned skip = pick(4); skip && *at && (*at)->next; skip--)
        at = &(*at)->next;
    struct block_request *request = *at;
    if (!request)
        return false;
    *at = request->next;
    request->done(request, late_do(late, request));
    return true;
}

static void late_close(struct block_node *node)
{
    free(((struct late_node *)node)->bytes);
}

static bool is_zero(const struct late_node *late, uint64_t offset)
{
    static const uint8_t zeroes[512];
    return memcmp(late->bytes + offset, zeroes, 512) == 0;
}

static int late_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    const struct late_node *late = (struct late_node *)node;
    uint64_t end = offset + 512;
    bool zero = is_zero(late, offset);
    while (end < offset + len && is_zero(late, end) == zero)
        end += 512;
    *ret_extent = (struct block_extent){.len = end - offset, .present = !zero, .data = !zero, .zero = zero};
    return 0;
}

static const struct block_class late_class = {
    .name = "late", .submit = late_submit, .status = late_status, .close = late_close};

static struct block_node *late_new(struct late_node *late, unsigned fail_in)
{
    *late = (struct late_node){.node = {.class = &late_class, .size = SIZE, .block_size = 512, .name = "late"},
                               .bytes = calloc(1, SIZE),
                               .fail_in = fail_in};
    assert_non_null(late->bytes);
    return &late->node;
}

struct writer {
    struct block_node *node;
    uint8_t *expected; /* what the disk holds */
    unsigned from, to; /* its own part */
    bool ended;
};

static void write_randomly(void *arg)
{
    struct writer *writer = arg;
    uint8_t buffer[16384], read[16384];
    for (unsigned i = 0; i < WRITES; i++) {
        unsigned len = 512 * (1 + pick(32)), offset = writer->from + 512 * pick((writer->to - writer->from - len) / 512 + 1);
        unsigned edge = (offset | MASK) + 1 - len / 1024 * 512; /* across what is copied at once */
        if (pick(2) && edge + len <= writer->to)
            offset = edge;
        enum block_op op = pick(8) ? BLOCK_WRITE : BLOCK_WRITE_ZEROES;
        if (op == BLOCK_WRITE_ZEROES) { /* which no copy ends for */
            struct block_request fast = {.op = op, .fast = true, .offset = offset, .len = len};
            assert_int_equal(block_do_request(writer->node, &fast), -ENOTSUP);
        }
        memset(buffer, op == BLOCK_WRITE ? (int)(1 + pick(255)) : 0, len);
        assert_int_equal(block_do(writer->node, op, offset, op == BLOCK_WRITE ? buffer : NULL, len), 0);
        memcpy(writer->expected + offset, buffer, len);
        assert_int_equal(block_do(writer->node, BLOCK_READ, offset, read, len), 0);
        assert_memory_equal(read, buffer, len);
    }
    assert_int_equal(block_do(writer->node, BLOCK_FLUSH, 0, NULL, 0), 0);
    writer->ended = true;
}

static void count_changes(void *arg)
{
    ++*(unsigned *)arg;
}

static void stop(void *arg)
{
    block_copy_stop(arg);
}

static void steps_until_idle(void)
{
    bool worked = true;
    while (worked) {
        worked = late_step(&nodes[pick(2)]);
        for (unsigned i = 0; i < 2; i++)
            worked |= late_step(&nodes[i]);
    }
}

/* Copies a disk of random bytes while writers are at it; ret_old gets what it held at the start. */
static struct block_node *run_copy(enum block_copy_mode mode, unsigned fail_in, uint8_t **ret_old, uint8_t **ret_expected,
                                   unsigned *changes)
{
    struct err err = {0};
    struct block_copy_options options = {.mode = mode,
                                         .source = late_new(&nodes[0], 0),
                                         .target = late_new(&nodes[1], fail_in),
                                         .changed = count_changes,
                                         .arg = changes};
    struct block_node *copy = NULL;
    struct fiber_pool pool = {0};
    struct writer writers[WRITERS];
    for (unsigned i = 0; i < SIZE; i += 512)
        memset(nodes[0].bytes + i, (int)pick(256), 512);
    *ret_old = malloc(SIZE);
    *ret_expected = malloc(SIZE);
    assert_true(*ret_old && *ret_expected);
    memcpy(*ret_old, nodes[0].bytes, SIZE);
    memcpy(*ret_expected, nodes[0].bytes, SIZE);
    assert_int_equal(block_copy_create(&options, &copy, &err), 0);
    assert_int_equal(block_copy_start(copy), 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        /* each has bytes of its own; the first three share chunks */
        unsigned share = i < 3 ? 43 * 512 : SIZE / 512 / WRITERS * 512;
        writers[i] = (struct writer){.node = copy, .expected = *ret_expected, .from = i * share, .to = (i + 1) * share};
        assert_int_equal(fiber_start(&pool, write_randomly, &writers[i]), 0);
    }
    steps_until_idle();
    for (unsigned i = 0; i < WRITERS; i++)
        assert_true(writers[i].ended);
    assert_int_equal(fiber_start(&pool, stop, copy), 0);
    steps_until_idle();
    assert_memory_equal(nodes[0].bytes, *ret_expected, SIZE);
    fiber_pool_drain(&pool);
    return copy;
}

static void check_copy(enum block_copy_mode mode, unsigned seed, unsigned fail_in)
{
    uint8_t *old, *expected;
    unsigned changes = 0;
    struct block_copy_status status;
    struct block_node *source, *target;
    random_state = seed;
    struct block_node *copy = run_copy(mode, fail_in, &old, &expected, &changes);
    block_copy_status(copy, &status);
    if (fail_in) {
        assert_int_equal(status.state, BLOCK_COPY_FAILED);
        assert_int_equal(status.error, -ENOSPC);
    } else {
        assert_int_equal(status.state, mode == BLOCK_COPY_MIRROR ? BLOCK_COPY_READY : BLOCK_COPY_DONE);
        assert_true(status.copied == SIZE && status.size == SIZE);
        assert_memory_equal(nodes[1].bytes, mode == BLOCK_COPY_MIRROR ? expected : old, SIZE);
    }
    assert_int_equal(changes, 1);
    block_copy_take(copy, &source, &target);
    assert_true(source == &nodes[0].node && target == &nodes[1].node);
    block_close(source);
    block_close(target);
    free(old);
    free(expected);
}

static void test_backup(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 10; seed++)
        check_copy(BLOCK_COPY_BACKUP, seed, 0);
}

static void test_mirror(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 10; seed++)
        check_copy(BLOCK_COPY_MIRROR, seed, 0);
}

struct edge_write {
    struct block_node *node;
    enum block_op op;
    uint32_t offset, len;
    bool ended;
};

static void write_once(void *arg)
{
    struct edge_write *w = arg;
    static uint8_t data[2u << 20];
    memset(data, 1, sizeof data);
    assert_int_equal(block_do(w->node, w->op, w->offset, w->op == BLOCK_WRITE ? data : NULL, w->len), 0);
    w->ended = true;
}

/* A write goes to what is being copied and to what will be; what it wrote there becomes zeroes before it is copied. */
static void test_zeroes_behind_a_write_across_the_frontier(void **state)
{
    (void)state;
    struct err err = {0};
    unsigned changes = 0;
    struct block_node *copy, *source, *target;
    struct fiber_pool pool = {0};
    struct block_copy_options options = {.mode = BLOCK_COPY_MIRROR,
                                         .source = late_new(&nodes[0], 0),
                                         .target = late_new(&nodes[1], 0),
                                         .changed = count_changes,
                                         .arg = &changes};
    memset(nodes[0].bytes, 2, SIZE);
    assert_int_equal(block_copy_create(&options, &copy, &err), 0);
    assert_int_equal(block_copy_start(copy), 0); /* 8 workers take 1 MiB each */
    struct edge_write writes[] = {{.node = copy, .op = BLOCK_WRITE, .offset = 7u << 20, .len = 2u << 20},
                                  {.node = copy, .op = BLOCK_WRITE_ZEROES, .offset = 8u << 20, .len = 1u << 20}};
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fiber_start(&pool, write_once, &writes[i]), 0);
    steps_until_idle();
    assert_true(writes[0].ended && writes[1].ended);
    assert_int_equal(fiber_start(&pool, stop, copy), 0);
    steps_until_idle();
    assert_int_equal(nodes[0].bytes[8u << 20], 0);
    assert_memory_equal(nodes[1].bytes, nodes[0].bytes, SIZE);
    fiber_pool_drain(&pool);
    block_copy_take(copy, &source, &target);
    block_close(source);
    block_close(target);
}

static void test_target_fails(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 10; seed++) {
        check_copy(BLOCK_COPY_BACKUP, seed, 1 + seed % 6);
        check_copy(BLOCK_COPY_MIRROR, seed, 1 + seed % 6);
    }
}

static void test_sizes_differ(void **state)
{
    (void)state;
    struct err err = {0};
    struct block_copy_options options = {.source = late_new(&nodes[0], 0), .target = late_new(&nodes[1], 0)};
    struct block_node *copy;
    nodes[1].node.size -= 512;
    assert_int_equal(block_copy_create(&options, &copy, &err), -EINVAL);
    assert_non_null(strstr(err.message, "make the target as large"));
    nodes[1].node.size = SIZE;
    nodes[1].node.block_size = 4096;
    assert_int_equal(block_copy_create(&options, &copy, &err), -EINVAL);
    block_close(options.source);
    block_close(options.target);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backup),
        cmocka_unit_test(test_mirror),
        cmocka_unit_test(test_zeroes_behind_a_write_across_the_frontier),
        cmocka_unit_test(test_target_fails),
        cmocka_unit_test(test_sizes_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
