/* Code that changes: by the CPU that runs it, by another CPU, through aliases, by string instructions, by remapping, and code
 * over page borders. */
#include "lib/guest.h"

#define VA 0x200000000000ul
#define RWX (P_PRESENT | P_WRITE)

typedef uint64_t code_fn(void);

/* mov $value, %eax; ret */
static void put_function(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static uint64_t call(uint64_t at)
{
    return ((code_fn *)at)();
}

static void test_same_place(void)
{
    uint8_t *page = alloc_pages(1);
    for (uint32_t i = 0; i < 200; i++) {
        put_function(page, i);
        check_equal(call((uint64_t)page), i, "rewritten function");
    }
    for (uint32_t i = 0; i < 50; i++) {
        page[1] = (uint8_t)i;
        page[2] = page[3] = page[4] = 0;
        check_equal(call((uint64_t)page), i, "rewritten immediate");
    }
}

/* A store changes the instruction right behind it. */
static void test_next_instruction(void)
{
    uint64_t result = 0;
    __asm__ volatile("mov $0, %0\n"
                     "movb $2, 1f+1(%%rip)\n"
                     "1: mov $1, %%al\n"
                     "movzbq %%al, %0\n"
                     "movb $1, 1b+1(%%rip)"
                     : "=&r"(result) : : "rax", "memory");
    check_equal(result, 2, "instruction behind the store");
}

/* A loop that turns its own branch around. */
static void test_loop(void)
{
    uint64_t rounds;
    __asm__ volatile("xor %%ecx, %%ecx\n"
                     "1: inc %%ecx\n"
                     "cmp $1000, %%ecx\n"
                     "jne 2f\n"
                     "movb $0x90, 3f(%%rip)\n"
                     "movb $0x90, 3f+1(%%rip)\n"
                     "2: nop\n"
                     "3: jmp 1b\n"
                     "mov %%rcx, %0\n"
                     "movw $0, 4f(%%rip)\n"
                     "jmp 5f\n"
                     "4: .word 0\n"
                     "5:"
                     : "=r"(rounds) : : "rcx", "memory");
    check_equal(rounds, 1000, "rounds of a loop that ends itself");
}

static void test_alias(void)
{
    uint8_t *page = alloc_pages(1);
    map_page(VA, (uint64_t)page, 1, RWX);
    map_page(VA + 0x10000, (uint64_t)page, 1, RWX);
    for (uint32_t i = 0; i < 50; i++) {
        put_function((uint8_t *)VA + 0x10000, i);
        check_equal(call(VA), i, "code written through an alias");
        check_equal(call((uint64_t)page), i, "the same at its identity address");
    }
}

static void test_string_write(void)
{
    uint8_t *page = alloc_pages(1), source[64];
    for (uint32_t i = 0; i < 20; i++) {
        put_function(source, i * 3);
        memcpy(page, source, 6);
        check_equal(call((uint64_t)page), i * 3, "code written by rep movsb");
    }
    put_function(page, 5);
    call((uint64_t)page);
    memset(page + 1, 0x11, 4);
    check_equal(call((uint64_t)page), 0x11111111, "immediate written by rep stosb");
    __asm__ volatile("lock xchgl %0, (%1)" : : "r"(0x44444444), "r"(page + 1) : "memory");
    check_equal(call((uint64_t)page), 0x44444444, "immediate written by xchg");
    __asm__ volatile("push %%rax; mov %%rsp, %%rcx; lea 9(%0), %%rsp; push %1; mov %%rcx, %%rsp; pop %%rax"
                     : : "r"(page), "r"(0x9090909055555555ul) : "rcx", "memory");
    put_function(page, 0x66666666);
    check_equal(call((uint64_t)page), 0x66666666, "code after a push over it");
}

static void test_crossing(void)
{
    uint8_t *pages = alloc_pages(2);
    for (unsigned split = 1; split <= 5; split++) {
        uint8_t *at = pages + PAGE - split;
        put_function(at, 0x01020304);
        check_equal(call((uint64_t)at), 0x01020304, "instruction over two pages");
        pages[PAGE + 4 - split] ^= 0xff; /* a byte of the immediate, in either page */
        uint32_t wanted;
        memcpy(&wanted, at + 1, 4);
        check_equal(call((uint64_t)at), wanted, "after a change");
    }
    /* The second page moves away under it. */
    uint8_t *other = alloc_pages(1);
    put_function(pages + PAGE - 3, 0xaabbccdd);
    map_page(VA, (uint64_t)pages, 1, RWX);
    map_page(VA + PAGE, (uint64_t)pages + PAGE, 1, RWX);
    check_equal(call(VA + PAGE - 3), 0xaabbccdd, "before");
    memcpy(other, pages + PAGE, 64);
    other[1] = 0x77;
    map_page(VA + PAGE, (uint64_t)other, 1, RWX);
    check_equal(call(VA + PAGE - 3), 0x77bbccdd, "after the second page was replaced");
    *page_entry(VA + PAGE, 1) = 0;
    invlpg(VA + PAGE);
    struct trap trap = TRAP(call(VA + PAGE - 3));
    check_trap(trap, PF, 0x10, "second page missing");
    check_equal(trap.cr2, VA + PAGE, "CR2 is the second page");
    check_equal(trap.frame.rip, VA + PAGE - 3, "rip is the instruction");
}

/* jmp, of which two bytes lie in a page and three in the next, which moves away and then is gone. At this address INVLPG drops no
 * large page along. */
static void test_crossing_branch(void)
{
    enum { AT = PAGE - 2 };
    uint64_t va = VA + 0x180000000;
    uint8_t *pages = alloc_pages(3);
    for (uint32_t i = 0; i < 2; i++) {
        int32_t distance = (int32_t)(0x100 * (i + 1) - (AT + 5)); /* low bytes are the same */
        put_function(pages + 0x100 * (i + 1), i + 1);
        pages[AT] = 0xe9;
        memcpy(&pages[AT + 1], &distance, 1);
        memcpy(pages + PAGE * (i + 1), (uint8_t *)&distance + 1, 3);
    }
    map_page(va, (uint64_t)pages, 1, RWX);
    map_page(va + PAGE, (uint64_t)pages + PAGE, 1, RWX);
    check_equal(call(va + AT), 1, "jmp over two pages");
    *page_entry(va + PAGE, 1) = ((uint64_t)pages + 2 * PAGE) | RWX;
    invlpg(va + PAGE);
    check_equal(call(va + AT), 2, "after the second page was replaced");
    *page_entry(va + PAGE, 1) = 0;
    invlpg(va + PAGE);
    check_trap(TRAP(call(va + AT)), PF, 0x10, "jmp whose second page is missing");
}

static uint64_t branch_at, branch_stack[64] __attribute__((aligned(16)));
#define BRANCH_RSP ((uint64_t)&branch_stack[63]) /* the frame of an exception begins below branch_stack[62] */

static void branch(void *unused)
{
    (void)unused;
    __asm__ volatile("mov %0, %%rsp; jmp *%1" : : "r"(BRANCH_RSP), "r"(branch_at) : "memory");
}

/* Relative branches from the last page below 2^47 over that bound: #GP at the branch, before anything is pushed. */
static void test_branch_to_non_canonical(void)
{
    uint64_t va = 0x7ffffffff000;
    uint8_t *page = alloc_pages(1);
    memcpy(page + 0x10, "\xe8\x00\x20\x00\x00", 5);             /* call */
    memcpy(page + 0x20, "\xe9\x00\x20\x00\x00", 5);             /* jmp */
    memcpy(page + 0x30, "\x39\xc0\x0f\x84\x00\x20\x00\x00", 8); /* cmp, je */
    map_page(va, (uint64_t)page, 1, RWX);
    for (unsigned i = 1; i <= 3; i++) {
        branch_at = va + 0x10 * i;
        branch_stack[62] = 0x55;
        struct trap trap = catch_trap(branch, NULL);
        check_trap(trap, GP, 0, "branch to non-canonical");
        check_equal(trap.frame.rip, branch_at + (i == 3 ? 2 : 0), "rip of the branch to non-canonical");
        check_equal(trap.frame.rsp, BRANCH_RSP, "rsp of the branch to non-canonical");
        check_equal(branch_stack[62], 0x55, "stack of the branch to non-canonical");
    }
}

static void test_remap(void)
{
    uint8_t *a = alloc_pages(2), *b = a + PAGE;
    put_function(a, 1);
    put_function(b, 2);
    for (unsigned i = 0; i < 100; i++) {
        map_page(VA, (uint64_t)(i & 1 ? b : a), 1, RWX);
        check_equal(call(VA), 1 + (i & 1), "function of a remapped page");
    }
    map_page(VA, (uint64_t)a, 1, RWX | P_NX);
    check_trap(TRAP(call(VA)), PF, 0x11, "page that became no-execute");
}

#define ADDS 40u
#define FUNCTION_BYTES (2 + 2 * ADDS + 1)
#define FUNCTIONS 3000u

/* Runs more code than a small cache (guests.cfg) has room for: the translations of what ran before are dropped. */
static void run_much_code(void)
{
    static uint8_t *pages;
    const unsigned a_page = PAGE / FUNCTION_BYTES;
    uint64_t word = 3, wrong_sums = 0;
    if (!pages) {
        pages = alloc_pages(FUNCTIONS / a_page + 1);
        for (unsigned i = 0; i < FUNCTIONS; i++) {
            uint8_t *at = pages + i / a_page * PAGE + i % a_page * FUNCTION_BYTES;
            memcpy(at, "\x31\xc0", 2); /* xor eax, eax */
            for (unsigned add = 0; add < ADDS; add++)
                memcpy(at + 2 + 2 * add, "\x03\x07", 2); /* add eax, [rdi] */
            at[2 + 2 * ADDS] = 0xc3;
        }
    }
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        uint64_t (*fn)(uint64_t *p) = (void *)(pages + i / a_page * PAGE + i % a_page * FUNCTION_BYTES);
        wrong_sums += fn(&word) != 3 * ADDS;
    }
    check_equal(wrong_sums, 0, "wrong sums");
}

