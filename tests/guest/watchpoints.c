/* Debug registers at work: breakpoints on data, instructions and ports, general detect, and single steps. */
#include "lib/guest.h"

#define FLAG_TF 0x100ul
#define FLAG_RF (1ul << 16)
#define CR4_DE 8ul
#define DR6_INITIAL 0xffff0ff0ul
#define DR6_BD (1ul << 13)
#define DR6_BS (1ul << 14)
#define DR7_FIXED 0x400ul
#define DR7_GD (1ul << 13)
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084

enum kind { EXECUTE, WRITE, PORT, ACCESS };

/* What the #DB handler saw. */
static struct {
    unsigned count;
    uint64_t rip, dr6, rflags, cs, steps[64];
} seen;

static bool on_debug(struct trap_frame *frame)
{
    if (seen.count < sizeof seen.steps / sizeof *seen.steps)
        seen.steps[seen.count] = frame->rip;
    seen.count++;
    seen.rip = frame->rip;
    seen.rflags = frame->rflags;
    seen.cs = frame->cs;
    seen.dr6 = read_dr6();
    write_dr6(DR6_INITIAL);
    frame->rflags |= FLAG_RF;
    return true;
}

static uint64_t dr7_of(unsigned i, enum kind kind, unsigned bytes)
{
    uint64_t len = bytes == 8 ? 2 : bytes - 1;
    return 2ul << (2 * i) | ((uint64_t)kind | len << 2) << (16 + 4 * i);
}

static void arm(enum kind kind, const volatile void *at, unsigned bytes)
{
    memset(&seen, 0, sizeof seen);
    write_dr6(DR6_INITIAL);
    write_dr0((uint64_t)at);
    write_dr7(DR7_FIXED | dr7_of(0, kind, bytes));
}

static void disarm(void)
{
    write_dr7(DR7_FIXED);
}

#define ARMED(kind, at, bytes, statement)                                                                    \
    ({                                                                                                       \
        arm(kind, at, bytes);                                                                                \
        statement;                                                                                           \
        disarm();                                                                                            \
        seen.count;                                                                                          \
    })

static volatile uint64_t watched[4] __attribute__((aligned(32)));

/* The same, to count in bytes, and to let stores of all sizes in. */
static volatile uint8_t *byte(unsigned i)
{
    return (volatile uint8_t *)((uint64_t)watched + i);
}

static void write_often(void)
{
    for (unsigned i = 0; i < 100; i++)
        watched[0] = i;
}

static void test_data(void)
{
    check_equal(ARMED(WRITE, watched, 8, watched[0] = 1), 1, "data breakpoints by a write");
    check_equal(seen.dr6, DR6_INITIAL | 1, "DR6 names it");
    check_equal(ARMED(WRITE, watched, 8, (void)watched[0]), 0, "by a read");
    check_equal(ARMED(ACCESS, watched, 8, (void)watched[0]), 1, "by a read, of one on reads");
    check_equal(ARMED(WRITE, watched, 8, __asm__ volatile("lock incq %0" : "+m"(watched[0]))), 1, "by a locked increment");
    check_equal(ARMED(WRITE, watched, 8, __asm__ volatile("cmpq $0, %0" : : "m"(watched[0]))), 0, "by a comparison");
    check_equal(ARMED(WRITE, byte(8), 1, watched[0] = 1), 0, "by a write before it");
    check_equal(ARMED(WRITE, byte(7), 1, watched[0] = 1), 1, "by a write that ends at it");
    check_equal(ARMED(WRITE, byte(3), 1, *(volatile uint32_t *)byte(4) = 1), 0, "by a write behind it");
    check_equal(ARMED(WRITE, byte(4), 4, *(volatile uint64_t *)byte(7) = 1), 1,
                "by a misaligned write over its end");
    check_equal(ARMED(WRITE, byte(5), 4, *byte(4) = 1), 1, "below its unaligned address");
    write_often(); /* translated before the breakpoint is there */
    check_equal(ARMED(WRITE, watched, 8, write_often()), 100, "by a loop");
    write_often();
    check_equal(seen.count, 100, "data breakpoints when it is gone");
}

