/* Near branches, and how a block is left: direct links within the page, else through the jump cache. Neither touches flags. */
#include <stddef.h>
#include <string.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))
#define PAGE_MASK ((uint64_t)4095)

static size_t jump_entries(const struct translation *t)
{
    return offsetof(struct jit_vcpu, jump_cache.entry) + sizeof(uint64_t) * JUMP_ENTRIES * t->key.pool;
}

static size_t jump_tags(const struct translation *t)
{
    return offsetof(struct jit_vcpu, jump_cache.not_rip) + sizeof(uint64_t) * JUMP_ENTRIES * t->key.pool;
}

/* Says where the flags are on the way through the jump cache: a block that reads none does not care. Touches no flags that are not
 * parked; r14 is lost. */
static void say_parked(struct translation *t, struct emit *e)
{
    t->jumps++;
    if (t->parked && !vcpu_optimises(t->cpu, JIT_OPT_PARK)) {
        translate_load_flags(e);
        t->parked = false;
    }
    emit_bytes(e, "\x65\xc6\x04\x25", 4); /* mov byte gs:[flags_parked], imm8 */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, flags_parked));
    emit_u8(e, t->parked);
}

/* Target rip in r15: looks it up in the jump cache; rcx is borrowed for pext and jrcxz, which spare the flags. */
static void exit_by_jump_cache(struct translation *t, struct emit *e, uint32_t site)
{
    emit_store_gs(e, RCX, GPR_OFFSET(RCX));
    if (!vcpu_optimises(t->cpu, JIT_OPT_JUMP)) {
        emit_mov_imm(e, TMP, site);
        emit_jmp(e, t->tr->to.jump[t->key.pool]);
        return;
    }
    emit_pext(e, RCX, ADDR, offsetof(struct jit_vcpu, jump_mask));
    emit_gs_scaled(e, OP_MOV_LOAD, TMP, RCX, jump_entries(t));
    emit_gs_scaled(e, OP_MOV_LOAD, RCX, RCX, jump_tags(t));
    emit_mem(e, OP_LEA, RCX, RCX, ADDR, 1, 1);
    uint8_t *hit = emit_short(e, OP_JRCXZ);
    emit_mov_imm(e, TMP, site);
    emit_jmp(e, t->tr->to.jump[t->key.pool]);
    emit_bind_short(e, hit);
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_bytes(e, "\x41\xff\xe6", 3); /* jmp r14 */
}

void translate_exit_to_r15(struct translation *t, struct emit *e, uint32_t site)
{
    say_parked(t, e);
    exit_by_jump_cache(t, e, site);
}

void translate_rip(struct translation *t, struct emit *e, unsigned reg, uint64_t rip)
{
    if (!t->block->pic) {
        emit_mov_imm(e, reg, rip);
        return;
    }
    emit_load_gs(e, reg, offsetof(struct jit_vcpu, code_page));
    emit_mem(e, OP_LEA, reg, reg, INSN_NO_REG, 1, (int32_t)rip);
}

void translate_exit_indirectly(struct translation *t, struct emit *e, uint64_t rip)
{
    if (t->block->pic || !vcpu_optimises(t->cpu, JIT_OPT_JUMP)) {
        translate_rip(t, e, ADDR, rip);
        translate_exit_to_r15(t, e, NO_SITE);
        return;
    }
    uint64_t index = 0;
    __asm__("pext %2, %1, %0" : "=r"(index) : "r"(rip), "r"(t->cpu->jump_mask));
    say_parked(t, e);
    emit_mov_imm(e, ADDR, rip);
    emit_store_gs(e, RCX, GPR_OFFSET(RCX));
    emit_load_gs(e, RCX, jump_tags(t) + 8 * index);
    emit_mem(e, OP_LEA, RCX, RCX, ADDR, 1, 1);
    uint8_t *hit = emit_short(e, OP_JRCXZ);
    emit_mov_imm(e, TMP, NO_SITE);
    emit_jmp(e, t->tr->to.jump[t->key.pool]);
    emit_bind_short(e, hit);
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_u8(e, 0x65);
    emit_u8(e, 0xff); /* jmp gs:[entry] */
    emit_bytes(e, "\x24\x25", 2);
    emit_u32(e, (uint32_t)(jump_entries(t) + 8 * index));
}

static bool on_this_page(const struct translation *t, uint64_t rip)
{
    return !((rip ^ t->block->rip) & ~PAGE_MASK);
}

static uint32_t place(const struct translation *t, const uint8_t *at)
{
    return (uint32_t)(at - t->tr->mcode.write);
}

static bool linkable(const struct translation *t, uint64_t rip)
{
    return t->links < BLOCK_MAX_LINKS && on_this_page(t, rip) && vcpu_optimises(t->cpu, JIT_OPT_LINK);
}

