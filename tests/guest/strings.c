/* String instructions: all sizes, directions and prefixes, overlaps, page borders, and faults in the middle. */
#include "lib/guest.h"

#define VA 0x200000000000ul
#define RW (P_PRESENT | P_WRITE)

struct registers {
    uint64_t rcx, rsi, rdi, rax, rflags;
};

#define DEFINE_STRING(name, text)                                                                            \
    static void name(void *arg)                                                                              \
    {                                                                                                        \
        struct registers *r = arg;                                                                           \
        __asm__ volatile("pushq %4; popfq; " text "; pushfq; popq %4; cld"                                   \
                         : "+c"(r->rcx), "+S"(r->rsi), "+D"(r->rdi), "+a"(r->rax), "+r"(r->rflags) : : "memory", "cc"); \
    }
DEFINE_STRING(rep_movsb, "rep movsb")
DEFINE_STRING(rep_movsw, "rep movsw")
DEFINE_STRING(rep_movsl, "rep movsl")
DEFINE_STRING(rep_movsq, "rep movsq")
DEFINE_STRING(rep_stosb, "rep stosb")
DEFINE_STRING(rep_stosq, "rep stosq")
DEFINE_STRING(repe_cmpsb, "repe cmpsb")
DEFINE_STRING(repne_cmpsl, "repne cmpsl")
DEFINE_STRING(repne_scasb, "repne scasb")
DEFINE_STRING(repe_scasq, "repe scasq")
DEFINE_STRING(rep_lodsb, "rep lodsb")
DEFINE_STRING(movsb, "movsb")
DEFINE_STRING(stosl, "stosl")

#define FLAG_DF 0x400ul
#define FLAG_ZF 0x40ul
#define FLAG_IF 0x200ul

static uint8_t *source, *target;

static struct registers run(void (*fn)(void *), uint64_t rcx, const void *rsi, const void *rdi, uint64_t rax, uint64_t flags)
{
    struct registers r = {rcx, (uint64_t)rsi, (uint64_t)rdi, rax, flags | 2};
    fn(&r);
    return r;
}

static void fill(void)
{
    for (unsigned i = 0; i < 4 * PAGE; i++) {
        source[i] = (uint8_t)(i * 7 + (i >> 8));
        target[i] = 0xee;
    }
}

static void test_moves(void)
{
    static void (*const moves[4])(void *) = {rep_movsb, rep_movsw, rep_movsl, rep_movsq};
    for (unsigned i = 0; i < 4; i++) {
        for (uint64_t n = 0; n <= 700; n += n < 10 ? 1 : 230) {
            uint64_t bytes = n << i, from = PAGE - 20, to = PAGE - 5;
            fill();
            struct registers r = run(moves[i], n, source + from, target + to, 0, 0);
            check(r.rcx == 0 && r.rsi == (uint64_t)source + from + bytes && r.rdi == (uint64_t)target + to + bytes,
                  "registers after movs of size %u count %lu", 1u << i, n);
            check(!memcmp(source + from, target + to, bytes) && target[to - 1] == 0xee && target[to + bytes] == 0xee,
                  "bytes after movs of size %u count %lu", 1u << i, n);
            fill();
            r = run(moves[i], n, source + from + bytes, target + to + bytes, 0, FLAG_DF);
            check(r.rsi == (uint64_t)source + from && r.rdi == (uint64_t)target + to, "registers after movs down");
            check(!memcmp(source + from + (1u << i), target + to + (1u << i), bytes), "bytes after movs down");
        }
    }
}

static void test_overlap(void)
{
    for (unsigned distance = 1; distance < 20; distance++) {
        fill();
        uint8_t *at = target + PAGE - 30;
        for (unsigned i = 0; i < distance; i++)
            at[i] = (uint8_t)(i + 1);
        run(rep_movsb, 200, at, at + distance, 0, 0);
        bool good = true;
        for (unsigned i = 0; i < 200; i++)
            good &= at[i] == i % distance + 1;
        check(good, "pattern of period %u", distance);
    }
    fill();
    run(rep_movsq, 50, source + 8, source, 0, 0);
    check_equal(source[0], (uint8_t)(8 * 7), "overlap downwards");
}

