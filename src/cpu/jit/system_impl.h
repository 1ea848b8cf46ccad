/* Shared by the files of the system room. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/segment_impl.h"
#include "cpu/jit/system.h"

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

#define EFER_AUTOIBRS (UINT64_C(1) << 21)
#define MTRR_DEF_TYPE_RESET UINT64_C(0x806)       /* enabled, write-back: there is no firmware to do it */
#define MISC_ENABLE_RESET UINT64_C(0x1801)        /* fast strings; no BTS, no PEBS */
#define PAT_RESET UINT64_C(0x0007040600070406)
#define DR6_FIXED UINT64_C(0xffff0ff0)
#define DR7_FIXED UINT64_C(0x400)

static inline void system_require_cpl0(struct jit_vcpu *cpu)
{
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
}

/* The vendor that CPUID shows; leaf 0 is the table's first entry. */
static inline bool system_is_amd(const struct jit_vcpu *cpu)
{
    return cpu->cpuid.entries[0].ebx == 0x68747541; /* "Auth" */
}

/* One register of what CPUID shows. Saves the vector state first: not for hot paths. */
uint32_t system_cpuid_register(struct jit_vcpu *cpu, uint32_t leaf, uint32_t subleaf, enum cpuid_register reg);
/* CR0 and EFER without privilege checks: for LMSW and the MSR write. */
void system_set_cr0(struct jit_vcpu *cpu, uint64_t value);
void system_set_efer(struct jit_vcpu *cpu, uint64_t value);
/* Moves the guest TSC by `delta`: deadlines of the APIC timer that count bus cycles and kvmclock follow. */
void system_shift_tsc(struct jit_vcpu *cpu, uint64_t delta);
