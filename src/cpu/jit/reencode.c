/* Re-emission of an instruction as 64-bit code with registers and memory operand replaced, by rebuilding its prefixes, REX or VEX, ModRM
 * and SIB around the original opcode and immediates. Code of 16- and 32-bit segments becomes its 64-bit equivalent:
 * operand-size prefix by the effective size, the short inc/dec as ff /0 and ff /1, moffs forms as plain mov.
 * Pure functions. Source: Intel SDM 2A chapter 2. */
#include <string.h>

#include "cpu/jit/decode.h"
#include "cpu/x86.h"

#include <Zydis/Mnemonic.h>

#define REX 0x40u
#define REX_W 8u
#define REX_R 4u
#define REX_X 2u
#define REX_B 1u

const struct insn_remap insn_remap_identity = {
    .gpr = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    .mem_base = INSN_NO_REG,
    .mem_index = INSN_NO_REG,
};

struct parts {
    const struct insn *insn;
    const struct insn_remap *remap;
    uint8_t opcode;
    uint8_t reg, rm, vvvv; /* 4-bit numbers */
    bool has_modrm, memory;
    bool rex_needed;    /* spl, bpl, sil, dil */
    bool rex_forbidden; /* ah, ch, dh, bh */
    bool failed;
};

/* Number that the encoding holds for guest register `gpr` of `bits` bits. */
static uint8_t field_number(struct parts *parts, uint8_t gpr, uint8_t bits, bool high)
{
    uint8_t number = parts->remap->gpr[gpr];
    if (bits != 8)
        return number;
    if (high) {
        parts->rex_forbidden = true;
        parts->failed |= number > RBX;
        return (uint8_t)(number + 4);
    }
    parts->rex_needed |= number >= RSP && number <= RDI;
    return number;
}

static bool vex_bit_clear(const struct insn *insn, unsigned byte, uint8_t bit)
{
    return insn->vex_length && insn->code_bits == 64 && !(insn->bytes[insn->vex_offset + byte] & bit);
}

/* The register numbers as the original encodes them, for fields that hold no GPR. */
static uint8_t original_reg(const struct insn *insn)
{
    bool high = (insn->rex & REX_R) || vex_bit_clear(insn, 1, 0x80);
    return (uint8_t)(((insn->modrm >> 3) & 7) | (high ? 8 : 0));
}

static uint8_t original_rm(const struct insn *insn)
{
    bool high = (insn->rex & REX_B) || (insn->vex_length == 3 && vex_bit_clear(insn, 1, 0x20));
    return (uint8_t)((insn->modrm & 7) | (high ? 8 : 0));
}

static uint8_t original_vvvv(const struct insn *insn)
{
    uint8_t last = insn->bytes[insn->vex_offset + insn->vex_length - 1];
    return (uint8_t)((~last >> 3) & (insn->code_bits == 64 ? 15 : 7));
}

static void gather_modrm(struct parts *parts)
{
    const struct insn *insn = parts->insn;
    parts->has_modrm = true;
    parts->memory = (insn->modrm >> 6) != 3 && insn->has_mem;
    parts->reg = insn->reg_gpr != INSN_NO_REG ? field_number(parts, insn->reg_gpr, insn->reg_bits, insn->reg_high)
                                              : original_reg(insn);
    if (!parts->memory)
        parts->rm = insn->rm_gpr != INSN_NO_REG ? field_number(parts, insn->rm_gpr, insn->rm_bits, insn->rm_high)
                                                : original_rm(insn);
}

/* mov between the accumulator and an absolute address: a0..a3 -> 8a, 8b, 88, 89. */
static void convert_moffs(struct parts *parts)
{
    static const uint8_t opcodes[4] = {0x8a, 0x8b, 0x88, 0x89};
    const struct insn *insn = parts->insn;
    parts->opcode = opcodes[insn->opcode & 3];
    parts->has_modrm = parts->memory = true;
    parts->reg = field_number(parts, insn->reg_gpr, insn->reg_bits, false);
}

/* inc and dec of one byte, REX prefixes in 64-bit code. */
static void convert_short_inc_dec(struct parts *parts)
{
    const struct insn *insn = parts->insn;
    parts->has_modrm = true;
    parts->reg = insn->opcode >= 0x48;
    parts->rm = field_number(parts, insn->opcode_gpr, insn->opcode_bits, false);
    parts->opcode = 0xff;
}

