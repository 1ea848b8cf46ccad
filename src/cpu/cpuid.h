/* Named CPU models: the CPUID leaves that a guest sees, the same on every engine.
 * `host` gives all that the host and the engines can do; `x86-64-v2` and `x86-64-v3` the psABI levels and no more, so that
 * a guest can move between hosts. No AVX-512 in any of them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define CPUID_MAX_ENTRIES 96

struct cpuid_entry {
    uint32_t leaf, subleaf;
    bool has_subleaf; /* the subleaf must match */
    uint32_t eax, ebx, ecx, edx;
};

struct cpuid_table {
    unsigned count;
    struct cpuid_entry entries[CPUID_MAX_ENTRIES];
};

struct cpuid_config {
    const char *model;     /* "host", "x86-64-v2", "x86-64-v3" */
    unsigned vcpus;        /* topology: one socket, one thread a core */
    uint64_t tsc_khz;      /* leaf 0x15/0x16 and the hypervisor timing leaf 0x40000010 */
    bool serialize;        /* show SERIALIZE, which the engine has whatever the host; kernels use IRET in its place */
    bool kvm_clock;        /* show the KVM signature leaves 0x40000000/1 with kvmclock */
};

/* Fills the table for vCPU `apic_id`. -EINVAL for an unknown model (the message lists the known ones), -ENOTSUP with the
 * missing features named when the host lacks what the model promises. */
must_check int cpuid_table_build(const struct cpuid_config *config, uint32_t apic_id, struct cpuid_table *ret_table,
                                 struct err *err);
/* What CPUID answers; bits that follow vCPU state (OSXSAVE, APIC id) are the caller's. */
void cpuid_lookup(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4]);
/* NULL-terminated list of model names. */
const char *const *cpuid_models(void);
