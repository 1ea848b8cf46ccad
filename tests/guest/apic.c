/* Local APIC: identity, timer in its three modes, priorities, self-IPIs, both register interfaces. */
#include "lib/guest.h"

#define XAPIC 0xfee00000ul
#define VECTOR 0x60
#define LVT_MASKED 0x10000u
#define LVT_PERIODIC 0x20000u
#define LVT_DEADLINE 0x40000u

static volatile unsigned counts[256];
static volatile uint8_t order[16], orders;

static bool count_interrupt(struct trap_frame *frame)
{
    counts[frame->vector]++;
    if (orders < sizeof order)
        order[orders++] = (uint8_t)frame->vector;
    wrmsr(APIC_EOI, 0);
    return true;
}

static bool count_nmi(struct trap_frame *frame)
{
    counts[frame->vector]++;
    return true;
}

/* With interrupts on, for that long at most. */
static bool wait_count(unsigned vector, unsigned wanted, uint64_t us)
{
    uint64_t end = rdtsc() + tsc_khz() * us / 1000;
    enable_interrupts();
    while (counts[vector] < wanted && rdtsc() < end)
        pause_cpu();
    disable_interrupts();
    return counts[vector] >= wanted;
}

static uint32_t xapic_read(uint32_t offset)
{
    return *(volatile uint32_t *)(XAPIC + offset);
}

static void xapic_write(uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(XAPIC + offset) = value;
}

static bool count_xapic(struct trap_frame *frame)
{
    counts[frame->vector]++;
    xapic_write(0xb0, 0);
    return true;
}

static void test_xapic(void)
{
    check_equal(rdmsr(0x1b) & 0xd00, 0x900, "APIC base: enabled, bootstrap, not x2APIC");
    check_equal(xapic_read(0x20) >> 24, 0, "xAPIC id");
    check_equal(xapic_read(0x30) & 0xff, 0x14, "version");
    xapic_write(0xf0, 0x1ff);
    trap_handlers[VECTOR] = count_xapic;
    xapic_write(0x300, 0x40000 | VECTOR); /* self */
    check(wait_count(VECTOR, 1, 100000), "self-IPI by xAPIC");
    xapic_write(0x310, 0);
    xapic_write(0x300, VECTOR);
    check(wait_count(VECTOR, 2, 100000), "IPI to id 0 by xAPIC");
    xapic_write(0x80, 0x50);
    check_equal(read_cr8(), 5, "CR8 follows TPR");
    xapic_write(0x80, 0);
    trap_handlers[VECTOR] = count_interrupt;
}

static void test_x2apic(void)
{
    apic_enable();
    check_equal(rdmsr(APIC_ID), 0, "x2APIC id");
    check_equal(rdmsr(APIC_VERSION) & 0xff, 0x14, "version");
    counts[VECTOR] = 0;
    wrmsr(APIC_SELF_IPI, VECTOR);
    check(wait_count(VECTOR, 1, 100000), "self-IPI register");
    send_ipi(0, VECTOR);
    check(wait_count(VECTOR, 2, 100000), "IPI to id 0");
    send_ipi(0, 0x80000 | VECTOR);
    check(wait_count(VECTOR, 3, 100000), "IPI to all");
    send_ipi(0, 0xc0000 | VECTOR);
    check(!wait_count(VECTOR, 4, 1000), "IPI to all but self");
    check_trap(TRAP(rdmsr(0x80e)), GP, 0, "DFR is not there in x2APIC mode");
    check_trap(TRAP(wrmsr(APIC_EOI, 1)), GP, 0, "EOI takes 0 only");
    check_trap(TRAP(rdmsr(APIC_EOI)), GP, 0, "EOI is write-only");
    check_trap(TRAP(wrmsr(APIC_ID, 1)), GP, 0, "the id is read-only");
    check_trap(TRAP(wrmsr(0x1b, 0xfee00d00 & ~0x800u)), GP, 0, "x2APIC without the APIC");
}

