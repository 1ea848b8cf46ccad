/* Emission of instructions that touch memory: address, TLB check, the instruction itself on the host address. */
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"
#include "cpu/x86.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))
#define MASK(r) (1u << (r))

static bool in_memory(unsigned gpr)
{
    return gpr == R14 || gpr == R15;
}

/* lahf and seto put the six arithmetic flags into ax; r14 keeps rax meanwhile. */
void translate_park_flags(struct translation *t)
{
    if (t->parked || !t->live_before)
        return;
    struct emit *e = &t->hot;
    emit_mov(e, TMP, RAX);
    emit_bytes(e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
    emit_u8(e, 0x66);
    emit_gs(e, 0, OP_MOV_STORE, RAX, offsetof(struct jit_vcpu, flags_saved));
    emit_mov(e, RAX, TMP);
    t->parked = true;
    t->near.valid = false;
}

void translate_load_flags(struct emit *e)
{
    emit_mov(e, TMP, RAX);
    emit_bytes(e, "\x65\x0f\xb7\x04\x25", 5); /* movzx eax, word gs:[flags_saved] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, flags_saved));
    emit_bytes(e, "\x04\x7f\x9e", 3); /* add al, 0x7f: OF; sahf: the rest */
    emit_mov(e, RAX, TMP);
}

void translate_unpark_flags(struct translation *t)
{
    if (t->parked) {
        translate_load_flags(&t->hot);
        t->near.valid = false;
    }
    t->parked = false;
}

bool translate_wants_native(const struct insn *insn, uint16_t live_after)
{
    uint16_t kills = liveness_kills(insn), touched = kills | insn->flags_write | insn->flags_undefined;
    return liveness_reads(insn) || (touched && (live_after & (uint16_t)~kills));
}

static bool wants_native_flags(const struct translation *t)
{
    return translate_wants_native(t->insn, t->live_after);
}

static void settle_parked(struct translation *t)
{
    if (wants_native_flags(t))
        translate_unpark_flags(t);
    else if (liveness_kills(t->insn) | t->insn->flags_write | t->insn->flags_undefined)
        t->parked = false; /* all that is live later is written by this instruction */
}

/* What the flags must be like right before the guest's own instruction runs, and are after it. That instruction may fault on the
 * host: its map entry says where the flags are then. */
static void settle_flags(struct translation *t)
{
    if (t->parked)
        settle_parked(t);
    t->tr->maps[t->tr->map_count - 1].parked = t->parked;
}

bool translate_address(struct translation *t, bool flagless)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    if (insn->address_bits != 64)
        return false;
    unsigned base = insn->mem_base, index = insn->mem_index;
    if (insn->mem_rip) {
        uint64_t rip = (uint64_t)insn->mem_disp + t->next_rip;
        if (!translate_rip_fits(t, rip))
            return false;
        translate_rip(t, e, ADDR, rip);
    } else if (base == INSN_NO_REG && index == INSN_NO_REG) {
        emit_mov_imm(e, ADDR, (uint64_t)insn->mem_disp);
    } else {
        if (base == R14 || index == R14)
            emit_load_gs(e, R14, GPR_OFFSET(R14));
        if (base == R15 || index == R15)
            emit_load_gs(e, R15, GPR_OFFSET(R15));
        emit_mem(e, OP_LEA, ADDR, base, index, insn->mem_scale, (int32_t)insn->mem_disp);
    }
    if (insn->mem_segment == SEG_FS || insn->mem_segment == SEG_GS) {
        size_t segment_base = offsetof(struct jit_vcpu, seg[insn->mem_segment].base);
        if (flagless)
            translate_flagless_add(e, segment_base);
        else
            emit_gs(e, 1, OP_ADD_LOAD, ADDR, segment_base);
    }
    return true;
}

uint32_t translate_new_site(struct translation *t)
{
    struct translator *tr = t->tr;
    tr->sites[tr->site_count] = (struct site){.block = t->block_id & SITE_BLOCK_MASK,
                                              .rip_offset = (uint32_t)(t->rip - t->block->rip) & 0x3ff,
                                              .insn_length = t->insn->length & 0xfu,
                                              .parked = t->parked,
                                              .other_faults = (t->insn->fpu != INSN_FPU_NONE || t->insn->mem_align > 1) ? 1u : 0u};
    return tr->site_count++;
}

