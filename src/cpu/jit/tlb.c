/* Fills and flushes of the soft TLB and the jump cache. */
#include "cpu/jit/tlb.h"

#include "cpu/jit/cache.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/vcpu.h"
#include "cpu/jit/walk.h"

#define FLAT_ENTRIES (TLB_POOLS * TLB_ACCESSES * TLB_ENTRIES)

static const struct tlb_entry empty = {TLB_EMPTY, (uint8_t *)TLB_EMPTY};
static const struct tlb_entry empty_second = {1, NULL}; /* no page's address: nothing goes from here to the first level */

static struct tlb_entry *flat(struct tlb *tlb)
{
    return &tlb->entries[0][0][0];
}

static struct tlb_entry *flat_second(struct tlb *tlb)
{
    return &tlb->second[0][0][0];
}

/* As enter.c computes it. */
static unsigned second_index(uint64_t linear)
{
    return (uint32_t)(linear / MEM_PAGE_SIZE) * TLB2_HASH >> (32 - TLB2_BITS);
}

/* Empties an entry of the second level, and its twin in the first. */
static void drop(struct tlb *tlb, unsigned index)
{
    struct tlb_entry *second = &flat_second(tlb)[index];
    struct tlb_entry *first = &flat(tlb)[index / TLB2_ENTRIES * TLB_ENTRIES + second->tag / MEM_PAGE_SIZE % TLB_ENTRIES];
    if (first->tag == second->tag)
        *first = empty;
    *second = empty_second;
}

static void forget_stacks(struct tlb *tlb)
{
    for (unsigned pool = 0; pool < TLB_POOLS; pool++)
        tlb->stack[pool] = empty;
}

/* The slots of rip ~0, which 0 would stand for: the rip that they name instead belongs to another slot. */
static void empty_last_slots(struct jump_cache *jumps)
{
    for (unsigned pool = 0; pool < TLB_POOLS; pool++)
        jumps->not_rip[pool][JUMP_ENTRIES - 1] = jumps->not_rip2[pool][JUMP2_ENTRIES - 1] = ~UINT64_C(0);
}

void tlb_init(struct jit_vcpu *cpu)
{
    for (unsigned i = 0; i < FLAT_ENTRIES; i++)
        flat(&cpu->tlb)[i] = empty;
    for (unsigned i = 0; i < TLB2_FLAT; i++)
        flat_second(&cpu->tlb)[i] = empty_second;
    empty_last_slots(&cpu->jump_cache);
    forget_stacks(&cpu->tlb);
    cpu->tlb_mask = (uint64_t)(TLB_ENTRIES - 1) * MEM_PAGE_SIZE;
    cpu->page_mask = ~(uint64_t)(MEM_PAGE_SIZE - 1);
    cpu->jump_mask = (uint64_t)(JUMP_ENTRIES - 1) << 2;
    cpu->fetch_mask = (uint64_t)(FETCH_TLB_ENTRIES - 1) * MEM_PAGE_SIZE;
    cpu->jump2_mask = (uint64_t)(JUMP2_ENTRIES - 1) << 1;
    cpu->place_mask = (uint64_t)(PLACE_TLB_ENTRIES - 1) * MEM_PAGE_SIZE;
    cpu->offset_mask = MEM_PAGE_SIZE - 1;
    cpu->listed_mask = JUMP_LISTED - 1;
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

static void list_add(struct tlb *tlb, enum tlb_list list, unsigned index)
{
    if (tlb->listed[index] >> list & 1)
        return;
    tlb->listed[index] |= (uint8_t)(1u << list);
    tlb->list[list][tlb->count[list]++] = index;
}

static void enter(struct jit_vcpu *cpu, enum tlb_pool pool, enum tlb_access kind, uint64_t page, bool global,
                  uint8_t *host_page)
{
    struct tlb *tlb = &cpu->tlb;
    struct tlb_entry entry = {page, host_page}, *second = &tlb->second[pool][kind][second_index(page)];
    unsigned index = (unsigned)(second - flat_second(tlb));
    if (second->tag != page)
        drop(tlb, index);
    *second = tlb->entries[pool][kind][page / MEM_PAGE_SIZE % TLB_ENTRIES] = entry;
    list_add(tlb, global ? TLB_GLOBAL : TLB_LOCAL, index);
}

void tlb_note_size(struct jit_vcpu *cpu, uint64_t linear, unsigned bits)
{
    struct tlb *tlb = &cpu->tlb;
    if (bits == 12)
        return;
    tlb->has_large = true;
    if (bits < 30) { /* 4 MiB are two regions */
        unsigned region = (unsigned)(linear >> 21) % 4096;
        tlb->large[region / 64] |= (bits == 22 ? UINT64_C(3) << (region % 64 & ~1u) : UINT64_C(1) << (region % 64));
        return;
    }
    for (unsigned i = 0; i < tlb->huge_count; i++)
        if (tlb->huge[i] == linear >> 30)
            return;
    if (tlb->huge_count < TLB_HUGE_MAX)
        tlb->huge[tlb->huge_count] = linear >> 30;
    if (tlb->huge_count <= TLB_HUGE_MAX)
        tlb->huge_count++; /* one more than fit: any may be */
}

static bool is_of_large_page(const struct tlb *tlb, uint64_t linear)
{
    unsigned region = (unsigned)(linear >> 21) % 4096;
    for (unsigned i = 0; i < tlb->huge_count; i++)
        if (i == TLB_HUGE_MAX || tlb->huge[i] == linear >> 30)
            return true;
    return tlb->large[region / 64] >> (region % 64) & 1;
}

void tlb_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t linear, const struct walk_result *walk, uint8_t *host_page)
{
    uint64_t page = linear & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    enter(cpu, pool, TLB_READ, page, walk->global, host_page);
    tlb_note_size(cpu, linear, walk->bits);
    if (walk->writable && cache_allow_writes(cpu, host_page))
        enter(cpu, pool, TLB_WRITE, page, walk->global, host_page);
}