/* The instruction has retired when the handler sees it. */
static void test_trap(void)
{
    extern uint8_t after_store[];
    arm(WRITE, watched, 8);
    __asm__ volatile("movq $77, %0\n.globl after_store\nafter_store: nop" : "=m"(watched[0]));
    disarm();
    check_equal(seen.rip, (uint64_t)after_store, "rip behind the store");
    check_equal(watched[0], 77, "what was stored");
    check_equal(ARMED(WRITE, watched, 8, __asm__ volatile("push %0; add $8, %%rsp" : : "r"(1ul))), 0, "a push elsewhere");
    check_equal(ARMED(WRITE, watched + 2, 8,
                      __asm__ volatile("mov %%rsp, %%rcx; lea 8(%0), %%rsp; push %%rax; mov %%rcx, %%rsp"
                                       : : "r"(watched + 2) : "rcx", "memory")),
                1, "by a push");
}

/* Every iteration by itself: it stops behind the one that met it, and goes on. */
static void test_string(void)
{
    static uint8_t buffer[64];
    void *at = buffer;
    uint64_t count = sizeof buffer;
    arm(WRITE, buffer + 10, 1);
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(0x5a) : "memory");
    disarm();
    check_equal(seen.count, 1, "by rep stosb");
    check_equal(count, 0, "what was left to do");
    check_equal(buffer[63], 0x5a, "the last byte");
}

static void __attribute__((noinline)) function(void)
{
    __asm__ volatile("nop" : : : "memory");
}

static void test_execute(void)
{
    function();
    check_equal(ARMED(EXECUTE, (void *)function, 1, function(); function()), 2, "instruction breakpoints, past each by RF");
    check_equal(seen.rip, (uint64_t)function, "rip of an instruction breakpoint");
    check(!(seen.rflags & FLAG_RF), "RF is clear in its frame");
    check_equal(seen.dr6, DR6_INITIAL | 1, "DR6 of an instruction breakpoint");
}

static void test_port(void)
{
    check_equal(ARMED(PORT, (void *)0x80, 1, outb(0x80, 1)), 0, "port breakpoints without CR4.DE");
    write_cr4(read_cr4() | CR4_DE);
    check_equal(ARMED(PORT, (void *)0x80, 1, outb(0x80, 1)), 1, "by OUT");
    check_equal(ARMED(PORT, (void *)0x80, 1, outb(0x81, 1)), 0, "by OUT elsewhere");
    write_cr4(read_cr4() & ~CR4_DE);
}

static void test_several(void)
{
    memset(&seen, 0, sizeof seen);
    write_dr6(DR6_INITIAL);
    write_dr0((uint64_t)watched);
    write_dr1((uint64_t)watched + 4);
    write_dr7(DR7_FIXED | dr7_of(0, WRITE, 4) | dr7_of(1, ACCESS, 4));
    watched[0] = 1;
    disarm();
    check_equal(seen.count, 1, "one #DB for two breakpoints");
    check_equal(seen.dr6, DR6_INITIAL | 3, "DR6 names both");
}

static void test_general_detect(void)
{
    extern uint8_t detected[];
    memset(&seen, 0, sizeof seen);
    trap_handlers[DB] = NULL;
    write_dr6(DR6_INITIAL);
    struct trap trap = TRAP(write_dr7(DR7_FIXED | DR7_GD);
                            __asm__ volatile(".globl detected\ndetected: mov %%dr0, %%rax" : : : "rax"));
    trap_handlers[DB] = on_debug;
    check_trap(trap, DB, 0, "access under DR7.GD");
    check_equal(trap.frame.rip, (uint64_t)detected, "rip of the access");
    check_equal(read_dr6(), DR6_INITIAL | DR6_BD, "DR6 says so");
    check_equal(read_dr7(), DR7_FIXED, "GD is clear for the handler");
    write_dr6(DR6_INITIAL);
}

/* A store that faults and is made good: one breakpoint, of the store that retired. */
static uint64_t hole;

static bool fill_hole(struct trap_frame *frame)
{
    (void)frame;
    *page_entry(hole, 1) |= P_PRESENT;
    return true;
}

static void test_fault_first(void)
{
    hole = 0x200000000000ul;
    map_page(hole, (uint64_t)alloc_pages(1), 1, P_WRITE);
    trap_handlers[PF] = fill_hole;
    check_equal(ARMED(WRITE, (void *)hole, 8, *(volatile uint64_t *)hole = 3), 1, "by a store that faults first");
    trap_handlers[PF] = NULL;
}

extern uint8_t step_1[], step_2[], step_3[], step_4[], step_5[], step_6[];