uint32_t translate_new_interp_site(struct translation *t)
{
    uint32_t site = translate_new_site(t);
    t->tr->sites[site].insn = vcpu_optimises(t->cpu, JIT_OPT_POOL) ? insn_pool_add(&t->tr->insns, t->insn) : INSN_POOL_NONE;
    return site;
}

uint16_t translate_offset(const struct translation *t, const uint8_t *at)
{
    return (uint16_t)(at - t->tr->mcode.write - t->block->entry);
}

/* The host address, or its two parts, of what the check found at gs:[host (+ r14)]. */
static void add_host(struct emit *e, bool indexed, size_t host, enum check_form form)
{
    unsigned opcode = form == CHECK_WHOLE ? OP_ADD_LOAD : OP_MOV_LOAD, reg = form == CHECK_WHOLE ? ADDR : TMP;
    if (indexed)
        emit_gs_based(e, opcode, reg, TMP, host);
    else
        emit_gs(e, 1, opcode, reg, host);
}

void translate_compare(struct emit *e, unsigned size, size_t tag)
{
    emit_bytes(e, "\xc4\x43\xfb\xf0\xf7\x08", 6); /* rorx r14, r15, 8 */
    emit_bytes(e, "\x41\x81\xe6", 3);             /* and r14d, (TLB_ENTRIES - 1) * 16 */
    emit_u32(e, (TLB_ENTRIES - 1) * 16);
    emit_gs_based(e, OP_SUB_LOAD, ADDR, TMP, tag);
    emit_bytes(e, "\x49\x81\xff", 3); /* cmp r15, 4096 - size */
    emit_u32(e, 4096 - size);
}

void translate_check(struct translation *t, const uint8_t *retry, const struct check *check)
{
    struct emit *e = &t->hot, *c = &t->cold;
    size_t table = offsetof(struct jit_vcpu, tlb.entries) +
                   sizeof(struct tlb_entry) * TLB_ENTRIES * (t->key.pool * (size_t)TLB_ACCESSES + check->write);
    size_t tag = table + offsetof(struct tlb_entry, tag), host = table + offsetof(struct tlb_entry, host);

    uint32_t site = translate_new_site(t);
    struct site *s = &t->tr->sites[site];
    s->size = (check->size < 255 ? check->size : 255) & 0xff;
    s->first = check->first & 0x7f;
    s->write = check->write;
    s->stack = check->stack;
    s->run = check->run & 0xf;
    s->retry = translate_offset(t, retry);

    t->accesses++;
    translate_compare(e, check->size, tag);
    emit_jcc(e, CONDITION_A, c->at);
    add_host(e, true, host, check->form);

    emit_gs_based(c, OP_ADD_LOAD, ADDR, TMP, tag); /* the linear address again */
    emit_mov_imm(c, TMP, site);
    emit_jmp(c, t->tr->to.refill[t->key.pool][check->write]);
}

void translate_stack_check(struct translation *t, const uint8_t *retry, const struct check *check)
{
    struct emit *e = &t->hot, *c = &t->cold;
    size_t entry = offsetof(struct jit_vcpu, tlb.stack) + sizeof(struct tlb_entry) * t->key.pool;
    size_t tag = entry + offsetof(struct tlb_entry, tag), host = entry + offsetof(struct tlb_entry, host);
    if (!vcpu_optimises(t->cpu, JIT_OPT_STACK)) {
        struct check ordinary = *check;
        ordinary.stack = true;
        translate_check(t, retry, &ordinary);
        return;
    }

    uint32_t site = translate_new_site(t);
    struct site *s = &t->tr->sites[site];
    s->size = check->size & 0xff;
    s->first = check->first & 0x7f;
    s->write = check->write;
    s->stack = s->needs_write_entry = true;
    s->run = check->run & 0xf;
    s->retry = translate_offset(t, retry);

    t->accesses++;
    emit_gs(e, 1, OP_SUB_LOAD, ADDR, tag);
    emit_bytes(e, "\x49\x81\xff", 3); /* cmp r15, 4096 - size */
    emit_u32(e, 4096 - check->size);
    emit_jcc(e, CONDITION_A, c->at);
    add_host(e, false, host, check->form);

    emit_mov_imm(c, TMP, site);
    emit_jmp(c, t->tr->to.stack[t->key.pool]);
}

