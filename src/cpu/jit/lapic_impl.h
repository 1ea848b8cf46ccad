/* Private to the local APIC's files: lapic.c (registers), lapic_timer.c, lapic_ipi.c (routing of messages and IPIs). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/vcpu.h"

#define APIC_BASE_BSP (1u << 8)
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)
#define APIC_SVR_ENABLE (1u << 8)
#define APIC_LVT_MASKED (1u << 16)
#define APIC_ESR_SEND_VECTOR (1u << 5)
#define APIC_ESR_RECEIVE_VECTOR (1u << 6)
#define APIC_ESR_REGISTER (1u << 7)
#define APIC_FIRST_VECTOR 16u

static inline bool lapic_is_x2apic(const struct jit_vcpu *cpu)
{
    return (__atomic_load_n(&cpu->lapic.apic_base, __ATOMIC_RELAXED) & APIC_BASE_X2APIC) != 0;
}

/* INIT: registers as after power-on, but the APIC ID and the base MSR stay. */
void lapic_init(struct jit_vcpu *cpu);
/* Records an error and raises the error interrupt when it is not masked. */
void lapic_error(struct jit_vcpu *cpu, uint32_t esr_bits);
/* Makes a vector pending at `target`; false when its APIC does not accept it. The caller notifies. Any thread. */
bool lapic_set_irr(struct jit_vcpu *target, uint8_t vector, bool level);
/* The vCPU's own thread: makes a vector pending at itself and has translated code look at it. */
void lapic_interrupt_self(struct jit_vcpu *cpu, uint8_t vector);

/* Sends the IPI that an ICR write asks for; `dest` is 8 bits wide from xAPIC, 32 from x2APIC. */
void lapic_send_ipi(struct jit_vcpu *cpu, uint32_t icr_low, uint32_t dest);

/* Timer registers. */
void lapic_timer_write_lvt(struct jit_vcpu *cpu, uint32_t value);
void lapic_timer_write_initial(struct jit_vcpu *cpu, uint32_t value);
void lapic_timer_write_divide(struct jit_vcpu *cpu, uint32_t value);
uint32_t lapic_timer_current(const struct jit_vcpu *cpu);
bool lapic_timer_is_deadline(const struct jit_vcpu *cpu);
void lapic_timer_write_deadline(struct jit_vcpu *cpu, uint64_t tsc);
/* The guest TSC moved by `delta`: intervals keep their length in real time, TSC deadlines their value. */
void lapic_timer_shift(struct jit_vcpu *cpu, uint64_t delta);
/* After loading registers: goes on from `current`, the saved current count. */
void lapic_timer_resume(struct jit_vcpu *cpu, uint32_t current);
