/* From guest bytes to a block: decode until control leaves, find live flags backwards, emit forwards. */
#include "cpu/jit/translate.h"

#include <Zydis/Mnemonic.h>
#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/jit/cache.h"
#include "cpu/jit/cache_impl.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/perf_map.h"
#include "cpu/jit/vcpu.h"

#define PAGE_MASK ((uint64_t)MEM_PAGE_SIZE - 1)

static bool is_jcc(const struct insn *insn)
{
    return insn->kind == INSN_BRANCH && ((insn->map == 0 && (insn->opcode & 0xf0) == 0x70) ||
                                         (insn->map == 1 && (insn->opcode & 0xf0) == 0x80));
}

/* Control never falls through these, or they change what later bytes mean. */
static bool ends_block(const struct insn *insn)
{
    if (insn->kind == INSN_BRANCH || insn->kind == INSN_ILLEGAL)
        return !is_jcc(insn);
    if (insn->kind != INSN_SYSTEM)
        return false;
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_CLAC:
        return true;
    default:
        return false;
    }
}

/* Where the conditional jumps of a block that is being decoded lead: offsets from the page. */
struct jumps {
    int64_t targets[BLOCK_MAX_LINKS];
    unsigned count;
};

/* Goes a block on behind its latest instruction, at `offset`? Not where paths meet again: what follows is a block of its own. */
static bool goes_on(const struct jit_vcpu *cpu, const uint8_t *page, const struct insn *insn, unsigned offset, struct jumps *jumps)
{
    if (ends_block(insn))
        return false;
    if (is_jcc(insn)) {
        if (jumps->count + 2 == BLOCK_MAX_LINKS || !vcpu_optimises(cpu, JIT_OPT_THROUGH) ||
            cache_has_block(cpu->translator, translator_page(cpu->translator, page), offset, cache_key(cpu)))
            return false;
        jumps->targets[jumps->count++] = offset + insn->imm;
    }
    for (unsigned i = 0; i < jumps->count; i++)
        if (jumps->targets[i] == offset)
            return false;
    return true;
}

/* Decodes from cpu->rip; stops before an instruction that leaves the page, unless it is the first. Returns how many. */
static unsigned decode_block(struct jit_vcpu *cpu, const uint8_t *page, struct insn *insns, bool *ret_crosses)
{
    unsigned count = 0, offset = (unsigned)(cpu->rip & PAGE_MASK);
    struct jumps jumps = {.count = 0};
    *ret_crosses = false;
    while (count < BLOCK_MAX_INSNS && offset < MEM_PAGE_SIZE) {
        unsigned room = MEM_PAGE_SIZE - offset;
        enum insn_status status =
            insn_known_decode(&cpu->translator->known, page + offset, room, &insns[count]);
        if (status == INSN_TRUNCATED) {
            if (count)
                break;
            uint8_t bytes[INSN_MAX_BYTES];
            unsigned got = mmu_fetch(cpu, cpu->rip, bytes, INSN_MAX_BYTES);
            status = insn_decode(bytes, got, 64, &insns[0]);
            if (status == INSN_TRUNCATED)
                mmu_fetch_fault(cpu, (cpu->rip | PAGE_MASK) + 1);
            *ret_crosses = status == INSN_OK && insns[0].length > room;
        }
        if (status != INSN_OK) {
            if (count)
                break;
            return 0;
        }
        offset += insns[count].length;
        if (!goes_on(cpu, page, &insns[count++], offset, &jumps) || *ret_crosses)
            break;
    }
    return count;
}

/* Flags that code at `rip` needs; the block then depends on that code. */
static uint16_t look_ahead(struct jit_vcpu *cpu, const uint8_t *page, uint64_t rip, struct code_span *span)
{
    struct code_span seen;
    if (!vcpu_optimises(cpu, JIT_OPT_AHEAD))
        return FLAGS_ARITHMETIC;
    uint16_t live = liveness_at(&cpu->translator->known, rip, cpu->rip, page, &seen);
    liveness_widen(span, seen.start, seen.end);
    return live;
}

/* live[i]: flags that are needed before instruction i; live[count]: after the last. */
static void find_live_flags(struct jit_vcpu *cpu, const uint8_t *page, const struct insn *insns, unsigned count, uint16_t *live,
                            struct code_span ret_ahead[2])
{
    uint16_t taken[BLOCK_MAX_INSNS] = {0}; /* needed where a jump leads */
    uint64_t rip = cpu->rip;
    for (unsigned i = 0; i < count; i++) {
        rip += insns[i].length;
        bool jumps = insns[i].kind == INSN_BRANCH && insns[i].branch_relative;
        taken[i] = jumps ? look_ahead(cpu, page, rip + (uint64_t)insns[i].imm, &ret_ahead[0]) : 0;
    }
    const struct insn *last = &insns[count - 1];
    bool loops = last->kind == INSN_BRANCH && last->map == 0 && (last->opcode & 0xfc) == 0xe0; /* or jrcxz */
    bool falls = loops || !ends_block(last), elsewhere = ends_block(last) && !(last->kind == INSN_BRANCH && last->branch_relative);
    live[count] = elsewhere ? FLAGS_ARITHMETIC : falls ? look_ahead(cpu, page, rip, &ret_ahead[1]) : 0;
    for (unsigned i = count; i-- > 0;) {
        live[i + 1] |= taken[i];
        live[i] = (uint16_t)((live[i + 1] & ~liveness_kills(&insns[i])) | liveness_reads(&insns[i]));
    }
}