void translate_interp(struct translation *t, bool ends_block)
{
    struct translator *tr = t->tr;
    emit_mov_imm(&t->hot, TMP, translate_new_interp_site(t));
    emit_jmp(&t->hot, tr->to.interp);
    t->parked = false; /* resumes with native flags */
    (void)ends_block;
}

static void load_operand(struct emit *e, const struct insn *insn, unsigned guest, unsigned host)
{
    if (insn->gpr_read & MASK(guest))
        emit_load_gs(e, host, GPR_OFFSET(guest));
}

static void store_operand(struct emit *e, const struct insn *insn, unsigned guest, unsigned host)
{
    if (insn->gpr_write & MASK(guest))
        emit_store_gs(e, host, GPR_OFFSET(guest));
}

/* No memory access: r14 and r15 are loaded into themselves. */
static bool plain_on_registers(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    if (insn->mem_is_agen && (insn->address_bits != 64 || insn->mem_rip)) {
        if (insn->address_bits != 64)
            return false;
        /* lea reg, [rip + disp] */
        unsigned reg = ((insn->modrm >> 3) & 7u) | (insn->rex & 4u) << 1;
        uint64_t value = t->next_rip + (uint64_t)insn->mem_disp;
        if (insn->operand_bits != 64 || !translate_rip_fits(t, value))
            return false;
        translate_rip(t, e, reg, value);
        if (in_memory(reg))
            emit_store_gs(e, reg, GPR_OFFSET(reg));
        return true;
    }
    settle_flags(t);
    load_operand(e, insn, R14, R14);
    load_operand(e, insn, R15, R15);
    emit_bytes(e, insn->bytes, insn->length);
    store_operand(e, insn, R14, R14);
    store_operand(e, insn, R15, R15);
    return true;
}

static unsigned field_mask(unsigned gpr)
{
    return gpr == INSN_NO_REG ? 0 : MASK(gpr);
}

/* Which of r14/r15 take part as data, not only in the address. */
static unsigned scratch_operands(const struct insn *insn)
{
    unsigned operands = field_mask(insn->reg_gpr) | field_mask(insn->rm_gpr) | field_mask(insn->vvvv_gpr) |
                        field_mask(insn->opcode_gpr) | insn->gpr_implicit;
    return operands & (MASK(R14) | MASK(R15));
}

/* Address and check of the memory operand. */
static bool parked_operand(struct translation *t, enum check_form form, bool near, int32_t delta)
{
    const struct insn *insn = t->insn;
    struct check check = {
        .size = insn->mem_bytes, .write = insn->mem_write, .stack = insn->mem_segment == SEG_SS, .form = form};
    if (near) {
        translate_near_check(t, &check, delta);
        return true;
    }
    translate_park_flags(t);
    const uint8_t *retry = t->hot.at;
    if (!translate_address(t, false))
        return false;
    uint32_t site = t->tr->site_count;
    bool stack = insn->mem_base == RSP && insn->mem_index == INSN_NO_REG && insn->mem_segment == SEG_SS;
    if (stack)
        translate_stack_check(t, retry, &check);
    else
        translate_check(t, retry, &check);
    translate_near_note(t, &check, check.write || (stack && vcpu_optimises(t->cpu, JIT_OPT_STACK)), site);
    return true;
}

static bool flagless_operand(struct translation *t, enum check_form form, bool near, int32_t delta)
{
    const struct insn *insn = t->insn;
    struct check check = {
        .size = insn->mem_bytes, .write = insn->mem_write, .stack = insn->mem_segment == SEG_SS, .form = form};
    const uint8_t *retry = t->hot.at;
    translate_flagless_begin(t);
    if (near) {
        translate_flagless_near_check(t, &check, delta);
        return true;
    }
    if (!translate_address(t, true))
        return false;
    translate_flagless_check(t, retry, &check);
    return true;
}

/* One instruction of the only CPU is one step for all that runs on it; no device changes memory by reading it first. Kept is what
 * orders accesses for a device: all of the kernel's, where drivers are, those on the stack, which is how a barrier is written, and
 * xchg, which is how one that stores is. */
static bool needs_no_lock(const struct translation *t)
{
    return t->cpu->engine->vcpu_count == 1 && t->key.pool == TLB_USER && t->insn->mem_base != RSP &&
           vcpu_optimises(t->cpu, JIT_OPT_UNLOCK);
}