/* Reserves a link. Its stub, where it leads while it has no target, is emitted out of line at once; the caller names the rel32. */
static struct link *new_link(struct translation *t, uint64_t rip, bool far)
{
    uint32_t id = t->block->first_link + t->links++;
    struct link *link = &t->tr->links[id];
    *link = (struct link){.distance = (int32_t)(rip - t->block->rip),
                          .stub = place(t, t->cold.at),
                          .from = t->block_id,
                          .target = NO_BLOCK,
                          .next = NO_LINK,
                          .far = far};
    if (far)
        emit_load_gs(&t->cold, RCX, GPR_OFFSET(RCX));
    emit_mov_imm(&t->cold, TMP, id);
    emit_jmp(&t->cold, t->tr->to.link);
    return link;
}

static void set_rel32(uint8_t *field, const uint8_t *target)
{
    int32_t distance = (int32_t)(target - (field + 4));
    memcpy(field, &distance, sizeof distance);
}

/* Leaves to another page if that linear page is fetched from where the link's target was made; rcx is borrowed, flags are spared. */
static void exit_far(struct translation *t, struct emit *e, uint64_t rip)
{
    size_t table = offsetof(struct jit_vcpu, fetch_tlb.not_key[t->key.pool == TLB_USER]);
    say_parked(t, e);
    emit_store_gs(e, RCX, GPR_OFFSET(RCX));
    translate_rip(t, e, ADDR, rip);
    if (t->block->pic) {
        emit_pext(e, RCX, ADDR, offsetof(struct jit_vcpu, fetch_mask));
        emit_gs_scaled(e, OP_MOV_LOAD, RCX, RCX, table);
    } else {
        emit_load_gs(e, RCX, table + 8 * (rip / MEM_PAGE_SIZE % FETCH_TLB_ENTRIES));
    }
    emit_bytes(e, "\x4a\x8d\x8c\x39\x00\x00\x00\x00", 8); /* lea rcx, [rcx + r15 + disp32] */
    uint8_t *hit = emit_short(e, OP_JRCXZ);
    emit_jmp(e, e->at);
    uint8_t *miss = e->at - 4;
    emit_bind_short(e, hit);
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_jmp(e, e->at);
    uint8_t *patch = e->at - 4;
    struct link *link = new_link(t, rip, true);
    link->patch = place(t, patch) & INT32_MAX;
    set_rel32(miss, t->tr->mcode.write + link->stub);
    set_rel32(patch, t->tr->mcode.write + link->stub);
}

void translate_detour(struct translation *t, struct emit *e, const struct link *link)
{
    if (!link->far) {
        translate_exit_indirectly(t, e, t->block->rip + (uint64_t)(int64_t)link->distance);
        return;
    }
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    exit_by_jump_cache(t, e, NO_SITE);
}

void translate_exit(struct translation *t, struct emit *e, uint64_t rip)
{
    int64_t distance = (int64_t)(rip - t->block->rip);
    if (linkable(t, rip)) {
        translate_unpark_flags(t);
        struct link *link = new_link(t, rip, false);
        emit_jmp(e, t->tr->mcode.write + link->stub);
        link->patch = place(t, e->at - 4) & INT32_MAX;
    } else if (t->links < BLOCK_MAX_LINKS && t->tr->pages <= FETCH_TLB_PAGES_MAX && distance == (int32_t)distance &&
               vcpu_optimises(t->cpu, JIT_OPT_FAR)) {
        exit_far(t, e, rip);
    } else {
        translate_exit_indirectly(t, e, rip);
    }
}

/* jcc to `rip`, native condition. */
static void exit_conditional(struct translation *t, unsigned condition, uint64_t rip)
{
    if (linkable(t, rip)) {
        struct link *link = new_link(t, rip, false);
        emit_jcc(&t->hot, condition, t->tr->mcode.write + link->stub);
        link->patch = place(t, t->hot.at - 4) & INT32_MAX;
        return;
    }
    emit_jcc(&t->hot, condition, t->cold.at);
    translate_exit(t, &t->cold, rip);
}

static void exit_if_rcx_zero(struct translation *t, uint64_t rip)
{
    uint8_t *zero = emit_short(&t->hot, OP_JRCXZ);
    uint8_t *over = emit_short(&t->hot, 0xeb);
    emit_bind_short(&t->hot, zero);
    translate_exit(t, &t->hot, rip);
    emit_bind_short(&t->hot, over);
}

static bool branch_on_rcx(struct translation *t, uint64_t target)
{
    if (t->insn->address_bits != 64)
        return false;
    if (t->insn->opcode == 0xe3) {
        exit_if_rcx_zero(t, target);
        translate_exit(t, &t->hot, t->next_rip);
        return true;
    }
    if (t->insn->opcode != 0xe2)
        return false;
    emit_mem(&t->hot, OP_LEA, RCX, RCX, INSN_NO_REG, 1, -1);
    exit_if_rcx_zero(t, t->next_rip);
    translate_exit(t, &t->hot, target);
    return true;
}

