/* Decoded instructions, with Zydis behind it: what the translator and the interpreter need to know, no more.
 * Knows nothing of vCPUs; pure functions. Zydis's tables are corrected where real CPUs differ (see decode.c). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define INSN_MAX_BYTES 15
#define INSN_NO_REG 0xff

enum insn_kind {
    INSN_PLAIN,  /* unprivileged; works on registers and at most one ModRM memory operand, and may be run natively with that
                    operand replaced: integer, x87, MMX, SSE, AVX */
    INSN_NOP,    /* no effect: nop, endbr, prefetch, pause, fences are PLAIN */
    INSN_BRANCH, /* near jmp, jcc, jrcxz/loop, call, ret */
    INSN_STACK,  /* push, pop, pushf, popf, enter, leave, pusha, popa */
    INSN_STRING, /* movs, cmps, stos, lods, scas, ins, outs, with or without rep */
    INSN_SYSTEM, /* interpreter: privileged, far, segment (push and pop of segment registers too), I/O, msr, cpuid, rdtsc,
                    state save (xsave, fxsave, fnsave, fnstenv), ldmxcsr, cld, std, cli, sti, implicit or partial memory (xlat,
                    maskmov, gathers, bit strings in memory: bt/bts/btr/btc [m], r), decimal arithmetic, clflush */
    INSN_ILLEGAL /* raises #UD */
};

enum insn_fpu { INSN_FPU_NONE, INSN_FPU_X87, INSN_FPU_MMX, INSN_FPU_SSE, INSN_FPU_AVX };

struct insn {
    uint8_t bytes[INSN_MAX_BYTES];
    uint8_t length;
    uint8_t kind;         /* enum insn_kind */
    uint8_t fpu;          /* enum insn_fpu: which state it needs enabled */
    uint16_t mnemonic;    /* ZydisMnemonic */
    uint8_t code_bits;    /* 16, 32, 64 */
    bool too_long;        /* ILLEGAL because of more than 15 bytes: #GP(0) */
    uint8_t operand_bits; /* effective operand size; for push/pop/near branches what is really moved */
    uint8_t address_bits;

    /* Encoding, for re-emission. Offsets into bytes; 0 when absent (no field can be at 0 but the opcode). */
    uint8_t map;          /* 0: one byte, 1: 0f, 2: 0f38, 3: 0f3a; VEX maps likewise */
    uint8_t opcode;
    uint8_t rex;          /* whole byte, 0 when none (legacy encoding) */
    uint8_t vex_length;   /* 0: legacy, 2 or 3: bytes of the VEX prefix */
    uint8_t vex_offset, opcode_offset, modrm_offset, sib_offset, disp_offset, disp_bytes, imm_offset, imm_bytes;
    uint8_t modrm, sib;
    bool has_modrm, has_lock, has_rep, has_repne, has_osize; /* prefixes f0, f3, f2, 66; of rep and repne the last one only */
    bool osize_mandatory; /* 66 is part of the opcode, not the operand size */

    /* The ModRM (or moffs) memory operand; absent when !has_mem. Also set for lea and nop/prefetch, where it is not accessed. */
    bool has_mem;
    bool mem_is_agen;     /* lea and the like: address only */
    bool mem_read, mem_write;
    bool mem_rip;         /* disp already absolute only relative to the next instruction: address = next rip + disp */
    uint8_t mem_segment;  /* enum x86_segment, default applied; of strings' source, xlat and maskmov without has_mem too */
    uint8_t mem_base, mem_index; /* enum x86_gpr or INSN_NO_REG; the index of a gather is a vector register */
    uint8_t mem_scale;    /* 1, 2, 4, 8 */
    int64_t mem_disp;
    bool mem_bit_string;  /* bt and the like with a register offset: the access is at address + (offset >> 3), see interp */
    uint8_t mem_align;    /* 16 or 32 when a misaligned address is #GP(0), before any page fault; else 1 */
    uint16_t mem_bytes;   /* size of the access: never less than what the CPU touches */

    /* Near branch target = next rip + branch_disp (relative forms), or ModRM operand. */
    bool branch_relative;
    int64_t imm;          /* first immediate, extended to 64 bits as the instruction does; also branch displacement; far
                             pointer offset */
    bool imm_is_register; /* an immediate byte whose top four bits name a vector register (three outside of 64-bit code) */
    int64_t imm2;         /* second (enter's level, far pointer's selector) */

    /* Explicit GPR operands, in ModRM terms; implied ones are only in the masks. Byte registers ah..bh count as rax..rbx. */
    uint8_t reg_gpr, rm_gpr, vvvv_gpr, opcode_gpr; /* guest register in ModRM.reg, ModRM.rm, VEX.vvvv, opcode low bits (and
                             the accumulator of mov moffs in reg_gpr); INSN_NO_REG when the field is something else */
    uint8_t reg_bits, rm_bits, opcode_bits; /* their widths */
    bool reg_high, rm_high, opcode_high;    /* ah, ch, dh or bh */
    bool high_byte;       /* any of them */
    uint16_t gpr_implicit; /* registers that no field names: they cannot be moved */
    uint16_t gpr_read, gpr_write; /* bit r: guest register r is (perhaps partly) read / written; mem_base/index are in gpr_read */
    uint16_t flags_read, flags_write, flags_undefined; /* arithmetic FLAG_* bits; undefined ones count as read too for exactness;
                                                          flags_write only those that are always written */
};

enum insn_status { INSN_OK, INSN_TRUNCATED, INSN_INVALID };

/* Decodes one instruction of `code_bits` 16, 32 or 64 from `length` bytes. TRUNCATED: more bytes are needed (never for 15).
 * INVALID: raises #UD, or #GP when `too_long`; *ret_insn is then of kind ILLEGAL with nothing else known. */
enum insn_status insn_decode(const uint8_t *bytes, unsigned length, unsigned code_bits, struct insn *ret_insn);

/* How to re-emit an instruction: guest register r as host register gpr[r]; the memory operand as [base + disp]
 * (or [base + index + disp], index INSN_NO_REG for none). */
struct insn_remap {
    uint8_t gpr[16];
    uint8_t mem_base, mem_index;
    int32_t mem_disp;
    bool drop_lock;
};

/* Emits 64-bit code for a PLAIN instruction (decoded in any mode) with its operands replaced and segment/address-size prefixes
 * dropped; lock (but for drop_lock), rep/repne and 66 kept. Returns the length (at most 15), or 0 when no encoding exists:
 * high-byte registers with one that needs REX, or an implicit register operand that gpr[] would move. */
unsigned insn_reencode(const struct insn *insn, const struct insn_remap *remap, uint8_t out[INSN_MAX_BYTES]);
/* gpr[r] = r. */
extern const struct insn_remap insn_remap_identity;