/* Two linear pages that are one frame, and an instruction that begins in one and ends in the other. */
static void test_same_frame(void)
{
    uint8_t *frame = alloc_pages(1), function[6];
    map_page(VA, (uint64_t)frame, 1, RWX);
    map_page(VA + PAGE, (uint64_t)frame, 1, RWX);
    for (unsigned split = 1; split <= 5; split++) {
        uint64_t at = VA + PAGE - split;
        put_function(function, 0x01020304);
        memcpy((void *)at, function, sizeof function);
        check_equal(call(at), 0x01020304, "instruction over the end of a frame to its start");
        for (unsigned byte = 1; byte < 5; byte++) { /* of the immediate, on either side, through any of three addresses */
            frame[(PAGE - split + byte) % PAGE] ^= 0x10;
            function[byte] ^= 0x10;
            uint32_t wanted;
            memcpy(&wanted, function + 1, sizeof wanted);
            check_equal(call(at), wanted, "the same after a change");
            ((uint8_t *)at)[byte] ^= 0x20;
            function[byte] ^= 0x20;
            memcpy(&wanted, function + 1, sizeof wanted);
            check_equal(call(at), wanted, "the same after a change in place");
        }
        run_much_code();
        put_function(function, 0x0a0b0c0d);
        memcpy((void *)at, function, sizeof function);
        check_equal(call(at), 0x0a0b0c0d, "the same after it was dropped for others");
        run_much_code();
        check_equal(call(at), 0x0a0b0c0d, "the same again, not changed");
    }
}

