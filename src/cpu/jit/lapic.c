/* Local APIC registers: xAPIC page, x2APIC MSRs, priorities, end of interrupt, saving and loading.
 *
 * The APIC ID is the vCPU's index and cannot be changed. Six LVT entries, no CMCI, no EOI-broadcast suppression.
 * Other threads set IRR and TMR bits and read apic_base, svr, ldr and dfr for routing: those are accessed atomically.
 * Compiled without vector registers; they may be live: fpu_save() comes before the machine is called. */
#include "cpu/jit/lapic.h"

#include "cpu/jit/fpu.h"
#include "cpu/jit/lapic_impl.h"
#include "cpu/jit/segment_impl.h"

#define LAPIC_VERSION 0x00050014u

enum lapic_register {
    REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_PPR = 0x0a, REG_EOI = 0x0b, REG_LDR = 0x0d, REG_DFR = 0x0e,
    REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28, REG_CMCI = 0x2f, REG_ICR = 0x30,
    REG_ICR_HIGH = 0x31, REG_LVT_TIMER = 0x32, REG_LVT_THERMAL = 0x33, REG_LVT_PERF = 0x34, REG_LVT_LINT0 = 0x35,
    REG_LVT_LINT1 = 0x36, REG_LVT_ERROR = 0x37, REG_TIMER_INITIAL = 0x38, REG_TIMER_CURRENT = 0x39,
    REG_TIMER_DIVIDE = 0x3e, REG_SELF_IPI = 0x3f,
};

