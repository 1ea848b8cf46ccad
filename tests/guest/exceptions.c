/* Every exception that software can cause: vector, error code, saved rip, and what is left of the instruction. */
#include "lib/guest.h"

#define FLAG_TF 0x100ul
#define CR0_EM 4ul
#define CR0_TS 8ul
#define CR4_OSFXSR (1ul << 9)
#define CR4_OSXMMEXCPT (1ul << 10)

/* Runs asm text in catch_trap; "1:" marks the instruction that must fault. */
extern uint8_t fault_site[];
#define AT_SITE ".globl fault_site\nfault_site: "

static void check_rip(struct trap trap, uint64_t wanted, const char *what)
{
    check_equal(trap.frame.rip, wanted, what);
}

static void divide_by_zero(void *arg)
{
    (void)arg;
    __asm__ volatile("xor %%ecx, %%ecx; mov $7, %%eax; cltd\n" AT_SITE "idiv %%ecx" ::: "rax", "rcx", "rdx");
}

static void divide_overflow(void *arg)
{
    (void)arg;
    __asm__ volatile("mov $0x80000000, %%eax; cltd; mov $-1, %%ecx; idiv %%ecx" ::: "rax", "rcx", "rdx");
}

static void divide_64_overflow(void *arg)
{
    (void)arg;
    __asm__ volatile("mov $2, %%edx; xor %%eax, %%eax; mov $1, %%ecx; div %%rcx" ::: "rax", "rcx", "rdx");
}

static void test_divide(void)
{
    struct trap trap = catch_trap(divide_by_zero, NULL);
    check_trap(trap, DE, 0, "division by zero");
    check_rip(trap, (uint64_t)fault_site, "rip of #DE");
    check_equal(trap.frame.rax, 7, "rax of a faulting division");
    check_trap(catch_trap(divide_overflow, NULL), DE, 0, "INT_MIN / -1");
    check_trap(catch_trap(divide_64_overflow, NULL), DE, 0, "quotient of 65 bits");
}

extern uint8_t after_int3[], after_int[];
static void breakpoint(void *arg)
{
    (void)arg;
    __asm__ volatile("int3\n.globl after_int3\nafter_int3:");
}

static void software_int(void *arg)
{
    (void)arg;
    __asm__ volatile("int $0x42\n.globl after_int\nafter_int:");
}

static void test_traps(void)
{
    struct trap trap = catch_trap(breakpoint, NULL);
    check_trap(trap, BP, 0, "int3");
    check_rip(trap, (uint64_t)after_int3, "rip of #BP is behind it");
    trap = catch_trap(software_int, NULL);
    check_trap(trap, 0x42, 0, "int 0x42");
    check_rip(trap, (uint64_t)after_int, "rip of int n is behind it");
    check_trap(TRAP(__asm__ volatile("int $3")), BP, 0, "int 3 of two bytes");
}

static void test_undefined(void)
{
    check_trap(TRAP(__asm__ volatile("ud2")), UD, 0, "ud2");
    check_trap(TRAP(__asm__ volatile(".byte 0x0f, 0xff, 0xc0")), UD, 0, "ud0");
    check_trap(TRAP(__asm__ volatile(".byte 0x06")), UD, 0, "push es in 64-bit mode");
    check_trap(TRAP(__asm__ volatile(".byte 0xf0, 0x89, 0xc0")), UD, 0, "lock mov");
    check_trap(TRAP(__asm__ volatile(".byte 0xf0, 0x01, 0xc0")), UD, 0, "lock add to a register");
    check_trap(TRAP(__asm__ volatile(".byte 0x8e, 0xc8")), UD, 0, "mov to cs");
    check_trap(TRAP(__asm__ volatile("mov %%rax, %%cr1" ::: "memory")), UD, 0, "mov to cr1");
    check_trap(TRAP(__asm__ volatile(".byte 0xea, 0, 0, 0, 0, 8, 0")), UD, 0, "jmp far direct");
}

static void test_fpu_not_there(void)
{
    uint64_t cr0 = read_cr0();
    write_cr0(cr0 | CR0_TS);
    check_trap(TRAP(__asm__ volatile("fninit")), NM, 0, "x87 with TS");
    check_trap(TRAP(__asm__ volatile("xorps %xmm0, %xmm0")), NM, 0, "SSE with TS");
    __asm__ volatile("clts");
    check_no_trap(TRAP(__asm__ volatile("fninit")), "x87 after CLTS");
    write_cr0((cr0 | CR0_EM) & ~2ul);
    check_trap(TRAP(__asm__ volatile("fninit")), NM, 0, "x87 with EM");
    check_trap(TRAP(__asm__ volatile("xorps %xmm0, %xmm0")), UD, 0, "SSE with EM");
    write_cr0(cr0);
    write_cr4(read_cr4() & ~CR4_OSFXSR);
    check_trap(TRAP(__asm__ volatile("xorps %xmm0, %xmm0")), UD, 0, "SSE without OSFXSR");
    write_cr4(read_cr4() | CR4_OSFXSR);
}