static void gather_opcode_register(struct parts *parts)
{
    const struct insn *insn = parts->insn;
    bool exchange = insn->map == 0 && insn->opcode >= 0x90 && insn->opcode <= 0x97;
    parts->rm = field_number(parts, insn->opcode_gpr, insn->opcode_bits, insn->opcode_high);
    parts->opcode = (uint8_t)((insn->opcode & ~7u) | (parts->rm & 7u));
    parts->failed |= exchange && parts->rm == RAX && insn->opcode_gpr != RAX; /* would be nop */
}

static void gather_fields(struct parts *parts)
{
    const struct insn *insn = parts->insn;
    parts->opcode = insn->opcode;
    for (unsigned i = 0; i < GPR_COUNT; i++)
        parts->failed |= (insn->gpr_implicit >> i & 1) && parts->remap->gpr[i] != i;
    if (insn->vex_length)
        parts->vvvv = insn->vvvv_gpr != INSN_NO_REG ? parts->remap->gpr[insn->vvvv_gpr] : original_vvvv(insn);
    if (insn->has_modrm)
        gather_modrm(parts);
    else if (insn->has_mem)
        convert_moffs(parts);
    else if (insn->opcode_gpr != INSN_NO_REG && insn->map == 0 && (insn->opcode & 0xf0) == 0x40)
        convert_short_inc_dec(parts);
    else if (insn->opcode_gpr != INSN_NO_REG)
        gather_opcode_register(parts);
    if (insn->code_bits == 32 || insn->code_bits == 16)
        if (insn->map == 0 && insn->opcode == 0x82)
            parts->opcode = 0x80; /* alias that 64-bit code lacks */
}

/* Does the 64-bit form need an operand-size prefix? */
static bool needs_osize(const struct insn *insn)
{
    if (insn->code_bits == 64)
        return insn->has_osize;
    if (insn->osize_mandatory)
        return true;
    bool sized = insn->fpu == INSN_FPU_NONE || insn->fpu == INSN_FPU_X87;
    bool fixed = insn->map == 1 && (insn->opcode == 0xc3 || insn->opcode == 0xae); /* movnti, fences */
    return insn->operand_bits == 16 && sized && !fixed;
}

static uint8_t rex_bits(const struct parts *parts)
{
    const struct insn_remap *remap = parts->remap;
    uint8_t bits = parts->reg & 8 ? REX_R : 0;
    if (parts->memory) {
        bits |= remap->mem_base & 8 ? REX_B : 0;
        bits |= remap->mem_index != INSN_NO_REG && (remap->mem_index & 8) ? REX_X : 0;
    } else {
        bits |= parts->rm & 8 ? REX_B : 0;
    }
    return bits;
}

static uint8_t *emit_legacy_prefixes(struct parts *parts, uint8_t *out)
{
    const struct insn *insn = parts->insn;
    if (insn->has_lock && !parts->remap->drop_lock)
        *out++ = 0xf0;
    if (needs_osize(insn))
        *out++ = 0x66;
    if (insn->has_rep)
        *out++ = 0xf3;
    else if (insn->has_repne)
        *out++ = 0xf2;
    uint8_t rex = rex_bits(parts) | (insn->rex & REX_W);
    bool byte_needs = parts->rex_needed;
    parts->failed |= parts->rex_forbidden && (rex || byte_needs);
    if (rex || byte_needs)
        *out++ = (uint8_t)(REX | rex);
    if (insn->map)
        *out++ = 0x0f;
    if (insn->map >= 2)
        *out++ = insn->map == 2 ? 0x38 : 0x3a;
    return out;
}

/* VEX.W is an operand size only where a GPR takes part; outside of 64-bit code it is ignored then. */
static bool vex_w_is_size(const struct insn *insn)
{
    if (insn->reg_gpr != INSN_NO_REG || insn->rm_gpr != INSN_NO_REG || insn->vvvv_gpr != INSN_NO_REG)
        return true;
    if (insn->map == 1)
        return insn->opcode == 0x6e || insn->opcode == 0x7e || insn->opcode == 0x2a;
    bool compare_lengths = insn->opcode == 0x60 || insn->opcode == 0x61; /* vpcmpestrm and vpcmpestri, in rax and rdx */
    return insn->map == 3 && (insn->opcode == 0x22 || insn->opcode == 0x16 || compare_lengths);
}

