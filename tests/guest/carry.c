/* Chains of carries through memory operands: flags live across each access, wherever it lies: in one page, across two that are
 * not neighbours in memory, and first touches of both. And accesses along one base register with flags that wait for a reader
 * behind them, or for none. */
#include "lib/guest.h"

#define LIMBS 6u
#define AREA 0x4000000000ul
#define CARRY 1ul
#define ARITHMETIC 0x8d5ul

typedef unsigned __int128 wide;

static uint64_t random_state = 88172645463325252ul;

/* Limbs that carry often. */
static uint64_t next_limb(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % 3 ? random_state : ~0ul;
}

static void fill(uint64_t *limbs)
{
    for (unsigned i = 0; i < LIMBS; i++)
        limbs[i] = next_limb();
}

/* *to += *from: mov between adcs, which leaves flags alone; rcx as data and as the index. */
static uint64_t add_limbs(uint64_t *to, const uint64_t *from)
{
    uint64_t flags;
    __asm__ volatile("xor %%ecx, %%ecx\n mov (%2,%%rcx,8), %%rax\n add %%rax, (%1,%%rcx,8)\n"
                     "lea 1(%%rcx), %%rcx\n mov (%2,%%rcx,8), %%rax\n adc %%rax, (%1,%%rcx,8)\n"
                     "mov 16(%2), %%rcx\n adc %%rcx, 16(%1)\n"
                     "mov 24(%2), %%r15\n adc %%r15, 24(%1)\n"
                     "mov 32(%1), %%r14\n adc 32(%2), %%r14\n mov %%r14, 32(%1)\n"
                     "mov 40(%1), %%rax\n adc 40(%2), %%rax\n mov %%rax, 40(%1)\n"
                     "pushfq\n pop %0"
                     : "=r"(flags) : "r"(to), "r"(from) : "rax", "rcx", "r14", "r15", "memory", "cc");
    return flags;
}

/* to[0..3] += from[0..2] * factor by both carry chains, products in r14 and r15 too. Adds the last carries to to[3]. */
static void multiply_add(uint64_t *to, const uint64_t *from, uint64_t factor)
{
    __asm__ volatile("xor %%ecx, %%ecx\n" /* clears both carries */
                     "mulx (%1), %%rax, %%rcx\n adcx (%0), %%rax\n mov %%rax, (%0)\n"
                     "mulx 8(%1), %%r14, %%r15\n adox %%rcx, %%r14\n adcx 8(%0), %%r14\n mov %%r14, 8(%0)\n"
                     "mulx 16(%1), %%rax, %%rcx\n adox %%r15, %%rax\n adcx 16(%0), %%rax\n mov %%rax, 16(%0)\n"
                     "mov $0, %%eax\n adox %%rax, %%rcx\n adcx 24(%0), %%rcx\n mov %%rcx, 24(%0)\n"
                     : : "r"(to), "r"(from), "d"(factor) : "rax", "rcx", "r14", "r15", "memory", "cc");
}

/* Readers of flags that write memory, or move from it: setc, cmov, sbb, rcl, all by the carry of a - b. */
static void use_carry(uint64_t *at, uint64_t a, uint64_t b, uint64_t *ret_moved, uint64_t *ret_flags)
{
    __asm__ volatile("cmp %4, %3\n setc (%2)\n cmovc 8(%2), %0\n sbb %%rcx, 16(%2)\n rclq 24(%2)\n adcb $0, 32(%2)\n"
                     "pushfq\n pop %1"
                     : "+r"(*ret_moved), "=&r"(*ret_flags) : "r"(at), "r"(a), "r"(b), "c"(0ul) : "memory", "cc");
}

/* One base register all along: all limbs + the carries between them, then 1 added to the whole number in place, the last limb
 * read through its own address. */
static uint64_t sum_limbs(uint64_t *at)
{
    uint64_t sum;
    __asm__ volatile("xor %%eax, %%eax\n add (%1), %%rax\n adc 8(%1), %%rax\n adc 16(%1), %%rax\n adc 24(%1), %%rax\n"
                     "adc 8(%1), %%rax\n adc 32(%1), %%rax\n adc 40(%1), %%rax\n adc $0, %%rax\n"
                     "addq $1, (%1)\n adcq $0, 8(%1)\n adcq $0, 16(%1)\n adcq $0, 24(%1)\n adcq $0, 32(%1)\n adcq $0, 40(%1)\n"
                     "mov %1, %%rcx\n lea 5(%%rcx), %%rcx\n setc 43(%%rcx)\n adc 35(%%rcx), %%rax\n"
                     : "=&a"(sum) : "r"(at) : "rcx", "memory", "cc");
    return sum;
}

