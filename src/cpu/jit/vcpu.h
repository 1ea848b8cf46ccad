/* The jit engine's vCPU: architectural state while it runs, and how C code raises guest exceptions.
 *
 * Translated code reaches this struct through gs:, C code through a pointer. While C code runs, all guest state is in this
 * struct: gpr, rip, rflags (all bits) and the vector state in `xsave` (translated code keeps it in the host's
 * registers and puts it here before C code that may use vector registers runs).
 *
 * Exceptions: C code that meets one calls vcpu_raise(), which unwinds (longjmp) to the run loop. Until an instruction
 * has retired, nothing architectural may have changed, and `rip` points at it. Faults leave rip there; whoever raises a trap
 * (int n, #BP, #DB after a step) first moves rip to the next instruction. So: no locks held and no memory owned
 * across a call that may raise.
 * Thread rule: only the vCPU's own thread touches it, except the fields under "from other threads". */
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include "cpu/cpuid.h"
#include "cpu/engine.h"
#include "cpu/state.h"
#include "cpu/x86.h"
#include "cpu/jit/jit_options.h"
#include "cpu/jit/lapic.h"
#include "cpu/jit/requests.h"
#include "cpu/jit/tlb.h"
#include "mem/mem.h"

struct jit_engine;
struct translator; /* code cache and blocks: translate.h */
struct insn_cache; /* the interpreter's decoded instructions: interp.c */

struct jit_exception {
    uint8_t vector;
    bool has_error;
    bool software;  /* int n, int3, into: DPL of the gate is checked, no error code */
    uint8_t length; /* software: bytes of the instruction; rip goes back by them when delivery faults */
    uint32_t error;
    uint64_t cr2;   /* VEC_PF only: loaded on delivery */
    uint64_t dr6;   /* VEC_DB only: bits to set in DR6 on delivery */
};

/* Attributes of the flat segments of system calls: accessed, present, S, page granularity, and 64-bit code or data. */
#define FLAT_CODE64 0xa09bu
#define FLAT_DATA 0xc093u
#define SYSRET_FLAGS 0x3c7fd7u /* what SYSRET takes from r11 */

enum vcpu_mode { MODE_REAL, MODE_PROTECTED, MODE_COMPAT, MODE_LONG };

enum profile_part {
    PROFILE_CODE,
    PROFILE_LOOP,
    PROFILE_SLEEP,
    PROFILE_TRANSLATE,
    PROFILE_EVICT,
    PROFILE_MISS, /* from here on: what translated code leaves for */
    PROFILE_INTERP,
    PROFILE_LINK,
    PROFILE_JUMP,
    PROFILE_POLL,
    PROFILE_DEAD,
    PROFILE_PARTS
};

/* profile.h */
struct profile {
    bool on;
    enum profile_part part;
    uint64_t since, ticks[PROFILE_PARTS], count[PROFILE_PARTS];
    /* By translated code. What a block does behind a conditional jump counts even if the jump was taken. */
    uint64_t blocks, accesses, jumps;
    uint64_t refills, jump_misses; /* not in the first level */
};

#define VCPU_HUGE_PAGE ((size_t)2 << 20)

