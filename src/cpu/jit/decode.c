/* Bytes to struct insn. Zydis finds the instruction and its operands; this file copies what the engine needs and
 * corrects operand actions where real CPUs differ from the tables:
 *  - 8- and 16-bit register writes keep the rest of the register, so they read it; 32-bit writes zero-extend;
 *  - a conditional write (cmov, cmpxchg) reads the destination;
 *  - bsf and bsr with a zero source keep the destination;
 *  - an x87 store keeps its memory operand when it raises an unmasked exception, so it counts as reading it.
 * Pure functions: no state, any thread. Sources: Intel SDM 2, AMD APM 3. */
#include "cpu/jit/decode.h"

#include <string.h>

#include "cpu/jit/decode_impl.h"
#include "cpu/x86.h"

/* CET, MPX and CLDEMOTE are off: their opcodes are then the no-operations that CPUs without them see. */
#define DECODER(machine, stack)                                                                                 \
    {                                                                                                           \
        .machine_mode = (machine), .stack_width = (stack),                                                      \
        .decoder_mode = {[ZYDIS_DECODER_MODE_LZCNT] = 1, [ZYDIS_DECODER_MODE_TZCNT] = 1 },                      \
    }

static const ZydisDecoder decoder16 = DECODER(ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
static const ZydisDecoder decoder32 = DECODER(ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
static const ZydisDecoder decoder64 = DECODER(ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);

static const ZydisDecoder *decoder_of(unsigned code_bits)
{
    return code_bits == 64 ? &decoder64 : code_bits == 32 ? &decoder32 : &decoder16;
}

struct gpr_name {
    uint8_t number; /* INSN_NO_REG when the register is no GPR */
    uint8_t bits;
    bool high;
};

static struct gpr_name gpr_of(ZydisRegister reg)
{
    struct gpr_name name = {.number = INSN_NO_REG};
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_RAX), 64, false};
    else if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_EAX), 32, false};
    else if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_AX), 16, false};
    else if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_AL), 8, false};
    else if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_AH), 8, true};
    else if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        name = (struct gpr_name){(uint8_t)(reg - ZYDIS_REGISTER_SPL + RSP), 8, false};
    return name;
}

static uint16_t gpr_bit(ZydisRegister reg)
{
    struct gpr_name name = gpr_of(reg);
    return (uint16_t)(name.number == INSN_NO_REG ? 0 : 1u << name.number);
}

static void decode_prefixes(const ZydisDecodedInstruction *zydis, struct insn *insn)
{
    for (unsigned i = 0; i < zydis->raw.prefix_count; i++) {
        uint8_t prefix = zydis->raw.prefixes[i].value;
        bool ignored = zydis->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_IGNORED;
        if (ignored && (prefix == 0xf2 || prefix == 0xf3))
            continue;
        switch (prefix) {
        case 0xf0: insn->has_lock = true; break;
        case 0xf3: insn->has_rep = true; insn->has_repne = false; break;
        case 0xf2: insn->has_repne = true; insn->has_rep = false; break;
        case 0x66:
            insn->has_osize = true;
            insn->osize_mandatory = zydis->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
            break;
        default: break;
        }
    }
}

static uint8_t map_number(ZydisOpcodeMap map)
{
    switch ((unsigned)map) {
    case ZYDIS_OPCODE_MAP_DEFAULT: return 0;
    case ZYDIS_OPCODE_MAP_0F: return 1;
    case ZYDIS_OPCODE_MAP_0F38: return 2;
    case ZYDIS_OPCODE_MAP_0F3A: return 3;
    default: return 0xff; /* 3DNow, XOP, EVEX maps: illegal here */
    }
}

/* The opcode byte comes right before ModRM, or before the immediates and displacements when there is none. */
static uint8_t find_opcode(const ZydisDecodedInstruction *zydis)
{
    unsigned end = zydis->length;
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM)
        end = zydis->raw.modrm.offset;
    else if (zydis->raw.disp.size)
        end = zydis->raw.disp.offset;
    else if (zydis->raw.imm[0].size)
        end = zydis->raw.imm[0].offset;
    return (uint8_t)(end - 1);
}

