/* Memory: pointer chases in L1, L2 and beyond the TLB, copies, a hash table, malloc and free, atomics. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"

enum { CHASE_STEPS = 500000, CHASE_FAR_STEPS = 50000, LINE = 64 };

/* A random cycle through `bytes` of lines, as one pointer a line. */
static void **chase_make(size_t bytes)
{
    size_t count = bytes / LINE;
    char *lines = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *order = malloc(count * sizeof *order);
    if (lines == MAP_FAILED || !order)
        harness_fail("out of memory");
    madvise(lines, bytes, MADV_NOHUGEPAGE);
    struct random r = {23};
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = random_next(&r) % (i + 1);
        uint32_t swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    for (size_t i = 0; i < count; i++)
        *(void **)(lines + (size_t)order[i] * LINE) = lines + (size_t)order[(i + 1) % count] * LINE;
    void **first = (void **)(lines + (size_t)order[0] * LINE);
    free(order);
    return first;
}

static void **chase_l1, **chase_l2, **chase_far;

static void chase_l1_setup(void)
{
    chase_l1 = chase_make(16 << 10);
}

static void chase_l2_setup(void)
{
    chase_l2 = chase_make(256 << 10);
}

static void chase_far_setup(void)
{
    chase_far = chase_make(64 << 20);
}

static uint64_t chase(void **first, int steps)
{
    void **p = first;
    for (int i = 0; i < steps; i++)
        p = *p;
    return (uint64_t)((char *)p - (char *)first);
}

static uint64_t chase_l1_round(void)
{
    return chase(chase_l1, CHASE_STEPS);
}

static uint64_t chase_l2_round(void)
{
    return chase(chase_l2, CHASE_STEPS);
}

static uint64_t chase_far_round(void)
{
    return chase(chase_far, CHASE_FAR_STEPS);
}

enum { WORDS = 1 << 15 };
static uint64_t words_from[WORDS], words_to[WORDS];

static void words_setup(void)
{
    struct random r = {29};
    for (int i = 0; i < WORDS; i++)
        words_from[i] = random_next(&r);
}

static uint64_t copy8_round(void)
{
    for (int pass = 0; pass < 100; pass++)
        for (int i = 0; i < WORDS; i++) {
            uint64_t word = words_from[i];
            OPAQUE(word); /* one word at a time, no memcpy */
            words_to[i] = word;
        }
    return words_to[0] ^ words_to[WORDS - 1];
}

static uint64_t rep_movs_round(void)
{
    for (int pass = 0; pass < 20000; pass++) {
        void *to = (char *)words_to + (pass & 63), *from = (char *)words_from + 64;
        uint64_t count = 256;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    }
    return words_to[2];
}

enum { SLOTS = 1 << 16, ENTRIES = 40000 };
static struct slot {
    uint64_t key, value;
} slots[SLOTS];

static struct slot *find_slot(uint64_t key)
{
    size_t at = key * 0x9e3779b97f4a7c15u >> 48;
    while (slots[at].key && slots[at].key != key)
        at = (at + 1) % SLOTS;
    return &slots[at];
}

static uint64_t hash_table_round(void)
{
    struct random r = {31};
    uint64_t sum = 0;
    memset(slots, 0, sizeof slots);
    for (int i = 0; i < ENTRIES; i++) {
        uint64_t key = random_next(&r) | 1;
        struct slot *s = find_slot(key);
        s->key = key;
        s->value += (uint64_t)i;
    }
    for (int pass = 0; pass < 4; pass++) {
        r.state = 31;
        for (int i = 0; i < ENTRIES; i++)
            sum += find_slot((random_next(&r) | 1) + (uint64_t)(pass & 1) * 2)->value;
    }
    return sum;
}

static uint64_t malloc_round(void)
{
    static char *held[1024];
    struct random r = {37};
    uint64_t sum = 0;
    memset(held, 0, sizeof held);
    for (int i = 0; i < 100000; i++) {
        uint64_t x = random_next(&r);
        char **p = &held[x & 1023];
        if (*p)
            sum += (uint8_t)**p;
        free(*p);
        *p = malloc(16 + (x >> 10 & (x & 1 << 30 ? 0x7ff : 0x7f)));
        if (!*p)
            harness_fail("out of memory");
        **p = (char)x;
    }
    for (int i = 0; i < 1024; i++)
        free(held[i]);
    return sum;
}

static uint64_t atomics_round(void)
{
    static _Atomic uint64_t counters[8];
    static _Atomic uint32_t lock;
    for (int i = 0; i < 8; i++)
        atomic_store(&counters[i], 0);
    for (uint64_t i = 0; i < 300000; i++) {
        uint32_t zero = 0;
        while (!atomic_compare_exchange_weak(&lock, &zero, 1))
            zero = 0;
        atomic_fetch_add(&counters[i & 7], i);
        atomic_exchange(&lock, 0);
    }
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++)
        sum = checksum_add(sum, atomic_load(&counters[i]));
    return sum;
}

const struct kernel kernels_memory[] = {
    {.name = "chase-l1", .unit = "load", .units = CHASE_STEPS, .round = chase_l1_round, .setup = chase_l1_setup},
    {.name = "chase-l2", .unit = "load", .units = CHASE_STEPS, .round = chase_l2_round, .setup = chase_l2_setup},
    {.name = "chase-tlb-miss", .unit = "load", .units = CHASE_FAR_STEPS, .round = chase_far_round, .setup = chase_far_setup},
    {.name = "copy-8-bytes", .unit = "word", .units = 100.0 * WORDS, .round = copy8_round, .setup = words_setup},
    {.name = "rep-movsb-256", .unit = "copy", .units = 20000, .round = rep_movs_round, .setup = words_setup},
    {.name = "hash-table", .unit = "lookup", .units = 5.0 * ENTRIES, .round = hash_table_round},
    {.name = "malloc-free", .unit = "pair", .units = 1e5, .round = malloc_round},
    {.name = "atomics", .unit = "locked section", .units = 3e5, .round = atomics_round},
};
const size_t kernels_memory_count = KERNEL_COUNT(kernels_memory);
