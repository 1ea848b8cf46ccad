/* Odds and ends, most of them outside of 64-bit mode: decimal arithmetic, salc, arpl, bound, xlat. Flags of decimal arithmetic that the
 * manual calls undefined are as Zen CPUs set them: those of the addition that the instruction is inside. Source: Intel SDM 2. */
#include "cpu/jit/interp_impl.h"

static uint8_t al(const struct jit_vcpu *cpu)
{
    return (uint8_t)cpu->gpr[RAX];
}

static uint8_t ah(const struct jit_vcpu *cpu)
{
    return (uint8_t)(cpu->gpr[RAX] >> 8);
}

static void set_result_flags(struct jit_vcpu *cpu, uint8_t result)
{
    set_flag(cpu, FLAG_SF, result & 0x80);
    set_flag(cpu, FLAG_ZF, result == 0);
    set_flag(cpu, FLAG_PF, !__builtin_parity(result));
}

/* daa and das: an addition or subtraction of 0, 6, 0x60 or 0x66. */
static void decimal_adjust(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool subtract = insn->mnemonic == ZYDIS_MNEMONIC_DAS;
    uint8_t old = al(cpu);
    bool low = (old & 15) > 9 || (cpu->rflags & FLAG_AF);
    bool high = old > 0x99 || (cpu->rflags & FLAG_CF);
    bool borrow = low && subtract && old < 6;
    int change = (low ? 6 : 0) + (high ? 0x60 : 0);
    int sum = (int8_t)old + (subtract ? -change : change);
    uint8_t result = (uint8_t)sum;
    write_gpr(cpu, RAX, result, 8);
    set_flag(cpu, FLAG_AF, low);
    set_flag(cpu, FLAG_CF, high || borrow);
    set_flag(cpu, FLAG_OF, sum != (int8_t)result);
    set_result_flags(cpu, result);
}

/* aaa and aas: an addition or subtraction of 0 or 0x106; the flags are those of the 16-bit sum before the mask. */
static void ascii_adjust(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool adjust = (al(cpu) & 15) > 9 || (cpu->rflags & FLAG_AF);
    int change = adjust ? 0x106 : 0;
    int sum = (int16_t)cpu->gpr[RAX] + (insn->mnemonic == ZYDIS_MNEMONIC_AAS ? -change : change);
    write_gpr(cpu, RAX, (uint64_t)sum & 0xff0f, 16);
    set_flag(cpu, FLAG_AF, adjust);
    set_flag(cpu, FLAG_CF, adjust);
    set_flag(cpu, FLAG_OF, sum != (int16_t)sum);
    set_flag(cpu, FLAG_SF, sum & 0x8000);
    set_flag(cpu, FLAG_ZF, (uint16_t)sum == 0);
    set_flag(cpu, FLAG_PF, !__builtin_parity((uint8_t)sum));
}

static void ascii_multiply(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t base = (uint8_t)insn->imm;
    if (base == 0)
        vcpu_raise(cpu, VEC_DE, 0);
    uint8_t quotient = al(cpu) / base, rest = al(cpu) % base;
    write_gpr(cpu, RAX, (uint64_t)(quotient << 8 | rest), 16);
    cpu->rflags &= ~(uint64_t)(FLAG_CF | FLAG_AF | FLAG_OF);
    set_result_flags(cpu, rest);
}

static void ascii_divide(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t low = al(cpu), high = (uint8_t)(ah(cpu) * (uint8_t)insn->imm), result = (uint8_t)(low + high);
    write_gpr(cpu, RAX, result, 16);
    set_flag(cpu, FLAG_CF, result < low);
    set_flag(cpu, FLAG_AF, (low & 15) + (high & 15) > 15);
    set_flag(cpu, FLAG_OF, ~(low ^ high) & (low ^ result) & 0x80);
    set_result_flags(cpu, result);
}

static void set_al_from_carry(struct jit_vcpu *cpu, const struct insn *insn)
{
    (void)insn;
    write_gpr(cpu, RAX, cpu->rflags & FLAG_CF ? 0xff : 0, 8);
}

static void adjust_rpl(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (cpu->mode == MODE_REAL)
        vcpu_raise(cpu, VEC_UD, 0);
    uint16_t selector = (uint16_t)interp_read_rm(cpu, insn, 2);
    unsigned rpl = (unsigned)cpu->gpr[insn->reg_gpr] & 3;
    bool raise = (selector & 3u) < rpl;
    uint16_t adjusted = raise ? (uint16_t)((selector & 0xfffcu) | rpl) : selector;
    if (insn->has_mem && raise)
        mmu_store(cpu, interp_linear(cpu, insn, 2, ACCESS_WRITE), adjusted, 2,
                  ACCESS_WRITE | stack_access(insn->mem_segment));
    else if (raise)
        write_gpr(cpu, insn->rm_gpr, adjusted, 16);
    set_flag(cpu, FLAG_ZF, raise);
}

static void check_bounds(struct jit_vcpu *cpu, const struct insn *insn)
{
    unsigned bytes = insn->operand_bits / 8u;
    unsigned access = ACCESS_READ | stack_access(insn->mem_segment);
    uint64_t linear = interp_linear(cpu, insn, 2 * bytes, ACCESS_READ);
    int64_t lower = sign_extend(mmu_load(cpu, linear, bytes, access), insn->operand_bits);
    int64_t upper = sign_extend(mmu_load(cpu, linear + bytes, bytes, access), insn->operand_bits);
    int64_t index = sign_extend(cpu->gpr[insn->reg_gpr], insn->operand_bits);
    if (index < lower || index > upper)
        vcpu_raise(cpu, VEC_BR, 0);
}

static void translate_byte(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t offset = truncate_to(cpu->gpr[RBX] + al(cpu), insn->address_bits);
    uint64_t linear = segment_linear(cpu, insn->mem_segment, offset, 1, ACCESS_READ);
    write_gpr(cpu, RAX, mmu_load(cpu, linear, 1, ACCESS_READ | stack_access(insn->mem_segment)), 8);
}

interp_fn *interp_legacy_handler(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS: return decimal_adjust;
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS: return ascii_adjust;
    case ZYDIS_MNEMONIC_AAM: return ascii_multiply;
    case ZYDIS_MNEMONIC_AAD: return ascii_divide;
    case ZYDIS_MNEMONIC_SALC: return set_al_from_carry;
    case ZYDIS_MNEMONIC_ARPL: return adjust_rpl;
    case ZYDIS_MNEMONIC_BOUND: return check_bounds;
    case ZYDIS_MNEMONIC_XLAT: return translate_byte;
    default: return NULL;
    }
}