static void decode_encoding(const ZydisDecodedInstruction *zydis, struct insn *insn)
{
    insn->map = map_number(zydis->opcode_map);
    insn->opcode = zydis->opcode;
    insn->opcode_offset = find_opcode(zydis);
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_REX)
        insn->rex = insn->bytes[zydis->raw.rex.offset];
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_VEX) {
        insn->vex_offset = zydis->raw.vex.offset;
        insn->vex_length = zydis->raw.vex.size;
    }
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
        insn->has_modrm = true;
        insn->modrm_offset = zydis->raw.modrm.offset;
        insn->modrm = insn->bytes[insn->modrm_offset];
    }
    if (zydis->attributes & ZYDIS_ATTRIB_HAS_SIB) {
        insn->sib_offset = zydis->raw.sib.offset;
        insn->sib = insn->bytes[insn->sib_offset];
    }
    insn->disp_offset = zydis->raw.disp.offset;
    insn->disp_bytes = zydis->raw.disp.size / 8;
    insn->imm_offset = zydis->raw.imm[0].offset;
    insn->imm_bytes = zydis->raw.imm[0].size / 8;
}

static enum x86_segment segment_of(const struct insn *insn, ZydisRegister reg)
{
    enum x86_segment segment = reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS
                                   ? (enum x86_segment)(reg - ZYDIS_REGISTER_ES)
                                   : SEG_DS;
    if (insn->code_bits == 64 && segment < SEG_FS && segment != SEG_SS)
        return SEG_DS;
    return segment;
}

static void decode_main_memory(const ZydisDecodedOperand *op, struct insn *insn)
{
    insn->has_mem = true;
    insn->mem_is_agen = op->mem.type == ZYDIS_MEMOP_TYPE_AGEN;
    insn->mem_segment = (uint8_t)segment_of(insn, op->mem.segment);
    insn->mem_rip = op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP;
    insn->mem_base = gpr_of(op->mem.base).number;
    insn->mem_index = op->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? (uint8_t)ZydisRegisterGetId(op->mem.index)
                                                            : gpr_of(op->mem.index).number;
    insn->mem_scale = op->mem.scale ? op->mem.scale : 1;
    insn->mem_disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
    insn->mem_bytes = insn->mem_is_agen ? 0 : (uint16_t)(op->size / 8);
    if (!insn->mem_is_agen) {
        insn->mem_read = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
        insn->mem_write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    }
}

/* An implied memory operand that a segment prefix applies to: the source of strings, xlat's table, maskmov's target. */
static bool takes_segment_prefix(const ZydisDecodedOperand *op, const struct insn *insn)
{
    uint8_t base = gpr_of(op->mem.base).number;
    bool masked_store = insn->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || insn->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
                        insn->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
    return base == RSI || base == RBX || (base == RDI && masked_store);
}

