/* Local APIC of one vCPU: xAPIC page at 0xfee00000 and x2APIC MSRs, timer (one-shot, periodic, TSC deadline), IPIs.
 * Source: Intel SDM 3A chapter 11.
 *
 * IRR and the trigger-mode register are set from other threads with atomic operations; all else is the vCPU's own thread's. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "dev/irq.h"

#define LAPIC_BASE UINT64_C(0xfee00000)

struct jit_vcpu;
struct jit_engine;

struct lapic {
    uint64_t apic_base; /* MSR: bit 8 BSP, bit 10 x2APIC, bit 11 enable */
    uint32_t id, ldr, dfr, svr, tpr, esr, esr_shadow;
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t lvt_timer, lvt_thermal, lvt_perf, lvt_lint0, lvt_lint1, lvt_error, lvt_cmci;
    uint32_t icr_low, icr_high;
    uint32_t timer_initial, timer_divide;
    uint64_t timer_start_tsc;    /* guest TSC when the count was written */
    uint64_t tsc_deadline;       /* MSR; 0 when disarmed */
    uint64_t timer_deadline_tsc; /* guest TSC of the next expiry in any mode; 0 when none */
};

void lapic_reset(struct jit_vcpu *cpu, uint32_t apic_id);
uint32_t lapic_mmio_read(struct jit_vcpu *cpu, uint32_t offset);
void lapic_mmio_write(struct jit_vcpu *cpu, uint32_t offset, uint32_t value);
/* x2APIC registers, APIC_BASE and TSC_DEADLINE; false: the caller raises #GP. */
bool lapic_msr_read(struct jit_vcpu *cpu, uint32_t msr, uint64_t *ret_value);
bool lapic_msr_write(struct jit_vcpu *cpu, uint32_t msr, uint64_t value);
uint64_t lapic_get_cr8(const struct jit_vcpu *cpu);
void lapic_set_cr8(struct jit_vcpu *cpu, uint64_t value);

/* Routes a message to the local APICs it addresses (physical, logical, broadcast, lowest priority; fixed, NMI, INIT, SIPI)
 * and notifies their vCPUs. Any thread. */
void lapic_deliver_msi(struct jit_engine *engine, struct msi msi);

/* Highest vector that may interrupt now (above the processor priority), or -1. */
int lapic_pending_vector(const struct jit_vcpu *cpu);
/* Moves that vector from IRR to ISR. */
void lapic_accept(struct jit_vcpu *cpu, uint8_t vector);
/* Fires the timer when its deadline has passed; rearms a periodic one. Called by the run loop. */
void lapic_timer_check(struct jit_vcpu *cpu);

/* Saves to and loads from the xAPIC register page layout. */
void lapic_save(const struct jit_vcpu *cpu, uint8_t page[1024]);
void lapic_load(struct jit_vcpu *cpu, const uint8_t page[1024]);
