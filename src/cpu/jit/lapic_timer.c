/* Local APIC timer: one-shot, periodic and TSC-deadline mode.
 *
 * The bus clock that the counting modes divide is 1 GHz, as in KVM (and as CPUID 0x40000010 says), so a tick is a nanosecond
 * times the divider. Everything is kept in guest TSC: `timer_start_tsc` is when the running interval began,
 * `timer_deadline_tsc` when it ends (0: stopped); the host timer only wakes the vCPU, the TSC decides.
 * A guest cannot make the host spin: a periodic interval is never shorter than PERIOD_MIN_NS, and intervals that passed
 * unseen count as one. Source: Intel SDM 3A 11.5.4. */
#include "cpu/jit/lapic_impl.h"

#define NS_PER_MS UINT64_C(1000000)
#define PERIOD_MIN_NS UINT64_C(20000)
#define LVT_TIMER_BITS 0x700ffu
#define LVT_MODE_SHIFT 17

enum timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE, TIMER_RESERVED };

/* a * b / c, UINT64_MAX when that does not fit. In assembly: no library call while vector registers are live. */
static uint64_t multiply_divide(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t low, high;
    __asm__("mulq %3" : "=a"(low), "=d"(high) : "0"(a), "r"(b) : "cc");
    if (high >= c)
        return UINT64_MAX;
    __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(c) : "cc");
    return low;
}

static uint64_t ns_to_tsc(uint64_t ns)
{
    return multiply_divide(ns, host_tsc_khz(), NS_PER_MS);
}

static uint64_t tsc_to_ns(uint64_t tsc)
{
    return multiply_divide(tsc, NS_PER_MS, host_tsc_khz());
}

static enum timer_mode timer_mode(const struct lapic *apic)
{
    return (enum timer_mode)(apic->lvt_timer >> LVT_MODE_SHIFT & 3);
}

bool lapic_timer_is_deadline(const struct jit_vcpu *cpu)
{
    return timer_mode(&cpu->lapic) == TIMER_DEADLINE;
}

/* Divide configuration: bits 0, 1 and 3; 111 is 1, else 2 << value. */
static unsigned divide_shift(const struct lapic *apic)
{
    unsigned value = (apic->timer_divide & 3) | (apic->timer_divide >> 1 & 4);
    return (value + 1) & 7;
}

static uint64_t interval_ns(const struct lapic *apic)
{
    return (uint64_t)apic->timer_initial << divide_shift(apic);
}

static uint64_t period_tsc(const struct lapic *apic)
{
    uint64_t ns = interval_ns(apic);
    return ns_to_tsc(ns < PERIOD_MIN_NS ? PERIOD_MIN_NS : ns);
}

static void set_deadline(struct jit_vcpu *cpu, uint64_t tsc)
{
    cpu->lapic.timer_deadline_tsc = tsc;
    vcpu_timer_arm(cpu, tsc);
}

/* Sets a deadline that may have passed already. */
static void set_deadline_now(struct jit_vcpu *cpu, uint64_t tsc)
{
    cpu->lapic.timer_deadline_tsc = tsc;
    if (tsc && vcpu_read_tsc(cpu) >= tsc)
        lapic_timer_check(cpu);
    else
        vcpu_timer_arm(cpu, tsc);
}

/* Begins an interval at `start`. */
static void start_interval(struct jit_vcpu *cpu, uint64_t start)
{
    struct lapic *apic = &cpu->lapic;
    apic->timer_start_tsc = start;
    if (!apic->timer_initial) {
        set_deadline(cpu, 0);
        return;
    }
    bool periodic = timer_mode(apic) == TIMER_PERIODIC;
    set_deadline_now(cpu, start + (periodic ? period_tsc(apic) : ns_to_tsc(interval_ns(apic))));
}

void lapic_timer_write_lvt(struct jit_vcpu *cpu, uint32_t value)
{
    struct lapic *apic = &cpu->lapic;
    enum timer_mode old = timer_mode(apic);
    apic->lvt_timer = value & LVT_TIMER_BITS;
    enum timer_mode new = timer_mode(apic);
    if (old == new)
        return;
    if (old == TIMER_DEADLINE || new == TIMER_DEADLINE || new == TIMER_RESERVED) {
        apic->timer_initial = 0;
        apic->tsc_deadline = 0;
        set_deadline(cpu, 0);
    }
}