static uint8_t vex_w(const struct insn *insn)
{
    if (insn->vex_length != 3 || (insn->code_bits != 64 && vex_w_is_size(insn)))
        return 0;
    return insn->bytes[insn->vex_offset + 2] & 0x80;
}

static uint8_t *emit_vex(const struct parts *parts, uint8_t *out)
{
    const struct insn *insn = parts->insn;
    uint8_t extend = rex_bits(parts);
    uint8_t last = insn->bytes[insn->vex_offset + insn->vex_length - 1];
    uint8_t tail = (uint8_t)((~parts->vvvv & 15) << 3 | (last & 7));
    uint8_t w = vex_w(insn);
    if (!(extend & (REX_X | REX_B)) && !w && insn->map == 1) {
        *out++ = 0xc5;
        *out++ = (uint8_t)((extend & REX_R ? 0 : 0x80) | tail);
        return out;
    }
    *out++ = 0xc4;
    *out++ = (uint8_t)((~extend & 7) << 5 | insn->map);
    *out++ = w | tail;
    return out;
}

static unsigned disp_bytes(const struct insn_remap *remap)
{
    if (remap->mem_disp == 0 && (remap->mem_base & 7) != RBP)
        return 0;
    return remap->mem_disp >= -128 && remap->mem_disp <= 127 ? 1 : 4;
}

static uint8_t *emit_memory(struct parts *parts, uint8_t *out)
{
    const struct insn_remap *remap = parts->remap;
    uint8_t base = remap->mem_base & 7;
    unsigned bytes = disp_bytes(remap);
    uint8_t mod = (uint8_t)(bytes == 0 ? 0 : bytes == 1 ? 0x40 : 0x80);
    bool sib = remap->mem_index != INSN_NO_REG || base == RSP;
    parts->failed |= remap->mem_base > R15 || remap->mem_index == RSP;
    *out++ = (uint8_t)(mod | (parts->reg & 7) << 3 | (sib ? 4 : base));
    if (sib)
        *out++ = (uint8_t)((remap->mem_index != INSN_NO_REG ? remap->mem_index & 7 : 4) << 3 | base);
    memcpy(out, &remap->mem_disp, bytes);
    return out + bytes;
}

/* What follows the operands in the original: immediates. */
static uint8_t *emit_tail(const struct insn *insn, uint8_t *out)
{
    unsigned start = insn->opcode_offset + 1u;
    if (!insn->has_modrm && insn->has_mem)
        return out; /* moffs: no immediate */
    if (insn->has_modrm)
        start = insn->modrm_offset + 1u + (insn->sib_offset ? 1 : 0) + insn->disp_bytes;
    unsigned bytes = insn->length - start;
    memcpy(out, insn->bytes + start, bytes);
    if (insn->imm_is_register && insn->code_bits != 64)
        out[bytes - 1] &= 0x7f;
    return out + bytes;
}

unsigned insn_reencode(const struct insn *insn, const struct insn_remap *remap, uint8_t out[INSN_MAX_BYTES])
{
    struct parts parts = {.insn = insn, .remap = remap};
    uint8_t buffer[2 * INSN_MAX_BYTES], *end = buffer;
    if (insn->kind != INSN_PLAIN && insn->kind != INSN_NOP && !insn->mem_bit_string)
        return 0;
    gather_fields(&parts);
    if (parts.failed)
        return 0;
    end = insn->vex_length ? emit_vex(&parts, end) : emit_legacy_prefixes(&parts, end);
    *end++ = parts.opcode;
    if (parts.memory)
        end = emit_memory(&parts, end);
    else if (parts.has_modrm)
        *end++ = (uint8_t)(0xc0 | (parts.reg & 7) << 3 | (parts.rm & 7));
    end = emit_tail(insn, end);
    unsigned length = (unsigned)(end - buffer);
    if (parts.failed || length > INSN_MAX_BYTES)
        return 0;
    memcpy(out, buffer, length);
    return length;
}
