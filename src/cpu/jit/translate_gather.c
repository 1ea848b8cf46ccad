/* Gathers in line: vector registers go to memory, elements are loaded one by one through the soft TLB, and the result goes back.
 * Registers change at the end only: when one element cannot be had, the interpreter runs the whole instruction, which
 * completes the elements before it and says so in the mask. */
#include <stddef.h>

#include "cpu/jit/cache_impl.h"
#include "cpu/jit/decode_vector.h"
#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))
#define GATHER_BYTES 1024 /* at most: 8 elements of some 106 and what is around them */
#define INSN_BYTES 300    /* another instruction that does not end a block: rep movs takes 261, more than any seen in the tests */
#define OP_VMOVDQU_LOAD 0x6fu
#define OP_VMOVDQU_STORE 0x7fu
#define OP_MOVSXD 0x63u
#define SHORT_JNS 0x79u

/* vmovdqu, of 16 or 32 bytes. */
static void move_vector(struct emit *e, unsigned opcode, unsigned number, size_t offset, bool wide)
{
    emit_u8(e, 0x65);
    emit_u8(e, 0xc5);
    emit_u8(e, (number < 8 ? 0x80 : 0) | 0x7a | (wide ? 4 : 0));
    emit_u8(e, opcode);
    emit_u8(e, 0x04 | (number & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offset);
}

/* vmovq xmm, gs:[offset]: zeroes what is above. */
static void load_quad(struct emit *e, unsigned number, size_t offset)
{
    move_vector(e, 0x7e, number, offset, false);
}

static void clear_vector(struct emit *e, unsigned number)
{
    /* vpxor xmm, xmm, xmm */
    emit_u8(e, 0xc4);
    emit_u8(e, (number < 8 ? 0xe0 : 0x40) | 1);
    emit_u8(e, 1 | (~number & 0xf) << 3);
    emit_u8(e, 0xef);
    emit_u8(e, 0xc0 | (number & 7) << 3 | (number & 7));
}

/* Linear address of an element, whose index is at gs:[index], in r15. */
static void element_address(struct translation *t, unsigned index_bytes, size_t index)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    unsigned base = insn->mem_base;
    emit_gs(e, 1, index_bytes == 8 ? OP_MOV_LOAD : OP_MOVSXD, ADDR, index);
    if (base == R14 || base == R15)
        emit_load_gs(e, TMP, GPR_OFFSET(base));
    if (base == R15)
        base = TMP;
    emit_mem(e, OP_LEA, ADDR, base, ADDR, insn->mem_scale, (int32_t)insn->mem_disp);
    if (insn->mem_segment == SEG_FS || insn->mem_segment == SEG_GS)
        emit_gs(e, 1, OP_ADD_LOAD, ADDR, offsetof(struct jit_vcpu, seg[insn->mem_segment].base));
}

/* Goes to `leave` unless the element at r15 lies in a page that the soft TLB has; TLB_EMPTY is no page even if it seems hit. */
static void element_check(struct translation *t, unsigned size, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    size_t table = offsetof(struct jit_vcpu, tlb.entries) +
                   sizeof(struct tlb_entry) * TLB_ENTRIES * (t->key.pool * (size_t)TLB_ACCESSES + TLB_READ);
    emit_bytes(e, "\xc4\x43\xfb\xf0\xf7\x08", 6); /* rorx r14, r15, 8 */
    emit_bytes(e, "\x41\x81\xe6", 3);             /* and r14d, (TLB_ENTRIES - 1) * 16 */
    emit_u32(e, (TLB_ENTRIES - 1) * 16);
    emit_gs_based(e, OP_SUB_LOAD, ADDR, TMP, table + offsetof(struct tlb_entry, tag));
    emit_bytes(e, "\x49\x81\xff", 3); /* cmp r15, 4096 - size */
    emit_u32(e, 4096 - size);
    emit_jcc(e, CONDITION_A, leave);
    emit_gs_based(e, OP_ADD_LOAD, ADDR, TMP, table + offsetof(struct tlb_entry, host));
    emit_jcc(e, CONDITION_S, leave);
}

static void element(struct translation *t, const struct insn_gather *g, unsigned i, const uint8_t *leave)
{
    struct emit *e = &t->hot;
    size_t vectors = offsetof(struct jit_vcpu, gather);
    size_t data = vectors + (size_t)i * g->data_bytes, mask = vectors + 32 + (size_t)(i + 1) * g->data_bytes - 1;
    emit_bytes(e, "\x65\x80\x3c\x25", 4); /* cmp byte gs:[mask], 0: the sign says whether it is selected */
    emit_u32(e, (uint32_t)mask);
    emit_u8(e, 0);
    uint8_t *skip = emit_short(e, SHORT_JNS);
    element_address(t, g->index_bytes, vectors + 64 + (size_t)i * g->index_bytes);
    element_check(t, g->data_bytes, leave);
    emit_u8(e, emit_rex(g->data_bytes == 8, TMP, 0, ADDR)); /* mov r14, [r15] */
    emit_u8(e, OP_MOV_LOAD);
    emit_u8(e, (TMP & 7) << 3 | (ADDR & 7));
    emit_gs(e, g->data_bytes == 8, OP_MOV_STORE, TMP, data);
    emit_bind_short(e, skip);
}

static bool is_gather(const struct insn *insn)
{
    return insn->kind == INSN_SYSTEM && insn->vex_length && insn->map == 2 && insn->opcode >= 0x90 && insn->opcode <= 0x93;
}

/* A block full of gathers would not fit: those that leave too little for what is behind them are the interpreter's. */
static bool has_room(const struct translation *t)
{
    return (size_t)(t->hot.at - t->tr->hot) + GATHER_BYTES + (t->ahead + 2) * INSN_BYTES <= CACHE_ROOM_HOT;
}

bool translate_gather(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    if (!is_gather(insn) || insn->address_bits != 64 || !has_room(t) || !vcpu_optimises(t->cpu, JIT_OPT_GATHER))
        return false;
    struct insn_gather g = insn_gather_shape(insn);
    bool wide = insn_vector_bytes(insn) == 32;
    size_t vectors = offsetof(struct jit_vcpu, gather);
    translate_park_flags(t);
    const uint8_t *leave = translate_leave(t);

    move_vector(e, OP_VMOVDQU_STORE, g.dest, vectors, wide);
    move_vector(e, OP_VMOVDQU_STORE, g.mask, vectors + 32, wide);
    move_vector(e, OP_VMOVDQU_STORE, g.index, vectors + 64, wide);
    for (unsigned i = 0; i < g.elements; i++)
        element(t, &g, i, leave);
    if (g.elements * g.data_bytes == 8)
        load_quad(e, g.dest, vectors);
    else
        move_vector(e, OP_VMOVDQU_LOAD, g.dest, vectors, g.elements * g.data_bytes == 32);
    clear_vector(e, g.mask);
    return true;
}
