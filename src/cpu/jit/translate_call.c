/* SYSCALL and SYSRET between 64-bit user code and a 64-bit kernel, inline, as system_call.c has them. What is rare goes to the
 * interpreter: a kernel that keeps EFLAGS.AC over SYSCALL; a SYSRET that sets TF or AC, that goes to no canonical address, or
 * that may let a waiting interrupt in. Translated code runs with TF clear and no breakpoints (vcpu_must_interpret). */
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15

static void leave_unless_enabled(struct translation *t)
{
    emit_gs_test8(&t->hot, offsetof(struct jit_vcpu, efer), EFER_SCE);
    translate_leave_unless(t, CONDITION_NE);
}

/* Where STAR has the selector of a segment, and what is added to it. */
struct star {
    size_t at;
    unsigned add;
};

/* A flat segment of privilege level `cpl`; r14 and r15 are lost. */
static void set_flat(struct emit *e, enum x86_segment segment, struct star star, unsigned attributes, unsigned cpl)
{
    size_t at = offsetof(struct jit_vcpu, seg) + segment * sizeof(struct x86_segment_state);
    emit_gs(e, 0, OP_MOV_LOAD, TMP, offsetof(struct jit_vcpu, star) + star.at); /* the word above is cut off below */
    emit_mem(e, OP_LEA, TMP, TMP, INSN_NO_REG, 1, (int32_t)star.add);
    emit_imm(e, GROUP_AND, TMP, 0xfffc);
    emit_mov_imm(e, ADDR, 0);
    emit_store_gs(e, ADDR, at + offsetof(struct x86_segment_state, base));
    emit_imm(e, GROUP_OR, TMP, (attributes | cpl << 5) << 16 | cpl);
    emit_gs(e, 0, OP_MOV_STORE, TMP, at + offsetof(struct x86_segment_state, selector));
    emit_mov_imm(e, TMP, UINT32_MAX);
    emit_gs(e, 0, OP_MOV_STORE, TMP, at + offsetof(struct x86_segment_state, limit));
}

static void set_level(struct emit *e, struct star cs, struct star ss, unsigned cpl)
{
    _Static_assert(offsetof(struct x86_segment_state, attributes) == offsetof(struct x86_segment_state, selector) + 2, "");
    set_flat(e, SEG_CS, cs, FLAT_CODE64, cpl);
    set_flat(e, SEG_SS, ss, FLAT_DATA, cpl);
    emit_bytes(e, "\x65\xc6\x04\x25", 4); /* mov byte gs:[cpl], imm8 */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, cpl));
    emit_u8(e, cpl);
}

/* r14d to rflags, and its arithmetic flags to flags_saved. */
static void set_flags(struct emit *e)
{
    emit_imm(e, GROUP_OR, TMP, 2);
    emit_store_gs(e, TMP, offsetof(struct jit_vcpu, rflags));
    emit_gs_store8(e, TMP, offsetof(struct jit_vcpu, flags_saved) + 1);
    emit_shift(e, SHIFT_RIGHT, TMP, 11);
    emit_imm(e, GROUP_AND, TMP, 1);
    emit_gs_store8(e, TMP, offsetof(struct jit_vcpu, flags_saved));
}

/* On to the rip in r15 in the other pool. */
static void leave_to(struct translation *t, enum tlb_pool pool)
{
    struct block_key key = t->key;
    t->key = (struct block_key){.pool = pool & 0xf, .fpu_ok = key.fpu_ok};
    t->parked = true;
    translate_exit_to_r15(t, &t->hot, NO_SITE);
    t->key = key;
}

bool translate_syscall(struct translation *t)
{
    struct emit *e = &t->hot;
    if (t->key.pool != TLB_USER || !translate_rip_fits(t, t->next_rip))
        return false;
    translate_park_flags(t);
    leave_unless_enabled(t);
    emit_gs_test8(e, offsetof(struct jit_vcpu, sfmask) + 2, FLAG_AC >> 16);
    translate_leave_unless(t, CONDITION_NE);
    translate_flags_image(e, R11, TMP);
    translate_rip(t, e, RCX, t->next_rip);
    emit_gs(e, 0, OP_MOV_LOAD, TMP, offsetof(struct jit_vcpu, sfmask));
    emit_bytes(e, "\xc4\x42\x08\xf2\xf3", 5); /* andn r14d, r14d, r11d */
    set_flags(e);
    static const struct star cs = {.at = 4}, ss = {.at = 4, .add = 8};
    set_level(e, cs, ss, 0);
    emit_load_gs(e, ADDR, offsetof(struct jit_vcpu, lstar));
    leave_to(t, TLB_SUPER);
    return true;
}

bool translate_sysret(struct translation *t)
{
    struct emit *e = &t->hot;
    if (t->insn->operand_bits != 64)
        return false;
    translate_park_flags(t);
    leave_unless_enabled(t);
    emit_mov(e, ADDR, RCX);
    translate_leave_unless_canonical(t);
    emit_mov(e, TMP, R11);
    emit_bytes(e, "\x41\xf7\xc6", 3); /* test r14d, imm32 */
    emit_u32(e, FLAG_TF | FLAG_AC);
    translate_leave_unless(t, CONDITION_E);
    emit_gs_test8(e, offsetof(struct jit_vcpu, interrupt_waiting), 0xff);
    translate_leave_unless(t, CONDITION_E);
    emit_imm(e, GROUP_AND, TMP, SYSRET_FLAGS);
    set_flags(e);
    static const struct star cs = {.at = 6, .add = 16}, ss = {.at = 6, .add = 8};
    set_level(e, cs, ss, 3);
    emit_mov(e, ADDR, RCX);
    leave_to(t, TLB_USER);
    return true;
}
