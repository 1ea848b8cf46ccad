/* What the interpreter's files share. Private to interp*.c and rep.c; the vCPU's own thread only.
 * All of them are compiled for general registers only (fpu.h): no library call that may use vector registers without
 * fpu_save() before it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cpu/jit/decode.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/segment.h"
#include "cpu/jit/segment_impl.h"
#include "cpu/jit/system.h"
#include "cpu/jit/vcpu.h"

#include <Zydis/Mnemonic.h>

typedef void interp_fn(struct jit_vcpu *cpu, const struct insn *insn);

/* Each executes one instruction of its kind and moves rip. */
interp_fn interp_branch, interp_stack, interp_system, interp_string, interp_plain;

/* mov to and from segment registers (rip stays); far jmp and call (sets rip). */
interp_fn interp_mov_segment, interp_far_transfer;

/* By mnemonic, those of the other files; NULL for none. */
interp_fn *interp_state_handler(unsigned mnemonic);   /* fxsave, xsave and the like, mxcsr, fnsave */
interp_fn *interp_vector_handler(unsigned mnemonic);  /* maskmov, gathers */
interp_fn *interp_segment_handler(unsigned mnemonic); /* far transfers, descriptor tables, selectors */
interp_fn *interp_legacy_handler(unsigned mnemonic);  /* decimal arithmetic, xlat, bound, arpl */

/* Raises #UD or #NM unless the control registers allow what insn->fpu names. */
void interp_check_fpu(struct jit_vcpu *cpu, const struct insn *insn);

/* Brings vector state into cpu->xsave (standard format), complete: initial components are filled in, x87 pointers are zero. */
void interp_take_state(struct jit_vcpu *cpu);
/* After cpu->xsave was written: marks the components as in use. */
void interp_state_changed(struct jit_vcpu *cpu, uint64_t components);

/* Offset of the memory operand in its segment, truncated to the address size. */
uint64_t interp_offset(const struct jit_vcpu *cpu, const struct insn *insn);
/* Linear address of `size` bytes of the memory operand, checked by segment rules. */
uint64_t interp_linear(struct jit_vcpu *cpu, const struct insn *insn, unsigned size, unsigned access);
/* Raises #GP unless the memory operand is aligned; comes before segment limits and canonical form. */
void interp_require_alignment(struct jit_vcpu *cpu, const struct insn *insn, unsigned alignment);
/* Raises the faults of an access to [linear, linear+size), at most two pages, in address order. */
void interp_probe(struct jit_vcpu *cpu, uint64_t linear, unsigned size, unsigned access);
/* The operand of ModRM.rm, memory or register, zero-extended. */
uint64_t interp_read_rm(struct jit_vcpu *cpu, const struct insn *insn, unsigned bytes);

static inline uint64_t truncate_to(uint64_t value, unsigned bits)
{
    return bits == 64 ? value : value & ((UINT64_C(1) << bits) - 1);
}

static inline int64_t sign_extend(uint64_t value, unsigned bits)
{
    return (int64_t)(value << (64 - bits)) >> (64 - bits);
}

/* Low `bits` of a GPR: 32-bit writes zero-extend, narrower ones keep the rest. */
static inline void write_gpr(struct jit_vcpu *cpu, unsigned gpr, uint64_t value, unsigned bits)
{
    if (bits >= 32)
        cpu->gpr[gpr] = truncate_to(value, bits);
    else
        cpu->gpr[gpr] = (cpu->gpr[gpr] & ~((UINT64_C(1) << bits) - 1)) | truncate_to(value, bits);
}

/* The same for counters and indexes of the address size: 16-bit ones keep the rest. */
static inline uint64_t read_address_gpr(const struct jit_vcpu *cpu, unsigned gpr, const struct insn *insn)
{
    return truncate_to(cpu->gpr[gpr], insn->address_bits);
}

static inline void write_address_gpr(struct jit_vcpu *cpu, unsigned gpr, uint64_t value, const struct insn *insn)
{
    write_gpr(cpu, gpr, value, insn->address_bits);
}

static inline unsigned insn_reg_number(const struct insn *insn)
{
    return ((insn->modrm >> 3) & 7u) | (insn->rex & 4u) << 1;
}

static inline uint64_t interp_next_rip(const struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t next = cpu->rip + insn->length;
    return cpu->mode == MODE_LONG ? next : (uint32_t)next;
}

static inline void interp_retire(struct jit_vcpu *cpu, const struct insn *insn)
{
    cpu->rip = interp_next_rip(cpu, insn);
}

static inline unsigned stack_access(enum x86_segment segment)
{
    return segment == SEG_SS ? ACCESS_STACK : 0;
}

static inline void set_flag(struct jit_vcpu *cpu, uint64_t flag, bool value)
{
    cpu->rflags = value ? cpu->rflags | flag : cpu->rflags & ~flag;
}

/* Copies without vector registers. */
static inline void copy_general(void *to, const void *from, uint64_t len)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
}

static inline void zero_general(void *to, uint64_t len)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(0) : "memory");
}
