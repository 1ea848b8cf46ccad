/* The head of an instruction is all of it but displacement and immediate: prefixes, opcode, ModRM, SIB. Nothing else that the decoder
 * tells depends on those two, with few exceptions, which are not remembered. Where the head ends is found by rules of thumb (SDM 2A
 * 2.1, 2.3, appendix A), and remembered is only what the full decoder agrees with: a wrong guess costs time. */
#include "cpu/jit/decode_known.h"

#include <string.h>

#include "cpu/jit/decode_impl.h"

#define HEAD_MAX 7u /* the eighth byte of the key is the length */
#define PREFIXES_MAX 3u

static bool is_prefix(uint8_t byte)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0xf0:
    case 0xf2:
    case 0xf3: return true;
    default: return false;
    }
}

/* Opcodes with ModRM: one-byte ones, and those behind 0f. */
static bool has_modrm(unsigned map, uint8_t opcode)
{
    static const uint32_t table[2][8] = {
        {0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a08, 0x0000ffff, 0x00000000, 0xff0f00c3, 0xc0c00000},
        {0xffff200f, 0x0000ff0f, 0xffffffff, 0xff7fffff, 0xffff0000, 0xfffff8f8, 0xffff00ff, 0xffffffff}};
    return table[map][opcode / 32] >> (opcode % 32) & 1;
}

/* Skips the opcode at bytes[*at], with what VEX has before it; is ModRM behind it? */
static bool skip_opcode(const uint8_t *bytes, unsigned *at)
{
    uint8_t first = bytes[*at], second = bytes[*at + 1];
    if (first == 0xc4 || first == 0xc5) {
        *at += first == 0xc4 ? 4 : 3;
        return bytes[*at - 1] != 0x77; /* vzeroupper */
    }
    *at += first != 0x0f ? 1 : second == 0x38 || second == 0x3a ? 3 : 2;
    if (first != 0x0f)
        return has_modrm(0, first);
    return second == 0x38 || second == 0x3a || has_modrm(1, second);
}

/* Where the head of the instruction at 15 readable bytes ends, or so it seems. */
static unsigned head_length(const uint8_t *bytes)
{
    unsigned at = 0;
    while (at < PREFIXES_MAX && is_prefix(bytes[at]))
        at++;
    at += (bytes[at] & 0xf0) == 0x40; /* REX */
    if (!skip_opcode(bytes, &at))
        return at;
    uint8_t modrm = bytes[at++];
    return at + ((modrm & 0xc0) != 0xc0 && (modrm & 7) == 4); /* SIB */
}

static uint64_t key_of(const uint8_t *bytes, unsigned length)
{
    uint64_t head;
    memcpy(&head, bytes, sizeof head);
    return (head & ((UINT64_C(1) << 8 * length) - 1)) | (uint64_t)length << 56;
}

static int64_t read_signed(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return (int64_t)(value << (64 - 8 * bytes)) >> (64 - 8 * bytes);
}

static int64_t read_immediate(const uint8_t *at, unsigned bytes, bool is_signed)
{
    int64_t value = read_signed(at, bytes);
    return is_signed || bytes == 8 ? value : value & ((INT64_C(1) << 8 * bytes) - 1);
}

/* The count of a shift decides which flags it writes. */
static bool shifts_by_immediate(const struct insn *insn)
{
    return insn->imm_bytes && !insn->vex_length &&
           ((insn->map == 0 && (insn->opcode & 0xfe) == 0xc0) || (insn->map == 1 && (insn->opcode & 0xf7) == 0xa4));
}

/* Is the rest of the instruction its displacement and its immediate, and may it be remembered without them? */
static bool may_be_known(const struct decode_input *in, const struct insn *insn, unsigned head)
{
    bool disp_fits = !insn->disp_bytes || (insn->has_mem && insn->disp_bytes <= 4 && insn->disp_offset == head);
    bool imm_fits = !insn->imm_bytes || insn->imm_offset == head + insn->disp_bytes;
    return disp_fits && imm_fits && head + insn->disp_bytes + insn->imm_bytes == insn->length && !in->zydis.raw.imm[1].size &&
           !insn->imm_is_register && !shifts_by_immediate(insn);
}

static enum insn_status learn(struct known_insn *slot, uint64_t key, unsigned head, const uint8_t *bytes, struct insn *ret_insn)
{
    struct decode_input in;
    enum insn_status status = insn_decode_into(bytes, INSN_MAX_BYTES, 64, &in, ret_insn);
    if (status == INSN_OK && may_be_known(&in, ret_insn, head))
        *slot = (struct known_insn){.head = key, .imm_signed = in.zydis.raw.imm[0].is_signed, .insn = *ret_insn};
    return status;
}

struct unaligned {
    uint64_t value;
} __attribute__((packed, may_alias));

/* Guest memory, which another vCPU may be writing. */
__attribute__((no_sanitize("thread"))) static uint64_t load8(const uint8_t *from)
{
    return ((const volatile struct unaligned *)(const void *)from)->value;
}

__attribute__((no_sanitize("thread"))) static uint8_t load1(const uint8_t *from)
{
    return *(const volatile uint8_t *)from;
}

/* All that follows sees the same bytes: else what is remembered could be the head of one instruction with the meaning of
 * another. */
static void fetch(uint8_t *to, const uint8_t *from, unsigned length)
{
    if (length < INSN_MAX_BYTES) {
        for (unsigned i = 0; i < length; i++)
            to[i] = load1(from + i);
        return;
    }
    uint64_t first = load8(from), last = load8(from + INSN_MAX_BYTES - 8);
    memcpy(to, &first, 8);
    memcpy(to + INSN_MAX_BYTES - 8, &last, 8);
}

enum insn_status insn_known_decode(struct insn_known *known, const uint8_t *from, unsigned length, struct insn *ret_insn)
{
    uint8_t bytes[INSN_MAX_BYTES];
    if (length > INSN_MAX_BYTES)
        length = INSN_MAX_BYTES;
    fetch(bytes, from, length);
    unsigned head = length < INSN_MAX_BYTES || !known->remembers ? HEAD_MAX + 1 : head_length(bytes);
    if (head > HEAD_MAX)
        return insn_decode(bytes, length, 64, ret_insn);
    uint64_t key = key_of(bytes, head);
    struct known_insn *slot = &known->slots[key * UINT64_C(0x9e3779b97f4a7c15) >> (64 - INSN_KNOWN_BITS)];
    if (slot->head != key)
        return learn(slot, key, head, bytes, ret_insn);
    *ret_insn = slot->insn;
    for (unsigned i = head; i < ret_insn->length; i++)
        ret_insn->bytes[i] = bytes[i];
    if (ret_insn->disp_bytes)
        ret_insn->mem_disp = read_signed(bytes + head, ret_insn->disp_bytes);
    if (ret_insn->imm_bytes)
        ret_insn->imm = read_immediate(bytes + ret_insn->imm_offset, ret_insn->imm_bytes, slot->imm_signed);
    return INSN_OK;
}