static void test_priorities(void)
{
    for (unsigned v = 0x60; v <= 0x90; v += 0x10) {
        trap_handlers[v] = count_interrupt;
        counts[v] = 0;
    }
    disable_interrupts();
    orders = 0;
    wrmsr(APIC_SELF_IPI, 0x60);
    wrmsr(APIC_SELF_IPI, 0x90);
    wrmsr(APIC_SELF_IPI, 0x80);
    check_equal(rdmsr(APIC_IRR + 3), 1, "IRR of vectors 0x60-0x7f");
    check_equal(rdmsr(APIC_IRR + 4), 0x10001, "IRR of vectors 0x80-0x9f");
    wait_count(0x60, 1, 100000);
    check(orders == 3 && order[0] == 0x90 && order[1] == 0x80 && order[2] == 0x60, "highest vector first: %x %x %x", order[0],
          order[1], order[2]);
    write_cr8(8);
    wrmsr(APIC_SELF_IPI, 0x80);
    check(!wait_count(0x80, 2, 1000), "CR8 of 8 holds vector 0x80 back");
    wrmsr(APIC_SELF_IPI, 0x90);
    check(wait_count(0x90, 2, 100000), "but not 0x90");
    write_cr8(7);
    check(wait_count(0x80, 2, 100000), "CR8 of 7 lets it through");
    write_cr8(0);
}

static void test_shadow(void)
{
    counts[VECTOR] = 0;
    disable_interrupts();
    wrmsr(APIC_SELF_IPI, VECTOR);
    uint64_t seen;
    __asm__ volatile("sti; mov %1, %0; cli" : "=r"(seen) : "m"(counts[VECTOR]) : "memory");
    check_equal((uint32_t)seen, 0, "no interrupt right after sti");
    check_equal(counts[VECTOR], 1, "but one instruction later");
    wrmsr(APIC_SELF_IPI, VECTOR);
    __asm__ volatile("sti; cli" ::: "memory");
    check_equal(counts[VECTOR], 1, "none between sti and cli");
    halt();
    check_equal(counts[VECTOR], 2, "hlt with one pending");
}

extern uint8_t sleep_across_pages[], sleep_halt[];
static unsigned between;

/* STI is the last byte of a page, HLT the first of the next. The divisions take their time, so that interrupts come while they run. */
__asm__(".text\n"
        ".balign 4096\n"
        ".skip 4096 - 2 - 44 * 3\n"
        "sleep_across_pages:\n"
        "cli\n"
        ".rept 44\n"
        "div %rsi\n"
        ".endr\n"
        "sti\n"
        "sleep_halt: hlt\n"
        "ret\n");

/* One that comes between STI and HLT is the one that HLT would wait for. */
static bool count_wake_up(struct trap_frame *frame)
{
    between += frame->rip == (uint64_t)sleep_halt;
    frame->rip += frame->rip == (uint64_t)sleep_halt;
    return count_interrupt(frame);
}

static void test_shadow_over_pages(void)
{
    trap_handlers[VECTOR] = count_wake_up;
    counts[VECTOR] = 0;
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, VECTOR);
    unsigned rounds = 0;
    for (uint64_t end = rdtsc() + tsc_khz() * 500; rounds < 2000 && rdtsc() < end; rounds++) { /* 500 ms, on slow hosts */
        wrmsr(APIC_TIMER_INITIAL, 1000 + rounds % 400 * 100);
        __asm__ volatile("call *%3; cli" : : "a"(5ul), "d"(0ul), "S"(3ul), "r"(sleep_across_pages) : "memory", "cc");
    }
    trap_handlers[VECTOR] = count_interrupt;
    check_equal(counts[VECTOR], rounds, "wake-ups");
    check_equal(between, 0, "interrupts between STI and HLT");
}