/* Pushes next_rip; r14, r15 are clobbered. */
static void push_return(struct translation *t)
{
    struct emit *e = &t->hot;
    const uint8_t *retry = e->at;
    emit_mem(e, OP_LEA, ADDR, RSP, INSN_NO_REG, 1, -8);
    translate_stack_check(t, retry, &(struct check){.size = 8, .write = true});
    translate_rip(t, e, TMP, t->next_rip);
    emit_mem(e, OP_MOV_STORE, TMP, ADDR, INSN_NO_REG, 1, 0);
    emit_mem(e, OP_LEA, RSP, RSP, INSN_NO_REG, 1, -8);
}

static bool call_relative(struct translation *t, uint64_t target)
{
    translate_park_flags(t);
    push_return(t);
    translate_exit(t, &t->hot, target);
    return true;
}

static bool ret_near(struct translation *t)
{
    struct emit *e = &t->hot;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    emit_mov(e, ADDR, RSP);
    translate_stack_check(t, retry, &(struct check){.size = 8, .form = CHECK_PARTS});
    emit_mem(e, OP_MOV_LOAD, ADDR, TMP, ADDR, 1, 0);
    int extra = t->insn->opcode == 0xc2 ? (int)(t->insn->imm & 0xffff) : 0;
    emit_mem(e, OP_LEA, RSP, RSP, INSN_NO_REG, 1, 8 + extra);
    translate_exit_to_r15(t, e, translate_new_site(t));
    return true;
}

/* Target of jmp/call r/m64 to r15. */
static bool load_target(struct translation *t)
{
    struct emit *e = &t->hot;
    if (!t->insn->has_mem) {
        unsigned reg = (t->insn->modrm & 7) | ((t->insn->rex & 1u) << 3);
        if (reg == R14 || reg == R15)
            emit_load_gs(e, ADDR, GPR_OFFSET(reg));
        else
            emit_mov(e, ADDR, reg);
        return true;
    }
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    if (!translate_address(t, false))
        return false;
    translate_check(t, retry, &(struct check){.size = 8, .stack = t->insn->mem_segment == SEG_SS, .form = CHECK_PARTS});
    emit_mem(e, OP_MOV_LOAD, ADDR, TMP, ADDR, 1, 0);
    return true;
}

static bool jump_indirect(struct translation *t)
{
    if (!load_target(t))
        return false;
    translate_exit_to_r15(t, &t->hot, translate_new_site(t));
    return true;
}

void translate_leave_unless_canonical(struct translation *t)
{
    struct emit *e = &t->hot;
    emit_mov(e, TMP, ADDR);
    emit_bytes(e, "\x49\xc1\xfe\x2f\x49\xff\xc6\x49\x83\xfe\x01", 11); /* sar r14, 47; inc r14; cmp r14, 1 */
    translate_leave_unless(t, CONDITION_BE);
}

static bool call_indirect(struct translation *t)
{
    struct emit *e = &t->hot;
    translate_park_flags(t);
    if (!load_target(t))
        return false;
    translate_leave_unless_canonical(t); /* it faults before it pushes */
    emit_store_gs(e, ADDR, offsetof(struct jit_vcpu, scratch[1]));
    push_return(t);
    emit_load_gs(e, ADDR, offsetof(struct jit_vcpu, scratch[1]));
    translate_exit_to_r15(t, e, translate_new_site(t));
    return true;
}

/* Whether the target, relative as rips of the block are, is canonical where the block is translated. (The same code at another
 * address, nearer to the end of what is canonical, raises #GP at the target instead.) */
static bool leads_to_canonical(const struct translation *t, uint64_t target)
{
    uint64_t page = t->block->pic ? t->cpu->rip & ~PAGE_MASK : 0;
    return (uint64_t)((int64_t)((page + target) << 16) >> 16) == page + target;
}

bool translate_branch(struct translation *t)
{
    const struct insn *insn = t->insn;
    uint64_t target = t->next_rip + (uint64_t)insn->imm;
    if (insn->operand_bits == 16 || (insn->has_mem && insn->address_bits != 64) || !translate_rip_fits(t, target))
        return false;
    if (!insn->has_mem && insn->opcode != 0xff && !leads_to_canonical(t, target)) /* #GP before anything is pushed */
        return false;
    if ((insn->map == 0 && (insn->opcode & 0xf0) == 0x70) || (insn->map == 1 && (insn->opcode & 0xf0) == 0x80)) {
        translate_unpark_flags(t);
        exit_conditional(t, insn->opcode & 0xf, target);
        return true;
    }
    if (insn->map)
        return false;
    unsigned group = (insn->modrm >> 3) & 7;
    switch (insn->opcode) {
    case 0xe2:
    case 0xe3:
        translate_unpark_flags(t);
        return branch_on_rcx(t, target);
    case 0xe8:
        return call_relative(t, target);
    case 0xe9:
    case 0xeb:
        translate_exit(t, &t->hot, target);
        return true;
    case 0xc2:
    case 0xc3:
        return ret_near(t);
    case 0xff:
        return group == 4 ? jump_indirect(t) : group == 2 ? call_indirect(t) : false;
    default:
        return false;
    }
}