/* Copies all limbs, up to which nobody reads flags, then with the carry of a - b waiting, which it returns. */
static uint64_t copy_limbs(uint64_t *to, const uint64_t *from, uint64_t a, uint64_t b)
{
    uint64_t carry = 0;
    __asm__ volatile("mov (%2), %%rax\n mov 8(%2), %%rcx\n mov 16(%2), %%r8\n mov %%r8, 16(%1)\n cmp %4, %3\n"
                     "mov 24(%2), %%r8\n mov 32(%2), %%r9\n mov 40(%2), %%r14\n"
                     "mov %%rax, (%1)\n mov %%rcx, 8(%1)\n mov %%r8, 24(%1)\n mov %%r9, 32(%1)\n mov %%r14, 40(%1)\n setc %b0"
                     : "+&q"(carry)
                     : "r"(to), "r"(from), "r"(a), "r"(b)
                     : "rax", "rcx", "r8", "r9", "r14", "memory", "cc");
    return carry;
}

static uint64_t *areas[2];

/* Two operands at `offset` in their areas, whose pages are mapped anew: nothing is known of them. */
static void map_areas(unsigned offset)
{
    static uint8_t *frames;
    if (!frames)
        frames = alloc_pages(8);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t va = AREA + i * 4096ul;
        map_page(va, (uint64_t)frames + (7 - 2 * i) * 4096ul, 1, 3);
        __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
    }
    areas[0] = (uint64_t *)(AREA + offset);
    areas[1] = (uint64_t *)(AREA + 8192 + offset);
}

static void test_add(unsigned offset)
{
    uint64_t a[LIMBS], b[LIMBS], carry = 0;
    fill(a);
    fill(b);
    for (unsigned i = 0; i < LIMBS; i++) {
        areas[0][i] = a[i];
        areas[1][i] = b[i];
    }
    map_areas(offset);
    uint64_t flags = add_limbs(areas[0], areas[1]);
    for (unsigned i = 0; i < LIMBS; i++) {
        wide sum = (wide)a[i] + b[i] + carry;
        carry = (uint64_t)(sum >> 64);
        check_equal(areas[0][i], (uint64_t)sum, "a limb of a sum");
    }
    check_equal(flags & CARRY, carry, "the carry of a sum");
}

