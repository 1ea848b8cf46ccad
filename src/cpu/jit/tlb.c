/* Fills and flushes of the soft TLB and the jump cache. */
#include "cpu/jit/tlb.h"

#include "cpu/jit/cache.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/vcpu.h"
#include "cpu/jit/walk.h"

#define FLAT_ENTRIES (TLB_POOLS * TLB_ACCESSES * TLB_ENTRIES)

static const struct tlb_entry empty = {TLB_EMPTY, (uint8_t *)TLB_EMPTY};

static struct tlb_entry *flat(struct tlb *tlb)
{
    return &tlb->entries[0][0][0];
}

/* A tag that no rip of this slot has: rip -1, but in the last slot, which is rip -1's own, rip 0. */
static uint64_t empty_tag(unsigned index)
{
    return index % JUMP_ENTRIES != JUMP_ENTRIES - 1;
}

static void forget_stacks(struct tlb *tlb)
{
    for (unsigned pool = 0; pool < TLB_POOLS; pool++)
        tlb->stack[pool] = empty;
}

void tlb_init(struct jit_vcpu *cpu)
{
    for (unsigned i = 0; i < FLAT_ENTRIES; i++)
        flat(&cpu->tlb)[i] = empty;
    for (unsigned i = 0; i < TLB_POOLS * JUMP_WAYS * JUMP_ENTRIES; i++)
        (&cpu->jump_cache.negated_rip[0][0][0])[i] = empty_tag(i);
    forget_stacks(&cpu->tlb);
    cpu->jump_mask = (uint64_t)(JUMP_ENTRIES - 1) << 2;
    cpu->flush_epoch = 1;
}

enum tlb_pool tlb_pool_of(const struct jit_vcpu *cpu, unsigned access)
{
    if (access & ACCESS_SYSTEM)
        return TLB_SUPER;
    if (cpu->cpl == 3)
        return TLB_USER;
    return (cpu->rflags & FLAG_AC) && (cpu->cr4 & CR4_SMAP) ? TLB_SUPER_AC : TLB_SUPER;
}

static void list_add(uint32_t *list, uint32_t *count, unsigned index)
{
    list[(*count)++] = index;
}

static void enter(struct jit_vcpu *cpu, enum tlb_pool pool, enum tlb_access kind, uint64_t page, bool global,
                  uint8_t *host_page)
{
    struct tlb *tlb = &cpu->tlb;
    struct tlb_entry *entry = &tlb->entries[pool][kind][page / MEM_PAGE_SIZE % TLB_ENTRIES];
    if (tlb->local_count == FLAT_ENTRIES || tlb->global_count == FLAT_ENTRIES)
        mmu_flush_all(cpu);
    *entry = (struct tlb_entry){page, host_page};
    unsigned index = (unsigned)(entry - flat(tlb));
    if (global)
        list_add(tlb->global, &tlb->global_count, index);
    else
        list_add(tlb->local, &tlb->local_count, index);
}

void tlb_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t linear, const struct walk_result *walk, uint8_t *host_page)
{
    uint64_t page = linear & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    enter(cpu, pool, TLB_READ, page, walk->global, host_page);
    if (walk->large) {
        unsigned region = (unsigned)(linear >> 21) % 4096;
        cpu->tlb.large[region / 64] |= UINT64_C(1) << (region % 64);
        cpu->tlb.has_large = true;
    }
    if (walk->writable && cache_allow_writes(cpu, host_page))
        enter(cpu, pool, TLB_WRITE, page, walk->global, host_page);
}

bool tlb_has_write_entry(const struct jit_vcpu *cpu, uint64_t linear)
{
    const struct tlb_entry *entry =
        &cpu->tlb.entries[tlb_pool_of(cpu, 0)][TLB_WRITE][linear / MEM_PAGE_SIZE % TLB_ENTRIES];
    return entry->tag == (linear & ~(uint64_t)(MEM_PAGE_SIZE - 1));
}

void tlb_drop_writes(struct jit_vcpu *cpu, const uint8_t *host_page)
{
    forget_stacks(&cpu->tlb);
    for (unsigned pool = 0; pool < TLB_POOLS; pool++) {
        struct tlb_entry *entries = cpu->tlb.entries[pool][TLB_WRITE];
        for (unsigned i = 0; i < TLB_ENTRIES; i++)
            if (entries[i].host == host_page)
                entries[i] = empty;
    }
}

static void clear_list(struct tlb *tlb, const uint32_t *list, uint32_t *count)
{
    for (uint32_t i = 0; i < *count; i++)
        flat(tlb)[list[i]] = empty;
    *count = 0;
}