/* In whole huge pages: nearly all of it are the TLB and the jump cache, which are used all over. */
struct jit_vcpu {
    struct vcpu base;
    struct jit_vcpu *self; /* for gs: */
    uint64_t gpr[GPR_COUNT];
    uint64_t rip, rflags;
    uint32_t poll;           /* from other threads: nonzero makes translated code leave at the next block; futex word */
    uint8_t cpl;
    uint8_t mode;            /* enum vcpu_mode; follows CR0.PE, EFER.LMA and CS.L (vcpu_update_mode) */
    bool halted;             /* HLT executed: run loop waits for an interrupt */
    bool interrupt_shadow;   /* after STI, MOV SS, POP SS: no interrupt before the next instruction has retired */
    bool debug_shadow;       /* with it, after MOV SS and POP SS only: no #DB either */
    uint16_t debug_pending;  /* DR6 bits of a #DB trap that is due before the next instruction */
    bool interrupt_waiting;  /* an interrupt or a notice may be pending while IF is clear: STI must look */
    bool nmi_blocked;
    struct x86_segment_state seg[SEG_COUNT];
    struct x86_segment_state tr, ldtr;
    struct x86_table_state gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, xcr0, efer;
    uint64_t dr[4], dr6, dr7;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, mtrr_def_type, mtrr_fix[11], mtrr_var[16], misc_enable, spec_ctrl, mcg_status;
    uint64_t kvm_system_time, kvm_wall_clock, kvm_async_pf;
    uint64_t tsc_offset, tsc_adjust; /* guest TSC = host TSC + tsc_offset */

    /* from other threads, atomically */
    uint8_t nmi_pending, init_pending, sipi_pending, sipi_vector, kick_pending;
    uint32_t sleeping;

    enum x86_run_state run_state; /* X86_RUNNABLE or a wait state; HLT is `halted` */
    bool shutdown;                /* triple fault */
    timer_t timer;                /* host timer that notifies at the local APIC timer's deadline */
    bool timer_made, timer_armed;
    volatile bool timer_fired;    /* set by its signal on this thread */
    bool interpret_only;          /* engine option: no translation */
    struct jit_exception exception; /* what vcpu_raise leaves for the run loop */
    jmp_buf unwind;

    struct jit_engine *engine;
    struct mem *mem;
    uint8_t phys_bits; /* width of guest physical addresses, as CPUID says */
    struct cpuid_table cpuid;
    struct lapic lapic;
    struct insn_cache *insn_cache;
    struct translator *translator;
    uint64_t instructions; /* interpreted, for statistics */
    _Alignas(64) uint8_t xsave[X86_XSAVE_SIZE];

    /* Translated code's own (enter.c says how it is used). */
    bool fpu_live;            /* guest vector state is in the host's registers, `xsave` is stale */
    uint16_t flags_saved;     /* arithmetic flags as lahf/seto leave them in ax, while the site says "saved" */
    uint8_t flags_parked;     /* on the way through the jump cache: the flags are in flags_saved, else native */
    uint16_t flags_refill;    /* the same, in enter.c alone */
    uint16_t flags_native;    /* the same, as they were when translated code left */
    uint32_t site;            /* index of the site that left */
    uint64_t site_linear;     /* linear address of the access that missed, or the jump target that missed */
    uint64_t scratch[2];
    uint8_t gather[3][32];    /* data, mask and index of a gather under way */
    uint64_t code_page;       /* linear address of the page that position-independent code runs from: translate.h */
    uint64_t host_rsp, resume; /* host stack of the run loop; where translated code goes on */
    uint64_t tried_again_pc;     /* host address of the last exception that was not taken for the code's own: enter.c */
    uint32_t tries;              /* how often in a row */
    uint64_t flush_epoch;     /* counts mmu_flush_*: a changed value means fetch translations may have changed */
    uint64_t fetch_mask;      /* pext mask that makes an index into fetch_tlb from a linear address */
    uint64_t tlb_mask, page_mask;   /* pext masks: of a linear address the index into the soft TLB; what is beyond a page */
    uint64_t jump_mask, jump2_mask; /* pext masks that make indexes into the jump cache's levels from a target */
    uint64_t place_mask, offset_mask; /* pext masks: an index into the places of fetch_tlb; what is within a page */
    uint64_t listed_mask;             /* and an index into a list of jumps */
    struct tlb tlb;
    struct jump_cache jump_cache;
    struct fetch_tlb fetch_tlb;
    struct fetch_entry fetch[FETCH_ENTRIES];
    struct requests requests;
    struct profile profile;
};

