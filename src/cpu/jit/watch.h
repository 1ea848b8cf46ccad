/* What a CPU looks at on every access: alignment in user code (CR0.AM and EFLAGS.AC), and the breakpoints of DR0-DR3.
 *
 * Translated code looks at none of it. While either is on (vcpu_watched()), or a step or a debug trap is due
 * (vcpu_must_interpret()), the vCPU interprets, and the accessors of mmu.h and the interpreter's loop come here.
 * Breakpoints on data and ports are traps: they are noted in cpu->debug_pending, and the run loop raises #DB when the
 * instruction, or one iteration of a repeated one, has retired. Breakpoints on instructions are faults.
 * Source: Intel SDM 3A 6.15 (#AC), 3B 17.2, 17.3 (debug registers and exceptions). */
#pragma once

#include <stdint.h>

#include "cpu/jit/vcpu.h"

#define WATCH_STEP (1u << 14) /* DR6.BS */

/* An access by the current instruction, or by delivery: raises #AC unless it is aligned, which comes before page faults,
 * and notes the breakpoints it meets. `access` as in mmu.h. The address has been found canonical. Call while
 * vcpu_watched() only. */
void watch_access(struct jit_vcpu *cpu, uint64_t linear, uint64_t size, unsigned access);
/* Only raises #AC unless `linear` is a multiple of a power of two. Does nothing while it need not. */
void watch_alignment(struct jit_vcpu *cpu, uint64_t linear, unsigned alignment, unsigned access);
/* A port access by an instruction that may make it. */
void watch_port(struct jit_vcpu *cpu, uint16_t port, unsigned size);
/* Before an instruction at `linear`: raises the #DB that is due, or that of a breakpoint on it. */
void watch_fetch(struct jit_vcpu *cpu, uint64_t linear);
/* After it has retired: raises the #DB that is due now. */
void watch_retired(struct jit_vcpu *cpu);

/* What the CPU wants an operand of `size` bytes to be aligned to: its size, but at most 16; 8 of an x87 number of 10 bytes; the
 * words that x87 environments and stack frames are made of. */
static inline unsigned watch_natural(uint64_t size)
{
    if (size == 10)
        return 8;
    uint64_t power = size & -size;
    return power < 16 ? (unsigned)power : 16;
}