/* Every block starts by looking for a reason to leave: an interrupt, a kick. */
static void emit_poll(struct translation *t, bool flags_live)
{
    struct emit *e = &t->hot;
    const uint8_t *leave = t->cold.at;
    emit_mov_imm(&t->cold, R14, t->block_id);
    emit_jmp(&t->cold, t->tr->to.poll);
    if (!flags_live) {
        emit_bytes(e, "\x65\x83\x3c\x25", 4); /* cmp dword gs:[poll], 0 */
        emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, poll));
        emit_u8(e, 0);
        emit_jcc(e, CONDITION_NE, leave);
        return;
    }
    emit_mov(e, R15, RCX);
    emit_gs(e, 0, OP_MOV_LOAD, RCX, offsetof(struct jit_vcpu, poll));
    uint8_t *clear = emit_short(e, OP_JRCXZ);
    emit_mov(e, RCX, R15);
    emit_jmp(e, leave);
    emit_bind_short(e, clear);
    emit_mov(e, RCX, R15);
}

/* An instruction that could not be emitted inline leaves no trace. */
static void emit_insn(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct translation before = *t;
    uint32_t sites = t->tr->site_count;
    bool inlined = false;
    if (insn->fpu != INSN_FPU_NONE && !t->key.fpu_ok)
        inlined = false;
    else if (insn->mem_bit_string)
        inlined = translate_bit_string(t);
    else if (insn->kind == INSN_PLAIN)
        inlined = translate_plain(t);
    else if (insn->kind == INSN_NOP)
        inlined = true;
    else if (insn->kind == INSN_STACK)
        inlined = translate_stack(t) || translate_system(t);
    else if (insn->kind == INSN_SYSTEM)
        inlined = translate_gather(t) || translate_system(t);
    else if (insn->kind == INSN_STRING)
        inlined = translate_string(t);
    else if (insn->kind == INSN_BRANCH)
        inlined = translate_branch(t);
    if (inlined)
        return;
    *t = before;
    t->tr->site_count = sites;
    translate_interp(t, ends_block(insn));
}

static void add_map(struct translation *t)
{
    t->tr->maps[t->tr->map_count++] =
        (struct insn_map){.host = translate_offset(t, t->hot.at),
                          .guest = (uint32_t)(t->rip - t->block->rip) & 0x7fff,
                          .parked = t->parked};
    t->block->map_count++;
}

/* Tells the sites of the instruction just emitted where the next one starts. */
static void bind_sites(struct translation *t)
{
    while (t->pending_sites < t->tr->site_count)
        t->tr->sites[t->pending_sites++].next = translate_offset(t, t->hot.at);
}

