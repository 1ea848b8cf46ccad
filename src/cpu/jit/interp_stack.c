/* push, pop and their kin: everything is read and checked before the stack pointer or a register changes. Source: Intel SDM 2. */
#include "cpu/jit/interp_impl.h"

static unsigned operand_bytes(const struct insn *insn)
{
    return insn->operand_bits / 8u;
}

static void push_value(struct jit_vcpu *cpu, const struct insn *insn, uint64_t value)
{
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, value, operand_bytes(insn));
    stack_commit(cpu, &stack);
}

static void push(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (insn->opcode_gpr != INSN_NO_REG)
        push_value(cpu, insn, cpu->gpr[insn->opcode_gpr]);
    else if (insn->has_modrm)
        push_value(cpu, insn, interp_read_rm(cpu, insn, operand_bytes(insn)));
    else
        push_value(cpu, insn, (uint64_t)insn->imm);
}

/* The address of pop [m] counts from the stack pointer after the pop. */
static void pop_memory(struct jit_vcpu *cpu, const struct insn *insn, struct stack *stack, uint64_t value)
{
    uint64_t saved = cpu->gpr[RSP];
    stack_commit(cpu, stack);
    uint64_t offset = interp_offset(cpu, insn);
    cpu->gpr[RSP] = saved;
    uint64_t linear = segment_linear(cpu, insn->mem_segment, offset, operand_bytes(insn), ACCESS_WRITE);
    mmu_store(cpu, linear, value, operand_bytes(insn), ACCESS_WRITE | stack_access(insn->mem_segment));
    stack_commit(cpu, stack);
}

static void pop(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    uint64_t value = stack_pop(cpu, &stack, operand_bytes(insn));
    if (insn->has_mem) {
        pop_memory(cpu, insn, &stack, value);
        return;
    }
    stack_commit(cpu, &stack);
    write_gpr(cpu, insn->opcode_gpr != INSN_NO_REG ? insn->opcode_gpr : insn->rm_gpr, value, insn->operand_bits);
}

static void popf(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    uint64_t value = stack_pop(cpu, &stack, operand_bytes(insn));
    system_popf(cpu, value, insn->operand_bits);
    stack_commit(cpu, &stack);
}

static void pusha(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    for (unsigned gpr = RAX; gpr <= RDI; gpr++)
        stack_push(cpu, &stack, cpu->gpr[gpr], operand_bytes(insn));
    stack_commit(cpu, &stack);
}

static void popa(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    uint64_t values[8];
    for (unsigned gpr = 8; gpr-- > 0;)
        values[gpr] = stack_pop(cpu, &stack, operand_bytes(insn));
    stack_commit(cpu, &stack);
    for (unsigned gpr = RAX; gpr <= RDI; gpr++)
        if (gpr != RSP)
            write_gpr(cpu, gpr, values[gpr], insn->operand_bits);
}

/* Pushes the frame pointers of the enclosing levels, and the new one. */
static void enter_nested(struct jit_vcpu *cpu, const struct insn *insn, struct stack *stack, unsigned level,
                         uint64_t frame)
{
    struct stack display = *stack;
    display.sp = cpu->gpr[RBP];
    for (unsigned i = 1; i < level; i++) {
        stack_skip(&display, -(uint64_t)operand_bytes(insn));
        struct stack reader = display;
        stack_push(cpu, stack, stack_pop(cpu, &reader, operand_bytes(insn)), operand_bytes(insn));
    }
    stack_push(cpu, stack, frame, operand_bytes(insn));
}

/* The new top of the stack must be writable. */
static void probe_stack_top(struct jit_vcpu *cpu, uint64_t offset, unsigned bytes)
{
    uint64_t linear = segment_linear(cpu, SEG_SS, offset, bytes, ACCESS_WRITE);
    interp_probe(cpu, linear, bytes, ACCESS_WRITE | ACCESS_STACK);
}

static void enter(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    unsigned level = (unsigned)insn->imm2 & 31;
    stack_push(cpu, &stack, cpu->gpr[RBP], operand_bytes(insn));
    uint64_t frame = stack.sp;
    if (level)
        enter_nested(cpu, insn, &stack, level, frame);
    stack_skip(&stack, -(uint64_t)(uint16_t)insn->imm);
    probe_stack_top(cpu, stack.sp & stack.mask, operand_bytes(insn));
    stack_commit(cpu, &stack);
    write_gpr(cpu, RBP, frame, insn->operand_bits);
}

static void leave(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    stack.sp = (stack.sp & ~stack.mask) | (cpu->gpr[RBP] & stack.mask);
    uint64_t value = stack_pop(cpu, &stack, operand_bytes(insn));
    stack_commit(cpu, &stack);
    write_gpr(cpu, RBP, value, insn->operand_bits);
}

void interp_stack(struct jit_vcpu *cpu, const struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: push(cpu, insn); break;
    case ZYDIS_MNEMONIC_POP: pop(cpu, insn); break;
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ: push_value(cpu, insn, system_pushf(cpu)); break;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: popf(cpu, insn); break;
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD: pusha(cpu, insn); break;
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD: popa(cpu, insn); break;
    case ZYDIS_MNEMONIC_ENTER: enter(cpu, insn); break;
    default: leave(cpu, insn); break;
    }
    interp_retire(cpu, insn);
}