static void decode_memory(const ZydisDecodedOperand *op, struct insn *insn)
{
    insn->gpr_read |= gpr_bit(op->mem.base);
    if (op->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
        insn->gpr_read |= gpr_bit(op->mem.index);
    if (op->encoding != ZYDIS_OPERAND_ENCODING_NONE) {
        decode_main_memory(op, insn);
        return;
    }
    insn->gpr_implicit |= gpr_bit(op->mem.base);
    if (takes_segment_prefix(op, insn))
        insn->mem_segment = (uint8_t)segment_of(insn, op->mem.segment);
}

/* mod 0 with SIB base 5 is a displacement without base; Zydis 4.0.0 shows r13d under an address-size prefix. */
static void correct_address(const ZydisDecodedInstruction *zydis, struct insn *insn)
{
    bool no_base = insn->sib_offset && zydis->raw.modrm.mod == 0 && zydis->raw.sib.base == 5;
    if (!no_base || insn->mem_base == INSN_NO_REG)
        return;
    insn->mem_base = INSN_NO_REG;
    insn->mem_disp = zydis->raw.disp.value;
    if (insn->mem_segment == SEG_SS)
        insn->mem_segment = SEG_DS;
}

static void set_field(uint8_t *field, uint8_t *bits, bool *high, struct gpr_name name)
{
    *field = name.number;
    *bits = name.bits;
    *high = name.high;
}

static void decode_gpr(const ZydisDecodedOperand *op, struct insn *insn)
{
    struct gpr_name name = gpr_of(op->reg.value);
    if (name.number == INSN_NO_REG)
        return;
    uint16_t bit = (uint16_t)(1u << name.number);
    uint8_t unused_bits;
    bool unused_high;
    switch ((unsigned)op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG: set_field(&insn->reg_gpr, &insn->reg_bits, &insn->reg_high, name); break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM: set_field(&insn->rm_gpr, &insn->rm_bits, &insn->rm_high, name); break;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        set_field(&insn->opcode_gpr, &insn->opcode_bits, &insn->opcode_high, name);
        break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD: set_field(&insn->vvvv_gpr, &unused_bits, &unused_high, name); break;
    default: insn->gpr_implicit |= bit; break;
    }
    insn->high_byte |= name.high;
    bool writes = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    bool keeps = name.bits < 32 || (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE);
    if ((op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) || (writes && keeps))
        insn->gpr_read |= bit;
    if (writes)
        insn->gpr_write |= bit;
}

static void decode_immediate(const ZydisDecodedOperand *op, unsigned index, struct insn *insn)
{
    if (index == 0)
        insn->imm = op->imm.value.s;
    else
        insn->imm2 = op->imm.value.s;
    insn->branch_relative |= op->imm.is_relative;
}

static void decode_operands(const struct decode_input *in, struct insn *insn)
{
    unsigned immediates = 0;
    for (unsigned i = 0; i < in->zydis.operand_count; i++) {
        const ZydisDecodedOperand *op = &in->operands[i];
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
            decode_memory(op, insn);
            correct_address(&in->zydis, insn);
            continue;
        }
        switch ((unsigned)op->type) {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            decode_gpr(op, insn);
            insn->imm_is_register |= op->encoding == ZYDIS_OPERAND_ENCODING_IS4;
            break;
        case ZYDIS_OPERAND_TYPE_MEMORY: decode_memory(op, insn); break;
        case ZYDIS_OPERAND_TYPE_IMMEDIATE: decode_immediate(op, immediates++, insn); break;
        case ZYDIS_OPERAND_TYPE_POINTER:
            insn->imm = op->ptr.offset;
            insn->imm2 = op->ptr.segment;
            break;
        default: break;
        }
    }
}

/* What operand actions cannot say. */
static void correct_operands(struct insn *insn)
{
    if (insn->mnemonic == ZYDIS_MNEMONIC_BSF || insn->mnemonic == ZYDIS_MNEMONIC_BSR)
        insn->gpr_read |= insn->gpr_write;
    if (insn->mnemonic == ZYDIS_MNEMONIC_CMPXCHG && insn->has_mem)
        insn->mem_write = true;
    bool moffs = insn->map == 0 && !insn->vex_length && (insn->opcode & 0xfc) == 0xa0;
    if (moffs && insn->has_mem) {
        insn->reg_gpr = RAX;
        insn->reg_bits = insn->operand_bits;
        insn->gpr_implicit = 0;
    }
}

static bool is_unaligned_load(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
    case ZYDIS_MNEMONIC_SHA1MSG1:
    case ZYDIS_MNEMONIC_SHA1MSG2:
    case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4:
    case ZYDIS_MNEMONIC_SHA256MSG1:
    case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2: return true;
    default: return false;
    }
}

static bool is_aligned_vex_move(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA: return true;
    default: return false;
    }
}

/* SDM 2A 2.7: 16-byte operands of legacy SSE are aligned but for a few instructions; of VEX ones only those of the few aligned
 * moves. CPUs differ about SHA, so it is left to the one that runs it. */
static uint8_t alignment_of(const struct insn *insn)
{
    if (!insn->has_mem || insn->mem_is_agen)
        return 1;
    if (insn->vex_length)
        return is_aligned_vex_move(insn->mnemonic) ? (uint8_t)insn->mem_bytes : 1;
    bool vector = (insn->fpu == INSN_FPU_SSE || insn->fpu == INSN_FPU_MMX) && !is_unaligned_load(insn->mnemonic);
    bool wide = insn->mem_bytes == 16 && (vector || insn->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B);
    return wide ? 16 : 1;
}