/* The same page holds data that is written all the time and code that runs: it must stay right, if not fast. */
static void test_data_beside_code(void)
{
    uint8_t *page = alloc_pages(1);
    put_function(page, 9);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        *(volatile uint64_t *)(page + 2048) = i;
        sum += call((uint64_t)page) + *(volatile uint64_t *)(page + 2048);
    }
    check_equal(sum, 2000 * 9 + 2000 * 1999 / 2, "sum over code and data of one page");
}

/* Code ahead is patched from an instruction that overwrites the flags to one that reads them: the code before it, which was
 * translated while they were dead there, must deliver them from then on. */
static void test_flags_ahead(void)
{
    /* cmp rdi, rdi or rdi, rsi; mov rcx, [rdx]; jmp ahead;   ahead: xor eax, eax; nop...; ret */
    static const uint8_t before[] = {0x48, 0x39, 0xf7, 0x48, 0x8b, 0x0a, 0xeb, 0x22};
    static const uint8_t kills[] = {0x31, 0xc0, 0x90, 0x90, 0x90, 0x90, 0xc3};
    static const uint8_t reads[] = {0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0, 0xc3}; /* sete al; movzx eax, al; ret */
    uint8_t *page = alloc_pages(1);
    uint64_t (*fn)(uint64_t a, uint64_t b, uint64_t *p) = (void *)page;
    uint64_t word = 0;
    for (unsigned jump = 0; jump < 2; jump++) { /* or falls into it, behind the most instructions that a block has */
        memset(page, 0x90, PAGE);
        memcpy(page, before, jump ? sizeof before : sizeof before - 2);
        uint8_t *ahead = page + (jump ? sizeof before + 0x22 : 200);
        memcpy(ahead, kills, sizeof kills);
        for (unsigned i = 0; i < 3; i++)
            check_equal(fn(1, 1, &word), 0, "code that overwrites the flags");
        memcpy(ahead, reads, sizeof reads);
        check_equal(fn(1, 1, &word), 1, "flags for the code patched in: equal");
        check_equal(fn(1, 2, &word), 0, "flags for the code patched in: not equal");
        check_equal(fn(1, 1, &word), 1, "flags for the code patched in: equal again");
    }
}