static void test_floating_point(void)
{
    static const uint16_t unmasked = 0x0300;
    static const uint32_t simd_unmasked = 0, simd_default = 0x1f80;
    check_trap(TRAP(__asm__ volatile("fninit; fldcw %0; fldz; fld1; fdiv %%st(1), %%st; fwait" : : "m"(unmasked))), MF, 0,
               "x87 division by zero");
    __asm__ volatile("fninit");
    check_trap(TRAP(__asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; movl $1, %%eax; cvtsi2ss %%eax, %%xmm1;"
                                     "divss %%xmm0, %%xmm1" : : "m"(simd_unmasked) : "rax")),
               XM, 0, "SIMD division by zero");
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    check_equal(mxcsr & 0x3f, 4, "MXCSR says division by zero");
    write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
    check_trap(TRAP(__asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; movl $1, %%eax; cvtsi2ss %%eax, %%xmm1;"
                                     "divss %%xmm0, %%xmm1" : : "m"(simd_unmasked) : "rax")),
               UD, 0, "SIMD error without OSXMMEXCPT");
    write_cr4(read_cr4() | CR4_OSXMMEXCPT);
    __asm__ volatile("ldmxcsr %0" : : "m"(simd_default));
    static const uint32_t bad = 0x10000;
    check_trap(TRAP(__asm__ volatile("ldmxcsr %0" : : "m"(bad))), GP, 0, "reserved bit of MXCSR");
    check_trap(TRAP(__asm__ volatile("movaps %%xmm0, 1(%0)" : : "r"(alloc_pages(1)) : "memory")), GP, 0,
               "misaligned movaps");
}

static void load_ds(void *arg)
{
    __asm__ volatile("mov %w0, %%ds" : : "r"((uint64_t)arg));
}

static void load_ss(void *arg)
{
    __asm__ volatile("mov %w0, %%ss" : : "r"((uint64_t)arg));
}

static struct trap load(void (*fn)(void *), uint64_t selector)
{
    return catch_trap(fn, (void *)selector);
}

static void test_segments(void)
{
    check_trap(load(load_ds, 0x200), GP, 0x200, "selector beyond the GDT");
    check_trap(load(load_ds, 0x4c), GP, 0x4c, "selector of an LDT that is not there");
    check_no_trap(load(load_ds, 0), "null selector in ds");
    check_trap(load(load_ss, 3), GP, 0, "null selector of another ring in ss");
    gdt_set(SEL_SPARE, 0x00cf13000000fffful); /* data, not present */
    check_trap(load(load_ds, SEL_SPARE), NP, SEL_SPARE, "segment not present");
    check_trap(load(load_ss, SEL_SPARE), SS, SEL_SPARE, "stack segment not present");
    gdt_set(SEL_SPARE, 0x00cf91000000fffful); /* read-only data */
    check_no_trap(load(load_ds, SEL_SPARE), "read-only segment in ds");
    check_trap(load(load_ss, SEL_SPARE), GP, SEL_SPARE, "read-only segment in ss");
    gdt_set(SEL_SPARE, 0x00cf99000000fffful); /* execute-only code */
    check_trap(load(load_ds, SEL_SPARE), GP, SEL_SPARE, "execute-only segment in ds");
    check_trap(load(load_ds, SEL_TSS), GP, SEL_TSS, "system segment in ds");
    check_trap(load(load_ss, SEL_UDATA), GP, SEL_UDATA & ~3u, "user segment in ss");
    check_trap(TRAP(__asm__ volatile("ltr %w0" : : "r"(SEL_KDATA))), GP, SEL_KDATA, "ltr of a data segment");
    check_trap(TRAP(__asm__ volatile("ltr %w0" : : "r"(SEL_TSS))), GP, SEL_TSS, "ltr of a busy TSS");
    check_trap(TRAP(__asm__ volatile("lldt %w0" : : "r"(SEL_KDATA))), GP, SEL_KDATA, "lldt of a data segment");
    load(load_ds, SEL_KDATA);
}

static void user_int42(void *arg)
{
    (void)arg;
    __asm__ volatile("int $0x42");
}

static void user_int3(void *arg)
{
    (void)arg;
    __asm__ volatile("int3");
}