static void test_timer(void)
{
    counts[VECTOR] = 0;
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, VECTOR);
    wrmsr(APIC_TIMER_INITIAL, 1000000);
    uint64_t current = rdmsr(APIC_TIMER_CURRENT);
    check(current <= 1000000, "timer counts down from the start: %lu", current);
    check(wait_count(VECTOR, 1, 3000000), "one-shot timer");
    check_equal(rdmsr(APIC_TIMER_CURRENT), 0, "timer after its shot");
    check(!wait_count(VECTOR, 2, 5000), "only one shot");
    wrmsr(APIC_LVT_TIMER, LVT_PERIODIC | VECTOR);
    wrmsr(APIC_TIMER_INITIAL, 200000);
    check(wait_count(VECTOR, 6, 5000000), "periodic timer");
    wrmsr(APIC_TIMER_INITIAL, 0);
    wait_count(VECTOR, 1000, 1000);
    unsigned after = counts[VECTOR];
    check(!wait_count(VECTOR, after + 1, 5000), "periodic timer stopped");
    wrmsr(APIC_LVT_TIMER, LVT_MASKED | VECTOR);
    wrmsr(APIC_TIMER_INITIAL, 1000);
    check(!wait_count(VECTOR, after + 1, 5000), "masked timer");
}

static void test_deadline(void)
{
    if (!(cpuid(1, 0).ecx & 1u << 24)) {
        skip("no TSC deadline");
        return;
    }
    counts[VECTOR] = 0;
    wrmsr(APIC_LVT_TIMER, LVT_DEADLINE | VECTOR);
    uint64_t start = rdtsc(), deadline = start + tsc_khz();
    wrmsr(TSC_DEADLINE, deadline);
    check_equal(rdmsr(TSC_DEADLINE), deadline, "deadline reads back");
    check(wait_count(VECTOR, 1, 3000000), "deadline timer");
    check(rdtsc() >= deadline, "not before its time");
    check_equal(rdmsr(TSC_DEADLINE), 0, "deadline after its shot");
    wrmsr(TSC_DEADLINE, 1);
    check(wait_count(VECTOR, 2, 100000), "deadline in the past");
    wrmsr(TSC_DEADLINE, rdtsc() + tsc_khz() * 50);
    wrmsr(TSC_DEADLINE, 0);
    check(!wait_count(VECTOR, 3, 60000), "deadline taken back");
    wrmsr(TSC_DEADLINE, rdtsc() + tsc_khz());
    halt();
    check_equal(counts[VECTOR], 3, "deadline wakes from hlt");
}

static void test_nmi(void)
{
    trap_handlers[NMI] = count_nmi;
    disable_interrupts();
    send_ipi(0, 0x400);
    delay_us(100);
    check_equal(counts[NMI], 1, "NMI with interrupts off");
}

static unsigned taken_in_nmi;

static bool wait_in_nmi(struct trap_frame *frame)
{
    (void)frame;
    uint64_t end = rdtsc() + tsc_khz() * 100; /* ms */
    while (!counts[VECTOR] && rdtsc() < end)
        pause_cpu();
    taken_in_nmi = counts[VECTOR];
    return true;
}

/* Both pending at once; a trap gate leaves IF set, so the interrupt comes in the NMI's handler. */
static void test_nmi_by_trap_gate(void)
{
    struct gate *gate = (struct gate *)this_cpu()->idt + NMI;
    uint8_t type = gate->type;
    trap_handlers[NMI] = wait_in_nmi;
    gate->type |= 1;
    counts[VECTOR] = 0;
    disable_interrupts();
    wrmsr(APIC_SELF_IPI, VECTOR);
    __asm__ volatile("sti; wrmsr; nop; cli" : : "c"(APIC_ICR), "a"(0x44400), "d"(0) : "memory"); /* NMI to itself */
    gate->type = type;
    check_equal(taken_in_nmi, 1, "interrupts in the handler of the NMI");
}

void guest_main(void)
{
    test_xapic();
    test_x2apic();
    test_priorities();
    test_shadow();
    test_shadow_over_pages();
    test_timer();
    test_deadline();
    test_nmi();
    test_nmi_by_trap_gate();
}
