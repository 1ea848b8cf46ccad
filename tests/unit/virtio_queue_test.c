/* Ring walking: chains of every shape, wrap-around, event indexes, and each way a ring can be malformed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "mem/mem.h"
#include "virtio/queue.h"

#define SIZE 8
#define DESC 0x1000u
#define AVAIL 0x2000u
#define USED 0x3000u
#define TABLE 0x4000u
#define DATA 0x8000u
#define NEXT 1
#define WRITE 2
#define INDIRECT 4

struct fixture {
    struct mem *mem;
    struct virtq q;
    struct iovec iov[16];
    struct virtq_chain chain;
    uint16_t avail_idx;
};

static uint8_t *at(struct fixture *f, uint64_t gpa)
{
    return mem_ptr(f->mem, gpa, 1);
}

static void desc(struct fixture *f, uint64_t table, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t *d = at(f, table + i * 16);
    store_le64(d, addr);
    store_le32(d + 8, len);
    store_le16(d + 12, flags);
    store_le16(d + 14, next);
}

static void publish(struct fixture *f, uint16_t head)
{
    store_le16(at(f, AVAIL + 4 + (f->avail_idx % SIZE) * 2), head);
    store_le16(at(f, AVAIL + 2), ++f->avail_idx);
}

static int pop(struct fixture *f)
{
    return virtq_pop(&f->q, &f->chain, f->iov, 16);
}

static int enable(struct fixture *f)
{
    f->q.desc_gpa = DESC;
    f->q.avail_gpa = AVAIL;
    f->q.used_gpa = USED;
    return virtq_enable(&f->q, true, true);
}

static int setup(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof f);
    if (mem_create(1 << 20, false, &f.mem, NULL) < 0)
        return -1;
    virtq_init(&f.q, f.mem, SIZE);
    *state = &f;
    return enable(&f);
}

static int teardown(void **state)
{
    mem_free(((struct fixture *)*state)->mem);
    return 0;
}

static void expect_broken(struct fixture *f, const char *why)
{
    assert_int_equal(pop(f), -EINVAL);
    assert_non_null(strstr(f->q.error, why));
    assert_int_equal(pop(f), -EINVAL); /* and stays so */
    assert_int_equal(virtq_pending(&f->q), 0);
}

static void test_direct_chain(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(pop(f), 0);
    desc(f, DESC, 3, DATA, 16, NEXT, 5);
    desc(f, DESC, 5, DATA + 0x100, 0, NEXT, 1); /* empty: left out */
    desc(f, DESC, 1, DATA + 0x200, 512, NEXT | WRITE, 0);
    desc(f, DESC, 0, DATA + 0x1000, 1, WRITE, 77);
    publish(f, 3);
    assert_int_equal(pop(f), 1);
    assert_int_equal(f->chain.head, 3);
    assert_int_equal(f->chain.out_count, 1);
    assert_int_equal(f->chain.in_count, 2);
    assert_int_equal(f->chain.out_len, 16);
    assert_int_equal(f->chain.in_len, 513);
    assert_ptr_equal(f->chain.out[0].iov_base, at(f, DATA));
    assert_ptr_equal(f->chain.in[1].iov_base, at(f, DATA + 0x1000));
    assert_int_equal(pop(f), 0);
}

static void test_indirect_chain(void **state)
{
    struct fixture *f = *state;
    desc(f, DESC, 2, DATA, 8, NEXT, 4); /* one direct descriptor may come before the table */
    desc(f, DESC, 4, TABLE, 3 * 16, INDIRECT, 0);
    desc(f, TABLE, 0, DATA + 8, 8, NEXT, 2);
    desc(f, TABLE, 2, DATA + 16, 8, NEXT | WRITE, 1);
    desc(f, TABLE, 1, DATA + 24, 8, WRITE, 0);
    publish(f, 2);
    assert_int_equal(pop(f), 1);
    assert_int_equal(f->chain.out_len, 16);
    assert_int_equal(f->chain.in_len, 16);
    assert_int_equal(f->chain.out_count + f->chain.in_count, 4);
}