static void test_stores(void)
{
    fill();
    struct registers r = run(rep_stosb, 5000, NULL, target + 10, 0xabcd, 0);
    check(target[9] == 0xee && target[10] == 0xcd && target[5009] == 0xcd && target[5010] == 0xee, "rep stosb");
    check_equal(r.rdi, (uint64_t)target + 5010, "rdi after rep stosb");
    r = run(rep_stosq, 700, NULL, target + 3, 0x1122334455667788, 0);
    check_equal(*(uint64_t *)(target + 3 + 699 * 8), 0x1122334455667788, "rep stosq");
    r = run(stosl, 5, NULL, target, 0x99887766, 0);
    check(r.rdi == (uint64_t)target + 4 && r.rcx == 5 && *(uint32_t *)target == 0x99887766, "stosl");
    r = run(movsb, 5, source, target, 0, FLAG_DF);
    check(r.rdi == (uint64_t)target - 1 && r.rsi == (uint64_t)source - 1 && r.rcx == 5, "movsb down");
    r = run(rep_lodsb, 100, source, NULL, 0, 0);
    check_equal(r.rax & 0xff, source[99], "rep lodsb leaves the last");
}

static void test_compare(void)
{
    fill();
    memcpy(target, source, 4 * PAGE);
    struct registers r = run(repe_cmpsb, 9000, source, target, 0, 0);
    check(r.rcx == 0 && (r.rflags & FLAG_ZF), "equal strings");
    target[5000] ^= 1;
    r = run(repe_cmpsb, 9000, source, target, 0, 0);
    check(r.rcx == 9000 - 5001 && !(r.rflags & FLAG_ZF) && r.rsi == (uint64_t)source + 5001, "first difference, rcx %lu", r.rcx);
    r = run(repe_cmpsb, 0, source, target, 0, FLAG_ZF);
    check(r.rflags & FLAG_ZF, "count 0 leaves the flags");
    memset(target, 0, PAGE);
    r = run(repne_cmpsl, 10, source + PAGE, source + PAGE + 4, 0, 0);
    check_equal(r.rcx, 0, "repne cmpsl");
    memset(target, 'x', 2 * PAGE);
    target[PAGE + 3] = 0;
    r = run(repne_scasb, ~0ul, NULL, target, 0, 0);
    check_equal(~r.rcx - 1, PAGE + 3, "strlen by scasb");
    memset(target, 0x55, PAGE);
    target[800] = 0;
    r = run(repe_scasq, 500, NULL, target, 0x5555555555555555, 0);
    check_equal(r.rdi, (uint64_t)target + 808, "repe scasq");
}

/* The instruction stops in the middle, with all done before the fault done and the registers at the place. */
static void check_partial(void (*fn)(void *), uint64_t count, uint64_t from, uint64_t to, unsigned size, bool write, uint64_t fault,
                          uint64_t done, const char *what)
{
    struct registers r = {count, from, to, 0x77, 2};
    struct trap trap = catch_trap(fn, &r);
    check_trap(trap, PF, write ? 2 : 0, what);
    check_equal(trap.cr2, fault, what);
    check_equal(trap.frame.rcx, count - done, "rcx in the middle");
    check_equal(trap.frame.rdi, to + done * size, "rdi in the middle");
}

static void test_faults(void)
{
    uint64_t pages = (uint64_t)alloc_pages(4);
    map_page(VA, pages, 1, RW);
    map_page(VA + PAGE, pages + PAGE, 1, RW);
    map_page(VA + 4 * PAGE, pages + 2 * PAGE, 1, RW);
    map_page(VA + 5 * PAGE, pages + 3 * PAGE, 1, RW);
    *page_entry(VA + 6 * PAGE, 1) = *page_entry(VA + 2 * PAGE, 1) = 0;
    fill();
    memset((void *)VA, 0, 2 * PAGE);
    check_partial(rep_movsb, 10000, (uint64_t)source, VA + 100, 1, true, VA + 2 * PAGE, 2 * PAGE - 100, "rep movsb to a hole");
    check(!memcmp((void *)(VA + 100), source, 2 * PAGE - 100), "what was copied before the hole");
    check_partial(rep_movsq, 2000, VA + 4 * PAGE + 8, (uint64_t)target, 8, false, VA + 6 * PAGE, 1023, "rep movsq from a hole");
    check_partial(rep_stosb, 100000, 0, VA + 1, 1, true, VA + 2 * PAGE, 2 * PAGE - 1, "rep stosb into a hole");
    memset((void *)VA, 0x77, 2 * PAGE);
    /* An element over the border: none of it is written. */
    check_partial(rep_movsl, 3000, (uint64_t)source, VA + 2, 4, true, VA + 2 * PAGE, 2047, "rep movsl over the border");
    check_equal(*(uint16_t *)(VA + 2 * PAGE - 2), 0x7777, "no part of a faulting element");
    struct registers r = {10, (uint64_t)source, VA + 2 * PAGE + 4, 0, 2 | FLAG_DF};
    struct trap trap = catch_trap(rep_movsb, &r);
    check_trap(trap, PF, 2, "rep movsb down from a hole");
    check_equal(trap.frame.rcx, 10, "rcx of a fault at once");
    __asm__ volatile("cld");
}

/* A REP of many rounds is interrupted and goes on. */
static volatile unsigned ticks;