const struct tlb_entry *tlb_second(const struct jit_vcpu *cpu, enum tlb_pool pool, enum tlb_access kind, uint64_t linear)
{
    const struct tlb_entry *entry = &cpu->tlb.second[pool][kind][second_index(linear)];
    return entry->tag == (linear & ~(uint64_t)(MEM_PAGE_SIZE - 1)) ? entry : NULL;
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
    for (unsigned list = 0; list < TLB_LISTS; list++) {
        for (uint32_t i = 0; i < cpu->tlb.count[list]; i++) {
            unsigned index = cpu->tlb.list[list][i];
            if (index / TLB2_ENTRIES % TLB_ACCESSES == TLB_WRITE && flat_second(&cpu->tlb)[index].host == host_page)
                drop(&cpu->tlb, index);
        }
    }
}

static void clear_list(struct tlb *tlb, enum tlb_list list)
{
    for (uint32_t i = 0; i < tlb->count[list]; i++) {
        drop(tlb, tlb->list[list][i]);
        tlb->listed[tlb->list[list][i]] &= (uint8_t)~(1u << list);
    }
    tlb->count[list] = 0;
}

static uint64_t *flat_jumps(struct jump_cache *jumps)
{
    return &jumps->not_rip[0][0];
}

static void clear(uint64_t *words, uint64_t count)
{
    __asm__ volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(0) : "memory");
}

static void clear_all_jumps(struct jit_vcpu *cpu)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    enum tlb_pool first = vcpu_jumps_by_place(cpu) ? TLB_USER + 1 : TLB_USER;
    clear(jumps->not_rip[TLB_USER], TLB_POOLS * JUMP_ENTRIES);
    clear(jumps->not_rip2[first], (TLB_POOLS - first) * JUMP2_ENTRIES);
    empty_last_slots(jumps);
    jumps->local_count = jumps->global_count = 0;
    for (unsigned i = 0; i < 64; i++)
        jumps->pages[0][i] = jumps->pages[1][i] = 0;
}

static void clear_listed(struct jump_cache *jumps, const uint32_t *list, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        flat_jumps(jumps)[list[i]] = 0;
    empty_last_slots(jumps);
}

static void flush_local_jumps(struct jit_vcpu *cpu)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    if (jumps->local_count > JUMP_LISTED) {
        clear_all_jumps(cpu);
        return;
    }
    clear_listed(jumps, jumps->local, jumps->local_count);
    jumps->local_count = 0;
}

void jump_cache_flush(struct jit_vcpu *cpu)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    clear(cpu->fetch_tlb.not_page, PLACE_TLB_ENTRIES);
    if (jumps->local_count > JUMP_LISTED || jumps->global_count > JUMP_LISTED) {
        clear_all_jumps(cpu);
        return;
    }
    clear_listed(jumps, jumps->local, jumps->local_count);
    clear_listed(jumps, jumps->global, jumps->global_count);
    jumps->local_count = jumps->global_count = 0;
    for (unsigned i = 0; i < 64; i++)
        jumps->pages[0][i] = jumps->pages[1][i] = 0;
}

