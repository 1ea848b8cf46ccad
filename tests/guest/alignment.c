/* Alignment check: #AC in ring 3 with CR0.AM and EFLAGS.AC, and nowhere else; by whatever way AC, AM or the ring come and go. */
#include "lib/guest.h"

#define FLAG_AC (1ul << 18)
#define CR0_AM (1ul << 18)

static uint8_t storage[128] __attribute__((aligned(64)));

static void user_unaligned(void *arg)
{
    volatile uint32_t *p = (volatile uint32_t *)((char *)arg + 1);
    *p = 1;
    LEAVE_USER();
}

static struct trap run_checked(void (*fn)(void *arg), uint64_t offset)
{
    return run_user_flags(fn, AS_USER(storage) + offset, 2 | FLAG_AC, SEL_USER);
}

static void test_conditions(void)
{
    void *arg = AS_USER(storage);
    write_cr0(read_cr0() & ~CR0_AM);
    check_trap(run_checked(user_unaligned, 0), 0x80, 0, "misaligned without CR0.AM");
    write_cr0(read_cr0() | CR0_AM);
    check_trap(run_user(user_unaligned, arg), 0x80, 0, "misaligned without AC");
    check_trap(run_checked(user_unaligned, 0), AC, 0, "misaligned with AC");
    __asm__ volatile("pushfq; orq %0, (%%rsp); popfq; movl $1, 1(%1); pushfq; andq %2, (%%rsp); popfq"
                     : : "i"(FLAG_AC), "r"(storage), "i"(~FLAG_AC) : "memory");
    check(true, "misaligned in ring 0 with AC");
}

/* AC by popf in the middle of warm code, and away again. */
static void user_popf(void *arg)
{
    __asm__ volatile("mov $20, %%ecx\n"
                     "1: movl $1, 1(%0)\n"
                     "dec %%ecx\n"
                     "jnz 1b\n"
                     "pushfq; orl $0x40000, (%%rsp); popfq\n"
                     "movl $2, (%0)\n"
                     "movb $2, 1(%0)\n"
                     "pushfq; andl $~0x40000, (%%rsp); popfq\n"
                     "movl $3, 1(%0)\n"
                     "pushfq; orl $0x40000, (%%rsp); popfq\n"
                     ".globl popf_site\n"
                     "popf_site: movl $4, 1(%0)\n"
                     : : "r"(arg) : "rcx", "memory", "cc");
    LEAVE_USER();
}

extern uint8_t popf_site[];

static void test_popf(void)
{
    struct trap trap = run_user(user_popf, AS_USER(storage));
    check_trap(trap, AC, 0, "misaligned after popf");
    check_equal(trap.frame.rip, (uint64_t)popf_site + USER_ALIAS, "rip of #AC");
    check_equal(*(volatile uint32_t *)(storage + 1), 3, "what was there");
}

#define USER_INSN(name, text)                                                                                \
    static void name(void *arg)                                                                              \
    {                                                                                                        \
        __asm__ volatile("mov %0, %%rbx; mov %0, %%rsi; mov %0, %%rdi; mov $2, %%ecx; xor %%eax, %%eax;" text \
                         "; mov %%rbp, %%rbp" : : "r"(arg) : "rax", "rbx", "rcx", "rsi", "rdi", "memory", "cc");   \
        LEAVE_USER();                                                                                        \
    }
USER_INSN(load_2, "movw (%%rbx), %%ax")
USER_INSN(load_4, "movl (%%rbx), %%eax")
USER_INSN(load_8, "movq (%%rbx), %%rax")
USER_INSN(load_16, "movdqu (%%rbx), %%xmm0")
USER_INSN(load_10, "fldt (%%rbx); fstp %%st")
USER_INSN(locked_4, "lock addl $1, (%%rbx)")
USER_INSN(bits_4, "btl %%eax, (%%rbx)")
USER_INSN(string_8, "rep movsq")
USER_INSN(string_1, "rep movsb")
USER_INSN(pushed, "mov %%rsp, %%rcx; lea 64(%%rbx), %%rsp; push %%rax; mov %%rcx, %%rsp")
USER_INSN(called, "mov %%rsp, %%rcx; lea 64(%%rbx), %%rsp; call 1f; 1: mov %%rcx, %%rsp")
USER_INSN(environment, "fnstenv (%%rbx)")
USER_INSN(state, "fxsave (%%rbx)")

/* The least alignment at which nothing happens. */
static void test_sizes(void)
{
    static const struct {
        void (*fn)(void *arg);
        unsigned alignment;
        const char *what;
    } cases[] = {
        {load_2, 2, "2 bytes"},   {load_4, 4, "4 bytes"},     {load_8, 8, "8 bytes"},         {locked_4, 4, "a locked add"},
        {load_10, 8, "10 bytes"}, {bits_4, 4, "a bit test"},  {string_8, 8, "rep movsq"},     {string_1, 1, "rep movsb"},
        {pushed, 8, "push"},      {called, 8, "call"},        {environment, 4, "fnstenv"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        for (unsigned offset = 1; offset <= 8; offset *= 2) {
            bool fits = offset % cases[i].alignment == 0;
            check_trap(run_checked(cases[i].fn, offset), fits ? 0x80 : AC, 0, cases[i].what);
        }
    check_trap(run_checked(state, 2), AC, 0, "fxsave at 2");
    check_trap(run_checked(state, 8), GP, 0, "fxsave at 8");
    check_trap(run_checked(load_16, 16), 0x80, 0, "aligned movdqu");
}

/* #AC comes before a page fault and after an address that is none. */
static void test_order(void)
{
    check_trap(run_user_flags(load_4, (void *)0x200000000001ul, 2 | FLAG_AC, SEL_USER), AC, 0, "misaligned, not mapped");
    check_trap(run_user_flags(load_4, (void *)0x200000000004ul, 2 | FLAG_AC, SEL_USER), PF, 4, "aligned, not mapped");
    check_trap(run_user_flags(load_4, (void *)0x8000000000000001ul, 2 | FLAG_AC, SEL_USER), GP, 0, "not canonical");
}

/* The CPU's own accesses on behalf of user code are supervisor's. */
static void test_delivery(void)
{
    struct cpu *cpu = this_cpu();
    uint64_t saved = cpu->tss.rsp[0];
    check_trap(run_checked(load_8, 8), 0x80, 0, "int n with AC");
    cpu->tss.rsp[0] = saved - 4;
    check_trap(run_checked(load_8, 8), 0x80, 0, "frame on a misaligned stack");
    cpu->tss.rsp[0] = saved;
}

void guest_main(void)
{
    test_conditions();
    test_popf();
    write_cr4(read_cr4() | 1ul << 9); /* OSFXSR */
    test_sizes();
    test_order();
    test_delivery();
    write_cr0(read_cr0() & ~CR0_AM);
}