bool translate_plain(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    if (!insn->has_mem || insn->mem_is_agen)
        return plain_on_registers(t);
    if (!insn->mem_bytes || insn->mem_bytes > 64 || insn->address_bits != 64)
        return false;
    unsigned scratch = scratch_operands(insn);
    if ((scratch & insn->gpr_read) && scratch == (MASK(R14) | MASK(R15)))
        return false;
    bool flagless = translate_flagless_pays(t);
    struct insn_remap remap = insn_remap_identity;
    remap.drop_lock = insn->has_lock && needs_no_lock(t);
    /* In two parts the address is there earlier, but r14 is taken. */
    enum check_form form = CHECK_PARTS;
    if ((scratch & insn->gpr_read) || (wants_native_flags(t) && !flagless))
        form = CHECK_WHOLE;
    if (scratch & insn->gpr_read)
        remap.gpr[scratch == MASK(R15) ? R15 : R14] = TMP;
    remap.mem_base = form == CHECK_PARTS ? TMP : ADDR;
    remap.mem_index = form == CHECK_PARTS ? ADDR : INSN_NO_REG;
    uint8_t code[INSN_MAX_BYTES];
    bool near = form == CHECK_PARTS && translate_near(t, flagless, &remap.mem_disp);
    if (!near)
        remap.mem_disp = 0;
    unsigned length = insn_reencode(insn, &remap, code);
    unsigned borrowed = INSN_NO_REG;
    if (!length) { /* ah, ch, dh, bh exclude REX: borrow a register that needs none for the address */
        borrowed = !((insn->gpr_read | insn->gpr_write) & MASK(RSI)) ? RSI : RDI;
        if (scratch || ((insn->gpr_read | insn->gpr_write) & MASK(borrowed)))
            return false;
        form = CHECK_WHOLE;
        near = false;
        remap.mem_disp = 0;
        remap.mem_base = (uint8_t)borrowed;
        remap.mem_index = INSN_NO_REG;
        length = insn_reencode(insn, &remap, code);
        if (!length)
            return false;
    }
    if (!(flagless ? flagless_operand(t, form, near, remap.mem_disp) : parked_operand(t, form, near, remap.mem_disp)))
        return false;
    settle_flags(t);
    if (scratch & insn->gpr_read)
        load_operand(e, insn, scratch == MASK(R15) ? R15 : R14, TMP);
    if (borrowed != INSN_NO_REG) {
        emit_mov(e, TMP, borrowed);
        emit_mov(e, borrowed, ADDR);
    }
    emit_bytes(e, code, length);
    if (borrowed != INSN_NO_REG)
        emit_mov(e, borrowed, TMP);
    if (scratch & MASK(R14))
        store_operand(e, insn, R14, remap.gpr[R14]);
    if (scratch & MASK(R15))
        store_operand(e, insn, R15, remap.gpr[R15]);
    return true;
}

/* bt, bts, btr, btc with a register offset into a bit string in memory: the offset selects an operand-sized unit, and a bit of that. */
bool translate_bit_string(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    unsigned bits = insn->operand_bits, reg = insn->reg_gpr;
    if (bits == 16 || insn->address_bits != 64 || !vcpu_optimises(t->cpu, JIT_OPT_BIT))
        return false;
    struct insn_remap remap = insn_remap_identity;
    uint8_t code[INSN_MAX_BYTES];
    remap.drop_lock = insn->has_lock && needs_no_lock(t);
    remap.gpr[reg] = TMP;
    remap.mem_base = ADDR;
    remap.mem_index = INSN_NO_REG;
    unsigned length = insn_reencode(insn, &remap, code);
    if (!length)
        return false;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    if (!translate_address(t, false))
        return false;
    if (in_memory(reg))
        emit_load_gs(e, TMP, GPR_OFFSET(reg));
    else
        emit_mov(e, TMP, reg);
    if (bits == 32)
        emit_bytes(e, "\x4d\x63\xf6\x49\xc1\xfe\x05", 7); /* movsxd r14, r14d; sar r14, 5 */
    else
        emit_bytes(e, "\x49\xc1\xfe\x06", 4); /* sar r14, 6 */
    emit_mem(e, OP_LEA, ADDR, ADDR, TMP, bits / 8, 0);
    if (in_memory(reg))
        emit_load_gs(e, TMP, GPR_OFFSET(reg));
    else
        emit_mov(e, TMP, reg);
    emit_bytes(e, "\x41\x83\xe6", 3); /* and r14d, bits - 1 */
    emit_u8(e, bits - 1);
    emit_store_gs(e, TMP, offsetof(struct jit_vcpu, scratch[0]));
    translate_check(t, retry, &(struct check){.size = bits / 8, .write = insn->mem_write, .stack = insn->mem_segment == SEG_SS});
    settle_flags(t);
    emit_load_gs(e, TMP, offsetof(struct jit_vcpu, scratch[0]));
    emit_bytes(e, code, length);
    return true;
}