static bool on_tick(struct trap_frame *frame)
{
    (void)frame;
    ticks++;
    apic_eoi();
    return true;
}

static void test_interrupted(void)
{
    apic_enable();
    trap_handlers[0x60] = on_tick;
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, 0x20060);
    wrmsr(APIC_TIMER_INITIAL, 100000);
    uint8_t *big = alloc_pages(1024);
    enable_interrupts();
    for (unsigned i = 0; i < 20 || (ticks < 5 && i < 2000); i++)
        run(rep_stosb, 1024 * PAGE, NULL, big, i + 1, FLAG_IF);
    disable_interrupts();
    wrmsr(APIC_TIMER_INITIAL, 0);
    bool same = true;
    for (unsigned i = 0; i < 1024; i++)
        same &= big[i * PAGE] == big[0] && big[i * PAGE + PAGE - 1] == big[0];
    check(same && big[0], "memory after interrupted stores");
    check(ticks >= 5, "interrupts between: %u", ticks);
}

/* Pages whose numbers agree in all bits that a translation cache of up to 2^24 entries can index by, all first touched here. */
static void test_same_index(void)
{
    uint8_t *from = (uint8_t *)VA, *to = (uint8_t *)(VA + (1ul << 36));
    map_page((uint64_t)from, (uint64_t)source, 1, RW);
    map_page((uint64_t)to, (uint64_t)target, 1, RW);
    fill();
    run(rep_movsb, 100, from + 8, to + 16, 0, 0);
    check(!memcmp(source + 8, target + 16, 100), "movs between pages of one index");
    run(movsb, 0, from, to, 0, 0);
    check(target[0] == source[0], "one movs between pages of one index");
    struct registers r = run(repe_cmpsb, 100, from + 8, to + 16, 0, 0);
    check(r.rcx == 0 && (r.rflags & FLAG_ZF), "cmps between pages of one index");
    uint64_t value = 0x1234;
    __asm__ volatile("push %2; pop %1; mov %1, %0" : "=r"(value), "+m"(*(uint64_t *)to) : "m"(*(uint64_t *)from) : "memory");
    check(!memcmp(to, from, 8), "push and pop between pages of one index");
    uint64_t sum = 0;
    *(uint64_t *)from = 1;
    *(uint64_t *)to = 2;
    for (unsigned i = 0; i < 20; i++)
        __asm__ volatile("stc; adc (%1), %0; adc (%2), %0; adc (%1), %0; adc (%2), %0" : "+r"(sum) : "r"(from), "r"(to) : "cc", "memory");
    check_equal(sum, 140, "carries over pages of one index");
}

static void test_ports(void)
{
    /* COM1's scratch register takes each byte; the last stays. */
    uint64_t rcx = 5, rsi = (uint64_t)source, rdi = (uint64_t)target;
    __asm__ volatile("cld; rep outsb" : "+c"(rcx), "+S"(rsi) : "d"(0x3ff) : "memory");
    check_equal(inb(0x3ff), source[4], "rep outsb");
    check_equal(rsi, (uint64_t)source + 5, "rsi after rep outsb");
    rcx = 5;
    __asm__ volatile("rep insb" : "+c"(rcx), "+D"(rdi) : "d"(0x3ff) : "memory");
    check(target[0] == source[4] && target[4] == source[4], "rep insb");
    check_equal(rdi, (uint64_t)target + 5, "rdi after rep insb");
}

/* A block of nothing but string instructions, which take more room in a translation than others. */
static void test_block(void)
{
    static const uint8_t move[3] = {0x66, 0xf3, 0xa5}; /* rep movsw */
    enum { MOVES = 48 };
    uint8_t *code = alloc_pages(1);
    for (unsigned i = 0; i < MOVES; i++)
        memcpy(code + i * sizeof move, move, sizeof move);
    code[MOVES * sizeof move] = 0xc3; /* ret */
    fill();
    for (unsigned turn = 0; turn < 3; turn++) {
        uint64_t count = 2, from = (uint64_t)source, to = (uint64_t)target;
        __asm__ volatile("call *%3" : "+c"(count), "+S"(from), "+D"(to) : "r"(code) : "memory", "cc");
        check(count == 0 && from == (uint64_t)source + 4 && to == (uint64_t)target + 4, "registers after %u string instructions", MOVES);
        check(!memcmp(target, source, 4), "bytes moved by %u string instructions", MOVES);
    }
}

void guest_main(void)
{
    source = alloc_pages(4);
    target = alloc_pages(4);
    alloc_pages(1);
    fill();
    test_moves();
    test_block();
    test_overlap();
    test_stores();
    test_compare();
    test_faults();
    test_same_index();
    test_ports();
    test_interrupted();
}
