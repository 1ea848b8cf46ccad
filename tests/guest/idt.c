/* Delivery: gates of both kinds, interrupt stacks, the TSS, stack alignment, software interrupts of every form. */
#include "lib/guest.h"

#define FLAG_TF 0x100ul
#define FLAG_IF 0x200ul
#define FLAG_NT 0x4000ul

static uint64_t seen_flags, seen_frame, seen_ss;

static bool record(struct trap_frame *frame)
{
    __asm__ volatile("pushfq; popq %0" : "=r"(seen_flags));
    __asm__ volatile("mov %%ss, %0" : "=r"(seen_ss));
    seen_frame = (uint64_t)(frame + 1);
    return true;
}

static void test_gate_types(void)
{
    trap_handlers[0x50] = record;
    idt_set(0x50, 0x8e, 0);
    enable_interrupts();
    __asm__ volatile("int $0x50" ::: "memory");
    check(!(seen_flags & FLAG_IF), "an interrupt gate clears IF");
    idt_set(0x50, 0x8f, 0);
    __asm__ volatile("int $0x50" ::: "memory");
    check(seen_flags & FLAG_IF, "a trap gate leaves IF");
    uint64_t after;
    __asm__ volatile("pushfq; popq %0" : "=r"(after));
    check(after & FLAG_IF, "IF after the return");
    disable_interrupts();
    __asm__ volatile("pushfq; orq %0, (%%rsp); popfq; int $0x50" : : "i"(FLAG_NT) : "memory", "cc");
    check(!(seen_flags & (FLAG_NT | FLAG_TF)), "NT and TF are clear in a handler: 0x%lx", seen_flags);
    __asm__ volatile("push $2; popfq" ::: "cc");
    check_equal(seen_ss, SEL_KDATA, "ss is kept within ring 0");
}

static void test_alignment(void)
{
    for (unsigned shift = 0; shift < 16; shift += 3) {
        __asm__ volatile("mov %%rsp, %%rbx; sub %0, %%rsp; int $0x50; mov %%rbx, %%rsp" : : "r"((uint64_t)shift + 128)
                         : "rbx", "memory");
        check_equal(seen_frame & 15, 0, "alignment of the frame");
    }
}

static void user_int(void *arg)
{
    (void)arg;
    __asm__ volatile("int $0x50");
    LEAVE_USER();
}

static void test_stacks(void)
{
    struct cpu *cpu = this_cpu();
    idt_set(0x50, 0xee, 0);
    check_trap(run_user(user_int, NULL), 0x80, 0, "int from ring 3 and back");
    check_equal(seen_frame, cpu->tss.rsp[0], "frame from ring 3 is on RSP0");
    check_equal(seen_ss, 0, "ss is null in a handler that came from ring 3");
    uint64_t other = (uint64_t)alloc_pages(2) + 2 * PAGE;
    uint64_t before = cpu->tss.rsp[0];
    cpu->tss.rsp[0] = other;
    run_user(user_int, NULL);
    check_equal(seen_frame, other, "a new RSP0 counts at once");
    cpu->tss.rsp[0] = other - 7;
    run_user(user_int, NULL);
    check_equal(seen_frame, (other - 7) & ~15ul, "RSP0 is aligned");
    cpu->tss.rsp[0] = before;
    for (unsigned ist = 1; ist <= 7; ist++) {
        uint64_t stack = (uint64_t)alloc_pages(2) + 2 * PAGE;
        cpu->tss.ist[ist - 1] = stack;
        idt_set(0x50, 0xee, ist);
        __asm__ volatile("int $0x50" ::: "memory");
        check_equal(seen_frame, stack, "interrupt stack from ring 0");
        run_user(user_int, NULL);
        check_equal(seen_frame, stack, "interrupt stack from ring 3");
    }
    idt_set(0x50, 0x8e, 0);
    cpu->tss.ist[0] = (uint64_t)(cpu->ist_stack + sizeof cpu->ist_stack);
}

static void test_bad_stack(void)
{
    struct cpu *cpu = this_cpu();
    uint64_t before = cpu->tss.rsp[0];
    idt_set(0x50, 0xee, 0);
    idt_set(SS, 0x8e, 1);
    cpu->tss.rsp[0] = (1ul << 47) + PAGE;
    check_trap(run_user(user_int, NULL), SS, 0, "non-canonical RSP0");
    cpu->tss.rsp[0] = 0x200000001000ul;
    idt_set(PF, 0x8e, 1);
    struct trap trap = run_user(user_int, NULL);
    check_trap(trap, PF, 2, "RSP0 in a missing page");
    check_equal(trap.cr2 & ~0xfful, 0x200000000f00ul, "CR2 is on that stack");
    check_equal(trap.frame.cs, SEL_USER, "the fault is the int's");
    cpu->tss.rsp[0] = before;
    idt_set(PF, 0x8e, 0);
    idt_set(SS, 0x8e, 0);
    idt_set(0x50, 0x8e, 0);
}

/* A gate to 32-bit code is refused in long mode. */
static void test_bad_gates(void)
{
    this_cpu()->idt[0x51].selector = SEL_KERNEL32;
    check_trap(TRAP(__asm__ volatile("int $0x51")), GP, SEL_KERNEL32, "gate to 32-bit code");
    this_cpu()->idt[0x51].selector = SEL_KDATA;
    check_trap(TRAP(__asm__ volatile("int $0x51")), GP, SEL_KDATA, "gate to data");
    this_cpu()->idt[0x51].selector = 0;
    check_trap(TRAP(__asm__ volatile("int $0x51")), GP, 0, "gate to the null selector");
    this_cpu()->idt[0x51].selector = SEL_KERNEL;
    this_cpu()->idt[0x51].type = 0x8c;
    check_trap(TRAP(__asm__ volatile("int $0x51")), GP, 0x51 * 8 + 2, "call gate in the IDT");
    this_cpu()->idt[0x51].type = 0x8e;
    check_trap(TRAP(__asm__ volatile("int $0x51")), 0x51, 0, "good gate again");
}

static void test_forms(void)
{
    check_trap(TRAP(__asm__ volatile(".byte 0xf1")), DB, 0, "int1");
    check_trap(TRAP(__asm__ volatile(".byte 0xce")), UD, 0, "into in 64-bit mode");
}

void guest_main(void)
{
    test_gate_types();
    test_alignment();
    test_stacks();
    test_bad_stack();
    test_bad_gates();
    test_forms();
}