/* mov [r15], reg of the operand size (16 or 64 bits). */
static void store_slot(struct emit *e, unsigned reg, unsigned operand_bits)
{
    if (operand_bits == 16)
        emit_u8(e, 0x66);
    emit_u8(e, emit_rex(operand_bits == 64, reg, 0, ADDR));
    emit_u8(e, OP_MOV_STORE);
    emit_u8(e, (reg & 7) << 3 | (ADDR & 7));
}

static void move_rsp(struct emit *e, int bytes)
{
    emit_mem(e, OP_LEA, RSP, RSP, INSN_NO_REG, 1, bytes);
}

static bool push_value(struct translation *t, unsigned reg, bool immediate)
{
    struct emit *e = &t->hot;
    int bytes = t->insn->operand_bits / 8;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    emit_mem(e, OP_LEA, ADDR, RSP, INSN_NO_REG, 1, -bytes);
    translate_stack_check(t, retry, &(struct check){.size = (unsigned)bytes, .write = true});
    if (immediate)
        emit_mov_imm(e, TMP, (uint64_t)t->insn->imm);
    else if (in_memory(reg))
        emit_load_gs(e, TMP, GPR_OFFSET(reg));
    store_slot(e, immediate || in_memory(reg) ? TMP : reg, t->insn->operand_bits);
    move_rsp(e, -bytes);
    return true;
}

static bool pop_register(struct translation *t, unsigned reg)
{
    struct emit *e = &t->hot;
    if (t->insn->operand_bits != 64)
        return false;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    emit_mov(e, ADDR, RSP);
    translate_stack_check(t, retry, &(struct check){.size = 8, .form = CHECK_PARTS});
    emit_mem(e, OP_MOV_LOAD, in_memory(reg) ? TMP : reg, TMP, ADDR, 1, 0);
    if (in_memory(reg))
        emit_store_gs(e, TMP, GPR_OFFSET(reg));
    if (reg != RSP)
        move_rsp(e, 8);
    return true;
}

static bool push_memory(struct translation *t)
{
    struct emit *e = &t->hot;
    if (t->insn->operand_bits != 64 || t->insn->address_bits != 64)
        return false;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    if (!translate_address(t, false))
        return false;
    translate_check(t, retry, &(struct check){.size = 8, .stack = t->insn->mem_segment == SEG_SS, .form = CHECK_PARTS});
    emit_mem(e, OP_MOV_LOAD, TMP, TMP, ADDR, 1, 0);
    emit_store_gs(e, TMP, offsetof(struct jit_vcpu, scratch[0]));
    retry = e->at;
    emit_mem(e, OP_LEA, ADDR, RSP, INSN_NO_REG, 1, -8);
    translate_stack_check(t, retry, &(struct check){.size = 8, .write = true});
    emit_load_gs(e, TMP, offsetof(struct jit_vcpu, scratch[0]));
    store_slot(e, TMP, 64);
    move_rsp(e, -8);
    return true;
}

static bool leave(struct translation *t)
{
    struct emit *e = &t->hot;
    if (t->insn->operand_bits != 64)
        return false;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    emit_mov(e, ADDR, RBP);
    translate_check(t, retry, &(struct check){.size = 8, .stack = true, .form = CHECK_PARTS});
    emit_mem(e, OP_MOV_LOAD, TMP, TMP, ADDR, 1, 0); /* may fault: nothing has changed */
    emit_mem(e, OP_LEA, RSP, RBP, INSN_NO_REG, 1, 8);
    emit_mov(e, RBP, TMP);
    return true;
}

/* ---- runs ---- */

static bool is_push(const struct insn *insn)
{
    return insn->kind == INSN_STACK && !insn->map && insn->operand_bits == 64 && (insn->opcode & 0xf8) == 0x50 &&
           insn->opcode_gpr != RSP;
}

