/* Which arithmetic flags an instruction reads and which it surely writes.
 *
 * Zydis says what the manuals say; real CPUs keep old flags more often than that:
 *  - shifts and rotates whose masked count is 0 leave all flags alone;
 *  - flags the manuals call undefined may keep their old value, so they count as read and not as written, but where
 *    every x86 CPU is known to do the same: and, or, xor and test clear AF, and sbb's AF is not undefined at all.
 * tests/unit/jit_exec_test.c checks these sets against the CPU it runs on. */
#include "cpu/jit/decode_impl.h"
#include "cpu/x86.h"

static bool is_logic(unsigned mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_AND || mnemonic == ZYDIS_MNEMONIC_OR || mnemonic == ZYDIS_MNEMONIC_XOR ||
           mnemonic == ZYDIS_MNEMONIC_TEST;
}

static bool is_rotate_through_carry(unsigned mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_RCL || mnemonic == ZYDIS_MNEMONIC_RCR;
}

static bool is_shift(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: return true;
    default: return is_rotate_through_carry(mnemonic);
    }
}

static bool shift_by_cl(const struct insn *insn)
{
    if (insn->map == 1)
        return insn->opcode == 0xa5 || insn->opcode == 0xad; /* shld, shrd */
    return insn->opcode == 0xd2 || insn->opcode == 0xd3;
}

static unsigned shift_count(const struct insn *insn)
{
    bool by_one = insn->map == 0 && (insn->opcode == 0xd0 || insn->opcode == 0xd1);
    return by_one ? 1 : (unsigned)insn->imm & (insn->operand_bits == 64 ? 63u : 31u);
}

/* The count decides whether flags change at all. */
static void correct_shift(struct insn *insn)
{
    if (!shift_by_cl(insn) && shift_count(insn) == 0) {
        insn->flags_read &= is_rotate_through_carry(insn->mnemonic) ? FLAG_CF : 0;
        insn->flags_write = insn->flags_undefined = 0;
        return;
    }
    if (!shift_by_cl(insn) && shift_count(insn) == 1) { /* the only count that defines OF */
        insn->flags_undefined &= (uint16_t)~FLAG_OF;
        insn->flags_read &= (uint16_t)~FLAG_OF;
        insn->flags_write |= FLAG_OF;
    }
    bool may_keep = shift_by_cl(insn) || (is_rotate_through_carry(insn->mnemonic) && insn->operand_bits < 32);
    if (may_keep) {
        insn->flags_read |= insn->flags_write;
        insn->flags_write = 0;
    }
}

/* A repeated string operation with a zero count changes nothing. */
static void correct_string(struct insn *insn)
{
    if (insn->has_rep || insn->has_repne) {
        insn->flags_read |= insn->flags_write;
        insn->flags_write = 0;
    }
}

static void correct_tables(struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_PTEST:
    case ZYDIS_MNEMONIC_VPTEST:
    case ZYDIS_MNEMONIC_VTESTPS:
    case ZYDIS_MNEMONIC_VTESTPD: insn->flags_write = FLAGS_ARITHMETIC; break;
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW: insn->flags_write = FLAG_ZF; break;
    default: break;
    }
}

void decode_flags(const struct decode_input *in, struct insn *insn)
{
    const ZydisAccessedFlags *flags = in->zydis.cpu_flags;
    if (!flags)
        return;
    uint16_t undefined = (uint16_t)(flags->undefined & FLAGS_ARITHMETIC);
    uint16_t written = (uint16_t)((flags->modified | flags->set_0 | flags->set_1) & FLAGS_ARITHMETIC);
    if (is_logic(insn->mnemonic) || insn->mnemonic == ZYDIS_MNEMONIC_SBB) {
        written |= FLAG_AF;
        undefined &= (uint16_t)~FLAG_AF;
    }
    insn->flags_undefined = undefined;
    insn->flags_write = written & (uint16_t)~undefined;
    insn->flags_read = (uint16_t)(flags->tested & FLAGS_ARITHMETIC) | undefined;
    if (is_shift(insn->mnemonic))
        correct_shift(insn);
    if (insn->kind == INSN_STRING)
        correct_string(insn);
    correct_tables(insn);
}