void lapic_timer_write_initial(struct jit_vcpu *cpu, uint32_t value)
{
    enum timer_mode mode = timer_mode(&cpu->lapic);
    if (mode == TIMER_DEADLINE || mode == TIMER_RESERVED)
        return;
    cpu->lapic.timer_initial = value;
    start_interval(cpu, vcpu_read_tsc(cpu));
}

/* Elapsed part of the running interval in ticks. */
static uint64_t elapsed_ticks(const struct jit_vcpu *cpu)
{
    uint64_t now = vcpu_read_tsc(cpu), start = cpu->lapic.timer_start_tsc;
    return now > start ? tsc_to_ns(now - start) >> divide_shift(&cpu->lapic) : 0;
}

uint32_t lapic_timer_current(const struct jit_vcpu *cpu)
{
    const struct lapic *apic = &cpu->lapic;
    if (!apic->timer_initial || !apic->timer_deadline_tsc || timer_mode(apic) == TIMER_DEADLINE)
        return 0;
    uint64_t elapsed = elapsed_ticks(cpu);
    if (timer_mode(apic) == TIMER_PERIODIC)
        return (uint32_t)(apic->timer_initial - elapsed % apic->timer_initial);
    return elapsed < apic->timer_initial ? (uint32_t)(apic->timer_initial - elapsed) : 0;
}

/* Puts the start of the interval where the current count is `current`. */
void lapic_timer_resume(struct jit_vcpu *cpu, uint32_t current)
{
    struct lapic *apic = &cpu->lapic;
    enum timer_mode mode = timer_mode(apic);
    if (mode == TIMER_DEADLINE || mode == TIMER_RESERVED)
        return;
    if (!current) {
        set_deadline(cpu, 0);
        return;
    }
    uint64_t done = current < apic->timer_initial ? apic->timer_initial - current : 0;
    start_interval(cpu, vcpu_read_tsc(cpu) - ns_to_tsc(done << divide_shift(apic)));
}

void lapic_timer_write_divide(struct jit_vcpu *cpu, uint32_t value)
{
    uint32_t current = lapic_timer_current(cpu);
    cpu->lapic.timer_divide = value & 0xb;
    if (current)
        lapic_timer_resume(cpu, current);
}

void lapic_timer_write_deadline(struct jit_vcpu *cpu, uint64_t tsc)
{
    if (timer_mode(&cpu->lapic) != TIMER_DEADLINE)
        return;
    cpu->lapic.tsc_deadline = tsc;
    set_deadline_now(cpu, tsc);
}

void lapic_timer_shift(struct jit_vcpu *cpu, uint64_t delta)
{
    struct lapic *apic = &cpu->lapic;
    if (!apic->timer_deadline_tsc)
        return;
    if (timer_mode(apic) != TIMER_DEADLINE) {
        apic->timer_start_tsc += delta;
        apic->timer_deadline_tsc += delta;
    }
    set_deadline_now(cpu, apic->timer_deadline_tsc);
}

/* The next interval of a periodic timer: the first whose end lies in the future. */
static void start_next_period(struct jit_vcpu *cpu, uint64_t now)
{
    struct lapic *apic = &cpu->lapic;
    uint64_t period = period_tsc(apic);
    uint64_t passed = period ? (now - apic->timer_start_tsc) / period : 0;
    apic->timer_start_tsc += passed * period;
    set_deadline(cpu, apic->timer_start_tsc + period);
}

void lapic_timer_check(struct jit_vcpu *cpu)
{
    struct lapic *apic = &cpu->lapic;
    if (!apic->timer_deadline_tsc)
        return;
    uint64_t now = vcpu_read_tsc(cpu);
    if (now < apic->timer_deadline_tsc)
        return;
    if (timer_mode(apic) == TIMER_PERIODIC) {
        start_next_period(cpu, now);
    } else {
        apic->tsc_deadline = 0;
        set_deadline(cpu, 0);
    }
    if (!(apic->lvt_timer & APIC_LVT_MASKED))
        lapic_interrupt_self(cpu, (uint8_t)apic->lvt_timer);
}
