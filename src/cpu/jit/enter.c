/* Trampolines and the C handlers behind them. Compiled without vector registers: the guest's are live.
 *
 * Way out: a stub in translated code puts an id in r14d (and a linear address or jump target in r15) and jumps to a trampoline, which
 * stores all guest registers, switches to the run loop's stack and calls a handler. The handler gives the host address to go
 * on at, or NULL to return to the run loop; it may also raise a guest exception, which unwinds past the translated code. */
#include "cpu/jit/enter.h"

#include <stddef.h>
#include <ucontext.h>

#include "cpu/jit/cache_impl.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/profile.h"
#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))
#define PAGE_MASK ((uint64_t)MEM_PAGE_SIZE - 1)
#define OF_IN_AX 1u
#define TRIES_MAX 64u /* more than 8 in a row were seen, on a busy host, that were not the instruction's own */

/* Flags as lahf and seto leave them in ax, from and to rflags. */
static uint16_t to_ax(uint64_t rflags)
{
    return (uint16_t)((rflags & 0xff) << 8 | (rflags >> 11 & 1));
}

static void flags_from_ax(struct jit_vcpu *cpu, bool parked)
{
    uint16_t ax = parked ? cpu->flags_saved : cpu->flags_native;
    uint64_t low = ax >> 8 & (FLAGS_ARITHMETIC & 0xff);
    cpu->rflags = (cpu->rflags & ~(uint64_t)FLAGS_ARITHMETIC) | low | (uint64_t)(ax & OF_IN_AX) << 11;
}

/* Translated code goes on at an instruction boundary with the state that C code left. */
static const uint8_t *resume_at(struct jit_vcpu *cpu, const uint8_t *host)
{
    cpu->flags_native = cpu->flags_saved = to_ax(cpu->rflags);
    cpu->rflags &= ~(uint64_t)FLAG_RF; /* the first instruction uses it up */
    fpu_load(cpu);
    return host;
}

static const uint8_t *resume_by_lookup(struct jit_vcpu *cpu)
{
    const uint8_t *known = cache_find_by_place(cpu);
    if (known) {
        cpu->site_linear = cpu->rip; /* where entries of position-independent blocks expect it */
        return resume_at(cpu, known);
    }
    struct block *block = cache_lookup(cpu);
    return block ? resume_at(cpu, block_inner(cpu->translator, block)) : NULL;
}

const uint8_t *enter_known(struct jit_vcpu *cpu)
{
    struct block_key key = cache_key(cpu);
    const struct translator *tr = cpu->translator;
    bool valid = key.fpu_ok == tr->fpu_ok && ((cpu->cr4 & CR4_SMAP) != 0) == tr->smap;
    cpu->site_linear = cpu->rip; /* goes to r15, where entries of position-independent blocks expect it */
    return valid ? jump_cache_find(cpu, key.pool, cpu->rip) : NULL;
}

static const uint8_t *resume_at_rip(struct jit_vcpu *cpu)
{
    const uint8_t *known = enter_known(cpu);
    return known ? resume_at(cpu, known) : resume_by_lookup(cpu);
}

static bool wants_run_loop(const struct jit_vcpu *cpu)
{
    return cpu->halted || cpu->shutdown || cpu->interrupt_shadow || cpu->mode != MODE_LONG ||
           vcpu_middle_ring(cpu) || vcpu_must_interpret(cpu) || __atomic_load_n(&cpu->poll, __ATOMIC_ACQUIRE);
}

/* Runs one instruction in C, then goes on after it, or wherever it went. */
static const uint8_t *interpret(struct jit_vcpu *cpu, const struct insn *insn, const struct block *block,
                                const uint8_t *next)
{
    uint64_t next_rip = cpu->rip + insn->length, epoch = cpu->flush_epoch;
    uint32_t generation = cpu->translator->generation;
    struct block_key before = block->key;
    interp_execute(cpu, insn);
    cpu->translator->stat_interp++;
    cpu->translator->by_mnemonic[insn->mnemonic % 2048]++;
    if (cpu->rflags & FLAG_IF && lapic_pending_vector(cpu) >= 0)
        __atomic_store_n(&cpu->poll, 1, __ATOMIC_RELEASE);
    if (wants_run_loop(cpu))
        return NULL;
    struct block_key now = cache_key(cpu);
    bool here = next && cpu->rip == next_rip && cpu->flush_epoch == epoch && cpu->translator->generation == generation &&
                !block->dead && now.pool == before.pool && now.fpu_ok == before.fpu_ok;
    return here ? resume_at(cpu, next) : resume_at_rip(cpu);
}

static struct site *enter_site(struct jit_vcpu *cpu, struct block **ret_block)
{
    struct site *site = &cpu->translator->sites[cpu->site];
    *ret_block = &cpu->translator->blocks[site->block];
    cpu->rip = block_rip(cpu, *ret_block) + site->rip_offset;
    flags_from_ax(cpu, site->parked);
    return site;
}