static void user_hlt(void *arg)
{
    (void)arg;
    __asm__ volatile("hlt");
}

static void user_port(void *arg)
{
    outb((uint16_t)(uint64_t)arg, 0);
    LEAVE_USER();
}

static void user_cli(void *arg)
{
    (void)arg;
    __asm__ volatile("cli");
    LEAVE_USER();
}

static void test_gates(void)
{
    check_trap(run_user(user_int42, NULL), GP, 0x42 * 8 + 2, "int n through a gate of ring 0");
    check_trap(run_user(user_int3, NULL), BP, 0, "int3 of ring 3");
    struct trap trap = run_user(user_int3, NULL);
    check_equal(trap.frame.cs, SEL_USER, "saved cs");
    check_equal(trap.frame.ss, SEL_UDATA, "saved ss");
    idt_set(0x42, 0x0e, 0);
    check_trap(TRAP(__asm__ volatile("int $0x42")), NP, 0x42 * 8 + 2, "gate not present");
    idt_set(0x42, 0x85, 0);
    check_trap(TRAP(__asm__ volatile("int $0x42")), GP, 0x42 * 8 + 2, "task gate in long mode");
    idt_set(0x42, 0x8e, 0);
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idtr = {0x42 * 16 - 1, (uint64_t)this_cpu()->idt}, whole = {4095, idtr.base};
    __asm__ volatile("lidt %0" : : "m"(idtr));
    check_trap(TRAP(__asm__ volatile("int $0x42")), GP, 0x42 * 8 + 2, "gate beyond the IDT");
    __asm__ volatile("lidt %0" : : "m"(whole));
}

static void test_privilege(void)
{
    check_trap(run_user(user_hlt, NULL), GP, 0, "hlt in ring 3");
    check_trap(run_user(user_cli, NULL), GP, 0, "cli in ring 3");
    check_trap(run_user_flags(user_cli, NULL, 0x3002, SEL_USER), 0x80, 0, "cli in ring 3 with IOPL 3");
    check_trap(run_user(user_port, (void *)0x80ul), GP, 0, "out in ring 3");
    check_trap(run_user_flags(user_port, (void *)0x80ul, 0x3002, SEL_USER), 0x80, 0, "out in ring 3 with IOPL 3");
    struct tss *tss = &this_cpu()->tss;
    tss->io_base = offsetof(struct tss, io_bitmap);
    memset(tss->io_bitmap, 0xff, sizeof tss->io_bitmap);
    check_trap(run_user(user_port, (void *)0x80ul), GP, 0, "out in ring 3, port not allowed");
    tss->io_bitmap[0x80 / 8] = 0xfe;
    check_trap(run_user(user_port, (void *)0x80ul), 0x80, 0, "out in ring 3, port allowed");
    check_trap(run_user(user_port, (void *)0x81ul), GP, 0, "its neighbour");
    tss->io_base = sizeof *tss;
}

/* A fault while a fault is delivered: both the page fault's gate and what it raises must be bad for #DF. */
static void test_double_fault(void)
{
    idt_set(PF, 0x0e, 0);
    struct trap trap = TRAP((void)*(volatile uint64_t *)0x200000000000);
    check_trap(trap, DF, 0, "page fault without a gate");
    idt_set(PF, 0x8e, 0);
    idt_set(BP, 0x6e, 0);
    check_trap(TRAP(__asm__ volatile("int3")), NP, BP * 8 + 2, "int3 without a gate is no double fault");
    idt_set(BP, 0xee, 0);
}

static unsigned steps;
static uint64_t step_rip[8];

static bool count_step(struct trap_frame *frame)
{
    if (steps < 8)
        step_rip[steps] = frame->rip;
    if (++steps >= 4)
        frame->rflags &= ~FLAG_TF;
    return true;
}

static void test_single_step(void)
{
    trap_handlers[DB] = count_step;
    write_dr6(0xffff0ff0);
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq\n"
                     "nop; mov $1, %%eax; inc %%eax; nop; nop" ::: "rax", "memory");
    check_equal(steps, 4, "single steps");
    check_equal(step_rip[1] - step_rip[0], 5, "length of the stepped mov");
    check_equal(step_rip[2] - step_rip[1], 2, "length of the stepped inc");
    check(read_dr6() & 1u << 14, "DR6.BS is 0x%lx", read_dr6());
    trap_handlers[DB] = NULL;
    write_dr6(0xffff0ff0);
}

void guest_main(void)
{
    test_divide();
    test_traps();
    test_undefined();
    test_fpu_not_there();
    test_floating_point();
    test_segments();
    test_gates();
    test_privilege();
    test_double_fault();
    test_single_step();
}