static void clear_jumps(struct jump_cache *jumps, const uint32_t *list, uint32_t *count)
{
    for (uint32_t i = 0; i < *count; i++)
        (&jumps->negated_rip[0][0][0])[list[i]] = empty_tag(list[i]);
    *count = 0;
}

static unsigned jump_index(const struct jit_vcpu *cpu, uint64_t rip)
{
    uint64_t slot;
    __asm__("pext %2, %1, %0" : "=r"(slot) : "r"(rip), "r"(cpu->jump_mask));
    return (unsigned)slot;
}

const uint8_t *jump_cache_find(const struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip)
{
    const struct jump_cache *jumps = &cpu->jump_cache;
    unsigned index = jump_index(cpu, rip);
    for (unsigned way = 0; way < JUMP_WAYS; way++)
        if (jumps->negated_rip[pool][way][index] == -rip)
            return jumps->entry[pool][way][index];
    return NULL;
}

static void set_jump(struct jump_cache *jumps, unsigned flat, uint64_t tag, const uint8_t *entry, bool global)
{
    (&jumps->negated_rip[0][0][0])[flat] = tag;
    (&jumps->entry[0][0][0])[flat] = entry;
    uint64_t bit = UINT64_C(1) << (flat % 64), *word = &jumps->is_global[flat / 64];
    *word = global ? *word | bit : *word & ~bit;
    if (global)
        list_add(jumps->global, &jumps->global_count, flat);
    else
        list_add(jumps->local, &jumps->local_count, flat);
}

void jump_cache_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip, bool global, const uint8_t *entry)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    unsigned index = jump_index(cpu, rip), first = pool * JUMP_WAYS * JUMP_ENTRIES + index;
    if (jumps->local_count + 2 > JUMP_LISTED || jumps->global_count + 2 > JUMP_LISTED)
        jump_cache_flush(cpu);
    uint64_t old = jumps->negated_rip[pool][0][index];
    if (old != -rip && old != empty_tag(index))
        set_jump(jumps, first + JUMP_ENTRIES, old, jumps->entry[pool][0][index], jumps->is_global[first / 64] >> (first % 64) & 1);
    set_jump(jumps, first, -rip, entry, global);
    unsigned page = (unsigned)(rip / MEM_PAGE_SIZE) % 4096;
    jumps->pages[rip >> 63][page / 64] |= UINT64_C(1) << (page % 64);
}

void jump_cache_flush(struct jit_vcpu *cpu)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    clear_jumps(jumps, jumps->local, &jumps->local_count);
    clear_jumps(jumps, jumps->global, &jumps->global_count);
    for (unsigned i = 0; i < 64; i++)
        jumps->pages[0][i] = jumps->pages[1][i] = 0;
}

void mmu_flush_local(struct jit_vcpu *cpu)
{
    cpu->flush_epoch++;
    forget_stacks(&cpu->tlb);
    clear_list(&cpu->tlb, cpu->tlb.local, &cpu->tlb.local_count);
    clear_jumps(&cpu->jump_cache, cpu->jump_cache.local, &cpu->jump_cache.local_count);
}

void mmu_flush_all(struct jit_vcpu *cpu)
{
    mmu_flush_local(cpu);
    clear_list(&cpu->tlb, cpu->tlb.global, &cpu->tlb.global_count);
    jump_cache_flush(cpu);
    if (cpu->tlb.has_large)
        for (unsigned i = 0; i < 64; i++)
            cpu->tlb.large[i] = 0;
    cpu->tlb.has_large = false;
}

void mmu_flush_page(struct jit_vcpu *cpu, uint64_t linear)
{
    unsigned region = (unsigned)(linear >> 21) % 4096;
    if (cpu->tlb.large[region / 64] >> (region % 64) & 1) {
        mmu_flush_all(cpu);
        return;
    }
    cpu->flush_epoch++;
    forget_stacks(&cpu->tlb);
    uint64_t page = linear & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    for (unsigned i = 0; i < TLB_POOLS * TLB_ACCESSES; i++) {
        struct tlb_entry *entry = &flat(&cpu->tlb)[i * TLB_ENTRIES + page / MEM_PAGE_SIZE % TLB_ENTRIES];
        if (entry->tag == page)
            *entry = empty;
    }
    unsigned number = (unsigned)(page / MEM_PAGE_SIZE) % 4096;
    if (cpu->jump_cache.pages[page >> 63][number / 64] >> (number % 64) & 1)
        jump_cache_flush(cpu);
}