static void test_steps(void)
{
    memset(&seen, 0, sizeof seen);
    write_dr6(DR6_INITIAL);
    __asm__ volatile("mov $3, %%ecx\n lea watched(%%rip), %%rdi\n xor %%eax, %%eax\n mov %%ss, %%edx\n"
                     "pushfq; orl $0x100, (%%rsp); popfq\n"
                     "nop\n"
                     ".globl step_1, step_2, step_3, step_4, step_5, step_6\n"
                     "step_1: rep stosb\n"
                     "step_2: mov %%edx, %%ss\n" /* no trap behind it */
                     "nop\n"
                     "step_3: sti\n"
                     "step_4: cli\n"
                     "step_5: pushfq\n"
                     "step_6: andl $~0x100, (%%rsp)\n"
                     "popfq\n"
                     "nop" : : : "rax", "rcx", "rdx", "rdi", "memory", "cc");
    static const uint8_t *const wanted[] = {step_1, step_1, step_1, step_2, step_3, step_4, step_5, step_6};
    /* Behind step_6 come the trap at popfq and the one that popfq, which clears TF, still makes. */
    check_equal(seen.count, 10, "single steps");
    for (unsigned i = 0; i < 8; i++)
        check_equal(seen.steps[i], (uint64_t)wanted[i], "rip of a step");
    check_equal(seen.dr6, DR6_INITIAL | DR6_BS, "DR6 says single step");
}

/* A breakpoint that MOV SS meets waits for the end of the next instruction. */
static void test_shadow(void)
{
    extern uint8_t after_shadow[];
    static volatile uint16_t selector;
    __asm__ volatile("mov %%ss, %0" : "=m"(selector));
    arm(ACCESS, &selector, 2);
    __asm__ volatile("mov %0, %%ss\n nop\n .globl after_shadow\nafter_shadow: nop" : : "m"(selector));
    disarm();
    check_equal(seen.count, 1, "by MOV SS");
    check_equal(seen.rip, (uint64_t)after_shadow, "rip behind the instruction after MOV SS");
}

static void user_step(void *arg)
{
    (void)arg;
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq\n"
                     "nop\n"
                     "syscall\n"
                     ".globl user_stepped\n"
                     "user_stepped: nop\n"
                     : : : "rcx", "r11", "memory", "cc");
    LEAVE_USER();
}

/* A step over SYSCALL ends behind it, with the SYSRET that sets TF again; the kernel is not stepped. */
static void test_syscall(void)
{
    extern uint8_t user_stepped[];
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    wrmsr(MSR_STAR, (uint64_t)(SEL_KERNEL) << 32 | (uint64_t)SEL_USER32 << 48);
    wrmsr(MSR_SFMASK, FLAG_TF | 0x200);
    uint64_t entry;
    __asm__ volatile("lea 1f(%%rip), %0\n jmp 2f\n 1: nop; nop; sysretq\n 2:" : "=r"(entry));
    wrmsr(MSR_LSTAR, entry);
    memset(&seen, 0, sizeof seen);
    check_trap(run_user(user_step, NULL), 0x80, 0, "stepped user code");
    check(seen.count >= 3, "%u steps", seen.count);
    check_equal(seen.steps[1], (uint64_t)user_stepped + USER_ALIAS, "step over syscall");
    check_equal(seen.steps[2], (uint64_t)user_stepped + USER_ALIAS + 1, "step behind it");
    for (unsigned i = 0; i < seen.count && i < 64; i++)
        check(seen.steps[i] >= USER_ALIAS, "step %u in the kernel, at 0x%lx", i, seen.steps[i]);
}

static void user_store(void *arg)
{
    *(volatile uint64_t *)arg = 9;
    LEAVE_USER();
}

static void test_user(void)
{
    arm(WRITE, AS_USER(watched), 8);
    check_trap(run_user(user_store, (void *)((uint64_t)watched + USER_ALIAS)), 0x80, 0, "user code under a breakpoint");
    disarm();
    check_equal(seen.count, 1, "by user code");
    check_equal(seen.cs & 3, 3, "ring that met it");
}

void guest_main(void)
{
    trap_handlers[DB] = on_debug;
    test_data();
    test_trap();
    test_string();
    test_execute();
    test_port();
    test_several();
    test_general_detect();
    test_fault_first();
    test_steps();
    test_shadow();
    test_syscall();
    test_user();
    disarm();
}