static uint8_t *shared;
static volatile uint32_t generation, acknowledged, wrong;
static volatile bool stop;

static bool has_serialize;

static void run_shared(void *arg)
{
    (void)arg;
    while (!stop) {
        uint32_t now = generation;
        if (has_serialize)
            __asm__ volatile(".byte 0x0f, 0x01, 0xe8" ::: "memory");
        else
            __asm__ volatile("xor %%eax, %%eax; cpuid" ::: "rax", "rbx", "rcx", "rdx", "memory");
        uint32_t got = (uint32_t)call((uint64_t)shared);
        if (got - now > 1) /* the code may be seen before the generation that is stored after it */
            wrong++;
        acknowledged = got;
    }
}

static void user_serialize(void *arg)
{
    (void)arg;
    __asm__ volatile(".byte 0x0f, 0x01, 0xe8; int $0x80");
}

static void test_serialize(void)
{
    if (!(cpuid(7, 0).edx & 1u << 14)) {
        skip("no SERIALIZE");
        return;
    }
    check_no_trap(TRAP(__asm__ volatile(".byte 0x0f, 0x01, 0xe8" ::: "memory")), "serialize");
    check_trap(run_user(user_serialize, NULL), 0x80, 0, "serialize of a user");
    check_trap(TRAP(__asm__ volatile(".byte 0xf0, 0x0f, 0x01, 0xe8" ::: "memory")), UD, 0, "lock serialize");
}

static void test_cross_modifying(void)
{
    if (cpu_count() < 2)
        return;
    has_serialize = cpuid(7, 0).edx & 1u << 14;
    shared = alloc_pages(1);
    put_function(shared, 0);
    smp_call(1, run_shared, NULL);
    for (uint32_t i = 1; i <= 500 && acknowledged == i - 1; i++) {
        *(volatile uint32_t *)(shared + 1) = i; /* not aligned, but within one cache line */
        generation = i;
        uint64_t end = rdtsc() + tsc_khz() * 5000;
        while (acknowledged != i && rdtsc() < end)
            pause_cpu();
        check_equal(acknowledged, i, "code changed by another CPU");
    }
    stop = true;
    smp_wait(1);
    check_equal(wrong, 0, "values that were never there");
}

void guest_main(void)
{
    smp_start();
    test_same_place();
    test_next_instruction();
    test_loop();
    test_alias();
    test_string_write();
    test_crossing();
    test_crossing_branch();
    test_branch_to_non_canonical();
    test_same_frame();
    test_remap();
    test_data_beside_code();
    test_flags_ahead();
    test_serialize();
    test_cross_modifying();
}
