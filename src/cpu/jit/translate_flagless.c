/* Checks of memory accesses that touch no flag, for code that reads flags right behind the access or in it: carry chains,
 * conditional moves. Where flags are parked for an ordinary check, a chain waits for them to come back, each time.
 *
 * rcx serves as a third scratch register, since only jrcxz tests without flags; cpu->gpr keeps it. */
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define RCX_SLOT (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)RCX)
#define MORE_CHECKS 2u /* this many behind the access may come before flags are read; with more, parking is cheaper */

/* Leaves flags parked, or needs them parked itself. */
static bool parks(const struct insn *insn)
{
    bool direct_jump = insn->branch_relative && !(insn->map == 0 && insn->opcode == 0xe8);
    return insn->mem_bit_string || (insn->kind == INSN_BRANCH ? !direct_jump : insn->kind != INSN_PLAIN && insn->kind != INSN_NOP);
}

bool translate_flagless_pays(const struct translation *t)
{
    if (t->parked || !t->live_before || !vcpu_optimises(t->cpu, JIT_OPT_FLAGLESS))
        return false;
    unsigned checks = 0;
    for (unsigned i = 0; i <= t->ahead; i++) {
        const struct insn *insn = &t->insn[i];
        if (i && parks(insn))
            return false;
        checks += i && insn->has_mem && !insn->mem_is_agen && insn->kind == INSN_PLAIN;
        if (checks > MORE_CHECKS)
            return false;
        if (translate_wants_native(insn, t->live[i + 1]))
            return true;
        if (!t->live[i + 1])
            return false;
    }
    return true; /* the next block reads them, native */
}

void translate_flagless_begin(struct translation *t)
{
    if (!t->rcx_stored)
        emit_store_gs(&t->hot, RCX, RCX_SLOT);
    t->rcx_stored = true;
}

void translate_flagless_after(struct translation *t)
{
    const struct insn *insn = t->insn;
    unsigned touched = insn->gpr_read | insn->gpr_write;
    bool plain = insn->kind == INSN_PLAIN, made = t->near.made;
    if (!plain || (insn->gpr_write & 1u << RCX))
        t->rcx_stored = false;
    bool on_registers = plain && !insn->has_mem && t->tr->site_count == t->pending_sites;
    if (!(made || on_registers) || (touched & (1u << TMP | 1u << ADDR)) || (insn->gpr_write >> t->near.base & 1))
        t->near.valid = false;
    t->near.made = false;
}

void translate_flagless_add(struct emit *e, size_t offset)
{
    emit_load_gs(e, RCX, offset);
    emit_mem(e, OP_LEA, ADDR, ADDR, RCX, 1, 0);
}

/* r15 becomes linear - tag, and one test of its sum with size - 1 is enough: nothing beyond the page offset may be set.
 * A tag has the index's own bits of a linear address, so that linear - tag is a multiple of 16 MiB and an offset within a page, and
 * the sum is below 4096 only if the multiple is 0 and the access ends in the page. An offset that is negative by less than the
 * size, which the sum would hide, belongs to another index. TLB_EMPTY stands in any slot: what passes for a hit on it
 * lies around 2^63, where nothing is canonical, and its host address is the same one. */
static uint32_t new_site(struct translation *t, const uint8_t *retry, const struct check *check)
{
    uint32_t site = translate_new_site(t);
    struct site *s = &t->tr->sites[site];
    s->size = check->size & 0xff;
    s->write = check->write;
    s->stack = check->stack;
    s->retry = retry ? translate_offset(t, retry) : 0;
    return site;
}

static size_t table(const struct translation *t, const struct check *check)
{
    return offsetof(struct jit_vcpu, tlb.entries) +
           sizeof(struct tlb_entry) * TLB_ENTRIES * (t->key.pool * (size_t)TLB_ACCESSES + check->write);
}

/* A jump, yet to be bound, that is taken if r15 + delta is the page offset of an access that ends in the page. */
static uint8_t *test_offset(struct emit *e, unsigned size, int32_t delta)
{
    emit_mem(e, OP_LEA, RCX, ADDR, INSN_NO_REG, 1, delta + (int32_t)size - 1);
    emit_pext(e, RCX, RCX, offsetof(struct jit_vcpu, page_mask));
    return emit_short(e, OP_JRCXZ);
}

static uint8_t *test_linear(struct translation *t, struct emit *e, const struct check *check)
{
    _Static_assert(sizeof(struct tlb_entry) == 16, "twice the scale of 8");
    emit_pext(e, TMP, ADDR, offsetof(struct jit_vcpu, tlb_mask));
    emit_mem(e, OP_LEA, TMP, TMP, TMP, 1, 0);
    emit_gs_scaled(e, OP_MOV_LOAD, RCX, TMP, table(t, check) + offsetof(struct tlb_entry, tag));
    emit_bytes(e, "\x48\xf7\xd1", 3); /* not rcx */
    emit_mem(e, OP_LEA, ADDR, ADDR, RCX, 1, 1);
    return test_offset(e, check->size, 0);
}

static void leave(struct translation *t, struct emit *e, const struct check *check, uint32_t site)
{
    emit_gs_scaled(e, OP_MOV_LOAD, RCX, TMP, table(t, check) + offsetof(struct tlb_entry, tag));
    emit_mem(e, OP_LEA, ADDR, ADDR, RCX, 1, 0); /* the linear address again */
    emit_load_gs(e, RCX, RCX_SLOT);
    emit_mov_imm(e, TMP, site);
    emit_jmp(e, t->tr->sites[site].retry ? t->tr->to.flagless[t->key.pool][check->write] : t->tr->to.miss);
}

