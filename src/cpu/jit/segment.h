/* Segments: loading selectors, far transfers, limit checks outside long mode. Source: Intel SDM 3A chapters 3, 5, 7. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/x86.h"

struct jit_vcpu;

/* Linear address of [offset, offset+size) in a segment, after the checks of the current mode: limits, type, null selectors
 * (#GP, #SS for SS), canonical form in long mode. `access` as in mmu.h. Offsets are already truncated to the address size. */
uint64_t segment_linear(struct jit_vcpu *cpu, enum x86_segment segment, uint64_t offset, unsigned size, unsigned access);
/* MOV/POP/LxS to ES, SS, DS, FS, GS with all checks; CS is not allowed here. */
void segment_load(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector);
void segment_load_ldtr(struct jit_vcpu *cpu, uint16_t selector);
void segment_load_tr(struct jit_vcpu *cpu, uint16_t selector);
/* Far transfers; `operand_bits` 16, 32 or 64. They set CS, rip, stack and CPL. `next_rip` is the return address of a call. */
void segment_far_jump(struct jit_vcpu *cpu, uint16_t selector, uint64_t offset, unsigned operand_bits);
void segment_far_call(struct jit_vcpu *cpu, uint16_t selector, uint64_t offset, unsigned operand_bits, uint64_t next_rip);
void segment_far_return(struct jit_vcpu *cpu, unsigned operand_bits, unsigned pop_bytes);
void segment_iret(struct jit_vcpu *cpu, unsigned operand_bits);
/* VERR, VERW, LAR, LSL: true and the value when the selector is accessible. */
bool segment_lar(struct jit_vcpu *cpu, uint16_t selector, uint32_t *ret_rights);
bool segment_lsl(struct jit_vcpu *cpu, uint16_t selector, uint32_t *ret_limit);
bool segment_verify(struct jit_vcpu *cpu, uint16_t selector, bool write);
