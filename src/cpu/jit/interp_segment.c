/* Instructions on selectors and descriptor tables, and far jumps and calls: operands are read here, the rules are segment.c's.
 * Source: Intel SDM 2. */
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

static unsigned operand_bytes(const struct insn *insn)
{
    return insn->operand_bits / 8u;
}

/* A selector or machine word to ModRM.rm: 16 bits in memory, zero-extended to the operand size in a register. */
static void write_word(struct jit_vcpu *cpu, const struct insn *insn, uint64_t value)
{
    if (!insn->has_mem) {
        write_gpr(cpu, insn->rm_gpr, value, insn->operand_bits);
        return;
    }
    uint64_t linear = interp_linear(cpu, insn, 2, ACCESS_WRITE);
    mmu_store(cpu, linear, (uint16_t)value, 2, ACCESS_WRITE | stack_access(insn->mem_segment));
}

/* 8c: from a segment register; 8e: to it. */
void interp_mov_segment(struct jit_vcpu *cpu, const struct insn *insn)
{
    enum x86_segment segment = (insn->modrm >> 3) & 7;
    if (segment >= SEG_COUNT || (insn->opcode == 0x8e && segment == SEG_CS))
        vcpu_raise(cpu, VEC_UD, 0);
    if (insn->opcode == 0x8c) {
        write_word(cpu, insn, cpu->seg[segment].selector);
        return;
    }
    segment_load(cpu, segment, (uint16_t)interp_read_rm(cpu, insn, 2));
    if (segment == SEG_SS)
        cpu->interrupt_shadow = cpu->debug_shadow = true;
}

/* 06, 0e, 16, 1e and 07, 17, 1f; 0f a0, a1 (FS), a8, a9 (GS). */
static enum x86_segment stack_segment_of(const struct insn *insn)
{
    if (insn->map == 1)
        return insn->opcode & 8 ? SEG_GS : SEG_FS;
    return (insn->opcode >> 3) & 3;
}

static void push_segment(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, cpu->seg[stack_segment_of(insn)].selector, operand_bytes(insn));
    stack_commit(cpu, &stack);
}

static void pop_segment(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct stack stack = stack_current(cpu);
    enum x86_segment segment = stack_segment_of(insn);
    uint16_t selector = (uint16_t)stack_pop(cpu, &stack, operand_bytes(insn));
    segment_load(cpu, segment, selector);
    stack_commit(cpu, &stack);
    if (segment == SEG_SS)
        cpu->interrupt_shadow = cpu->debug_shadow = true;
}

struct far_pointer {
    uint64_t offset;
    uint16_t selector;
};

static struct far_pointer read_far_pointer(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct far_pointer pointer;
    unsigned bytes = operand_bytes(insn);
    unsigned access = ACCESS_READ | stack_access(insn->mem_segment);
    uint64_t linear = interp_linear(cpu, insn, bytes + 2, ACCESS_READ);
    pointer.offset = mmu_load(cpu, linear, bytes, access);
    pointer.selector = (uint16_t)mmu_load(cpu, linear + bytes, 2, access);
    return pointer;
}

static void load_far_pointer(struct jit_vcpu *cpu, const struct insn *insn)
{
    enum x86_segment segment = SEG_DS;
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_LES: segment = SEG_ES; break;
    case ZYDIS_MNEMONIC_LSS: segment = SEG_SS; break;
    case ZYDIS_MNEMONIC_LFS: segment = SEG_FS; break;
    case ZYDIS_MNEMONIC_LGS: segment = SEG_GS; break;
    default: break;
    }
    struct far_pointer pointer = read_far_pointer(cpu, insn);
    segment_load(cpu, segment, pointer.selector);
    write_gpr(cpu, insn->reg_gpr, pointer.offset, insn->operand_bits);
}

void interp_far_transfer(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct far_pointer pointer = {.offset = (uint64_t)insn->imm, .selector = (uint16_t)insn->imm2};
    if (insn->has_mem)
        pointer = read_far_pointer(cpu, insn);
    if (insn->mnemonic == ZYDIS_MNEMONIC_JMP)
        segment_far_jump(cpu, pointer.selector, pointer.offset, insn->operand_bits);
    else
        segment_far_call(cpu, pointer.selector, pointer.offset, insn->operand_bits, interp_next_rip(cpu, insn));
}

