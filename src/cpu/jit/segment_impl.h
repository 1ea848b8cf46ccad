/* What the segment, exception and system rooms share: descriptors as they lie in memory, and stacks that a far transfer or an
 * exception builds before anything of the vCPU changes. Private to those rooms; the vCPU's own thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/lapic.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/vcpu.h"

/* Low four attribute bits of code and data segments. */
#define SEG_TYPE_ACCESSED 1u
#define SEG_TYPE_WRITABLE 2u /* data */
#define SEG_TYPE_READABLE 2u /* code */
#define SEG_TYPE_EXPAND_DOWN 4u
#define SEG_TYPE_CONFORMING 4u
#define SEG_TYPE_CODE 8u

/* Types of system segments and gates (S = 0). */
#define SYS_TYPE_TSS16 1u
#define SYS_TYPE_LDT 2u
#define SYS_TYPE_CALL_GATE16 4u
#define SYS_TYPE_TASK_GATE 5u
#define SYS_TYPE_TSS 9u
#define SYS_TYPE_CALL_GATE 12u
#define SYS_TYPE_BUSY 2u /* set in the type of a TSS in use */

#define SELECTOR_LDT 4u

struct descriptor {
    uint64_t raw;    /* the (lower) eight bytes */
    uint64_t linear; /* where they are */
    uint16_t attributes;
};

static inline bool address_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

static inline bool vcpu_lma(const struct jit_vcpu *cpu)
{
    return (cpu->efer & EFER_LMA) != 0;
}

static inline unsigned selector_rpl(uint16_t selector)
{
    return selector & 3u;
}

static inline bool selector_null(uint16_t selector)
{
    return (selector & 0xfffcu) == 0;
}

static inline bool attributes_code(uint16_t attributes)
{
    return (attributes & (SEG_ATTR_S | SEG_TYPE_CODE)) == (SEG_ATTR_S | SEG_TYPE_CODE);
}

static inline bool attributes_writable_data(uint16_t attributes)
{
    return (attributes & (SEG_ATTR_S | SEG_TYPE_CODE | SEG_TYPE_WRITABLE)) == (SEG_ATTR_S | SEG_TYPE_WRITABLE);
}

static inline bool attributes_conforming_code(uint16_t attributes)
{
    return attributes_code(attributes) && (attributes & SEG_TYPE_CONFORMING);
}

/* Raises with the selector as error code. */
static inline _Noreturn void raise_selector(struct jit_vcpu *cpu, enum x86_vector vector, uint16_t selector)
{
    vcpu_raise(cpu, vector, selector & 0xfffcu);
}

/* EFLAGS after POPF or IRET of `value` at the current CPL; `extra` adds bits that only IRET restores. */
static inline uint64_t flags_merge(const struct jit_vcpu *cpu, uint64_t value, unsigned operand_bits, uint64_t extra)
{
    uint64_t mask = FLAGS_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT;
    if (operand_bits > 16)
        mask |= FLAG_AC | FLAG_ID | extra;
    if (cpu->cpl <= (cpu->rflags & FLAG_IOPL) >> 12)
        mask |= FLAG_IF;
    if (cpu->cpl == 0)
        mask |= FLAG_IOPL;
    return (cpu->rflags & ~mask) | (value & mask) | 2;
}

/* After IF, the task priority or the NMI mask may have let something through: has translated code look again, now or at STI. */
static inline void vcpu_recheck_interrupts(struct jit_vcpu *cpu)
{
    bool nmi = __atomic_load_n(&cpu->nmi_pending, __ATOMIC_RELAXED) && !cpu->nmi_blocked;
    bool pending = lapic_pending_vector(cpu) >= 0, enabled = (cpu->rflags & FLAG_IF) != 0;
    if (pending && !enabled)
        cpu->interrupt_waiting = true;
    if (nmi || (pending && enabled))
        __atomic_store_n(&cpu->poll, 1, __ATOMIC_RELAXED);
}

/* Reads the descriptor of a selector that is not null; raises `vector` with the selector when it lies beyond its table. */
struct descriptor segment_read_descriptor(struct jit_vcpu *cpu, uint16_t selector, enum x86_vector vector);
/* Upper half of a 16-byte descriptor of long mode; raises #GP(selector) beyond the table. */
uint64_t segment_read_upper(struct jit_vcpu *cpu, uint16_t selector, const struct descriptor *descriptor);
/* The hidden part that a descriptor describes. */
struct x86_segment_state segment_from_descriptor(const struct descriptor *descriptor, uint16_t selector);
/* Sets the accessed bit in the table and in the copy when it is clear. */
void segment_mark_accessed(struct jit_vcpu *cpu, struct descriptor *descriptor);
void segment_set_null(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector);
/* Puts a checked code segment into CS, with `cpl` as selector RPL and as CPL, and follows the mode. */
void segment_set_code(struct jit_vcpu *cpu, const struct descriptor *descriptor, uint16_t selector, unsigned cpl);
/* Raises #GP(0) unless `rip` lies in the code segment (canonical for 64-bit code). */
void segment_check_rip(struct jit_vcpu *cpu, const struct descriptor *descriptor, uint64_t rip);
/* Whether [offset, offset+size) lies within the limit of a segment outside of 64-bit mode. */
bool segment_in_limit(const struct x86_segment_state *segment, uint64_t offset, unsigned size);

/* A stack that is read or written ahead of the commit. */
struct stack {
    struct x86_segment_state ss;
    uint64_t sp, mask;
    uint32_t error;  /* error code of #SS beyond the limit */
    unsigned access; /* ACCESS_SYSTEM for frames of CPL 0-2 handlers */
    bool flat;       /* 64-bit: no base, no limit */
};

struct stack stack_current(const struct jit_vcpu *cpu);
void stack_push(struct jit_vcpu *cpu, struct stack *stack, uint64_t value, unsigned size);
uint64_t stack_pop(struct jit_vcpu *cpu, struct stack *stack, unsigned size);
/* Moves the stack pointer without an access. */
void stack_skip(struct stack *stack, uint64_t bytes);
/* Writes the stack pointer back; SS is the caller's. */
void stack_commit(struct jit_vcpu *cpu, const struct stack *stack);
/* Stack of privilege level `cpl` by the 16- or 32-bit TSS, with the checks of SDM 3A 6.12.1 (#TS, #SS). */
struct stack stack_from_tss(struct jit_vcpu *cpu, unsigned cpl);
/* Stack pointer at `offset` of the 64-bit TSS (RSPn: 4 + 8n, ISTn: 36 + 8(n - 1)); #TS beyond its limit. */
uint64_t stack_from_tss64(struct jit_vcpu *cpu, unsigned offset);
