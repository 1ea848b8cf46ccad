/* Typed emission of the few x86-64 instructions that the translator adds around the guest's own.
 * Functions append at `e->at`, which is a writable view; room is checked by the caller once a guest instruction.
 * `gs` forms address a field of struct jit_vcpu by its offset. Registers are numbered as in enum x86_gpr. */
#pragma once

#include <stdint.h>
#include <string.h>
#include "cpu/x86.h"

struct emit {
    uint8_t *at;
};

static inline void emit_bytes(struct emit *e, const void *bytes, unsigned len)
{
    memcpy(e->at, bytes, len);
    e->at += len;
}

static inline void emit_u8(struct emit *e, unsigned value)
{
    *e->at++ = (uint8_t)value;
}

static inline void emit_u32(struct emit *e, uint32_t value)
{
    emit_bytes(e, &value, 4);
}

static inline void emit_u64(struct emit *e, uint64_t value)
{
    emit_bytes(e, &value, 8);
}

static inline unsigned emit_rex(unsigned w, unsigned reg, unsigned index, unsigned base)
{
    return 0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
}

/* op reg, gs:[offset] or op gs:[offset], reg; 64-bit when `wide`. */
static inline void emit_gs(struct emit *e, unsigned wide, unsigned opcode, unsigned reg, size_t offset)
{
    emit_u8(e, 0x65);
    if (wide || reg >= 8)
        emit_u8(e, emit_rex(wide, reg, 0, 0));
    emit_u8(e, opcode);
    emit_u8(e, 0x04 | (reg & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offset);
}

#define OP_MOV_LOAD 0x8bu
#define OP_MOV_STORE 0x89u
#define OP_ADD_LOAD 0x03u
#define OP_SUB_LOAD 0x2bu
#define OP_CMP_LOAD 0x3bu
#define OP_LEA 0x8du

static inline void emit_load_gs(struct emit *e, unsigned reg, size_t offset)
{
    emit_gs(e, 1, OP_MOV_LOAD, reg, offset);
}

static inline void emit_store_gs(struct emit *e, unsigned reg, size_t offset)
{
    emit_gs(e, 1, OP_MOV_STORE, reg, offset);
}

/* op reg, gs:[base + offset], 64 bits. */
static inline void emit_gs_based(struct emit *e, unsigned opcode, unsigned reg, unsigned base, size_t offset)
{
    emit_u8(e, 0x65);
    emit_u8(e, emit_rex(1, reg, 0, base));
    emit_u8(e, opcode);
    emit_u8(e, 0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == RSP)
        emit_u8(e, 0x24);
    emit_u32(e, (uint32_t)offset);
}

/* op reg, gs:[index*8 + offset], 64 bits. */
static inline void emit_gs_scaled(struct emit *e, unsigned opcode, unsigned reg, unsigned index, size_t offset)
{
    emit_u8(e, 0x65);
    emit_u8(e, emit_rex(1, reg, index, 0));
    emit_u8(e, opcode);
    emit_u8(e, 0x04 | (reg & 7) << 3);
    emit_u8(e, 0xc5 | (index & 7) << 3);
    emit_u32(e, (uint32_t)offset);
}

/* pext to, from, gs:[mask]: the bits of `from` that the mask selects; no flags. */
static inline void emit_pext(struct emit *e, unsigned to, unsigned from, size_t mask)
{
    emit_u8(e, 0x65); /* pext to, from, gs:[mask] */
    emit_u8(e, 0xc4);
    emit_u8(e, (to < 8 ? 0x80 : 0) | 0x62);
    emit_u8(e, 0x82 | (~from & 0xf) << 3);
    emit_u8(e, 0xf5);
    emit_u8(e, 0x04 | (to & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)mask);
}

/* op reg, [base + index*scale + disp], 64 bits; base and index may be 0xff for none. */
static inline void emit_mem(struct emit *e, unsigned opcode, unsigned reg, unsigned base, unsigned index,
                            unsigned scale, int32_t disp)
{
    unsigned x = index == 0xff ? 0 : index, b = base == 0xff ? 0 : base;
    emit_u8(e, emit_rex(1, reg, x, b));
    emit_u8(e, opcode);
    unsigned mod = base == 0xff ? 0 : disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;
    if (index == 0xff && base != 0xff && (base & 7) != RSP) {
        emit_u8(e, mod << 6 | (reg & 7) << 3 | (base & 7));
    } else {
        unsigned shift = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
        emit_u8(e, mod << 6 | (reg & 7) << 3 | 4);
        emit_u8(e, shift << 6 | (index == 0xff ? 4 : index & 7) << 3 | (base == 0xff ? 5 : base & 7));
    }
    if (mod == 1)
        emit_u8(e, (uint8_t)disp);
    else if (mod == 2 || base == 0xff)
        emit_u32(e, (uint32_t)disp);
}

static inline void emit_mov(struct emit *e, unsigned to, unsigned from)
{
    emit_u8(e, emit_rex(1, from, 0, to));
    emit_u8(e, 0x89);
    emit_u8(e, 0xc0 | (from & 7) << 3 | (to & 7));
}

/* Loads a constant with the shortest encoding; no flags. */
static inline void emit_mov_imm(struct emit *e, unsigned reg, uint64_t value)
{
    if (value <= UINT32_MAX) {
        if (reg >= 8)
            emit_u8(e, 0x41);
        emit_u8(e, 0xb8 | (reg & 7));
        emit_u32(e, (uint32_t)value);
    } else if ((int64_t)value == (int32_t)value) {
        emit_u8(e, emit_rex(1, 0, 0, reg));
        emit_u8(e, 0xc7);
        emit_u8(e, 0xc0 | (reg & 7));
        emit_u32(e, (uint32_t)value);
    } else {
        emit_u8(e, emit_rex(1, 0, 0, reg));
        emit_u8(e, 0xb8 | (reg & 7));
        emit_u64(e, value);
    }
}

#define GROUP_OR 1u
#define GROUP_AND 4u
#define SHIFT_LEFT 4u
#define SHIFT_RIGHT 5u

/* 32-bit arithmetic on registers; clobbers flags. */
static inline void emit_imm(struct emit *e, unsigned group, unsigned reg, uint32_t value)
{
    emit_u8(e, emit_rex(0, 0, 0, reg));
    emit_u8(e, 0x81);
    emit_u8(e, 0xc0 | group << 3 | (reg & 7));
    emit_u32(e, value);
}

static inline void emit_shift(struct emit *e, unsigned group, unsigned reg, unsigned count)
{
    emit_u8(e, emit_rex(0, 0, 0, reg));
    emit_u8(e, 0xc1);
    emit_u8(e, 0xc0 | group << 3 | (reg & 7));
    emit_u8(e, count);
}

static inline void emit_or(struct emit *e, unsigned to, unsigned from)
{
    emit_u8(e, emit_rex(0, from, 0, to));
    emit_u8(e, 0x09);
    emit_u8(e, 0xc0 | (from & 7) << 3 | (to & 7));
}

/* movzx reg, byte gs:[offset] */
static inline void emit_gs_zx8(struct emit *e, unsigned reg, size_t offset)
{
    emit_u8(e, 0x65);
    emit_u8(e, emit_rex(0, reg, 0, 0));
    emit_bytes(e, "\x0f\xb6", 2);
    emit_u8(e, 0x04 | (reg & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offset);
}

/* mov byte gs:[offset], reg: its low byte */
static inline void emit_gs_store8(struct emit *e, unsigned reg, size_t offset)
{
    emit_u8(e, 0x65);
    emit_u8(e, emit_rex(0, reg, 0, 0));
    emit_u8(e, 0x88);
    emit_u8(e, 0x04 | (reg & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offset);
}

/* test byte gs:[offset], bits; clobbers flags. */
static inline void emit_gs_test8(struct emit *e, size_t offset, unsigned bits)
{
    emit_bytes(e, "\x65\xf6\x04\x25", 4);
    emit_u32(e, (uint32_t)offset);
    emit_u8(e, bits);
}

/* Relative jumps to an address in the same view as e->at. */
static inline void emit_jmp(struct emit *e, const uint8_t *target)
{
    emit_u8(e, 0xe9);
    emit_u32(e, (uint32_t)(target - (e->at + 4)));
}

static inline void emit_jcc(struct emit *e, unsigned condition, const uint8_t *target)
{
    emit_u8(e, 0x0f);
    emit_u8(e, 0x80 | condition);
    emit_u32(e, (uint32_t)(target - (e->at + 4)));
}

/* Short forward jump to be bound later; returns where its displacement byte is. */
static inline uint8_t *emit_short(struct emit *e, unsigned opcode)
{
    emit_u8(e, opcode);
    emit_u8(e, 0);
    return e->at - 1;
}

static inline void emit_bind_short(struct emit *e, uint8_t *displacement)
{
    *displacement = (uint8_t)(e->at - (displacement + 1));
}

#define OP_JRCXZ 0xe3u
#define CONDITION_A 0x7u
#define CONDITION_E 0x4u
#define CONDITION_BE 0x6u
#define CONDITION_NE 0x5u
#define CONDITION_S 0x8u