static unsigned jump_index(uint64_t mask, uint64_t rip)
{
    uint64_t slot;
    __asm__("pext %2, %1, %0" : "=r"(slot) : "r"(rip), "r"(mask));
    return (unsigned)slot;
}

/* The second level's index. What meets in one slot of the first is apart here: pages 64 KiB from each other, and places within
 * four bytes, such as an exception handler and what follows its CLAC. As enter.c computes it; all ones for ~0. */
static unsigned jump2_index(const struct jit_vcpu *cpu, uint64_t rip)
{
    return jump_index(cpu->jump2_mask, rip + (rip >> JUMP2_ROTATE | rip << (64 - JUMP2_ROTATE)));
}

static void drop_jump(uint64_t *not_rip, uint64_t rip)
{
    if (*not_rip == ~rip)
        *not_rip = 0;
}

void jump_cache_drop(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip)
{
    drop_jump(&cpu->jump_cache.not_rip[pool][jump_index(cpu->jump_mask, rip)], rip);
    drop_jump(&cpu->jump_cache.not_rip2[pool][jump2_index(cpu, rip)], rip);
    empty_last_slots(&cpu->jump_cache);
}

void jump_cache_drop_user(struct jit_vcpu *cpu, const uint8_t *start, const uint8_t *end)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    for (unsigned i = 0; i < JUMP_ENTRIES; i++)
        if (jumps->entry[TLB_USER][i] >= start && jumps->entry[TLB_USER][i] < end)
            jumps->not_rip[TLB_USER][i] = 0;
    for (unsigned i = 0; i < JUMP2_ENTRIES && !vcpu_jumps_by_place(cpu); i++) /* by place, blocks are dropped one by one */
        if (jumps->entry2[TLB_USER][i] >= start && jumps->entry2[TLB_USER][i] < end)
            jumps->not_rip2[TLB_USER][i] = 0;
    empty_last_slots(jumps);
}

const uint8_t *jump_cache_find(const struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip)
{
    const struct jump_cache *jumps = &cpu->jump_cache;
    unsigned index = jump_index(cpu->jump_mask, rip);
    if (jumps->not_rip[pool][index] == ~rip)
        return jumps->entry[pool][index];
    if (pool == TLB_USER && vcpu_jumps_by_place(cpu))
        return NULL;
    index = jump2_index(cpu, rip);
    return jumps->not_rip2[pool][index] == ~rip ? jumps->entry2[pool][index] : NULL;
}

/* Counts on when the list is full: then the list stands for everything. */
static void list_jump(uint32_t *list, uint64_t *count, uint32_t flat)
{
    if (*count < JUMP_LISTED)
        list[*count] = flat;
    *count += *count <= JUMP_LISTED;
}

static void note_jump_page(struct jump_cache *jumps, uint64_t linear)
{
    unsigned page = (unsigned)(linear / MEM_PAGE_SIZE) % 4096;
    jumps->pages[linear >> 63][page / 64] |= UINT64_C(1) << (page % 64);
}

static void fill_first(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip, bool global, const uint8_t *entry)
{
    struct jump_cache *jumps = &cpu->jump_cache;
    unsigned index = jump_index(cpu->jump_mask, rip);
    jumps->not_rip[pool][index] = ~rip;
    jumps->entry[pool][index] = entry;
    list_jump(global ? jumps->global : jumps->local, global ? &jumps->global_count : &jumps->local_count,
              (uint32_t)(&jumps->not_rip[pool][index] - flat_jumps(jumps)));
    note_jump_page(jumps, rip);
}

void jump_cache_note_second_page(struct jit_vcpu *cpu, uint64_t rip)
{
    note_jump_page(&cpu->jump_cache, (rip | (MEM_PAGE_SIZE - 1)) + 1);
}

void jump_cache_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip, bool global, const uint8_t *entry)
{
    fill_first(cpu, pool, rip, global, entry);
    if (pool == TLB_USER && vcpu_jumps_by_place(cpu))
        return;
    struct jump_cache *jumps = &cpu->jump_cache;
    unsigned index = jump2_index(cpu, rip);
    jumps->not_rip2[pool][index] = ~rip;
    jumps->entry2[pool][index] = entry;
    list_jump(global ? jumps->global : jumps->local, global ? &jumps->global_count : &jumps->local_count,
              (uint32_t)(&jumps->not_rip2[pool][index] - flat_jumps(jumps)));
}

