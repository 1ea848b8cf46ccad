/* Control flow: calls and returns, indirect calls, switches, an interpreter, branches that are hard to foresee, sorting. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static __attribute__((noinline)) uint64_t fibonacci(uint64_t n)
{
    OPAQUE(n); /* else gcc unrolls the recursion */
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t calls_round(void)
{
    return fibonacci(29);
}

#define TARGET(n) \
    static __attribute__((noinline)) uint64_t target##n(uint64_t x) \
    { \
        return (x ^ n) * 3 + (x >> (n + 1)); \
    }
TARGET(0) TARGET(1) TARGET(2) TARGET(3) TARGET(4) TARGET(5) TARGET(6) TARGET(7)

static uint64_t (*const targets[])(uint64_t) = {target0, target1, target2, target3, target4, target5, target6, target7};

static uint64_t indirect_round(void)
{
    uint64_t x = 1;
    for (int i = 0; i < 3000000; i++)
        x = targets[(unsigned)(i * 5 + (i >> 3)) & 7](x);
    return x;
}

enum op { PUSH, ADD, SUB, MULTIPLY, SWAP, COPY, LOAD, STORE, LESS, JUMP_IF, JUMP, HALT };

/* for (i = 0, s = 1; i < LOOPS; i++) s = s * 3 + i; */
enum { LOOPS = 150000, BYTECODES_PER_LOOP = 15 };
static const int64_t program[] = {
    PUSH,     0, STORE, 0, PUSH, 1, STORE, 1, /* at 0 */
    LOAD,     0, PUSH, LOOPS, LESS,           /* 8: the test */
    JUMP_IF,  16, HALT,                       /* 13 */
    LOAD,     1, PUSH, 3, MULTIPLY, LOAD, 0,  /* 16: the body */
    ADD,      STORE, 1,                       /* 23 */
    LOAD,     0, PUSH, 1, ADD, STORE, 0,      /* 26 */
    JUMP,     8,
};

static uint64_t interpret(const int64_t *code)
{
    uint64_t stack[16], variables[4] = {0}, *top = stack, swap;
    for (const int64_t *pc = code;;) {
        switch ((enum op)*pc++) {
        case PUSH: *++top = (uint64_t)*pc++; break;
        case ADD: top--, *top += top[1]; break;
        case SUB: top--, *top -= top[1]; break;
        case MULTIPLY: top--, *top *= top[1]; break;
        case SWAP: swap = top[0], top[0] = top[-1], top[-1] = swap; break;
        case COPY: top[1] = top[0], top++; break;
        case LOAD: *++top = variables[*pc++]; break;
        case STORE: variables[*pc++] = *top--; break;
        case LESS: top--, *top = *top < top[1]; break;
        case JUMP_IF: pc = *top-- ? code + *pc : pc + 1; break;
        case JUMP: pc = code + *pc; break;
        case HALT: return variables[1];
        }
    }
}

static uint64_t interpreter_round(void)
{
    return interpret(program);
}

#define CASE(n) \
    case n: x = x * (2 * (n) + 1) + (x >> ((n) % 31 + 1)); break;
#define CASES8(n) CASE(n) CASE(n + 1) CASE(n + 2) CASE(n + 3) CASE(n + 4) CASE(n + 5) CASE(n + 6) CASE(n + 7)
#define CASES64(n) \
    CASES8(n) CASES8(n + 8) CASES8(n + 16) CASES8(n + 24) CASES8(n + 32) CASES8(n + 40) CASES8(n + 48) CASES8(n + 56)

static uint64_t big_switch_round(void)
{
    struct random r = {17};
    uint64_t x = 1;
    for (int i = 0; i < 300000; i++)
        switch (random_next(&r) & 0xff) {
            CASES64(0) CASES64(64) CASES64(128) CASES64(192)
        }
    return x;
}

static uint64_t branches_round(void)
{
    uint64_t steps = 0;
    for (uint64_t start = 1; start <= 25000; start++)
        for (uint64_t n = start; n != 1; steps++) {
            if (n & 1)
                n = 3 * n + 1;
            else
                n >>= 1;
            OPAQUE(n); /* branches, no conditional moves */
        }
    return steps;
}

enum { SORTED = 60000 };
static uint32_t unsorted[SORTED], sorted[SORTED];

static void sort_setup(void)
{
    struct random r = {19};
    for (int i = 0; i < SORTED; i++)
        unsorted[i] = (uint32_t)random_next(&r);
}

static void quicksort(uint32_t *low, uint32_t *high)
{
    while (low < high) {
        uint32_t pivot = low[(high - low) / 2], *i = low, *j = high, swap;
        while (i <= j) {
            while (*i < pivot)
                i++;
            while (*j > pivot)
                j--;
            if (i <= j)
                swap = *i, *i++ = *j, *j-- = swap;
        }
        quicksort(low, j);
        low = i;
    }
}

static uint64_t sorted_sum(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < SORTED; i++) {
        if (i && sorted[i - 1] > sorted[i])
            harness_fail("not sorted");
        sum = checksum_add(sum, sorted[i]);
    }
    return sum;
}

static uint64_t quicksort_round(void)
{
    memcpy(sorted, unsorted, sizeof sorted);
    quicksort(sorted, sorted + SORTED - 1);
    return sorted_sum();
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t qsort_round(void)
{
    memcpy(sorted, unsorted, sizeof sorted);
    qsort(sorted, SORTED, sizeof *sorted, compare);
    return sorted_sum();
}

const struct kernel kernels_control[] = {
    {.name = "calls", .unit = "call", .units = 1664079, .round = calls_round},
    {.name = "indirect-calls", .unit = "call", .units = 3e6, .round = indirect_round},
    {.name = "interpreter", .unit = "bytecode", .units = LOOPS * BYTECODES_PER_LOOP, .round = interpreter_round},
    {.name = "big-switch", .unit = "switch", .units = 3e5, .round = big_switch_round},
    {.name = "branches", .unit = "step", .units = 2344161, .round = branches_round},
    {.name = "quicksort", .unit = "element", .units = SORTED, .round = quicksort_round, .setup = sort_setup},
    {.name = "qsort-libc", .unit = "element", .units = SORTED, .round = qsort_round, .setup = sort_setup},
};
const size_t kernels_control_count = KERNEL_COUNT(kernels_control);
