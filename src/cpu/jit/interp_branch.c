/* Near jumps, calls, returns, conditional branches and loops in all modes. Targets are checked (canonical form, code segment limit)
 * before anything changes. Source: Intel SDM 2. */
#include "cpu/jit/interp_impl.h"

static bool condition_holds(const struct jit_vcpu *cpu, unsigned condition)
{
    uint64_t f = cpu->rflags;
    bool less = !(f & FLAG_SF) != !(f & FLAG_OF);
    bool holds;
    switch (condition >> 1) {
    case 0: holds = f & FLAG_OF; break;
    case 1: holds = f & FLAG_CF; break;
    case 2: holds = f & FLAG_ZF; break;
    case 3: holds = f & (FLAG_CF | FLAG_ZF); break;
    case 4: holds = f & FLAG_SF; break;
    case 5: holds = f & FLAG_PF; break;
    case 6: holds = less; break;
    default: holds = less || (f & FLAG_ZF); break;
    }
    return holds != (condition & 1);
}

static bool target_valid(const struct jit_vcpu *cpu, uint64_t target)
{
    return cpu->mode == MODE_LONG ? address_canonical(target) : target <= cpu->seg[SEG_CS].limit;
}

static uint64_t check_target(struct jit_vcpu *cpu, uint64_t target)
{
    if (!target_valid(cpu, target))
        vcpu_raise(cpu, VEC_GP, 0);
    return target;
}

static uint64_t read_target(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t target = insn->branch_relative ? cpu->rip + insn->length + (uint64_t)insn->imm
                                            : interp_read_rm(cpu, insn, insn->operand_bits / 8u);
    return truncate_to(target, insn->operand_bits);
}

static void jump_if(struct jit_vcpu *cpu, const struct insn *insn, bool taken)
{
    if (taken)
        cpu->rip = check_target(cpu, read_target(cpu, insn));
    else
        interp_retire(cpu, insn);
}

/* The faults of the push come before a target's, but it must not happen when the target is bad. */
static void call_invalid(struct jit_vcpu *cpu, const struct insn *insn)
{
    unsigned bytes = insn->operand_bits / 8u;
    struct stack stack = stack_current(cpu);
    stack_skip(&stack, -(uint64_t)bytes);
    uint64_t linear = segment_linear(cpu, SEG_SS, stack.sp & stack.mask, bytes, ACCESS_WRITE);
    interp_probe(cpu, linear, bytes, ACCESS_WRITE | ACCESS_STACK);
    vcpu_raise(cpu, VEC_GP, 0);
}

static void call(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t target = read_target(cpu, insn);
    if (!target_valid(cpu, target))
        call_invalid(cpu, insn);
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, interp_next_rip(cpu, insn), insn->operand_bits / 8u);
    stack_commit(cpu, &stack);
    cpu->rip = target;
}

static void ret(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    uint64_t target = check_target(cpu, truncate_to(stack_pop(cpu, &stack, insn->operand_bits / 8u), insn->operand_bits));
    stack_skip(&stack, (uint16_t)insn->imm);
    stack_commit(cpu, &stack);
    cpu->rip = target;
}

/* e0 loopne, e1 loope, e2 loop */
static void loop(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t count = truncate_to(read_address_gpr(cpu, RCX, insn) - 1, insn->address_bits);
    bool zero = cpu->rflags & FLAG_ZF;
    bool taken = count != 0 && (insn->opcode == 0xe2 || zero == (insn->opcode == 0xe1));
    jump_if(cpu, insn, taken);
    write_address_gpr(cpu, RCX, count, insn);
}

void interp_branch(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t opcode = insn->opcode;
    if ((insn->map == 0 && (opcode & 0xf0) == 0x70) || (insn->map == 1 && (opcode & 0xf0) == 0x80))
        jump_if(cpu, insn, condition_holds(cpu, opcode & 15));
    else if (opcode >= 0xe0 && opcode <= 0xe2)
        loop(cpu, insn);
    else if (opcode == 0xe3)
        jump_if(cpu, insn, read_address_gpr(cpu, RCX, insn) == 0);
    else if (insn->mnemonic == ZYDIS_MNEMONIC_CALL)
        call(cpu, insn);
    else if (insn->mnemonic == ZYDIS_MNEMONIC_RET)
        ret(cpu, insn);
    else
        jump_if(cpu, insn, true);
}