/* One push, pop or ret of a run (translate_stack_run); false when there is none at rip, or `bytes` end. `*at` moves on. */
static bool run_step(struct jit_vcpu *cpu, const uint8_t *bytes, unsigned count, unsigned *at)
{
    unsigned length = *at < count && (bytes[*at] & 0xf0) == 0x40 ? 2 : 1;
    if (*at + length > count)
        return false;
    unsigned opcode = bytes[*at + length - 1], reg = (opcode & 7) | (length == 2 ? (bytes[*at] & 1u) << 3 : 0);
    *at += length;
    if (reg == RSP)
        return false;
    if ((opcode & 0xf8) == 0x50) {
        mmu_store(cpu, cpu->gpr[RSP] - 8, cpu->gpr[reg], 8, ACCESS_STACK);
        cpu->gpr[RSP] -= 8;
    } else if ((opcode & 0xf8) == 0x58) {
        cpu->gpr[reg] = mmu_load(cpu, cpu->gpr[RSP], 8, ACCESS_STACK);
        cpu->gpr[RSP] += 8;
    } else {
        return false;
    }
    cpu->rip += length;
    return true;
}

/* A run of so many pushes or pops whose stack crosses a page: frames lie where they lie, and then every call would pay for each of
 * them. Returns how many were done: fewer where one has prefixes that mean nothing. */
static unsigned run_across_pages(struct jit_vcpu *cpu, unsigned run)
{
    uint8_t bytes[2 * STACK_RUN_MAX];
    unsigned count = mmu_fetch(cpu, cpu->rip, bytes, sizeof bytes), at = 0, done = 0;
    while (done < run && run_step(cpu, bytes, count, &at))
        done++;
    cpu->translator->stat_runs += done != 0;
    return done;
}

/* Where the instruction after a site's starts; NULL when the block ends there. */
static const uint8_t *next_of(const struct jit_vcpu *cpu, const struct site *site, const struct block *block)
{
    return site->next ? block_entry(cpu->translator, block) + site->next : NULL;
}

/* After a run of a site, or its first instructions: goes on behind it in the block that it belongs to, if that is still there. */
static const uint8_t *after_run(struct jit_vcpu *cpu, const struct site *site, const struct block *block, unsigned done,
                                uint32_t generation)
{
    if (wants_run_loop(cpu))
        return NULL;
    bool here = done == site->run && site->next && !block->dead && cpu->translator->generation == generation;
    return here ? resume_at(cpu, next_of(cpu, site, block)) : resume_at_rip(cpu);
}

/* The instruction of a site, from guest memory. False when another vCPU has changed it. */
static bool decode_site(struct jit_vcpu *cpu, const struct site *site, struct insn *ret_insn)
{
    fpu_save(cpu); /* the decoder is compiled like any other code */
    uint8_t bytes[INSN_MAX_BYTES];
    unsigned length = mmu_fetch(cpu, cpu->rip, bytes, site->insn_length);
    return insn_decode(bytes, length, 64, ret_insn) == INSN_OK;
}

/* A memory access that the soft TLB does not know. */
static const uint8_t *handle_miss(struct jit_vcpu *cpu)
{
    struct block *block;
    const struct site *site = enter_site(cpu, &block);
    uint64_t linear = cpu->site_linear;
    cpu->translator->stat_misses++;
    bool in_page = !site->other_faults && (linear & PAGE_MASK) + site->size <= MEM_PAGE_SIZE;
    unsigned access = (site->write ? ACCESS_WRITE : 0) | (site->stack ? ACCESS_STACK : 0);
    if (in_page && mmu_tlb_load(cpu, linear + site->first, access) &&
        (!site->needs_write_entry || tlb_has_write_entry(cpu, linear + site->first))) {
        if (!site->retry)
            return resume_at_rip(cpu);
        fpu_load(cpu);
        return block_entry(cpu->translator, block) + site->retry;
    }
    uint32_t generation = cpu->translator->generation;
    unsigned done = site->run && vcpu_optimises(cpu, JIT_OPT_RUN_ACROSS) ? run_across_pages(cpu, site->run) : 0;
    if (done)
        return after_run(cpu, site, block, done, generation);
    const struct insn *insn = interp_fetch(cpu);
    bool same = insn->length == site->insn_length; /* else changed under us by another vCPU */
    return interpret(cpu, insn, block, same && !site->run ? next_of(cpu, site, block) : NULL);
}

static const uint8_t *handle_interp(struct jit_vcpu *cpu)
{
    struct block *block;
    const struct site *site = enter_site(cpu, &block);
    if (site->insn != INSN_POOL_NONE)
        return interpret(cpu, &cpu->translator->insns.insns[site->insn], block, next_of(cpu, site, block));
    struct insn insn;
    if (!decode_site(cpu, site, &insn))
        return resume_at_rip(cpu);
    return interpret(cpu, &insn, block, next_of(cpu, site, block));
}