static void test_sum(unsigned offset)
{
    uint64_t a[LIMBS], wanted = 0, carry = 0;
    static const uint8_t order[] = {0, 1, 2, 3, 1, 4, 5};
    fill(a);
    for (unsigned i = 0; i < LIMBS; i++)
        areas[0][i] = a[i];
    for (unsigned i = 0; i < sizeof order; i++) {
        wide sum = (wide)wanted + a[order[i]] + carry;
        wanted = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    wanted += carry;
    map_areas(offset);
    uint64_t got = sum_limbs(areas[0]);
    carry = 1;
    for (unsigned i = 0; i < LIMBS; i++) {
        a[i] += carry;
        carry = carry && !a[i];
        check_equal(areas[0][i], a[i], "a limb of an incremented number");
    }
    check_equal(((uint8_t *)areas[0])[48], carry, "setc behind a number");
    check_equal(got, wanted + a[LIMBS - 1] + carry, "the sum of limbs");
}

static void test_copy(unsigned offset)
{
    uint64_t a[LIMBS], less = offset & 1;
    fill(a);
    for (unsigned i = 0; i < LIMBS; i++)
        areas[1][i] = a[i];
    map_areas(offset);
    check_equal(copy_limbs(areas[0], areas[1], 1, less ? 2 : 1), less, "the carry behind a copy");
    for (unsigned i = 0; i < LIMBS; i++)
        check_equal(areas[0][i], a[i], "a limb of a copy");
}

static void test_multiply(unsigned offset)
{
    uint64_t a[LIMBS], b[LIMBS], factor = next_limb();
    wide carry = 0;
    fill(a);
    fill(b);
    for (unsigned i = 0; i < LIMBS; i++) {
        areas[0][i] = a[i];
        areas[1][i] = b[i];
    }
    map_areas(offset);
    multiply_add(areas[0], areas[1], factor);
    for (unsigned i = 0; i < 4; i++) {
        wide sum = (i < 3 ? (wide)b[i] * factor : 0) + a[i] + carry;
        carry = sum >> 64;
        check_equal(areas[0][i], (uint64_t)sum, "a limb of a product");
    }
}

static void test_readers(unsigned offset)
{
    for (unsigned less = 0; less < 2; less++) {
        uint64_t moved = 7, flags;
        uint64_t values[5] = {~0ul, 1234, 0, less ? 1ul << 63 : 1, ~0ul};
        for (unsigned i = 0; i < 5; i++)
            areas[0][i] = values[i];
        map_areas(offset);
        use_carry(areas[0], 1, less ? 2 : 1, &moved, &flags);
        check_equal(areas[0][0], ~0xfful | less, "setc in memory");
        check_equal(moved, less ? 1234 : 7, "cmovc from memory");
        check_equal(areas[0][2], less ? ~0ul : 0, "sbb in memory");
        check_equal(areas[0][3], less ? 1 : 2, "rcl in memory");
        check_equal(areas[0][4], less ? ~0xfful : ~0ul, "adc in memory");
        check_equal(flags & ARITHMETIC & ~0x10ul, less ? 0x45 : 0x84, "flags of adc in memory");
    }
}

/* The fault in the middle of a chain shows the flags there, which the rest of the chain needs. */
static uint64_t chain_into_nothing(uint64_t *at)
{
    uint64_t flags;
    __asm__ volatile("xor %%eax, %%eax\n mov $-1, %%rcx\n add $1, %%rcx\n adc %%rax, (%1)\n adc 8(%1), %%rax\n"
                     "pushfq\n pop %0" : "=r"(flags) : "r"(at) : "rax", "rcx", "memory", "cc");
    return flags;
}

static void user_chain(void *at)
{
    chain_into_nothing(at);
    __asm__ volatile("int $0x80");
}

static void test_fault(void)
{
    map_page(AREA, (uint64_t)alloc_pages(1), 1, 7);
    *page_entry(AREA + 4096, 1) = 0;
    uint64_t *last = (uint64_t *)(AREA + 4096 - 8);
    *last = ~0ul;
    __asm__ volatile("mov %%cr3, %%rax\n mov %%rax, %%cr3" : : : "rax", "memory");
    struct trap trap = run_user(user_chain, last);
    check_trap(trap, 14, 4, "adc from a page that is not there");
    check_equal(*last, 0, "the limb before the fault");
    check_equal(trap.frame.rflags & ARITHMETIC, 0x55, "flags at the fault");
}

static void user_copy_within(void *at)
{
    __asm__ volatile("mov (%0), %%rax\n mov 8(%0), %%rcx\n mov %%rax, 16(%0)\n int $0x80" : : "r"(at) : "rax", "rcx", "memory");
}

/* What was read may not be written, and the page behind is another. */
static void test_faults_behind_reads(void)
{
    uint8_t *frames = alloc_pages(2);
    map_page(AREA, (uint64_t)frames, 1, 5);
    map_page(AREA + 4096, (uint64_t)frames + 4096, 1, 5);
    for (unsigned at = 0; at < 4096; at += 4096 - 16) {
        __asm__ volatile("mov %%cr3, %%rax\n mov %%rax, %%cr3" : : : "rax", "memory");
        struct trap trap = run_user(user_copy_within, (void *)(AREA + at));
        check_trap(trap, 14, 7, "a write behind reads");
        check_equal(trap.cr2, AREA + at + 16, "its address");
    }
}

void guest_main(void)
{
    uint32_t leaf7 = cpuid(7, 0).ebx;
    bool multiplies = (leaf7 & (1u << 8)) && (leaf7 & (1u << 19)); /* BMI2, ADX */
    map_areas(0);
    for (unsigned round = 0; round < 300; round++) {
        unsigned offset = round % 3 ? 4096 - 48 - 4 + round % 61 : 8 * round;
        map_areas(offset);
        test_add(offset);
        test_sum(offset);
        test_copy(offset);
        if (multiplies)
            test_multiply(offset);
        test_readers(offset);
    }
    test_fault();
    test_faults_behind_reads();
}