static void test_push_and_wrap(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(mem_dirty_start(f->mem, NULL), 0);
    for (unsigned round = 0; round < 70000; round++) {
        desc(f, DESC, round % SIZE, DATA, 64, WRITE, 0);
        publish(f, round % SIZE);
        assert_int_equal(pop(f), 1);
        virtq_push(&f->q, &f->chain, round % 65);
        uint8_t *element = at(f, USED + 4 + (round % SIZE) * 8);
        assert_int_equal(load_le32(element), round % SIZE);
        assert_int_equal(load_le32(element + 4), round % 65);
        assert_int_equal(load_le16(at(f, USED + 2)), (uint16_t)(round + 1));
    }
    uint64_t dirty[4] = {0};
    mem_dirty_fetch(f->mem, 0, dirty);
    assert_int_equal(dirty[0], 1u << (USED >> 12) | 1u << (DATA >> 12));
}

static void test_unpop(void **state)
{
    struct fixture *f = *state;
    desc(f, DESC, 0, DATA, 64, WRITE, 0);
    publish(f, 0);
    assert_int_equal(pop(f), 1);
    virtq_unpop(&f->q, 1);
    assert_int_equal(virtq_pending(&f->q), 1);
    assert_int_equal(pop(f), 1);
    assert_int_equal(pop(f), 0);
}

static void test_event_index(void **state)
{
    struct fixture *f = *state;
    uint8_t *used_event = at(f, AVAIL + 4 + SIZE * 2), *avail_event = at(f, USED + 4 + SIZE * 8);
    store_le16(used_event, 1); /* interrupt when the second element is used */
    for (unsigned i = 0; i < 3; i++) {
        desc(f, DESC, i, DATA, 64, WRITE, 0);
        publish(f, (uint16_t)i);
    }
    assert_false(virtq_needs_signal(&f->q));
    assert_int_equal(pop(f), 1);
    virtq_push(&f->q, &f->chain, 0);
    assert_false(virtq_needs_signal(&f->q));
    assert_int_equal(pop(f), 1);
    virtq_push(&f->q, &f->chain, 0);
    assert_true(virtq_needs_signal(&f->q));
    assert_false(virtq_needs_signal(&f->q));
    assert_int_equal(load_le16(avail_event), 0);
    assert_true(virtq_listen(&f->q)); /* one is still there */
    assert_int_equal(load_le16(avail_event), 2);
    assert_int_equal(pop(f), 1);
    virtq_push(&f->q, &f->chain, 0);
    assert_false(virtq_needs_signal(&f->q)); /* the driver did not move its event */
    assert_false(virtq_listen(&f->q));
    assert_int_equal(load_le16(avail_event), 3);
}

static void test_flags_without_event_index(void **state)
{
    struct fixture *f = *state;
    virtq_reset(&f->q);
    f->q.desc_gpa = DESC;
    f->q.avail_gpa = AVAIL;
    f->q.used_gpa = USED;
    assert_int_equal(virtq_enable(&f->q, false, false), 0);
    virtq_quiet(&f->q);
    assert_int_equal(load_le16(at(f, USED)), 1);
    assert_false(virtq_listen(&f->q));
    assert_int_equal(load_le16(at(f, USED)), 0);
    for (uint16_t no_interrupt = 0; no_interrupt < 2; no_interrupt++) {
        desc(f, DESC, 0, DATA, 64, WRITE, 0);
        publish(f, 0);
        store_le16(at(f, AVAIL), no_interrupt);
        assert_int_equal(pop(f), 1);
        virtq_push(&f->q, &f->chain, 0);
        assert_int_equal(virtq_needs_signal(&f->q), !no_interrupt);
    }
    desc(f, DESC, 0, TABLE, 16, INDIRECT, 0); /* not negotiated */
    publish(f, 0);
    expect_broken(f, "indirect");
}

static void test_impossible_setups(void **state)
{
    struct fixture *f = *state;
    const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        const char *why;
    } cases[] = {
        {0, DESC, AVAIL, USED, "size"},
        {3, DESC, AVAIL, USED, "size"},
        {16, DESC, AVAIL, USED, "size"},
        {8, DESC + 8, AVAIL, USED, "aligned"},
        {8, DESC, AVAIL + 1, USED, "aligned"},
        {8, DESC, AVAIL, USED + 2, "aligned"},
        {8, 0x100000 - 16, AVAIL, USED, "outside"},
        {8, DESC, 0x100000 - 2, USED, "outside"},
        {8, DESC, AVAIL, UINT64_MAX & ~3ull, "outside"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        virtq_reset(&f->q);
        f->q.size = cases[i].size;
        f->q.desc_gpa = cases[i].desc;
        f->q.avail_gpa = cases[i].avail;
        f->q.used_gpa = cases[i].used;
        assert_int_equal(virtq_enable(&f->q, true, true), -EINVAL);
        assert_non_null(strstr(f->q.error, cases[i].why));
        assert_false(f->q.enabled);
    }
}