/* The way in through the jump cache. */
static void emit_entry(struct translation *t, bool flags_live)
{
    struct emit *e = &t->hot;
    if (t->block->pic) {
        emit_mem(e, OP_LEA, R15, R15, INSN_NO_REG, 1, -(int32_t)t->block->rip);
        emit_store_gs(e, R15, offsetof(struct jit_vcpu, code_page));
    }
    if (!flags_live)
        return;
    emit_mov(e, R15, RCX);
    emit_bytes(e, "\x65\x0f\xb6\x0c\x25", 5); /* movzx ecx, byte gs:[flags_parked] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, flags_parked));
    uint8_t *native = emit_short(e, OP_JRCXZ);
    translate_load_flags(e);
    emit_bind_short(e, native);
    emit_mov(e, RCX, R15);
}

/* Adds a number to the profile's counter at `offset`; *ret_number, 32 bits, is to be set. No flags; r14 is lost. */
static void emit_profile_add(struct emit *e, size_t offset, uint8_t **ret_number)
{
    emit_load_gs(e, R14, offsetof(struct jit_vcpu, profile) + offset);
    emit_bytes(e, "\x4d\x8d\xb6", 3); /* lea r14, [r14 + disp32] */
    *ret_number = e->at;
    emit_u32(e, 0);
    emit_store_gs(e, R14, offsetof(struct jit_vcpu, profile) + offset);
}

struct block_profile {
    uint8_t *blocks, *accesses, *jumps;
};

static void emit_profile(struct translation *t, struct block_profile *ret_numbers)
{
    if (!t->cpu->engine->options.profile)
        return;
    emit_profile_add(&t->hot, offsetof(struct profile, blocks), &ret_numbers->blocks);
    emit_profile_add(&t->hot, offsetof(struct profile, accesses), &ret_numbers->accesses);
    emit_profile_add(&t->hot, offsetof(struct profile, jumps), &ret_numbers->jumps);
}

static void set_profile(const struct translation *t, const struct block_profile *numbers)
{
    if (!numbers->blocks || !numbers->accesses || !numbers->jumps)
        return;
    store_le32(numbers->blocks, 1);
    store_le32(numbers->accesses, t->accesses);
    store_le32(numbers->jumps, t->jumps);
}

static void emit_block(struct translation *t, const struct insn *insns, unsigned count, const uint16_t *live)
{
    emit_entry(t, live[0] != 0);
    t->block->inner = (uint8_t)translate_offset(t, t->hot.at);
    emit_poll(t, live[0] != 0);
    t->block->forward = (uint8_t)translate_offset(t, t->hot.at);
    struct block_profile profile = {0};
    emit_profile(t, &profile);
    for (unsigned i = 0; i < count; i++) {
        t->insn = &insns[i];
        t->next_rip = t->rip + insns[i].length;
        t->live_before = live[i];
        t->live_after = live[i + 1];
        t->live = &live[i];
        t->ahead = count - i - 1;
        add_map(t);
        unsigned run = translate_stack_run(t, &insns[i], count - i);
        if (run) {
            for (; run > 1; run--)
                t->rip += insns[i++].length;
            t->rip += insns[i].length;
            if (!ends_block(&insns[i]))
                bind_sites(t);
            t->pending_sites = t->tr->site_count;
            t->rcx_stored = t->near.valid = false;
            continue;
        }
        emit_insn(t);
        translate_flagless_after(t);
        if (i + 1 < count || !ends_block(&insns[i])) {
            bind_sites(t);
        } else {
            t->pending_sites = t->tr->site_count;
        }
        t->rip = t->next_rip;
    }
    if (!ends_block(&insns[count - 1]))
        translate_exit(t, &t->hot, t->rip);
    set_profile(t, &profile);
}

struct block *translate_block(struct jit_vcpu *cpu, const uint8_t *page, struct block_key key)
{
    struct insn insns[BLOCK_MAX_INSNS];
    uint16_t live[BLOCK_MAX_INSNS + 1];
    bool crosses;
    cache_mark_code(cpu, page);
    unsigned count = decode_block(cpu, page, insns, &crosses);
    if (!count)
        return NULL;
    const uint8_t *second = NULL;
    if (crosses) {
        second = mmu_fetch_page(cpu, (cpu->rip | PAGE_MASK) + 1)->host;
        if (!second)
            return NULL;
        do {
            cache_mark_code(cpu, page);
            cache_mark_code(cpu, second);
        } while (!cache_is_marked(cpu, page));
        uint8_t bytes[INSN_MAX_BYTES]; /* again, now that writes to the second page are seen */
        unsigned got = mmu_fetch(cpu, cpu->rip, bytes, INSN_MAX_BYTES);
        if (insn_decode(bytes, got, 64, &insns[0]) != INSN_OK)
            return NULL;
    }
    struct code_span ahead[2] = {{0}};
    find_live_flags(cpu, page, insns, count, live, ahead);
    struct block *block = cache_new_block(cpu);
    struct translator *tr = cpu->translator;
    bool pic = key.pool == TLB_USER && vcpu_optimises(cpu, JIT_OPT_PIC);
    *block = (struct block){.rip = pic ? cpu->rip & PAGE_MASK : cpu->rip,
                            .pic = pic,
                            .page = {translator_page(tr, page), second ? translator_page(tr, second) : NO_PAGE},
                            .offset = (uint16_t)(cpu->rip & PAGE_MASK),
                            .key = key,
                            .ahead = {ahead[0], ahead[1]},
                            .entry = (uint32_t)(tr->hot - tr->mcode.write),
                            .first_map = tr->map_count,
                            .incoming = NO_LINK,
                            .first_link = tr->link_count};
    struct translation t = {.cpu = cpu,
                            .tr = tr,
                            .hot = {tr->hot},
                            .cold = {tr->cold},
                            .block = block,
                            .block_id = (uint32_t)(block - tr->blocks),
                            .key = key,
                            .rip = block->rip,
                            .pending_sites = tr->site_count};
    emit_block(&t, insns, count, live);
    assert(t.hot.at < tr->hot_end && t.cold.at < tr->cold_end);
    block->length = (uint16_t)(t.rip - block->rip);
    block->code_length = translate_offset(&t, t.hot.at);
    block->link_count = (uint8_t)t.links;
    tr->link_count += t.links;
    tr->hot = t.hot.at;
    tr->cold = t.cold.at;
    tr->stat_blocks++;
    tr->stat_insns += count;
    perf_map_add(block_entry(tr, block), block->code_length, cpu->rip);
    cache_add_block(cpu, block);
    return block;
}