/* Unwinds to the run loop, which delivers the exception. Error code presence follows the vector. */
_Noreturn void vcpu_raise(struct jit_vcpu *cpu, enum x86_vector vector, uint32_t error);
_Noreturn void vcpu_raise_page_fault(struct jit_vcpu *cpu, uint64_t linear, uint32_t error);
_Noreturn void vcpu_raise_exception(struct jit_vcpu *cpu, struct jit_exception exception);
/* Unwinds to the run loop, which goes on at rip. */
_Noreturn void vcpu_resume(struct jit_vcpu *cpu);

/* Recomputes mode from CR0, EFER and CS; call after changing any of them. */
void vcpu_update_mode(struct jit_vcpu *cpu);

static inline bool vcpu_long_mode(const struct jit_vcpu *cpu)
{
    return cpu->mode == MODE_LONG;
}

/* Each data access has to be looked at (watch.h): breakpoints are enabled, or accesses of user code must be aligned. */
static inline bool vcpu_watched(const struct jit_vcpu *cpu)
{
    _Static_assert(CR0_AM == FLAG_AC, "one bit in both");
    return (cpu->dr7 & DR7_ENABLED) || ((cpu->cr0 & cpu->rflags & FLAG_AC) && cpu->cpl == 3);
}

/* CPL 1 and 2, which no system uses, have the kernel's pools and none of its rights: only the interpreter knows them. */
static inline bool vcpu_middle_ring(const struct jit_vcpu *cpu)
{
    return cpu->cpl == 1 || cpu->cpl == 2;
}

/* Translated code knows nothing of these: whoever lets it change TF, AC, CPL, CR0 or DR7 must look, and leave. */
static inline bool vcpu_must_interpret(const struct jit_vcpu *cpu)
{
    return (cpu->rflags & FLAG_TF) || cpu->debug_pending || vcpu_watched(cpu);
}

/* Default operand and stack sizes in bits outside of long mode. */
static inline unsigned vcpu_code_bits(const struct jit_vcpu *cpu)
{
    return cpu->mode == MODE_LONG ? 64 : cpu->seg[SEG_CS].attributes & SEG_ATTR_DB ? 32 : 16;
}
static inline unsigned vcpu_stack_bits(const struct jit_vcpu *cpu)
{
    return cpu->mode == MODE_LONG ? 64 : cpu->seg[SEG_SS].attributes & SEG_ATTR_DB ? 32 : 16;
}

/* Makes the vCPU look at its pending interrupts soon, waking it if it waits. Any thread; signal-safe. */
void vcpu_notify(struct jit_vcpu *cpu);
/* (Re)arms the host timer that notifies this vCPU when its guest TSC reaches `deadline`; 0 disarms. Own thread. */
void vcpu_timer_arm(struct jit_vcpu *cpu, uint64_t guest_tsc_deadline);
uint64_t vcpu_read_tsc(const struct jit_vcpu *cpu);
/* Host TSC frequency, as measured once at start. */
uint64_t host_tsc_khz(void);

struct jit_engine {
    struct engine base;
    struct mem *mem;
    struct engine_machine machine;
    unsigned vcpu_count;
    struct jit_vcpu *vcpus[32];
    struct cpuid_config cpuid;
    struct jit_options options;
    /* For each page of guest RAM (by offset in its mapping), a bit a vCPU, atomically: */
    uint32_t *code_pages;  /* holds translations of code in this page */
    uint32_t *write_pages; /* may have a TLB write entry for this page */
};

/* Whether an optimisation is on. */
static inline bool vcpu_optimises(const struct jit_vcpu *cpu, enum jit_opt opt)
{
    return !(cpu->engine->options.off >> opt & 1);
}

/* Does the jump cache's second level know user code by its place? */
static inline bool vcpu_jumps_by_place(const struct jit_vcpu *cpu)
{
    return vcpu_optimises(cpu, JIT_OPT_PLACE) && vcpu_optimises(cpu, JIT_OPT_PIC);
}