static void store_shared(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static bool lapic_enabled(const struct jit_vcpu *cpu)
{
    return (cpu->lapic.apic_base & APIC_BASE_ENABLE) != 0;
}

static void reset_registers(struct jit_vcpu *cpu)
{
    struct lapic *apic = &cpu->lapic;
    for (unsigned i = 0; i < 8; i++) {
        apic->isr[i] = 0;
        store_shared(&apic->tmr[i], 0);
        store_shared(&apic->irr[i], 0);
    }
    store_shared(&apic->ldr, 0);
    store_shared(&apic->dfr, UINT32_MAX);
    store_shared(&apic->svr, 0xff);
    apic->tpr = apic->esr = apic->esr_shadow = 0;
    apic->lvt_timer = apic->lvt_thermal = apic->lvt_perf = apic->lvt_lint0 = apic->lvt_lint1 = APIC_LVT_MASKED;
    apic->lvt_error = apic->lvt_cmci = APIC_LVT_MASKED;
    apic->icr_low = apic->icr_high = 0;
    apic->timer_initial = apic->timer_divide = 0;
    apic->timer_start_tsc = apic->tsc_deadline = apic->timer_deadline_tsc = 0;
    vcpu_timer_arm(cpu, 0);
}

void lapic_reset(struct jit_vcpu *cpu, uint32_t apic_id)
{
    uint64_t base = LAPIC_BASE | APIC_BASE_ENABLE | (cpu->base.index == 0 ? APIC_BASE_BSP : 0);
    cpu->lapic.id = apic_id;
    __atomic_store_n(&cpu->lapic.apic_base, base, __ATOMIC_RELAXED);
    reset_registers(cpu);
}

void lapic_init(struct jit_vcpu *cpu)
{
    reset_registers(cpu);
}

/* Highest vector in a 256-bit register, or -1. */
static int highest_vector(const uint32_t words[8])
{
    for (int i = 7; i >= 0; i--) {
        uint32_t word = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
        if (word)
            return i * 32 + 31 - __builtin_clz(word);
    }
    return -1;
}

static uint32_t processor_priority(const struct lapic *apic)
{
    int in_service = highest_vector(apic->isr);
    uint32_t isr_class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
    return (apic->tpr & 0xf0) >= isr_class ? apic->tpr : isr_class;
}

int lapic_pending_vector(const struct jit_vcpu *cpu)
{
    int vector = highest_vector(cpu->lapic.irr);
    if (vector < 0 || !lapic_enabled(cpu))
        return -1;
    return ((uint32_t)vector & 0xf0) > (processor_priority(&cpu->lapic) & 0xf0) ? vector : -1;
}

void lapic_accept(struct jit_vcpu *cpu, uint8_t vector)
{
    uint32_t bit = 1u << (vector & 31);
    __atomic_fetch_and(&cpu->lapic.irr[vector / 32], ~bit, __ATOMIC_SEQ_CST);
    cpu->lapic.isr[vector / 32] |= bit;
}

bool lapic_set_irr(struct jit_vcpu *target, uint8_t vector, bool level)
{
    struct lapic *apic = &target->lapic;
    if (vector < APIC_FIRST_VECTOR || !(__atomic_load_n(&apic->svr, __ATOMIC_RELAXED) & APIC_SVR_ENABLE))
        return false;
    uint32_t bit = 1u << (vector & 31);
    if (level)
        __atomic_fetch_or(&apic->tmr[vector / 32], bit, __ATOMIC_SEQ_CST);
    else
        __atomic_fetch_and(&apic->tmr[vector / 32], ~bit, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&apic->irr[vector / 32], bit, __ATOMIC_SEQ_CST);
    return true;
}

void lapic_interrupt_self(struct jit_vcpu *cpu, uint8_t vector)
{
    if (lapic_set_irr(cpu, vector, false))
        __atomic_store_n(&cpu->poll, 1, __ATOMIC_RELAXED);
}

void lapic_error(struct jit_vcpu *cpu, uint32_t esr_bits)
{
    bool is_new = (cpu->lapic.esr_shadow & esr_bits) != esr_bits;
    cpu->lapic.esr_shadow |= esr_bits;
    if (!is_new || (cpu->lapic.lvt_error & APIC_LVT_MASKED))
        return;
    uint8_t vector = (uint8_t)cpu->lapic.lvt_error;
    if (vector < APIC_FIRST_VECTOR)
        cpu->lapic.esr_shadow |= APIC_ESR_RECEIVE_VECTOR;
    else
        lapic_interrupt_self(cpu, vector);
}

static void write_eoi(struct jit_vcpu *cpu)
{
    int vector = highest_vector(cpu->lapic.isr);
    if (vector < 0)
        return;
    uint32_t bit = 1u << (vector & 31);
    cpu->lapic.isr[vector / 32] &= ~bit;
    if (__atomic_load_n(&cpu->lapic.tmr[vector / 32], __ATOMIC_RELAXED) & bit) {
        fpu_save(cpu);
        cpu->engine->machine.eoi(cpu->engine->machine.arg, (uint8_t)vector);
    }
    vcpu_recheck_interrupts(cpu);
}

static uint32_t logical_id(const struct jit_vcpu *cpu)
{
    uint32_t id = cpu->lapic.id;
    return lapic_is_x2apic(cpu) ? (id >> 4) << 16 | 1u << (id & 15) : cpu->lapic.ldr;
}

/* The LVT register behind a number, with the bits that can be written; NULL when it is none. The timer's is not here. */
static uint32_t *lvt_slot(struct lapic *apic, uint32_t reg, uint32_t *ret_mask)
{
    *ret_mask = 0x107ff;
    switch (reg) {
    case REG_LVT_THERMAL: return &apic->lvt_thermal;
    case REG_LVT_PERF: return &apic->lvt_perf;
    case REG_LVT_LINT0: *ret_mask = 0x1a7ff; return &apic->lvt_lint0;
    case REG_LVT_LINT1: *ret_mask = 0x1a7ff; return &apic->lvt_lint1;
    case REG_LVT_ERROR: *ret_mask = 0x100ff; return &apic->lvt_error;
    default: return NULL;
    }
}

/* Software disable masks every LVT entry, and keeps them so. */
static void write_svr(struct jit_vcpu *cpu, uint32_t value)
{
    struct lapic *apic = &cpu->lapic;
    store_shared(&apic->svr, value & 0x1ff);
    if (value & APIC_SVR_ENABLE)
        return;
    apic->lvt_timer |= APIC_LVT_MASKED;
    apic->lvt_thermal |= APIC_LVT_MASKED;
    apic->lvt_perf |= APIC_LVT_MASKED;
    apic->lvt_lint0 |= APIC_LVT_MASKED;
    apic->lvt_lint1 |= APIC_LVT_MASKED;
    apic->lvt_error |= APIC_LVT_MASKED;
}

static bool write_lvt(struct jit_vcpu *cpu, uint32_t reg, uint32_t value)
{
    if (!(cpu->lapic.svr & APIC_SVR_ENABLE))
        value |= APIC_LVT_MASKED;
    if (reg == REG_LVT_TIMER) {
        lapic_timer_write_lvt(cpu, value);
        return true;
    }
    uint32_t mask;
    uint32_t *slot = lvt_slot(&cpu->lapic, reg, &mask);
    if (slot)
        *slot = value & mask;
    return slot != NULL;
}

/* Registers that read the same through both interfaces; false for those that do not exist. */
static bool read_register(const struct jit_vcpu *cpu, uint32_t reg, uint32_t *ret_value)
{
    const struct lapic *apic = &cpu->lapic;
    uint32_t value;
    switch (reg) {
    case REG_VERSION: value = LAPIC_VERSION; break;
    case REG_TPR: value = apic->tpr; break;
    case REG_PPR: value = processor_priority(apic); break;
    case REG_LDR: value = logical_id(cpu); break;
    case REG_SVR: value = apic->svr; break;
    case REG_ESR: value = apic->esr; break;
    case REG_ICR: value = apic->icr_low; break;
    case REG_LVT_TIMER: value = apic->lvt_timer; break;
    case REG_LVT_THERMAL: value = apic->lvt_thermal; break;
    case REG_LVT_PERF: value = apic->lvt_perf; break;
    case REG_LVT_LINT0: value = apic->lvt_lint0; break;
    case REG_LVT_LINT1: value = apic->lvt_lint1; break;
    case REG_LVT_ERROR: value = apic->lvt_error; break;
    case REG_TIMER_INITIAL: value = lapic_timer_is_deadline(cpu) ? 0 : apic->timer_initial; break;
    case REG_TIMER_CURRENT: value = lapic_timer_current(cpu); break;
    case REG_TIMER_DIVIDE: value = apic->timer_divide; break;
    default:
        if (reg < REG_ISR || reg >= REG_ESR)
            return false;
        value = __atomic_load_n(reg < REG_TMR   ? &apic->isr[reg - REG_ISR]
                                : reg < REG_IRR ? &apic->tmr[reg - REG_TMR]
                                                : &apic->irr[reg - REG_IRR],
                                __ATOMIC_RELAXED);
    }
    *ret_value = value;
    return true;
}

/* The same for writes; false for registers that do not exist or are read-only. */
static bool write_register(struct jit_vcpu *cpu, uint32_t reg, uint32_t value)
{
    struct lapic *apic = &cpu->lapic;
    switch (reg) {
    case REG_TPR:
        apic->tpr = value & 0xff;
        vcpu_recheck_interrupts(cpu);
        return true;
    case REG_EOI: write_eoi(cpu); return true;
    case REG_SVR: write_svr(cpu, value); return true;
    case REG_ESR:
        apic->esr = apic->esr_shadow;
        apic->esr_shadow = 0;
        return true;
    case REG_TIMER_INITIAL: lapic_timer_write_initial(cpu, value); return true;
    case REG_TIMER_DIVIDE: lapic_timer_write_divide(cpu, value); return true;
    default: return write_lvt(cpu, reg, value);
    }
}

uint32_t lapic_mmio_read(struct jit_vcpu *cpu, uint32_t offset)
{
    uint32_t reg = offset >> 4 & 0xff, value;
    if (offset & 0xf)
        return 0;
    if (reg == REG_ID)
        return cpu->lapic.id << 24;
    if (reg == REG_DFR)
        return cpu->lapic.dfr;
    if (reg == REG_ICR_HIGH)
        return cpu->lapic.icr_high;
    if (reg == REG_EOI || reg == REG_CMCI)
        return 0;
    if (read_register(cpu, reg, &value))
        return value;
    lapic_error(cpu, APIC_ESR_REGISTER);
    return 0;
}

void lapic_mmio_write(struct jit_vcpu *cpu, uint32_t offset, uint32_t value)
{
    uint32_t reg = offset >> 4 & 0xff;
    struct lapic *apic = &cpu->lapic;
    if (offset & 0xf)
        return;
    switch (reg) {
    case REG_ID: return;
    case REG_LDR: store_shared(&apic->ldr, value & 0xff000000); return;
    case REG_DFR: store_shared(&apic->dfr, value | 0x0fffffff); return;
    case REG_ICR_HIGH: apic->icr_high = value & 0xff000000; return;
    case REG_ICR:
        apic->icr_low = value & 0xccfff;
        lapic_send_ipi(cpu, apic->icr_low, apic->icr_high >> 24);
        return;
    default: break;
    }
    if (!write_register(cpu, reg, value))
        lapic_error(cpu, APIC_ESR_REGISTER);
}

/* Mode changes that APIC_BASE allows (SDM 3A figure 11-27). */
static bool write_apic_base(struct jit_vcpu *cpu, uint64_t value)
{
    uint64_t defined = APIC_BASE_BSP | APIC_BASE_X2APIC | APIC_BASE_ENABLE | PTE_ADDRESS;
    uint64_t old = cpu->lapic.apic_base;
    bool was_on = old & APIC_BASE_ENABLE, is_on = value & APIC_BASE_ENABLE;
    bool was_x2 = old & APIC_BASE_X2APIC, is_x2 = value & APIC_BASE_X2APIC;
    if ((value & ~defined) || value >> cpu->phys_bits || (is_x2 && !is_on))
        return false;
    if ((was_x2 && is_on && !is_x2) || (!was_on && is_x2))
        return false;
    __atomic_store_n(&cpu->lapic.apic_base, value, __ATOMIC_RELAXED);
    if (was_on && !is_on)
        reset_registers(cpu);
    return true;
}

static bool x2apic_read(struct jit_vcpu *cpu, uint32_t reg, uint64_t *ret_value)
{
    uint32_t value;
    if (reg == REG_ID) {
        *ret_value = cpu->lapic.id;
    } else if (reg == REG_ICR) {
        *ret_value = (uint64_t)cpu->lapic.icr_high << 32 | cpu->lapic.icr_low;
    } else {
        if (!read_register(cpu, reg, &value))
            return false;
        *ret_value = value;
    }
    return true;
}

static bool x2apic_write(struct jit_vcpu *cpu, uint32_t reg, uint64_t value)
{
    struct lapic *apic = &cpu->lapic;
    if (reg == REG_ICR) {
        apic->icr_low = (uint32_t)value & 0xccfff;
        apic->icr_high = (uint32_t)(value >> 32);
        lapic_send_ipi(cpu, apic->icr_low, apic->icr_high);
        return true;
    }
    bool must_be_zero = reg == REG_EOI || reg == REG_ESR, is_byte = reg == REG_TPR || reg == REG_SELF_IPI;
    if (value >> 32 || (must_be_zero && value) || (is_byte && value > 0xff))
        return false;
    if (reg == REG_SELF_IPI) {
        lapic_send_ipi(cpu, 1u << 18 | (uint32_t)value, 0);
        return true;
    }
    return write_register(cpu, reg, (uint32_t)value);
}

bool lapic_msr_read(struct jit_vcpu *cpu, uint32_t msr, uint64_t *ret_value)
{
    if (msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE) {
        *ret_value = msr == MSR_APIC_BASE ? cpu->lapic.apic_base : cpu->lapic.tsc_deadline;
        return true;
    }
    return lapic_is_x2apic(cpu) && x2apic_read(cpu, msr - MSR_X2APIC_FIRST, ret_value);
}

bool lapic_msr_write(struct jit_vcpu *cpu, uint32_t msr, uint64_t value)
{
    if (msr == MSR_APIC_BASE)
        return write_apic_base(cpu, value);
    if (msr == MSR_TSC_DEADLINE) {
        lapic_timer_write_deadline(cpu, value);
        return true;
    }
    return lapic_is_x2apic(cpu) && x2apic_write(cpu, msr - MSR_X2APIC_FIRST, value);
}

uint64_t lapic_get_cr8(const struct jit_vcpu *cpu)
{
    return cpu->lapic.tpr >> 4;
}

void lapic_set_cr8(struct jit_vcpu *cpu, uint64_t value)
{
    cpu->lapic.tpr = (uint32_t)(value & 0xf) << 4;
    vcpu_recheck_interrupts(cpu);
}
