/* Fuzz target: the ring walk alone. The input is the guest's memory; whatever is popped must lie inside it. */
#include <assert.h>
#include <string.h>

#include "mem/mem.h"
#include "virtio/queue.h"

#define MEMORY 0x10000u
#define CHAINS_MAX 300

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_iov(const struct mem *mem, const struct iovec *iov, unsigned count, uint64_t len)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < count; i++) {
        uint64_t gpa = mem_gpa_of(mem, iov[i].iov_base);
        assert(iov[i].iov_len && gpa < MEMORY && iov[i].iov_len <= MEMORY - gpa);
        total += iov[i].iov_len;
    }
    assert(total == len);
}

static void walk(struct mem *mem, const uint8_t *setup)
{
    struct virtq q;
    struct virtq_chain chain;
    struct iovec iov[64];
    virtq_init(&q, mem, 256);
    q.size = (uint16_t)(1u << (setup[0] % 10));
    q.desc_gpa = (uint64_t)setup[1] << 8;
    q.avail_gpa = (uint64_t)setup[2] << 8;
    q.used_gpa = (uint64_t)setup[3] << 8;
    if (virtq_enable(&q, setup[4] & 1, setup[4] & 2) < 0)
        return;
    unsigned capacity = 1 + setup[5] % 64;
    for (unsigned i = 0; i < CHAINS_MAX && virtq_pop(&q, &chain, iov, capacity) == 1; i++) {
        assert(chain.out_count + chain.in_count <= capacity && chain.head < q.size);
        check_iov(mem, chain.out, chain.out_count, chain.out_len);
        check_iov(mem, chain.in, chain.in_count, chain.in_len);
        virtq_push(&q, &chain, chain.in_len);
        virtq_needs_signal(&q);
    }
    virtq_quiet(&q);
    virtq_listen(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct mem *mem;
    if (size < 8)
        return 0;
    if (!mem && mem_create(MEMORY, false, &mem, NULL) < 0)
        return 0;
    uint8_t *guest = mem_ptr(mem, 0, MEMORY);
    memset(guest, 0, MEMORY);
    memcpy(guest, data + 8, size - 8 < MEMORY ? size - 8 : MEMORY);
    walk(mem, data);
    return 0;
}