static bool is_pop(const struct insn *insn)
{
    return insn->kind == INSN_STACK && !insn->map && insn->operand_bits == 64 && (insn->opcode & 0xf8) == 0x58 &&
           insn->opcode_gpr != RSP;
}

static bool is_ret(const struct insn *insn)
{
    return insn->kind == INSN_BRANCH && !insn->map && insn->opcode == 0xc3 && insn->operand_bits == 64;
}

/* mov [r15 + offset], reg or the other way. */
static void run_slot(struct emit *e, unsigned opcode, unsigned reg, unsigned offset)
{
    emit_mem(e, opcode, reg, ADDR, INSN_NO_REG, 1, (int32_t)offset);
}

static void push_run(struct translation *t, const struct insn *insns, unsigned count)
{
    struct emit *e = &t->hot;
    unsigned bytes = 8 * count;
    const uint8_t *retry = e->at;
    emit_mem(e, OP_LEA, ADDR, RSP, INSN_NO_REG, 1, -(int32_t)bytes);
    translate_stack_check(t, retry, &(struct check){.size = bytes, .write = true, .first = bytes - 8, .run = count});
    for (unsigned i = 0; i < count; i++) {
        unsigned reg = insns[i].opcode_gpr;
        if (in_memory(reg))
            emit_load_gs(e, TMP, GPR_OFFSET(reg));
        run_slot(e, OP_MOV_STORE, in_memory(reg) ? TMP : reg, bytes - 8 - 8 * i);
    }
    move_rsp(e, -(int)bytes);
}

/* The site of the ret behind `count` pops. */
static uint32_t ret_site(struct translation *t, const struct insn *insns, unsigned count)
{
    uint32_t site = translate_new_site(t);
    for (unsigned i = 0; i < count; i++)
        t->tr->sites[site].rip_offset = (t->tr->sites[site].rip_offset + insns[i].length) & 0x3ff;
    t->tr->sites[site].insn_length = insns[count].length & 0xfu;
    return site;
}

static void pop_run(struct translation *t, const struct insn *insns, unsigned count, bool with_ret)
{
    struct emit *e = &t->hot;
    const uint8_t *retry = e->at;
    emit_mov(e, ADDR, RSP);
    translate_stack_check(t, retry, &(struct check){.size = 8 * (count + with_ret), .run = count});
    for (unsigned i = 0; i < count; i++) {
        unsigned reg = insns[i].opcode_gpr;
        run_slot(e, OP_MOV_LOAD, in_memory(reg) ? TMP : reg, 8 * i);
        if (in_memory(reg))
            emit_store_gs(e, TMP, GPR_OFFSET(reg));
    }
    if (with_ret)
        run_slot(e, OP_MOV_LOAD, ADDR, 8 * count);
    move_rsp(e, (int)(8 * (count + with_ret)));
    if (with_ret) {
        translate_exit_to_r15(t, e, ret_site(t, insns, count));
    }
}

unsigned translate_stack_run(struct translation *t, const struct insn *insns, unsigned count)
{
    unsigned n = 0;
    bool push = is_push(&insns[0]);
    while (n < count && n < STACK_RUN_MAX && (push ? is_push(&insns[n]) : is_pop(&insns[n])))
        n++;
    bool with_ret = !push && n && n < count && is_ret(&insns[n]);
    if (n + with_ret < 2 || !vcpu_optimises(t->cpu, JIT_OPT_RUN))
        return 0;
    translate_park_flags(t);
    if (push)
        push_run(t, insns, n);
    else
        pop_run(t, insns, n, with_ret);
    return n + with_ret;
}

bool translate_stack(struct translation *t)
{
    const struct insn *insn = t->insn;
    unsigned reg = (insn->opcode & 7) | ((insn->rex & 1u) << 3);
    if (insn->map)
        return false;
    if ((insn->opcode & 0xf8) == 0x50)
        return push_value(t, reg, false);
    if ((insn->opcode & 0xf8) == 0x58)
        return pop_register(t, reg);
    if (insn->opcode == 0x68 || insn->opcode == 0x6a)
        return push_value(t, 0, true);
    if (insn->opcode == 0xff && insn->has_mem)
        return push_memory(t);
    if (insn->opcode == 0xff)
        return push_value(t, (insn->modrm & 7) | ((insn->rex & 1u) << 3), false);
    if (insn->opcode == 0xc9)
        return leave(t);
    return false;
}
