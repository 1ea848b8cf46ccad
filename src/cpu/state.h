/* Architectural state of one vCPU, the same for every engine: what is saved, loaded and moved between them. */
#pragma once

#include <stdint.h>
#include "cpu/x86.h"

#define X86_XSAVE_SIZE 2688 /* standard format, x87+SSE+AVX at the front; room for AVX-512 and PKRU */

/* Hidden part of a segment register. `attributes` as in a descriptor's second word >> 8: type 0-3, S 4, DPL 5-6, P 7,
 * AVL 12, L 13, D/B 14, G 15. `limit` in bytes, granularity applied. */
struct x86_segment_state {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint16_t attributes;
};

#define SEG_ATTR_P (1u << 7)
#define SEG_ATTR_S (1u << 4)
#define SEG_ATTR_L (1u << 13)
#define SEG_ATTR_DB (1u << 14)
#define SEG_ATTR_G (1u << 15)
#define SEG_ATTR_DPL(attributes) (((attributes) >> 5) & 3u)

struct x86_table_state {
    uint64_t base;
    uint16_t limit;
};

/* As in KVM's mp_state. */
enum x86_run_state { X86_RUNNABLE, X86_WAIT_FOR_INIT, X86_HALTED, X86_WAIT_FOR_SIPI };

struct x86_msr {
    uint32_t index;
    uint64_t value;
};

#define X86_STATE_MSRS 64

struct x86_state {
    uint64_t gpr[GPR_COUNT];
    uint64_t rip, rflags;
    uint64_t cr0, cr2, cr3, cr4, cr8, xcr0;
    uint64_t dr[4], dr6, dr7;
    struct x86_segment_state segment[SEG_COUNT], tr, ldtr; /* fs and gs bases are here, not among the MSRs */
    struct x86_table_state gdtr, idtr;
    uint64_t efer, apic_base;
    uint32_t msr_count;
    struct x86_msr msrs[X86_STATE_MSRS]; /* TSC, STAR.., SYSENTER.., PAT, KERNEL_GS_BASE, TSC_AUX, TSC_DEADLINE, kvmclock */
    uint8_t lapic[1024];                 /* register page in the xAPIC layout, 16 bytes a register */
    enum x86_run_state run_state;
    uint8_t nmi_pending, nmi_blocked, interrupt_shadow;
    _Alignas(64) uint8_t xsave[X86_XSAVE_SIZE];
};

/* Power-on state of the bootstrap processor (SDM 3A table 9-1), or of an application processor waiting for SIPI.
 * `apic_id` goes to the local APIC; the caller then puts in the boot protocol's registers. */
void x86_state_reset(struct x86_state *state, uint32_t apic_id);
