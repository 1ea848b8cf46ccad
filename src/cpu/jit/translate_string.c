/* movs, stos and lods forwards within one page of each operand, inline: the host's own instruction on host addresses.
 * Counts that leave the page, and backward ones, are the interpreter's (rep.c), which goes on page by page. */
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))
#define OPCODE_MOVS 0xa4u
#define OPCODE_STOS 0xaau
#define OPCODE_LODS 0xacu

static unsigned element_size(const struct insn *insn)
{
    return insn->opcode & 1 ? insn->operand_bits / 8 : 1;
}

static void leave_if_backward(struct translation *t, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    emit_bytes(e, "\x65\xf6\x04\x25", 4); /* test byte gs:[rflags + 1], DF */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, rflags) + 1);
    emit_u8(e, FLAG_DF >> 8);
    emit_jcc(e, CONDITION_NE, leave);
}

/* A count of 0 touches no memory, and one too large for a page cannot stay in it. */
static void leave_unless_count_fits(struct translation *t, unsigned size, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    emit_mem(e, OP_LEA, TMP, RCX, INSN_NO_REG, 1, -1);
    emit_bytes(e, "\x49\x81\xfe", 3); /* cmp r14, 4096 / size - 1 */
    emit_u32(e, 4096 / size - 1);
    emit_jcc(e, CONDITION_A, leave);
}

/* First and last byte from `reg` on must lie in one page. */
static void leave_unless_in_page(struct translation *t, unsigned reg, unsigned size, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    emit_mem(e, OP_LEA, ADDR, reg, RCX, size, -1);
    emit_u8(e, emit_rex(1, reg, 0, ADDR)); /* xor r15, reg */
    emit_bytes(e, (const uint8_t[]){0x31, (uint8_t)(0xc0 | (reg & 7) << 3 | (ADDR & 7))}, 2);
    emit_bytes(e, "\x49\xc1\xef\x0c", 4); /* shr r15, 12 */
    emit_jcc(e, CONDITION_NE, leave);
}

/* The host's own instruction, without prefixes for segments. */
static void emit_native(struct emit *e, const struct insn *insn)
{
    if (insn->operand_bits == 16 && (insn->opcode & 1))
        emit_u8(e, 0x66);
    if (insn->has_rep || insn->has_repne)
        emit_u8(e, 0xf3);
    if (insn->operand_bits == 64 && (insn->opcode & 1))
        emit_u8(e, 0x48);
    emit_u8(e, insn->opcode);
}

/* r15 becomes the host address of what `reg` points to. */
static void check(struct translation *t, unsigned reg, unsigned size, bool write)
{
    const uint8_t *retry = t->hot.at;
    emit_mov(&t->hot, ADDR, reg);
    translate_check(t, retry, &(struct check){.size = size, .write = write});
}

static void stos(struct translation *t, unsigned size)
{
    struct emit *e = &t->hot;
    check(t, RDI, size, true);
    emit_mov(e, TMP, RDI);
    emit_mov(e, RDI, ADDR);
    emit_native(e, t->insn);
    emit_bytes(e, "\x4c\x29\xff\x4c\x01\xf7", 6); /* sub rdi, r15; add rdi, r14 */
}

static void lods(struct translation *t, unsigned size)
{
    struct emit *e = &t->hot;
    check(t, RSI, size, false);
    emit_mov(e, TMP, RSI);
    emit_mov(e, RSI, ADDR);
    emit_native(e, t->insn);
    emit_bytes(e, "\x4c\x29\xfe\x4c\x01\xf6", 6); /* sub rsi, r15; add rsi, r14 */
}

/* Addresses around 2^63 meet empty entries of the TLB and stay as they are; at the fault rsi and rdi must be the guest's. */
static void leave_if_negative(struct translation *t, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    emit_bytes(e, "\x4d\x85\xff", 3); /* test r15, r15 */
    emit_jcc(e, CONDITION_S, leave);
}

/* A miss of the second operand is tried again alone: its entry may take the place of the first one's. */
static void movs(struct translation *t, unsigned size, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    check(t, RSI, size, false);
    leave_if_negative(t, leave);
    emit_store_gs(e, ADDR, offsetof(struct jit_vcpu, scratch[0]));
    check(t, RDI, size, true);
    leave_if_negative(t, leave);
    emit_store_gs(e, RSI, GPR_OFFSET(RSI));
    emit_store_gs(e, RDI, GPR_OFFSET(RDI));
    emit_load_gs(e, RSI, offsetof(struct jit_vcpu, scratch[0]));
    emit_mov(e, RDI, ADDR);
    emit_native(e, t->insn);
    emit_bytes(e, "\x4c\x29\xff", 3); /* sub rdi, r15 */
    emit_load_gs(e, RSI, GPR_OFFSET(RSI));
    emit_bytes(e, "\x48\x01\xfe", 3); /* add rsi, rdi */
    emit_gs(e, 1, OP_ADD_LOAD, RDI, GPR_OFFSET(RDI));
}

bool translate_string(struct translation *t)
{
    const struct insn *insn = t->insn;
    unsigned operation = insn->opcode & 0xfeu, size = element_size(insn);
    bool rep = insn->has_rep || insn->has_repne, reads = operation != OPCODE_STOS, writes = operation != OPCODE_LODS;
    if (!vcpu_optimises(t->cpu, JIT_OPT_STRING))
        return false;
    if (insn->map || insn->address_bits != 64 || (reads && (insn->mem_segment == SEG_FS || insn->mem_segment == SEG_GS)))
        return false;
    if (operation != OPCODE_MOVS && operation != OPCODE_STOS && (operation != OPCODE_LODS || rep))
        return false;
    translate_park_flags(t);
    const uint8_t *leave = translate_leave(t);
    leave_if_backward(t, leave);
    if (rep) {
        leave_unless_count_fits(t, size, leave);
        if (reads)
            leave_unless_in_page(t, RSI, size, leave);
        if (writes)
            leave_unless_in_page(t, RDI, size, leave);
        size = 1;
    }
    t->tr->maps[t->tr->map_count - 1].parked = t->parked;
    if (operation == OPCODE_STOS)
        stos(t, size);
    else if (operation == OPCODE_LODS)
        lods(t, size);
    else
        movs(t, size, leave);
    return true;
}
