/* Fields of VEX-encoded vector instructions, and the shape of gathers. Pure functions that use no vector registers. */
#pragma once

#include "cpu/jit/decode.h"

static inline uint8_t insn_vex_last(const struct insn *insn)
{
    return insn->bytes[insn->vex_offset + insn->vex_length - 1];
}

static inline unsigned insn_vex_vvvv(const struct insn *insn)
{
    return (~(unsigned)insn_vex_last(insn) >> 3) & (insn->code_bits == 64 ? 15 : 7);
}

static inline unsigned insn_vector_bytes(const struct insn *insn)
{
    return insn->vex_length && (insn_vex_last(insn) & 4) ? 32 : 16;
}

static inline bool insn_vex_w(const struct insn *insn)
{
    return insn->vex_length == 3 && (insn_vex_last(insn) & 0x80);
}

/* ModRM.reg and ModRM.rm as vector registers. */
static inline unsigned insn_vector_reg(const struct insn *insn)
{
    bool high = insn->vex_length ? insn->code_bits == 64 && !(insn->bytes[insn->vex_offset + 1] & 0x80) : insn->rex & 4;
    return ((insn->modrm >> 3) & 7u) | (high ? 8 : 0);
}

struct insn_gather {
    unsigned elements, data_bytes, index_bytes;
    unsigned dest, mask, index; /* vector registers */
};

static inline struct insn_gather insn_gather_shape(const struct insn *insn)
{
    struct insn_gather g = {.dest = insn_vector_reg(insn), .mask = insn_vex_vvvv(insn), .index = insn->mem_index};
    bool quad_index = insn->opcode & 1;
    unsigned bytes = insn_vector_bytes(insn);
    g.data_bytes = insn_vex_w(insn) ? 8 : 4;
    g.index_bytes = quad_index ? 8 : 4;
    g.elements = bytes / (g.data_bytes > g.index_bytes ? g.data_bytes : g.index_bytes);
    return g;
}