static bool is_bit_string(const struct insn *insn)
{
    bool bit_test = insn->mnemonic == ZYDIS_MNEMONIC_BT || insn->mnemonic == ZYDIS_MNEMONIC_BTS ||
                    insn->mnemonic == ZYDIS_MNEMONIC_BTR || insn->mnemonic == ZYDIS_MNEMONIC_BTC;
    return bit_test && insn->has_mem && insn->reg_gpr != INSN_NO_REG;
}

static void insn_clear(struct insn *insn, unsigned code_bits)
{
    memset(insn, 0, sizeof *insn);
    insn->kind = INSN_ILLEGAL;
    insn->code_bits = (uint8_t)code_bits;
    insn->reg_gpr = insn->rm_gpr = insn->vvvv_gpr = insn->opcode_gpr = INSN_NO_REG;
    insn->mem_base = insn->mem_index = INSN_NO_REG;
    insn->mem_scale = insn->mem_align = 1;
    insn->mem_segment = SEG_DS;
}

static enum insn_status decode_failed(ZyanStatus status, unsigned length, struct insn *insn)
{
    if (status == ZYDIS_STATUS_NO_MORE_DATA && length < INSN_MAX_BYTES)
        return INSN_TRUNCATED;
    insn->too_long = status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
    return INSN_INVALID;
}

static void decode_fill(const struct decode_input *in, const uint8_t *bytes, struct insn *insn)
{
    memcpy(insn->bytes, bytes, in->zydis.length);
    insn->length = in->zydis.length;
    insn->mnemonic = (uint16_t)in->zydis.mnemonic;
    insn->operand_bits = in->zydis.operand_width;
    insn->address_bits = in->zydis.address_width;
    decode_prefixes(&in->zydis, insn);
    decode_encoding(&in->zydis, insn);
    decode_operands(in, insn);
    correct_operands(insn);
    insn->mem_bit_string = is_bit_string(insn);
    decode_classify(in, insn);
    insn->mem_align = alignment_of(insn);
    insn->mem_read |= insn->mem_write && insn->fpu == INSN_FPU_X87;
    decode_flags(in, insn);
}

/* f3 REX.B 90 is xchg r8, rax, not pause: decodes it without the f3. */
static void decode_as_exchange(const uint8_t *bytes, struct decode_input *in)
{
    uint8_t without[INSN_MAX_BYTES];
    for (unsigned i = 0; i < in->zydis.length; i++)
        without[i] = bytes[i] == 0xf3 ? 0x3e : bytes[i];
    ZydisDecoderDecodeFull(&decoder64, without, in->zydis.length, &in->zydis, in->operands);
}

enum insn_status insn_decode_into(const uint8_t *bytes, unsigned length, unsigned code_bits, struct decode_input *ret_in,
                                  struct insn *ret_insn)
{
    insn_clear(ret_insn, code_bits);
    if (length > INSN_MAX_BYTES)
        length = INSN_MAX_BYTES;
    ZyanStatus status = ZydisDecoderDecodeFull(decoder_of(code_bits), bytes, length, &ret_in->zydis, ret_in->operands);
    if (!ZYAN_SUCCESS(status))
        return decode_failed(status, length, ret_insn);
    if (ret_in->zydis.mnemonic == ZYDIS_MNEMONIC_PAUSE && (ret_in->zydis.attributes & ZYDIS_ATTRIB_HAS_REX) && ret_in->zydis.raw.rex.B)
        decode_as_exchange(bytes, ret_in);
    decode_fill(ret_in, bytes, ret_insn);
    return ret_insn->kind == INSN_ILLEGAL ? INSN_INVALID : INSN_OK;
}

enum insn_status insn_decode(const uint8_t *bytes, unsigned length, unsigned code_bits, struct insn *ret_insn)
{
    struct decode_input in;
    return insn_decode_into(bytes, length, code_bits, &in, ret_insn);
}
