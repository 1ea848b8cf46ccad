/* Which flags POPF, IRET and SYSRET change, by ring, IOPL and operand size (SDM 2, POPF table 4-20). TF is the debug tests'. */
#include "lib/guest.h"

#define ARITHMETIC 0x8d5ul
#define IF 0x200ul
#define DF 0x400ul
#define IOPL 0x3000ul
#define NT 0x4000ul
#define RF 0x10000ul
#define AC 0x40000ul
#define ID 0x200000ul
#define ALL (ARITHMETIC | IF | DF | IOPL | NT | RF | AC | ID)
#define EFER 0xc0000080u
#define STAR 0xc0000081u
#define LSTAR 0xc0000082u
#define SFMASK 0xc0000084u

static void user_popfq(void *arg)
{
    __asm__ volatile("push %0; popfq; int $0x80" : : "r"(arg) : "memory", "cc");
}

static void user_popfw(void *arg)
{
    __asm__ volatile("pushw %w0; popfw; int $0x80" : : "r"(arg) : "memory", "cc");
}

static void user_iret(void *arg)
{
    __asm__ volatile("mov %%rsp, %%rcx; mov %%ss, %%eax; push %%rax; push %%rcx; push %0; mov %%cs, %%eax; push %%rax;"
                     "lea 1f(%%rip), %%rax; push %%rax; iretq; 1: int $0x80" : : "r"(arg) : "rax", "rcx", "memory", "cc");
}

static void user_syscall(void *arg)
{
    (void)arg;
    __asm__ volatile("syscall; int $0x80" : : : "rcx", "r11", "memory", "cc");
}

/* Both from all clear to all set and back: `changed` are those that follow. */
static void check_user(void (*fn)(void *arg), uint64_t iopl, uint64_t changed, const char *what)
{
    for (unsigned set = 0; set < 2; set++) {
        uint64_t before = 2 | iopl | (set ? 0 : ALL & ~(IOPL | NT)), value = set ? ALL : 2;
        struct trap trap = run_user_flags(fn, (void *)value, before, SEL_USER);
        check_trap(trap, 0x80, 0, what);
        uint64_t compared = ALL & ~(RF | (set ? 0 : NT));
        check_equal(trap.frame.rflags & compared, ((before & ~changed) | (value & changed)) & compared, what);
        check(!(trap.frame.rflags & RF), "%s: RF is set", what);
    }
}

static void test_user(void)
{
    static const uint64_t always = ARITHMETIC | DF | NT;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t iopl = (uint64_t)i << 12, by_iopl = i == 3 ? IF : 0;
        check_user(user_popfq, iopl, always | AC | ID | by_iopl, "popfq in ring 3");
        check_user(user_popfw, iopl, always | by_iopl, "popfw in ring 3");
        check_user(user_iret, iopl, always | AC | ID | by_iopl, "iretq in ring 3");
    }
}

static uint64_t pop_flags(uint64_t value)
{
    uint64_t got;
    __asm__ volatile("push %1; popfq; pushfq; pop %0; push $2; popfq" : "=r"(got) : "r"(value) : "memory", "cc");
    return got;
}

static uint64_t pop_flags_word(uint64_t before, uint64_t value)
{
    uint64_t got;
    __asm__ volatile("push %1; popfq; pushw %w2; popfw; pushfq; pop %0; push $2; popfq"
                     : "=&r"(got) : "r"(before), "r"(value) : "memory", "cc");
    return got;
}

static uint64_t iret_flags(uint64_t value)
{
    uint64_t got;
    __asm__ volatile("mov %%rsp, %%rcx; mov %%ss, %%eax; push %%rax; push %%rcx; push %1; mov %%cs, %%eax; push %%rax;"
                     "lea 1f(%%rip), %%rax; push %%rax; iretq; 1: pushfq; pop %0; push $2; popfq"
                     : "=&r"(got) : "r"(value) : "rax", "rcx", "memory", "cc");
    return got;
}

static void test_kernel(void)
{
    uint64_t all = ALL & ~(RF | IF);
    check_equal(pop_flags(ALL & ~IF) & ALL, all, "popfq in ring 0, set");
    check_equal(pop_flags(2) & ALL, 0, "popfq in ring 0, clear");
    check_equal(pop_flags_word(2, 0xffff & all) & ALL, all & 0xffff, "popfw in ring 0, set");
    check_equal(pop_flags_word(AC | ID | ARITHMETIC, 2) & ALL, AC | ID, "popfw in ring 0, clear");
    check_equal(iret_flags(ALL & ~IF) & ALL, all, "iretq in ring 0, set");
    check_equal(iret_flags(2) & ALL, 0, "iretq in ring 0, clear");
    check_equal(pop_flags(~0ul & ~(IF | 0x100)) & ~0x3f7fd7ul, 0, "reserved bits");
}

extern uint8_t flags_syscall[];
uint64_t flags_r11;
__asm__(".text\nflags_syscall: mov flags_r11(%rip), %r11\n sysretq\n");

static void test_sysret(void)
{
    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, (uint64_t)(SEL_USER32 & ~3) << 48 | (uint64_t)SEL_KERNEL << 32);
    wrmsr(LSTAR, (uint64_t)flags_syscall);
    wrmsr(SFMASK, 0x700);
    static const uint64_t values[] = {2, ALL & ~NT, ~0ul & ~(NT | 0x180100ul)}; /* not TF, VIF, VIP */
    for (unsigned i = 0; i < 3; i++) {
        flags_r11 = values[i];
        uint64_t wanted = (values[i] & ALL & ~RF) | 2;
        struct trap trap = run_user(user_syscall, NULL);
        check_trap(trap, 0x80, 0, "sysret");
        check_equal(trap.frame.rflags, wanted, "flags after sysret");
    }
}

void guest_main(void)
{
    test_user();
    test_kernel();
    test_sysret();
}