static const uint8_t *handle_link(struct jit_vcpu *cpu)
{
    const struct link *link = &cpu->translator->links[cpu->site];
    flags_from_ax(cpu, link->far && cpu->flags_parked);
    cpu->translator->stat_followed++;
    const uint8_t *host = cache_follow_link(cpu, cpu->site);
    return host ? resume_at(cpu, host) : NULL;
}

/* A jump or return to an address that is not canonical faults at the branch, with the stack pointer not yet moved. */
static _Noreturn void raise_at_branch(struct jit_vcpu *cpu)
{
    struct block *block;
    const struct site *site = enter_site(cpu, &block);
    struct insn insn;
    bool is_ret = decode_site(cpu, site, &insn) && !insn.map && (insn.opcode & 0xfe) == 0xc2;
    if (is_ret)
        cpu->gpr[RSP] -= 8 + (insn.opcode == 0xc2 ? (uint64_t)insn.imm & 0xffff : 0);
    vcpu_raise(cpu, VEC_GP, 0);
}

static bool is_canonical(uint64_t linear)
{
    return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

static const uint8_t *handle_jump(struct jit_vcpu *cpu)
{
    if (cpu->site != NO_SITE && !is_canonical(cpu->site_linear))
        raise_at_branch(cpu);
    flags_from_ax(cpu, cpu->flags_parked);
    cpu->rip = cpu->site_linear;
    cpu->translator->stat_jumps++;
    return resume_by_lookup(cpu);
}

static const uint8_t *handle_poll(struct jit_vcpu *cpu)
{
    flags_from_ax(cpu, false);
    cpu->rip = block_rip(cpu, &cpu->translator->blocks[cpu->site]);
    return NULL;
}

/* Entered through the jump cache, with the rip in r15 if position-independent. */
static const uint8_t *handle_dead(struct jit_vcpu *cpu)
{
    const struct block *block = &cpu->translator->blocks[cpu->site];
    flags_from_ax(cpu, cpu->flags_parked);
    cpu->rip = block->pic ? cpu->site_linear : block->rip;
    const uint8_t *host = resume_by_lookup(cpu);
    if (!host) /* not to be translated now: the run loop, which interprets, must not find the dead block again */
        jump_cache_flush(cpu);
    return host;
}

static bool in_r14_r15(unsigned gpr)
{
    return gpr == R14 || gpr == R15;
}

static void emit_save_guest(struct emit *e)
{
    emit_gs(e, 1, OP_MOV_STORE, R15, offsetof(struct jit_vcpu, site_linear));
    emit_gs(e, 0, OP_MOV_STORE, R14, offsetof(struct jit_vcpu, site));
    for (unsigned r = 0; r < GPR_COUNT; r++)
        if (!in_r14_r15(r))
            emit_store_gs(e, r, GPR_OFFSET(r));
    emit_bytes(e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
    emit_u8(e, 0x66);
    emit_gs(e, 0, OP_MOV_STORE, RAX, offsetof(struct jit_vcpu, flags_native));
    emit_load_gs(e, RSP, offsetof(struct jit_vcpu, host_rsp));
    emit_load_gs(e, RDI, offsetof(struct jit_vcpu, self));
}

static void emit_jmp_resume(struct emit *e)
{
    emit_bytes(e, "\x65\xff\x24\x25", 4); /* jmp gs:[resume] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, resume));
}

static void emit_load_guest(struct emit *e)
{
    emit_u8(e, 0x66);
    emit_gs(e, 0, OP_MOV_LOAD, RAX, offsetof(struct jit_vcpu, flags_native));
    emit_bytes(e, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
    for (unsigned r = 0; r < GPR_COUNT; r++)
        if (!in_r14_r15(r))
            emit_load_gs(e, r, GPR_OFFSET(r));
    emit_load_gs(e, R15, offsetof(struct jit_vcpu, site_linear));
    emit_jmp_resume(e);
}

/* Flags through cpu->flags_refill; rax is in its slot. */
static void emit_keep_flags(struct emit *e)
{
    emit_bytes(e, "\x9f\x0f\x90\xc0", 4); /* lahf; seto al */
    emit_u8(e, 0x66);
    emit_gs(e, 0, OP_MOV_STORE, RAX, offsetof(struct jit_vcpu, flags_refill));
}

static void emit_restore_flags(struct emit *e)
{
    emit_u8(e, 0x66);
    emit_gs(e, 0, OP_MOV_LOAD, RAX, offsetof(struct jit_vcpu, flags_refill));
    emit_bytes(e, "\x04\x7f\x9e", 3); /* add al, 0x7f; sahf */
}

/* Goes to the check of the site in r14 again, with rax and rcx from their slots. Flags are lost, or those that were kept. */
static const uint8_t *emit_retry(struct emit *e, const struct translator *tr, bool keep_flags)
{
    const uint8_t *start = e->at;
    emit_bytes(e, "\x4d\x69\xf6", 3); /* imul r14, r14, sizeof(struct site) */
    emit_u32(e, (uint32_t)sizeof(struct site));
    emit_mov_imm(e, R15, (uint64_t)(uintptr_t)tr->sites);
    emit_mem(e, OP_LEA, R14, R15, R14, 1, 0);
    emit_bytes(e, "\x41\x0f\xb7\x4e", 4); /* movzx ecx, word [r14 + retry] */
    emit_u8(e, (unsigned)offsetof(struct site, retry));
    emit_bytes(e, "\x41\x8b\x06\x25", 4); /* mov eax, [r14]; and eax, SITE_BLOCK_MASK */
    emit_u32(e, SITE_BLOCK_MASK);
    emit_bytes(e, "\x48\x69\xc0", 3); /* imul rax, rax, sizeof(struct block) */
    emit_u32(e, (uint32_t)sizeof(struct block));
    emit_mov_imm(e, R15, (uint64_t)(uintptr_t)tr->blocks);
    emit_bytes(e, "\x41\x8b\x44\x07", 4); /* mov eax, [r15 + rax + entry] */
    emit_u8(e, (unsigned)offsetof(struct block, entry));
    emit_mov_imm(e, R15, (uint64_t)(uintptr_t)tr->mcode.exec);
    emit_bytes(e, "\x49\x01\xc7\x49\x01\xcf", 6); /* add r15, rax; add r15, rcx */
    if (keep_flags)
        emit_restore_flags(e);
    emit_load_gs(e, RAX, GPR_OFFSET(RAX));
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_bytes(e, "\x41\xff\xe7", 3); /* jmp r15 */
    return start;
}

/* One more, by the profile's counter at `offset`; no flags, `reg` is lost. */
static void emit_profile_count(struct emit *e, const struct jit_vcpu *cpu, unsigned reg, size_t offset)
{
    if (!cpu->engine->options.profile)
        return;
    emit_load_gs(e, reg, offsetof(struct jit_vcpu, profile) + offset);
    emit_mem(e, OP_LEA, reg, reg, INSN_NO_REG, 1, 1);
    emit_store_gs(e, reg, offsetof(struct jit_vcpu, profile) + offset);
}

/* The first level of the TLB does not hold the page at r15: takes it from the second and tries the site again. An access that
 * crosses its end, or that has no entry there either, goes on to tr->to.miss. Flags are parked or dead, or to be kept. */
static const uint8_t *emit_tlb_refill(struct emit *e, const struct jit_vcpu *cpu, size_t table, bool keep_flags, const uint8_t *retry)
{
    const uint8_t *start = e->at;
    size_t first = offsetof(struct jit_vcpu, tlb.entries) + sizeof(struct tlb_entry) * TLB_ENTRIES * table;
    size_t second = offsetof(struct jit_vcpu, tlb.second) + sizeof(struct tlb_entry) * TLB2_ENTRIES * table;
    size_t tag = offsetof(struct tlb_entry, tag), host = offsetof(struct tlb_entry, host);
    for (unsigned r = RAX; r <= RDX; r++)
        emit_store_gs(e, r, GPR_OFFSET(r));
    emit_profile_count(e, cpu, RCX, offsetof(struct profile, refills));
    if (keep_flags)
        emit_keep_flags(e);
    emit_mov(e, RCX, R15);
    emit_bytes(e, "\x48\xc1\xe9\x0c\x69\xc9", 6); /* shr rcx, 12; imul ecx, ecx, TLB2_HASH */
    emit_u32(e, TLB2_HASH);
    emit_bytes(e, "\xc1\xe9", 2); /* shr ecx, imm8; and ecx, (TLB2_ENTRIES - 1) * 16 */
    emit_u8(e, 32 - TLB2_BITS - 4);
    emit_bytes(e, "\x81\xe1", 2);
    emit_u32(e, (TLB2_ENTRIES - 1) * 16);
    emit_mov(e, RAX, R15);
    emit_bytes(e, "\x48\x25\x00\xf0\xff\xff", 6);   /* and rax, -4096 */
    emit_gs_based(e, OP_CMP_LOAD, RAX, RCX, second + tag);
    uint8_t *other = emit_short(e, 0x75);
    emit_mov(e, RDX, R15);
    emit_bytes(e, "\x48\xc1\xea\x08\x81\xe2", 6); /* shr rdx, 8; and edx, (TLB_ENTRIES - 1) * 16 */
    emit_u32(e, (TLB_ENTRIES - 1) * 16);
    emit_gs_based(e, OP_CMP_LOAD, RAX, RDX, first + tag);
    uint8_t *crosses = emit_short(e, 0x74);
    emit_gs_based(e, OP_MOV_LOAD, RCX, RCX, second + host);
    emit_gs_based(e, OP_MOV_STORE, RAX, RDX, first + tag);
    emit_gs_based(e, OP_MOV_STORE, RCX, RDX, first + host);
    emit_load_gs(e, RDX, GPR_OFFSET(RDX));
    emit_jmp(e, retry);
    emit_bind_short(e, other);
    emit_bind_short(e, crosses);
    if (keep_flags)
        emit_restore_flags(e);
    for (unsigned r = RAX; r <= RDX; r++)
        emit_load_gs(e, r, GPR_OFFSET(r));
    emit_jmp(e, cpu->translator->to.miss);
    return start;
}

/* tlb.stack does not hold the page of an access, whose tag was subtracted from r15: takes the page from the table of write
 * translations and tries the site again. An access that crosses its end, or that has no entry there, goes on to tr->to.refill.
 * Flags are parked or dead. */
static const uint8_t *emit_stack_refill(struct emit *e, const struct translator *tr, unsigned pool, const uint8_t *retry)
{
    const uint8_t *start = e->at;
    size_t entry = offsetof(struct jit_vcpu, tlb.stack) + sizeof(struct tlb_entry) * pool;
    size_t table = offsetof(struct jit_vcpu, tlb.entries) +
                   sizeof(struct tlb_entry) * TLB_ENTRIES * (pool * (size_t)TLB_ACCESSES + TLB_WRITE);
    size_t tag = offsetof(struct tlb_entry, tag), host = offsetof(struct tlb_entry, host);
    emit_gs(e, 1, OP_ADD_LOAD, R15, entry + tag); /* the linear address again */
    emit_store_gs(e, RAX, GPR_OFFSET(RAX));
    emit_store_gs(e, RCX, GPR_OFFSET(RCX));
    emit_mov(e, RAX, R15);
    emit_bytes(e, "\x48\xc1\xe8\x08\x25", 5); /* shr rax, 8; and eax, (TLB_ENTRIES - 1) * 16 */
    emit_u32(e, (TLB_ENTRIES - 1) * 16);
    emit_mov(e, RCX, R15);
    emit_gs_based(e, OP_SUB_LOAD, RCX, RAX, table + tag);
    emit_bytes(e, "\x48\x81\xf9\xff\x0f\x00\x00", 7); /* cmp rcx, 4095 */
    uint8_t *other = emit_short(e, 0x77);
    emit_gs_based(e, OP_MOV_LOAD, RCX, RAX, table + tag);
    emit_gs(e, 1, OP_CMP_LOAD, RCX, entry + tag);
    uint8_t *crosses = emit_short(e, 0x74);
    emit_store_gs(e, RCX, entry + tag);
    emit_gs_based(e, OP_MOV_LOAD, RCX, RAX, table + host);
    emit_store_gs(e, RCX, entry + host);
    emit_jmp(e, retry);
    emit_bind_short(e, other);
    emit_bind_short(e, crosses);
    emit_load_gs(e, RAX, GPR_OFFSET(RAX));
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_jmp(e, tr->to.refill[pool][TLB_WRITE]);
    return start;
}

/* Of the rip or place in `reg` (r14 or r15), to rcx; no flags. */
static void emit_second_index(struct emit *e, unsigned reg)
{
    emit_bytes(e, "\xc4\xc3\xfb\xf0", 4); /* rorx rcx, reg, imm8 */
    emit_u8(e, 0xc8 | (reg & 7));
    emit_u8(e, JUMP2_ROTATE);
    emit_mem(e, OP_LEA, RCX, RCX, reg, 1, 0);
    emit_pext(e, RCX, RCX, offsetof(struct jit_vcpu, jump2_mask));
}

/* The second level of the jump cache. rcx is in its slot of cpu->gpr; r14 is for `miss`. No flags. */
static const uint8_t *emit_second_level(struct emit *e, const struct jit_vcpu *cpu, unsigned pool, const uint8_t *miss)
{
    const uint8_t *start = e->at;
    emit_profile_count(e, cpu, RCX, offsetof(struct profile, jump_misses));
    emit_second_index(e, R15);
    emit_gs_scaled(e, OP_MOV_LOAD, RCX, RCX, offsetof(struct jit_vcpu, jump_cache.not_rip2[pool]));
    emit_mem(e, OP_LEA, RCX, RCX, R15, 1, 1);
    uint8_t *hit = emit_short(e, OP_JRCXZ);
    emit_jmp(e, miss);
    emit_bind_short(e, hit);
    emit_second_index(e, R15);
    emit_gs_scaled(e, OP_MOV_LOAD, R14, RCX, offsetof(struct jit_vcpu, jump_cache.entry2[pool]));
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_bytes(e, "\x41\xff\xe6", 3); /* jmp r14 */
    return start;
}

/* Goes on if rcx + reg + 1 is 0, else to `miss` with r14 from its slot; rcx is lost. */
static void emit_unless_zero(struct emit *e, unsigned reg, const uint8_t *miss)
{
    emit_mem(e, OP_LEA, RCX, RCX, reg, 1, 1);
    uint8_t *zero = emit_short(e, OP_JRCXZ);
    emit_gs(e, 0, OP_MOV_LOAD, R14, offsetof(struct jit_vcpu, site));
    emit_jmp(e, miss);
    emit_bind_short(e, zero);
}

/* Enters host address r14 for the rip in r15 into the first level, and that into the list; rcx and r14 are lost. */
static void emit_fill_first(struct emit *e)
{
    size_t jumps = offsetof(struct jit_vcpu, jump_cache), count = jumps + offsetof(struct jump_cache, local_count);
    emit_pext(e, RCX, R15, offsetof(struct jit_vcpu, jump_mask));
    emit_gs_scaled(e, OP_MOV_STORE, R14, RCX, jumps + offsetof(struct jump_cache, entry[TLB_USER]));
    emit_bytes(e, "\x49\xf7\xd7", 3); /* not r15 */
    emit_gs_scaled(e, OP_MOV_STORE, R15, RCX, jumps + offsetof(struct jump_cache, not_rip[TLB_USER]));
    emit_bytes(e, "\x49\xf7\xd7", 3);
    emit_load_gs(e, R14, count);
    emit_mem(e, OP_LEA, R14, R14, INSN_NO_REG, 1, 1);
    emit_store_gs(e, R14, count);
    emit_mem(e, OP_LEA, R14, R14, INSN_NO_REG, 1, -1);
    emit_pext(e, R14, R14, offsetof(struct jit_vcpu, listed_mask)); /* a full list is not looked at */
    emit_bytes(e, "\x65\x42\x89\x0c\xb5", 5); /* mov gs:[r14*4 + local], ecx */
    emit_u32(e, (uint32_t)(jumps + offsetof(struct jump_cache, local)));
}

/* The second level by place: where the page lies, what starts at that place, and this into the first level. Otherwise as above. */
static const uint8_t *emit_second_level_by_place(struct emit *e, const struct jit_vcpu *cpu, const uint8_t *miss)
{
    _Static_assert(TLB_USER == 0, "its indexes into not_rip are those of the flat array");
    const uint8_t *start = e->at;
    size_t fetch = offsetof(struct jit_vcpu, fetch_tlb), jumps = offsetof(struct jit_vcpu, jump_cache);
    emit_profile_count(e, cpu, RCX, offsetof(struct profile, jump_misses));
    emit_gs(e, 0, OP_MOV_STORE, R14, offsetof(struct jit_vcpu, site));
    emit_pext(e, RCX, R15, offsetof(struct jit_vcpu, place_mask));
    emit_gs_scaled(e, OP_MOV_LOAD, R14, RCX, fetch + offsetof(struct fetch_tlb, not_page));
    emit_pext(e, RCX, R15, offsetof(struct jit_vcpu, page_mask));
    emit_unless_zero(e, R14, miss);
    emit_pext(e, RCX, R15, offsetof(struct jit_vcpu, place_mask));
    emit_gs_scaled(e, OP_MOV_LOAD, R14, RCX, fetch + offsetof(struct fetch_tlb, place));
    emit_pext(e, RCX, R15, offsetof(struct jit_vcpu, offset_mask));
    emit_mem(e, OP_LEA, R14, R14, RCX, 1, 0);
    emit_second_index(e, R14);
    emit_gs_scaled(e, OP_MOV_LOAD, RCX, RCX, jumps + offsetof(struct jump_cache, not_rip2[TLB_USER]));
    emit_unless_zero(e, R14, miss);
    emit_second_index(e, R14);
    emit_gs_scaled(e, OP_MOV_LOAD, R14, RCX, jumps + offsetof(struct jump_cache, entry2[TLB_USER]));
    emit_store_gs(e, R14, offsetof(struct jit_vcpu, resume));
    emit_fill_first(e);
    emit_load_gs(e, RCX, GPR_OFFSET(RCX));
    emit_jmp_resume(e);
    return start;
}

typedef const uint8_t *handler_fn(struct jit_vcpu *cpu);

/* What fpu_save() does, before any C code. On the run loop's stack; rax, rcx and rdx are free. */
static void emit_save_vectors(struct emit *e)
{
    emit_bytes(e, "\xb8\x07\x00\x00\x00\x31\xd2\x65\x48\x0f\xae\x24\x25", 13); /* mov eax, 7; xor edx, edx; xsave64 gs:[xsave] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, xsave));
    emit_bytes(e, "\x65\xc6\x04\x25", 4); /* mov byte gs:[fpu_live], 0 */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, fpu_live));
    emit_u8(e, 0);
    emit_bytes(e, "\x68\x80\x1f\x00\x00\x0f\xae\x14\x24\x58\xdb\xe3", 12); /* push 0x1f80; ldmxcsr [rsp]; pop rax; fninit */
}

/* The handlers with their time taken; what raises an exception, or does not go back, goes on in the run loop. */
#define PROFILED(handler, part)                                                                                          \
    static const uint8_t *profiled_##handler(struct jit_vcpu *cpu)                                                       \
    {                                                                                                                    \
        profile_begin(cpu, part);                                                                                        \
        const uint8_t *host = handler(cpu);                                                                              \
        profile_switch(cpu, host ? PROFILE_CODE : PROFILE_LOOP);                                                         \
        return host;                                                                                                     \
    }
PROFILED(handle_miss, PROFILE_MISS)
PROFILED(handle_interp, PROFILE_INTERP)
PROFILED(handle_link, PROFILE_LINK)
PROFILED(handle_jump, PROFILE_JUMP)
PROFILED(handle_poll, PROFILE_POLL)
PROFILED(handle_dead, PROFILE_DEAD)

static const uint8_t *emit_way_out(struct emit *e, handler_fn *handler, const uint8_t *leave)
{
    const uint8_t *start = e->at;
    emit_save_guest(e);
    if (FPU_SANITIZED)
        emit_save_vectors(e);
    emit_mov_imm(e, RAX, (uint64_t)(uintptr_t)handler);
    emit_bytes(e, "\xff\xd0\x48\x85\xc0", 5); /* call rax; test rax, rax */
    emit_jcc(e, 0x4, leave);
    emit_store_gs(e, RAX, offsetof(struct jit_vcpu, resume));
    emit_load_guest(e);
    return start;
}

uint8_t *enter_make_trampolines(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    bool jump2 = vcpu_optimises(cpu, JIT_OPT_JUMP2), tlb2 = vcpu_optimises(cpu, JIT_OPT_TLB2);
    struct emit e = {tr->mcode.write};
    /* leave: back to enter_run's caller */
    const uint8_t *leave = e.at;
    emit_bytes(&e, "\x48\x83\xc4\x08\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3", 15);
    /* enter: push callee-saved registers, align, remember rsp */
    tr->to.enter = mcode_executable(&tr->mcode, e.at);
    emit_bytes(&e, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57\x48\x83\xec\x08", 14);
    emit_store_gs(&e, RSP, offsetof(struct jit_vcpu, host_rsp));
    emit_load_guest(&e);
    bool profiled = cpu->engine->options.profile;
    tr->to.miss = emit_way_out(&e, profiled ? profiled_handle_miss : handle_miss, leave);
    tr->to.interp = emit_way_out(&e, profiled ? profiled_handle_interp : handle_interp, leave);
    tr->to.link = emit_way_out(&e, profiled ? profiled_handle_link : handle_link, leave);
    const uint8_t *jump = e.at;
    emit_load_gs(&e, RCX, GPR_OFFSET(RCX));
    emit_way_out(&e, profiled ? profiled_handle_jump : handle_jump, leave);
    tr->to.poll = emit_way_out(&e, profiled ? profiled_handle_poll : handle_poll, leave);
    tr->to.dead = emit_way_out(&e, profiled ? profiled_handle_dead : handle_dead, leave);
    for (unsigned pool = 0; pool < TLB_POOLS; pool++)
        tr->to.jump[pool] = jump2 ? emit_second_level(&e, cpu, pool, jump) : jump;
    if (jump2 && vcpu_jumps_by_place(cpu))
        tr->to.jump[TLB_USER] = emit_second_level_by_place(&e, cpu, jump);
    const uint8_t *retry = emit_retry(&e, tr, false), *flagless = emit_retry(&e, tr, true);
    for (unsigned table = 0; table < TLB_POOLS * TLB_ACCESSES; table++) {
        unsigned pool = table / TLB_ACCESSES, access = table % TLB_ACCESSES;
        tr->to.refill[pool][access] = tlb2 ? emit_tlb_refill(&e, cpu, table, false, retry) : tr->to.miss;
        tr->to.flagless[pool][access] = tlb2 ? emit_tlb_refill(&e, cpu, table, true, flagless) : tr->to.miss;
    }
    for (unsigned pool = 0; pool < TLB_POOLS; pool++)
        tr->to.stack[pool] = emit_stack_refill(&e, tr, pool, retry);
    tr->to.load_rsp = e.at;
    emit_load_gs(&e, RSP, GPR_OFFSET(RSP));
    emit_jmp_resume(&e);
    return e.at;
}

void enter_run(struct jit_vcpu *cpu, const uint8_t *entry)
{
    cpu->resume = (uint64_t)(uintptr_t)resume_at(cpu, entry);
    ((void (*)(void))(uintptr_t)cpu->translator->to.enter)();
}

/* ---- host faults ---- */

/* Runs on the run loop's stack after a signal in translated code; the vector state is still the guest's. Accesses around 2^63 meet the
 * empty entries of the soft TLB and fault on the host, whose #GP may be the guest's #SS: the interpreter knows. */
static void raise_host_fault(struct jit_vcpu *cpu)
{
    struct jit_exception exception = cpu->exception;
    fpu_leave_live(cpu);
    if (exception.vector == VEC_GP) {
        interp_step(cpu);
        vcpu_resume(cpu); /* it did not raise: another vCPU has changed the code */
    }
    bool simd_unknown = exception.vector == VEC_XM && !(cpu->cr4 & CR4_OSXMMEXCPT);
    vcpu_raise(cpu, simd_unknown ? VEC_UD : exception.vector, 0);
}

/* Host exceptions that are the guest's own: division, x87, SSE, the general protection of misaligned SSE operands, and instructions
 * that the decoder knows and this host's CPU does not. */
static bool is_guest_vector(greg_t trap)
{
    return trap == VEC_DE || trap == VEC_UD || trap == VEC_GP || trap == VEC_MF || trap == VEC_XM;
}

/* Finds the guest instruction; entries of a block's map ascend. */
static const struct insn_map *find_insn(const struct translator *tr, const struct block *block, const uint8_t *host)
{
    const struct insn_map *map = &tr->maps[block->first_map];
    uint32_t i = 0;
    while (i + 1 < block->map_count && block_entry(tr, block) + map[i + 1].host <= host)
        i++;
    return &map[i];
}

/* Below a paravirtual kernel (seen: PVM) a host exception may be none of the code's: #GP because the kernel cannot return from an
 * interrupt to a stack pointer that is not canonical, #UD because the hypervisor failed to emulate an access to a page it
 * watches. Goes on at the same place by a stub that loads rsp; if it comes again and again, it is the instruction's own. */
static bool try_again(struct jit_vcpu *cpu, greg_t *regs)
{
    const struct translator *tr = cpu->translator;
    uint64_t pc = (uint64_t)regs[REG_RIP];
    bool suspicious = regs[REG_TRAPNO] == VEC_UD || (regs[REG_TRAPNO] == VEC_GP && !is_canonical((uint64_t)regs[REG_RSP]));
    cpu->tries = cpu->tried_again_pc == pc ? cpu->tries + 1 : 1;
    if (!suspicious || cpu->tries > TRIES_MAX) {
        cpu->tried_again_pc = 0;
        return false;
    }
    cpu->tried_again_pc = cpu->resume = pc;
    cpu->gpr[RSP] = (uint64_t)regs[REG_RSP];
    regs[REG_RSP] = (greg_t)cpu->host_rsp;
    regs[REG_RIP] = (greg_t)(uintptr_t)mcode_executable(&tr->mcode, tr->to.load_rsp);
    return true;
}

bool enter_handle_signal(struct jit_vcpu *cpu, void *context)
{
    ucontext_t *uc = context;
    greg_t *regs = uc->uc_mcontext.gregs;
    static const uint8_t order[GPR_COUNT] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const uint8_t *pc = (const uint8_t *)(uintptr_t)regs[REG_RIP];
    struct translator *tr = cpu->translator;
    if (!tr || pc < tr->mcode.exec || pc >= tr->mcode.exec + tr->mcode.size)
        return false;
    if (try_again(cpu, regs))
        return true;
    if (!is_guest_vector(regs[REG_TRAPNO]))
        return false;
    struct block *block = cache_find_host(cpu, pc);
    if (!block)
        return false;
    const struct insn_map *map = find_insn(tr, block, pc);
    cpu->rip = block_rip(cpu, block) + map->guest;
    for (unsigned r = 0; r < GPR_COUNT; r++)
        if (!in_r14_r15(r))
            cpu->gpr[r] = (uint64_t)regs[order[r]];
    cpu->flags_native = to_ax((uint64_t)regs[REG_EFL]);
    flags_from_ax(cpu, map->parked);
    cpu->exception.vector = (uint8_t)regs[REG_TRAPNO];
    regs[REG_RIP] = (greg_t)(uintptr_t)raise_host_fault;
    regs[REG_RDI] = (greg_t)(uintptr_t)cpu;
    regs[REG_RSP] = (greg_t)(cpu->host_rsp - 8); /* as after a call */
    regs[REG_EFL] &= ~(greg_t)(FLAG_DF | FLAG_AC);
    return true;
}