static void test_index_ahead(void **state)
{
    struct fixture *f = *state;
    store_le16(at(f, AVAIL + 2), SIZE + 1);
    expect_broken(*state, "ahead");
}

static void test_head_outside(void **state)
{
    publish(*state, SIZE);
    expect_broken(*state, "entry outside");
}

static void test_next_outside(void **state)
{
    desc(*state, DESC, 0, DATA, 8, NEXT, SIZE);
    publish(*state, 0);
    expect_broken(*state, "next descriptor");
}

static void test_loop(void **state)
{
    desc(*state, DESC, 0, DATA, 8, NEXT, 1);
    desc(*state, DESC, 1, DATA, 8, NEXT, 0);
    publish(*state, 0);
    expect_broken(*state, "loop");
}

static void test_loop_of_empty_descriptors(void **state)
{
    desc(*state, DESC, 0, DATA, 0, NEXT, 0);
    publish(*state, 0);
    expect_broken(*state, "loop");
}

static void test_indirect_loop(void **state)
{
    desc(*state, DESC, 0, TABLE, 32, INDIRECT, 0);
    desc(*state, TABLE, 0, DATA, 0, NEXT, 1);
    desc(*state, TABLE, 1, DATA, 0, NEXT, 0);
    publish(*state, 0);
    expect_broken(*state, "loop");
}

static void test_nested_indirect(void **state)
{
    desc(*state, DESC, 0, TABLE, 32, INDIRECT, 0);
    desc(*state, TABLE, 0, TABLE, 32, INDIRECT, 0);
    publish(*state, 0);
    expect_broken(*state, "indirect table");
}

static void test_indirect_sizes(void **state)
{
    struct fixture *f = *state;
    const uint32_t sizes[] = {0, 8, 17, (VIRTQ_MAX_SIZE + 1) * 16};
    for (unsigned i = 0; i < 4; i++) {
        desc(f, DESC, 0, TABLE, sizes[i], INDIRECT, 0);
        publish(f, 0);
        expect_broken(f, "impossible size");
        f->q.error = NULL;
        f->q.next_avail = f->avail_idx;
    }
    desc(f, DESC, 0, 0x100000 - 16, 32, INDIRECT, 0);
    publish(f, 0);
    expect_broken(f, "table outside");
}

static void test_indirect_with_next(void **state)
{
    desc(*state, DESC, 0, TABLE, 32, INDIRECT | NEXT, 1);
    publish(*state, 0);
    expect_broken(*state, "where none may be");
}

static void test_buffer_outside(void **state)
{
    struct fixture *f = *state;
    const uint64_t addrs[] = {0x100000, 0x100000 - 4, UINT64_MAX, UINT64_MAX - 3, 0xc0000000};
    for (unsigned i = 0; i < 5; i++) {
        desc(f, DESC, 0, addrs[i], 8, 0, 0);
        publish(f, 0);
        expect_broken(f, "outside of memory");
        f->q.error = NULL;
        f->q.next_avail = f->avail_idx;
    }
}

static void test_readable_behind_writable(void **state)
{
    desc(*state, DESC, 0, DATA, 8, NEXT | WRITE, 1);
    desc(*state, DESC, 1, DATA, 8, 0, 0);
    publish(*state, 0);
    expect_broken(*state, "readable descriptor");
}

static void test_capacity(void **state)
{
    struct fixture *f = *state;
    desc(f, DESC, 0, DATA, 8, NEXT, 1);
    desc(f, DESC, 1, DATA, 8, NEXT, 2);
    desc(f, DESC, 2, DATA, 8, 0, 0);
    publish(f, 0);
    assert_int_equal(virtq_pop(&f->q, &f->chain, f->iov, 2), -EINVAL);
    assert_non_null(strstr(f->q.error, "too many"));
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(direct_chain),         T(indirect_chain), T(push_and_wrap),
        T(unpop),                T(event_index),    T(flags_without_event_index),
        T(impossible_setups),    T(index_ahead),    T(head_outside),
        T(next_outside),         T(loop),           T(loop_of_empty_descriptors),
        T(indirect_loop),        T(nested_indirect), T(indirect_sizes),
        T(indirect_with_next),   T(buffer_outside), T(readable_behind_writable),
        T(capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