void jump_cache_fill_place(struct jit_vcpu *cpu, uint64_t rip, uint64_t place, bool global, const uint8_t *entry)
{
    fill_first(cpu, TLB_USER, rip, global, entry);
    unsigned index = jump2_index(cpu, place), page = jump_index(cpu->place_mask, rip);
    cpu->jump_cache.not_rip2[TLB_USER][index] = ~place;
    cpu->jump_cache.entry2[TLB_USER][index] = entry;
    cpu->fetch_tlb.not_page[page] = ~(rip / MEM_PAGE_SIZE);
    cpu->fetch_tlb.place[page] = place & ~(uint64_t)(MEM_PAGE_SIZE - 1);
}

const uint8_t *jump_cache_find_place(const struct jit_vcpu *cpu, uint64_t place)
{
    unsigned index = jump2_index(cpu, place);
    return cpu->jump_cache.not_rip2[TLB_USER][index] == ~place ? cpu->jump_cache.entry2[TLB_USER][index] : NULL;
}

void jump_cache_drop_place(struct jit_vcpu *cpu, uint64_t place)
{
    uint64_t *not_place = &cpu->jump_cache.not_rip2[TLB_USER][jump2_index(cpu, place)];
    if (*not_place == ~place)
        *not_place = 0;
}

void jump_cache_drop_places(struct jit_vcpu *cpu)
{
    clear(cpu->jump_cache.not_rip2[TLB_USER], JUMP2_ENTRIES);
}

static uint64_t *fetch_tlb_entry(struct jit_vcpu *cpu, bool user, uint64_t linear)
{
    return &cpu->fetch_tlb.not_key[user][linear / MEM_PAGE_SIZE % FETCH_TLB_ENTRIES];
}

void fetch_tlb_fill(struct jit_vcpu *cpu, bool user, uint64_t linear, uint32_t page, bool global)
{
    uint64_t linear_page = linear & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    *fetch_tlb_entry(cpu, user, linear) = ~(linear_page - 2 * (uint64_t)page);
    if (!user && !global)
        cpu->fetch_tlb.supervisor_local = true;
}

static void fetch_tlb_flush(struct fetch_tlb *tlb, bool all)
{
    clear(tlb->not_key[true], FETCH_TLB_ENTRIES);
    clear(tlb->not_page, PLACE_TLB_ENTRIES);
    if (all || tlb->supervisor_local)
        clear(tlb->not_key[false], FETCH_TLB_ENTRIES);
    tlb->supervisor_local = false;
}

void mmu_flush_local(struct jit_vcpu *cpu)
{
    cpu->jump_cache.stat_flush_local++;
    cpu->flush_epoch++;
    forget_stacks(&cpu->tlb);
    clear_list(&cpu->tlb, TLB_LOCAL);
    flush_local_jumps(cpu);
    fetch_tlb_flush(&cpu->fetch_tlb, false);
}

void mmu_flush_all(struct jit_vcpu *cpu)
{
    cpu->jump_cache.stat_flush_all++;
    mmu_flush_local(cpu);
    clear_list(&cpu->tlb, TLB_GLOBAL);
    jump_cache_flush(cpu);
    fetch_tlb_flush(&cpu->fetch_tlb, true);
    if (cpu->tlb.has_large)
        for (unsigned i = 0; i < 64; i++)
            cpu->tlb.large[i] = 0;
    cpu->tlb.has_large = false;
    cpu->tlb.huge_count = 0;
}

void mmu_flush_page(struct jit_vcpu *cpu, uint64_t linear)
{
    cpu->jump_cache.stat_flush_page++;
    if (is_of_large_page(&cpu->tlb, linear)) {
        mmu_flush_all(cpu);
        return;
    }
    cpu->flush_epoch++;
    forget_stacks(&cpu->tlb);
    uint64_t page = linear & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    for (unsigned i = 0; i < TLB_POOLS * TLB_ACCESSES; i++) {
        unsigned index = i * TLB2_ENTRIES + second_index(page);
        if (flat_second(&cpu->tlb)[index].tag == page)
            drop(&cpu->tlb, index);
    }
    *fetch_tlb_entry(cpu, true, linear) = *fetch_tlb_entry(cpu, false, linear) = 0;
    cpu->fetch_tlb.not_page[jump_index(cpu->place_mask, linear)] = 0;
    unsigned number = (unsigned)(page / MEM_PAGE_SIZE) % 4096;
    if (cpu->jump_cache.pages[page >> 63][number / 64] >> (number % 64) & 1) {
        cpu->jump_cache.stat_flush_page_jumps++;
        jump_cache_flush(cpu);
    }
}
