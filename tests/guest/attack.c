/* Attacks on what a translator keeps: entries of its TLBs and jump caches, code, and places in code. Everything is used until it
 * is warm, then asked for with less right, another size, another address space or other content, with the same
 * instruction. What gets through where the CPU would fault is a hole. */
#include "lib/guest.h"

#define VA 0x200000000000ul
#define FAR (VA + 16 * 1024 * 1024) /* the same slot of a table of 4096 pages */
#define WARM 50
#define CR0_WP (1ul << 16)
#define CR4_OSFXSR (1ul << 9)
#define CR4_PGE (1ul << 7)
#define CR4_SMEP (1ul << 20)
#define CR4_SMAP (1ul << 21)
#define FLAG_AC (1ul << 18)
#define RW (P_PRESENT | P_WRITE)

static uint64_t page_a, page_b;

/* One instruction for all uses of a kind. */
static uint64_t __attribute__((noinline)) load(uint64_t va)
{
    return *(volatile uint64_t *)va;
}

static void __attribute__((noinline)) store(uint64_t va, uint64_t value)
{
    *(volatile uint64_t *)va = value;
}

static uint64_t __attribute__((noinline)) call(uint64_t va)
{
    uint64_t result;
    __asm__ volatile("call *%1" : "=a"(result) : "r"(va) : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

/* mov $value, %eax; ret */
static void put_function(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static void check_fault(struct trap trap, uint64_t error, uint64_t cr2, const char *what)
{
    check_trap(trap, PF, error, what);
    check_equal(trap.cr2, cr2, what);
}

static void warm(uint64_t va)
{
    for (unsigned i = 0; i < WARM; i++) {
        load(va);
        store(va, i);
    }
}

/* Another page of the same slot, mapped for less or not at all. */
static void test_slot(void)
{
    map_page(VA, page_a, 1, RW);
    *page_entry(FAR, 1) = 0;
    warm(VA);
    check_fault(TRAP(load(FAR)), 0, FAR, "read of another page of a slot");
    check_fault(TRAP(store(FAR, 1)), 2, FAR, "write to another page of a slot");
    map_page(FAR, page_b, 1, P_PRESENT);
    for (unsigned i = 0; i < WARM; i++)
        load(FAR);
    check_fault(TRAP(store(FAR, 1)), 3, FAR, "write through a slot that was filled for reads");
    store(VA, 77);
    check_equal(load(VA), 77, "the first page of the slot");
    check_equal(*(uint64_t *)page_b, 0, "the read-only page");
}

/* Sizes and offsets at the end of a page whose neighbour is missing, read-only, or elsewhere. */
static void test_end_of_page(void)
{
    static const uint8_t sizes[] = {1, 2, 4, 8, 16};
    map_page(VA, page_a, 1, RW);
    for (unsigned s = 0; s < sizeof sizes; s++)
        for (unsigned over = 0; over < 2; over++) {
            uint64_t va = VA + PAGE - sizes[s] + over;
            for (unsigned kind = 0; kind < 2; kind++) {
                map_page(VA + PAGE, page_b, 1, RW);
                for (unsigned i = 0; i < 2 * WARM; i++) {
                    if (i == 2 * WARM - 1) {
                        *page_entry(VA + PAGE, 1) = kind ? page_b | P_PRESENT : 0;
                        invlpg(VA + PAGE);
                    }
                    struct trap trap = TRAP(switch (sizes[s]) {
                        case 1: *(volatile uint8_t *)va = 1; break;
                        case 2: *(volatile uint16_t *)va = 1; break;
                        case 4: *(volatile uint32_t *)va = 1; break;
                        case 8: *(volatile uint64_t *)va = 1; break;
                        default: __asm__ volatile("movdqu %%xmm0, (%0)" : : "r"(va) : "memory");
                    });
                    if (i < 2 * WARM - 1 || !over)
                        check_no_trap(trap, "store at the end of a page");
                    else
                        check_fault(trap, kind ? 3 : 2, VA + PAGE, "store over the end of a page");
                }
            }
        }
}

/* Pushes and calls go by a slot of their own. */
static void stack_at(void *sp)
{
    __asm__ volatile("mov %%rsp, %%rbx; mov %0, %%rsp; mov $1, %%eax; mov $2, %%ecx; mov $3, %%edx; mov $4, %%esi;"
                     "push %%rax; push %%rcx; push %%rdx; push %%rsi; pop %%rsi; pop %%rdx; pop %%rcx; pop %%rax;"
                     "call 1f; 1: add $8, %%rsp; mov %%rbx, %%rsp"
                     : : "r"(sp) : "rax", "rcx", "rdx", "rsi", "rbx", "memory", "cc");
}

/* The page above is the one that lies below in memory, so that bytes past the end of either go where they are seen. */
static void test_stack_slot(void)
{
    uint64_t *below = (uint64_t *)page_b, *above = (uint64_t *)page_a;
    uint8_t *behind = alloc_pages(1); /* of page_b */
    map_page(VA, page_b, 1, RW);
    map_page(VA + PAGE, page_a, 1, RW);
    for (unsigned i = 0; i < WARM; i++)
        for (unsigned at = 0; at <= 40; at += 4) {
            stack_at((void *)(VA + PAGE + at));
            for (unsigned k = 2; k <= 4; k++) {
                const uint64_t *page = at < 8 * k ? below + PAGE / 8 : above;
                check_equal(*(const uint32_t *)((uint64_t)page + at - 8 * k), k, "pushed over the start of a page");
            }
        }
    for (unsigned i = 0; i < 64; i++)
        check_equal(behind[i], 0, "the page that lies behind");
    for (unsigned kind = 0; kind < 2; kind++) {
        uint64_t kept = below[511];
        *page_entry(VA, 1) = kind ? page_b | P_PRESENT : 0;
        invlpg(VA);
        this_cpu()->idt[PF].ist = 1; /* the stack it is on is gone */
        struct trap trap = catch_trap(stack_at, (void *)(VA + PAGE + 16));
        this_cpu()->idt[PF].ist = 0;
        check_fault(trap, kind ? 3 : 2, VA + PAGE - 8, "push over the start of a page");
        check_equal(trap.frame.rsp, VA + PAGE, "rsp of the push that faults");
        check_equal(below[511], kept, "the page below");
        map_page(VA, page_b, 1, RW);
        stack_at((void *)(VA + PAGE + 16));
    }
}

static void user_load(void *arg)
{
    for (unsigned i = 0; i < WARM; i++)
        (void)*(volatile uint64_t *)arg;
    LEAVE_USER();
}

static void user_store(void *arg)
{
    for (unsigned i = 0; i < WARM; i++)
        *(volatile uint64_t *)arg = i;
    LEAVE_USER();
}

static void user_call(void *arg)
{
    __asm__ volatile("call *%0" : : "r"(arg) : "rax", "memory");
    LEAVE_USER();
}

/* What the supervisor has warm, user code must not have, and the other way round under SMAP and SMEP. */
static void test_privilege(void)
{
    uint64_t cr4 = read_cr4();
    map_page(VA, page_a, 1, RW);
    for (unsigned round = 0; round < 3; round++) {
        put_function((uint8_t *)page_a, 5);
        check_equal(call(VA), 5, "function of the supervisor");
        check_fault(run_user(user_call, (void *)VA), 5 | (cr4 & CR4_SMEP ? 16 : 0) | 16, VA, "user call of it");
        warm(VA);
        check_fault(run_user(user_load, (void *)VA), 5, VA, "user read of the supervisor's page");
        check_fault(run_user(user_store, (void *)VA), 7, VA, "user write to the supervisor's page");
    }
    map_page(VA, page_a, 1, RW | P_USER);
    for (unsigned round = 0; round < 3; round++) {
        put_function((uint8_t *)page_a, 6);
        write_cr4(cr4 & ~(CR4_SMAP | CR4_SMEP));
        check_equal(call(VA), 6, "supervisor's call of a user page");
        warm(VA);
        put_function((uint8_t *)page_a, 6);
        check_trap(run_user(user_call, (void *)VA), 0x80, 0, "user call");
        check_trap(run_user(user_store, (void *)VA), 0x80, 0, "user write");
        write_cr4(cr4 | CR4_SMAP | CR4_SMEP);
        check_fault(TRAP(load(VA)), 1, VA, "read under SMAP");
        check_fault(TRAP(store(VA, 1)), 3, VA, "write under SMAP");
        put_function((uint8_t *)page_a, 6);
        check_fault(TRAP(call(VA)), 0x11, VA, "call under SMEP");
        __asm__ volatile("stac" ::: "memory");
        warm(VA);
        __asm__ volatile("clac" ::: "memory");
        check_fault(TRAP(load(VA)), 1, VA, "read after CLAC");
        check_fault(TRAP(store(VA, 1)), 3, VA, "write after CLAC");
    }
    write_cr4(cr4);
}

static void test_write_protect(void)
{
    map_page(VA, page_a, 1, P_PRESENT);
    for (unsigned round = 0; round < 3; round++) {
        write_cr0(read_cr0() & ~CR0_WP);
        warm(VA);
        write_cr0(read_cr0() | CR0_WP);
        load(VA);
        check_fault(TRAP(store(VA, 1)), 3, VA, "write to a read-only page after CR0.WP came back");
    }
}

static void test_no_execute(void)
{
    put_function((uint8_t *)page_a, 8);
    for (unsigned round = 0; round < 3; round++) {
        map_page(VA, page_a, 1, RW);
        for (unsigned i = 0; i < WARM; i++)
            call(VA);
        map_page(VA, page_a, 1, RW | P_NX);
        load(VA);
        check_fault(TRAP(call(VA)), 0x11, VA, "call of a page that became no-execute");
    }
}

/* Two address spaces that have other pages at the same place. */
static void test_spaces(bool global_flag)
{
    uint64_t cr3 = read_cr3(), *copy = alloc_pages(1), cr4 = read_cr4();
    memcpy(copy, (void *)(cr3 & ~0xffful), PAGE);
    uint64_t data_a = (uint64_t)alloc_pages(2), data_b = data_a + PAGE;
    write_cr4(global_flag ? cr4 | CR4_PGE : cr4 & ~CR4_PGE);
    put_function((uint8_t *)page_a, 1);
    put_function((uint8_t *)page_b, 2);
    *(uint64_t *)data_a = 11;
    *(uint64_t *)data_b = 12;
    *page_entry(VA, 4) = 0;
    map_page(VA, page_a, 1, RW | P_USER);
    map_page(VA + PAGE, data_a, 1, RW | P_USER);
    write_cr3((uint64_t)copy);
    *page_entry(VA, 4) = 0;
    map_page(VA, page_b, 1, RW | P_USER);
    map_page(VA + PAGE, data_b, 1, RW | P_USER);
    for (unsigned i = 0; i < 2 * WARM; i++) {
        bool second = i & 1;
        write_cr3(second ? (uint64_t)copy : cr3);
        check_equal(call(VA), second ? 2 : 1, "function of an address space");
        check_equal(load(VA + PAGE), second ? 12 : 11, "data of an address space");
        struct trap trap = run_user(user_call, (void *)VA);
        check_equal(trap.frame.rax, second ? 2 : 1, "user function of an address space");
    }
    write_cr3(cr3);
    write_cr4(cr4);
}

/* jmp to another address */
static void put_jump(uint8_t *at, uint64_t from, uint64_t to)
{
    int32_t distance = (int32_t)(to - (from + 5));
    at[0] = 0xe9;
    memcpy(at + 1, &distance, 4);
}

static uint64_t user_result(uint64_t va)
{
    struct trap trap = run_user(user_call, (void *)va);
    check_trap(trap, 0x80, 0, "user call through a jump");
    return trap.frame.rax;
}

/* A jump from page to page: what lies at its target changes, goes, becomes no-execute, or is what another jump of the same slot finds
 * elsewhere. The jumping code stays as it is and is shared by two places. */
static void test_jump_between_pages(void)
{
    /* Away from 2 MiB regions (by number mod 4096) that have large pages: there, INVLPG is only for its page. */
    const uint64_t here = VA + (3000ul << 21), there = here + (FAR - VA);
    uint8_t *jumps = alloc_pages(1), *back = alloc_pages(1);
    put_jump(jumps, here, here + PAGE);
    put_jump(jumps + 64, here + 64, here + 2 * PAGE + 8);
    put_jump(back + 8, here + 2 * PAGE + 8, here + PAGE);
    put_function((uint8_t *)page_a, 1);
    put_function((uint8_t *)page_b, 2);
    uint64_t places[] = {here, there};
    for (unsigned user = 0; user < 2; user++) {
        uint64_t flags = P_PRESENT | (user ? P_USER : 0), (*run)(uint64_t) = user ? user_result : call, cr4 = read_cr4();
        write_cr4((cr4 & ~(CR4_SMAP | CR4_SMEP)) | CR4_PGE);
        for (unsigned place = 0; place < 2; place++) {
            map_page(places[place], (uint64_t)jumps, 1, flags);
            map_page(places[place] + 2 * PAGE, (uint64_t)back, 1, flags);
        }
        map_page(here + PAGE, page_a, 1, flags);
        map_page(there + PAGE, page_b, 1, flags);
        uint64_t *here_entry = page_entry(here + PAGE, 1), *there_entry = page_entry(there + PAGE, 1);
        for (unsigned i = 0; i < WARM; i++) {
            *here_entry = (i & 1 ? page_b : page_a) | flags;
            *there_entry = (i & 1 ? page_a : page_b) | flags;
            if (i & 2) {
                write_cr3(read_cr3());
            } else {
                invlpg(here + PAGE);
                invlpg(there + PAGE);
            }
            for (unsigned j = 0; j < 4; j++) {
                check_equal(run(here), i & 1 ? 2 : 1, "jump to a page that was exchanged");
                check_equal(run(there), i & 1 ? 1 : 2, "the same jump at another place of the slot");
                check_equal(run(here + 64), i & 1 ? 2 : 1, "two jumps between pages");
            }
        }
        uint8_t *target = (uint8_t *)page_a;
        map_page(here + PAGE, page_a, 1, flags);
        for (uint32_t i = 0; i < WARM; i++) {
            put_function(target, 100 + i);
            check_equal(run(here), 100 + i, "jump to code that was changed");
        }
        put_function(target, 1);
        map_page(here + PAGE, page_a, 1, flags | P_NX);
        struct trap trap = user ? run_user(user_call, (void *)here) : TRAP(call(here));
        check_fault(trap, user ? 0x15 : 0x11, here + PAGE, "jump to a page that became no-execute");
        *page_entry(here + PAGE, 1) = 0;
        write_cr3(read_cr3());
        trap = user ? run_user(user_call, (void *)here) : TRAP(call(here));
        check_fault(trap, user ? 0x14 : 0x10, here + PAGE, "jump to a page that went");
        write_cr4(cr4);
    }
}

/* A large page becomes small ones: one INVLPG is enough for all of it (SDM 3A 4.10.4.1). */
static void test_split(void)
{
    uint64_t large = ((uint64_t)alloc_pages(1024) + (1ul << 21) - 1) & ~((1ul << 21) - 1), *table = alloc_pages(1);
    *page_entry(VA, 4) = 0;
    map_page(VA, large, 2, RW);
    for (uint64_t at = 0; at < 64 * PAGE; at += PAGE)
        warm(VA + at);
    for (unsigned i = 0; i < 512; i++)
        table[i] = page_a | P_PRESENT;
    *page_entry(VA, 2) = (uint64_t)table | RW;
    invlpg(VA + 5 * PAGE);
    check_fault(TRAP(store(VA + 5 * PAGE, 1)), 3, VA + 5 * PAGE, "write to a page that was part of a large one");
    check_fault(TRAP(store(VA + 9 * PAGE, 1)), 3, VA + 9 * PAGE, "write to another page of the large one");
    *(uint64_t *)page_a = 0x1234;
    check_equal(load(VA + 5 * PAGE), 0x1234, "read of it");
}

/* Accessed and dirty come back when they were cleared and the translation dropped. */
static void test_dirty(void)
{
    map_page(VA, page_a, 1, RW);
    for (unsigned i = 0; i < WARM; i++) {
        store(VA, i);
        load(VA);
        uint64_t *entry = page_entry(VA, 1);
        check_equal(*entry & (P_ACCESSED | P_DIRTY), P_ACCESSED | P_DIRTY, "A and D after a write");
        *entry &= ~(P_ACCESSED | P_DIRTY);
        invlpg(VA);
        load(VA);
        check_equal(*entry & (P_ACCESSED | P_DIRTY), P_ACCESSED, "A and D after a read");
    }
}

/* ---- code ---- */

/* Far more functions than a small code cache holds, in chains: returns lead to code that is gone meanwhile. */
#define FUNCTIONS 6000u
#define CHAIN 24u

static uint8_t *functions;

static uint8_t *function_at(unsigned i)
{
    return functions + i * 64ul;
}

/* Each adds its number, every seventh by way of an instruction that translators leave to C, and calls the next of its chain. */
static void put_functions(void)
{
    functions = alloc_pages((FUNCTIONS * 64 + PAGE - 1) / PAGE);
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        uint8_t *at = function_at(i);
        *at++ = 0x05; /* add $i, %eax */
        memcpy(at, &i, 4);
        at += 4;
        if (i % 7 == 0) {
            memcpy(at, "\x0f\x01\xe1\x48\x8b\x0c\x24", 7); /* smsw %ecx; mov (%rsp), %rcx */
            at += 7;
        }
        if (i % CHAIN != CHAIN - 1) {
            int32_t distance = (int32_t)(function_at(i + 1) - (at + 5));
            *at++ = 0xe8;
            memcpy(at, &distance, 4);
            at += 4;
        }
        memcpy(at, "\x83\xc0\x01\xc3", 4); /* add $1, %eax; ret */
    }
}

static uint64_t call_chain(unsigned first)
{
    uint64_t result = 0;
    __asm__ volatile("call *%1" : "+a"(result) : "r"(function_at(first)) : "rcx", "memory", "cc");
    return result;
}

static void test_overflow(void)
{
    put_functions();
    unsigned wrong = 0;
    for (unsigned round = 0; round < 4; round++)
        for (unsigned first = 0; first < FUNCTIONS; first += CHAIN) {
            unsigned start = first + round % CHAIN, wanted = 0;
            for (unsigned i = start; i < first + CHAIN; i++)
                wanted += i + 1;
            wrong += call_chain(start) != wanted;
        }
    check_equal(wrong, 0, "chains with a wrong sum");
}

/* Instructions of all kinds that overwrite what comes right behind them, warm: mov $1, %al becomes mov $2, %al. */
#define OVERWRITES(name, text)                                                                               \
    static uint64_t name(uint64_t places)                                                                    \
    {                                                                                                        \
        uint64_t result;                                                                                     \
        __asm__ volatile("xor %%eax, %%eax; lea 1f+1(%%rip), %%rdi; mov $2, %%edx\n" text                    \
                         "\n1: mov $1, %%al; movzbl %%al, %%eax; movb $1, 1b+1(%%rip)"                       \
                         : "=a"(result) : "S"(places) : "rcx", "rdx", "rdi", "rbx", "memory", "cc");         \
        return result;                                                                                       \
    }
OVERWRITES(by_mov, "mov %%dl, (%%rdi)")
OVERWRITES(by_or, "orb $2, (%%rdi); andb $0xfe, (%%rdi)")
OVERWRITES(by_xchg, "xchg %%dl, (%%rdi)")
OVERWRITES(by_cmpxchg, "mov $1, %%al; lock cmpxchg %%dl, (%%rdi)")
OVERWRITES(by_stosb, "mov $2, %%al; stosb")
OVERWRITES(by_rep_stosb, "mov $2, %%al; mov $1, %%ecx; rep stosb")
OVERWRITES(by_bts, "btsw $1, (%%rdi); btrw $0, (%%rdi)")
OVERWRITES(by_push, "movzwl (%%rdi), %%ecx; mov %%rsp, %%rbx; mov (%%rdi), %%rcx; mov $2, %%cl; lea 8(%%rdi), %%rsp; push %%rcx;"
                    "mov %%rbx, %%rsp")
OVERWRITES(by_inc, "incb (%%rdi)")
OVERWRITES(by_sse, "mov (%%rdi), %%rcx; mov $2, %%cl; movq %%rcx, %%xmm0; movq %%xmm0, (%%rdi)")
OVERWRITES(by_fild, "mov (%%rdi), %%rcx; mov $2, %%cl; push %%rcx; fildll (%%rsp); pop %%rcx; fistpll (%%rdi)")

static void test_overwrites(void)
{
    static const struct {
        uint64_t (*fn)(uint64_t);
        const char *what;
    } cases[] = {{by_mov, "mov"},       {by_or, "or and and"},   {by_xchg, "xchg"}, {by_cmpxchg, "cmpxchg"},
                 {by_stosb, "stosb"},   {by_rep_stosb, "rep stosb"}, {by_bts, "bts and btr"}, {by_push, "push"},
                 {by_inc, "inc"},       {by_sse, "movq"},        {by_fild, "fistp"}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        for (unsigned round = 0; round < WARM; round++)
            check_equal(cases[i].fn(0), 2, cases[i].what);
}

/* The frame of an exception is pushed over code that ran from there. */
static void test_frame_over_code(void)
{
    uint8_t *stack = alloc_pages(1);
    struct cpu *cpu = this_cpu();
    uint64_t ist = cpu->tss.ist[0];
    for (unsigned i = 0; i < WARM; i++) {
        put_function(stack + PAGE - 48, i); /* where rip will be */
        check_equal(call((uint64_t)stack + PAGE - 48), i, "function on the stack");
        cpu->tss.ist[0] = (uint64_t)stack + PAGE;
        cpu->idt[UD].ist = 1;
        struct trap trap = TRAP(__asm__ volatile("ud2"));
        cpu->idt[UD].ist = 0;
        cpu->tss.ist[0] = ist;
        check_trap(trap, UD, 0, "ud2");
        put_function(stack + PAGE - 40, i + 1);
        check_equal(call((uint64_t)stack + PAGE - 40), i + 1, "function where the frame was");
    }
}

/* ---- several CPUs ---- */

static volatile uint32_t request, answer;
static volatile uint64_t last; /* answer << 32 | what the last call gave */
static volatile bool stop;

static void obey(void *arg)
{
    (void)arg;
    while (!stop) {
        uint32_t now = request;
        if (answer != now) {
            invlpg(VA);
            invlpg(FAR);
            answer = now;
        }
        store(VA, 1);
        last = (uint64_t)now << 32 | call(FAR);
    }
}

static void wait_for_call(void)
{
    uint64_t end = rdtsc() + tsc_khz() * 5000;
    while (last >> 32 != request && rdtsc() < end)
        pause_cpu();
    check_equal(last >> 32, request, "the other CPU answers");
}

/* The other CPU writes and calls all the time; here its pages are exchanged, the code in them, and the dirty bit. */
static void test_other_cpu(void)
{
    if (cpu_count() < 2)
        return;
    uint64_t data[2] = {page_a, (uint64_t)alloc_pages(1)}, code[2] = {page_b, (uint64_t)alloc_pages(1)};
    uint64_t *data_entry = page_entry(VA, 1), *code_entry = page_entry(FAR, 1);
    put_function((uint8_t *)code[0], 0);
    map_page(VA, data[0], 1, RW);
    map_page(FAR, code[0], 1, RW);
    smp_call(1, obey, NULL);
    for (uint32_t i = 1; i <= 100; i++) {
        put_function((uint8_t *)code[i & 1], i);
        __atomic_store_n(data_entry, data[i & 1] | RW, __ATOMIC_SEQ_CST);
        __atomic_store_n(code_entry, code[i & 1] | RW, __ATOMIC_SEQ_CST);
        request++;
        wait_for_call();
        *(volatile uint64_t *)data[~i & 1] = 0;
        request++;
        wait_for_call();
        check_equal(last & UINT32_MAX, i, "function in the page that came");
        check_equal(*(volatile uint64_t *)data[~i & 1], 0, "the page that went");
        check(*data_entry & P_DIRTY, "D of the page that came");
    }
    stop = true;
    smp_wait(1);
}

#define USER_FUNCTIONS 8000u
#define USER_FUNCTION_BYTES 64u

static void call_all(void *code)
{
    uint64_t wrong = 0;
    for (unsigned i = 0; i < 3 * USER_FUNCTIONS; i++)
        wrong += call((uint64_t)code + USER_FUNCTION_BYTES * (i % USER_FUNCTIONS)) != i % USER_FUNCTIONS;
    __asm__ volatile("int $0x80" : : "a"(wrong) : "memory");
}

/* More code of user mode than a small code cache holds: none of it may be entered where other code lies by now. */
static void test_user_overflow(void)
{
    uint8_t *at = alloc_pages(USER_FUNCTIONS * USER_FUNCTION_BYTES / PAGE + 1);
    for (uint32_t i = 0; i < USER_FUNCTIONS; i++)
        put_function(at + USER_FUNCTION_BYTES * i, i);
    struct trap trap = run_user(call_all, AS_USER(at));
    check_trap(trap, 0x80, 0, "functions of user mode");
    check_equal(trap.frame.rax, 0, "wrong results of them");
}

void guest_main(void)
{
    smp_start();
    write_cr4(read_cr4() | CR4_OSFXSR);
    page_a = (uint64_t)alloc_pages(2);
    page_b = page_a + PAGE;
    test_slot();
    test_end_of_page();
    test_stack_slot();
    test_privilege();
    test_write_protect();
    test_no_execute();
    test_spaces(false);
    test_spaces(true);
    test_jump_between_pages();
    test_split();
    test_dirty();
    test_overflow();
    test_user_overflow();
    test_overwrites();
    test_frame_over_code();
    test_other_cpu();
}