static void load_table(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
    unsigned bytes = cpu->mode == MODE_LONG ? 8 : 4;
    unsigned access = ACCESS_READ | stack_access(insn->mem_segment);
    uint64_t linear = interp_linear(cpu, insn, bytes + 2, ACCESS_READ);
    uint16_t limit = (uint16_t)mmu_load(cpu, linear, 2, access);
    uint64_t base = mmu_load(cpu, linear + 2, bytes, access);
    if (cpu->mode != MODE_LONG && insn->operand_bits == 16)
        base &= 0xffffff;
    if (insn->mnemonic == ZYDIS_MNEMONIC_LGDT)
        system_lgdt(cpu, limit, base);
    else
        system_lidt(cpu, limit, base);
}

static void store_table(struct jit_vcpu *cpu, const struct insn *insn)
{
    system_check_umip(cpu);
    const struct x86_table_state *table = insn->mnemonic == ZYDIS_MNEMONIC_SGDT ? &cpu->gdtr : &cpu->idtr;
    uint8_t image[10];
    unsigned bytes = cpu->mode == MODE_LONG ? 10 : 6;
    copy_general(image, &table->limit, 2);
    copy_general(image + 2, &table->base, 8);
    uint64_t linear = interp_linear(cpu, insn, bytes, ACCESS_WRITE);
    watch_alignment(cpu, linear + 2, bytes - 2, ACCESS_WRITE); /* of the base; so is the limit then */
    mmu_write(cpu, linear, image, bytes, ACCESS_WRITE | ACCESS_UNALIGNED | stack_access(insn->mem_segment));
}

static void require_protected(struct jit_vcpu *cpu)
{
    if (cpu->mode == MODE_REAL)
        vcpu_raise(cpu, VEC_UD, 0);
}

static void store_selector(struct jit_vcpu *cpu, const struct insn *insn)
{
    require_protected(cpu);
    system_check_umip(cpu);
    write_word(cpu, insn, insn->mnemonic == ZYDIS_MNEMONIC_SLDT ? cpu->ldtr.selector : cpu->tr.selector);
}

static void load_selector(struct jit_vcpu *cpu, const struct insn *insn)
{
    require_protected(cpu);
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
    uint16_t selector = (uint16_t)interp_read_rm(cpu, insn, 2);
    if (insn->mnemonic == ZYDIS_MNEMONIC_LLDT)
        segment_load_ldtr(cpu, selector);
    else
        segment_load_tr(cpu, selector);
}

static void store_machine_word(struct jit_vcpu *cpu, const struct insn *insn)
{
    system_check_umip(cpu);
    write_word(cpu, insn, cpu->cr0);
}

static void load_machine_word(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
    system_lmsw(cpu, (uint16_t)interp_read_rm(cpu, insn, 2));
}

static void verify(struct jit_vcpu *cpu, const struct insn *insn)
{
    require_protected(cpu);
    uint16_t selector = (uint16_t)interp_read_rm(cpu, insn, 2);
    set_flag(cpu, FLAG_ZF, segment_verify(cpu, selector, insn->mnemonic == ZYDIS_MNEMONIC_VERW));
}

static void load_rights_or_limit(struct jit_vcpu *cpu, const struct insn *insn)
{
    require_protected(cpu);
    uint16_t selector = (uint16_t)interp_read_rm(cpu, insn, 2);
    uint32_t value = 0;
    bool found = insn->mnemonic == ZYDIS_MNEMONIC_LAR ? segment_lar(cpu, selector, &value)
                                                      : segment_lsl(cpu, selector, &value);
    if (found)
        write_gpr(cpu, insn->reg_gpr, value, insn->operand_bits);
    set_flag(cpu, FLAG_ZF, found);
}

interp_fn *interp_segment_handler(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: return push_segment;
    case ZYDIS_MNEMONIC_POP: return pop_segment;
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS: return load_far_pointer;
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT: return load_table;
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT: return store_table;
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR: return store_selector;
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LTR: return load_selector;
    case ZYDIS_MNEMONIC_SMSW: return store_machine_word;
    case ZYDIS_MNEMONIC_LMSW: return load_machine_word;
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW: return verify;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL: return load_rights_or_limit;
    default: return NULL;
    }
}