void translate_flagless_check(struct translation *t, const uint8_t *retry, const struct check *check)
{
    struct emit *e = &t->hot;
    uint32_t site = new_site(t, retry, check);
    t->accesses++;
    uint8_t *hit = test_linear(t, e, check);
    emit_jmp(e, t->cold.at);
    emit_bind_short(e, hit);
    emit_load_gs(e, RCX, RCX_SLOT);
    emit_gs_scaled(e, OP_MOV_LOAD, TMP, TMP, table(t, check) + offsetof(struct tlb_entry, host));
    if (check->form == CHECK_WHOLE)
        emit_mem(e, OP_LEA, ADDR, ADDR, TMP, 1, 0);
    leave(t, &t->cold, check, site);
    translate_near_note(t, check, check->write, site);
}

void translate_near_note(struct translation *t, const struct check *check, bool write, uint32_t site)
{
    const struct insn *insn = t->insn;
    bool simple = insn->mem_base != INSN_NO_REG && insn->mem_index == INSN_NO_REG && !insn->mem_rip && insn->mem_segment < SEG_FS;
    t->near.valid = t->near.made = check->form == CHECK_PARTS && simple;
    t->near.base = simple ? insn->mem_base : 0;
    t->near.write = write;
    t->near.disp = t->near.last_disp = (int32_t)insn->mem_disp;
    t->near.first_site = site;
}

bool translate_near(const struct translation *t, bool flagless, int32_t *ret_delta)
{
    const struct insn *insn = t->insn;
    int64_t delta = insn->mem_disp - t->near.disp;
    *ret_delta = (int32_t)delta;
    if (!flagless && !t->parked && t->live_before) /* parking takes r14 */
        return false;
    return t->near.valid && insn->mem_base == t->near.base && insn->mem_index == INSN_NO_REG && !insn->mem_rip &&
           insn->mem_segment < SEG_FS && (!insn->mem_write || t->near.write) && insn->mem_disp >= t->near.last_disp &&
           delta + insn->mem_bytes <= MEM_PAGE_SIZE && vcpu_optimises(t->cpu, flagless ? JIT_OPT_NEAR : JIT_OPT_NEAR_PARKED);
}

/* In a near check r14 and r15 survive from one instruction to the next, so C code cannot go on in between: it does so by
 * another block. */
static uint32_t new_near_site(struct translation *t, const struct check *check)
{
    for (uint32_t i = t->near.first_site; i < t->tr->site_count; i++)
        t->tr->sites[i].next = 0;
    t->near.write = t->near.write && check->write;
    t->near.last_disp = (int32_t)t->insn->mem_disp;
    t->near.made = true;
    return new_site(t, NULL, check);
}

/* Displacements of such accesses never fall, so that offsets are not negative. A failed test becomes a whole check. */
void translate_flagless_near_check(struct translation *t, const struct check *check, int32_t delta)
{
    struct emit *e = &t->hot, *c = &t->cold;
    uint8_t *hit = test_offset(e, check->size, delta);
    emit_jmp(e, c->at);
    emit_bind_short(e, hit);
    emit_load_gs(e, RCX, RCX_SLOT);

    emit_load_gs(c, RCX, RCX_SLOT);
    emit_mem(c, OP_LEA, ADDR, t->insn->mem_base, INSN_NO_REG, 1, (int32_t)t->insn->mem_disp);
    uint32_t site = new_near_site(t, check);
    uint8_t *found = test_linear(t, c, check);
    leave(t, c, check, site);
    emit_bind_short(c, found);
    emit_load_gs(c, RCX, RCX_SLOT);
    emit_gs_scaled(c, OP_MOV_LOAD, TMP, TMP, table(t, check) + offsetof(struct tlb_entry, host));
    emit_mem(c, OP_LEA, ADDR, ADDR, INSN_NO_REG, 1, -delta);
    emit_jmp(c, e->at);
}

void translate_near_check(struct translation *t, const struct check *check, int32_t delta)
{
    struct emit *e = &t->hot, *c = &t->cold;
    emit_bytes(e, "\x49\x81\xff", 3); /* cmp r15, 4096 - size - delta */
    emit_u32(e, (uint32_t)(MEM_PAGE_SIZE - check->size - (unsigned)delta));
    emit_jcc(e, CONDITION_A, c->at);

    emit_mem(c, OP_LEA, ADDR, t->insn->mem_base, INSN_NO_REG, 1, (int32_t)t->insn->mem_disp);
    uint32_t site = new_near_site(t, check);
    size_t tag = table(t, check) + offsetof(struct tlb_entry, tag), host = table(t, check) + offsetof(struct tlb_entry, host);
    translate_compare(c, check->size, tag);
    uint8_t *miss = emit_short(c, 0x77);
    emit_gs_based(c, OP_MOV_LOAD, TMP, TMP, host);
    emit_mem(c, OP_LEA, ADDR, ADDR, INSN_NO_REG, 1, -delta);
    emit_jmp(c, e->at);
    emit_bind_short(c, miss);
    emit_gs_based(c, OP_ADD_LOAD, ADDR, TMP, tag); /* the linear address again */
    emit_mov_imm(c, TMP, site);
    emit_jmp(c, t->tr->to.miss);
}
