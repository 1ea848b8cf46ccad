/* Room for translated code. The code memory and the tables are divided into regions, which are filled one after the other. When
 * as many are full as the cache uses, the oldest is filled again. Its blocks are dropped before that, some at a time, while the
 * second half of the region before it fills: no stall is long.
 * A cache starts small, as most code of a starting guest runs once. It grows, up to the size of the option, as long as more than
 * seven of eight blocks that it makes are ones that it has dropped before. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cpu/jit/cache_impl.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/profile.h"

#define SITES_PER_INSN 6u /* more than any has: most have a check and a way out, rep movs has two and one */
#define REGION_BYTES ((size_t)256 << 10)
#define START_BYTES ((size_t)12 << 20)
#define TRANSLATOR_BYTES ((sizeof(struct translator) + VCPU_HUGE_PAGE - 1) & ~(VCPU_HUGE_PAGE - 1))
#define EVICT_BLOCKS 64u /* at a time */
#define EVICT_EVERY 16u  /* new blocks: a region has some 600, so that all are dropped when the next one is due */
#define DROPPED_MAX (1u << (DROPPED_BITS - 2)) /* with more bits set, too many blocks look as if they came back */

static void *table(size_t count, size_t size)
{
    void *p = mmap(NULL, count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void free_table(void *table, size_t count, size_t size)
{
    if (table)
        munmap(table, count * size);
}

static size_t total(const struct translator *tr, uint32_t slice)
{
    return (size_t)slice * tr->region_count + 1;
}

/* Block 0 ends chains. */
static uint32_t first_block(const struct translator *tr, uint32_t region)
{
    return region * tr->block_slice + 1;
}

static uint8_t *region_start(const struct translator *tr, uint32_t region)
{
    return tr->regions_start + region * tr->region_bytes;
}

/* Of what guests make, 73 to 74 parts in a hundred are hot code: with 23 of 32 for it neither part is full much before the other. */
static uint8_t *cold_start(const struct translator *tr, uint32_t region)
{
    return region_start(tr, region) + tr->region_bytes / 32 * 23;
}

/* What the current region holds goes into its record, from where it is read. */
static void note_region(struct translator *tr)
{
    uint32_t r = tr->region;
    tr->regions[r] = (struct region){.turn = tr->turn,
                                     .end_block = tr->block_count,
                                     .sites = tr->site_count - r * tr->site_slice,
                                     .maps = tr->map_count - r * tr->map_slice,
                                     .links = tr->link_count - r * tr->link_slice,
                                     .hot = (uint32_t)(tr->hot - region_start(tr, r)),
                                     .cold = (uint32_t)(tr->cold - cold_start(tr, r))};
}

static void start_region(struct translator *tr, uint32_t region)
{
    tr->region = region;
    tr->turn++;
    tr->again = 0;
    tr->hot = region_start(tr, region);
    tr->cold = tr->hot_end = cold_start(tr, region);
    tr->cold_end = region_start(tr, region + 1);
    tr->block_count = first_block(tr, region);
    tr->site_count = region * tr->site_slice;
    tr->map_count = region * tr->map_slice;
    tr->link_count = region * tr->link_slice;
    note_region(tr);
}

static bool create_tables(struct translator *tr)
{
    tr->blocks = table(total(tr, tr->block_slice), sizeof *tr->blocks);
    tr->sites = table(total(tr, tr->site_slice), sizeof *tr->sites);
    tr->maps = table(total(tr, tr->map_slice), sizeof *tr->maps);
    tr->links = table(total(tr, tr->link_slice), sizeof *tr->links);
    tr->page_heads = table(tr->pages, sizeof *tr->page_heads);
    return tr->blocks && tr->sites && tr->maps && tr->links && tr->page_heads && insn_pool_create(&tr->insns);
}

int cache_create(struct jit_vcpu *cpu, size_t code_bytes, struct err *err)
{
    struct translator *tr = mem_map(TRANSLATOR_BYTES);
    if (!tr)
        return err_set(err, ENOMEM, "translator");
    cpu->translator = tr;
    int result = mcode_create(&tr->mcode, code_bytes, err);
    if (result)
        return result;
    size_t regions = code_bytes / REGION_BYTES;
    tr->region_count = regions > REGIONS_MAX ? REGIONS_MAX : (uint32_t)regions;
    /* Blocks average some 200 bytes of code, sites 80, instructions 45: the tables fill up after the code memory does. */
    size_t slice = code_bytes / tr->region_count;
    tr->block_slice = (uint32_t)(slice / 96);
    tr->site_slice = (uint32_t)(slice / 24);
    tr->map_slice = (uint32_t)(slice / 12);
    tr->link_slice = (uint32_t)(slice / 48);
    tr->pages = (uint32_t)(mem_size(cpu->mem) / MEM_PAGE_SIZE);
    tr->ram = mem_slot(cpu->mem, 0)->hva;
    tr->known.remembers = vcpu_optimises(cpu, JIT_OPT_KNOWN);
    if (!create_tables(tr))
        return err_set(err, ENOMEM, "translator tables");
    mcode_touch(&tr->mcode, tr->mcode.write, CACHE_ROOM_HOT);
    tr->regions_start = enter_make_trampolines(cpu);
    tr->region_bytes = (code_bytes - (size_t)(tr->regions_start - tr->mcode.write)) / tr->region_count & ~(size_t)63;
    size_t used = (vcpu_optimises(cpu, JIT_OPT_GROW) ? START_BYTES : code_bytes) / tr->region_bytes;
    tr->regions_used = used < 2 ? 2 : used > tr->region_count ? tr->region_count : (uint32_t)used;
    for (uint32_t r = tr->region_count; r-- > 0;)
        start_region(tr, r);
    return 0;
}

void cache_free(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    if (!tr)
        return;
    mcode_free(&tr->mcode);
    free_table(tr->blocks, total(tr, tr->block_slice), sizeof *tr->blocks);
    free_table(tr->sites, total(tr, tr->site_slice), sizeof *tr->sites);
    free_table(tr->maps, total(tr, tr->map_slice), sizeof *tr->maps);
    free_table(tr->links, total(tr, tr->link_slice), sizeof *tr->links);
    free_table(tr->page_heads, tr->pages, sizeof *tr->page_heads);
    insn_pool_free(&tr->insns);
    munmap(tr, TRANSLATOR_BYTES);
    cpu->translator = NULL;
}

struct region cache_usage(const struct translator *tr)
{
    struct region sum = {0};
    for (uint32_t r = 0; r < tr->region_count; r++) {
        sum.end_block += tr->regions[r].end_block - first_block(tr, r) - tr->regions[r].evicted;
        sum.sites += tr->regions[r].sites;
        sum.maps += tr->regions[r].maps;
        sum.links += tr->regions[r].links;
        sum.hot += tr->regions[r].hot;
        sum.cold += tr->regions[r].cold;
    }
    return sum;
}

/* ---- dropping a region ---- */

static void unmark(struct jit_vcpu *cpu, uint32_t page)
{
    __atomic_fetch_and(&cpu->engine->code_pages[page], ~(1u << cpu->base.index), __ATOMIC_SEQ_CST);
}

/* Takes all blocks that are evicted out of a page's list at once: lists are long, and walking one for each block too slow. */
static void sweep_page(struct jit_vcpu *cpu, uint32_t page)
{
    struct translator *tr = cpu->translator;
    uint32_t *at = &tr->page_heads[page];
    while (*at) {
        struct block *block = &tr->blocks[*at];
        uint32_t *next = &block->page_next[block->page[0] != page];
        if (block->evicted) {
            *at = *next;
            *next = NO_BLOCK;
        } else {
            at = next;
        }
    }
    if (!tr->page_heads[page])
        unmark(cpu, page);
}

/* The same for the links into a block. */
static void sweep_incoming(struct translator *tr, struct block *block)
{
    uint32_t *at = &block->incoming;
    while (*at != NO_LINK) {
        struct link *link = &tr->links[*at];
        if (tr->blocks[link->from].evicted) {
            *at = link->next;
            link->target = NO_BLOCK;
        } else {
            at = &link->next;
        }
    }
}

/* A bit that stands for a block among those that were dropped. */
static uint64_t *dropped_word(struct translator *tr, const struct block *block, uint64_t *ret_bit)
{
    uint64_t place = ((uint64_t)block->page[0] << 12 | block->offset) ^ (uint64_t)block->key.pool << 56;
    uint64_t number = place * UINT64_C(0x9e3779b97f4a7c15) >> (64 - DROPPED_BITS);
    *ret_bit = UINT64_C(1) << (number % 64);
    return &tr->dropped[number / 64];
}

void cache_note_block(struct translator *tr, const struct block *block)
{
    uint64_t bit, *word = dropped_word(tr, block, &bit);
    if (!(*word & bit))
        return;
    *word &= ~bit;
    tr->dropped_count--;
    tr->again++;
    tr->stat_again++;
}

static void evict_block(struct jit_vcpu *cpu, struct block *block)
{
    struct translator *tr = cpu->translator;
    uint64_t bit, *word = dropped_word(tr, block, &bit);
    tr->dropped_count += !(*word & bit);
    *word |= bit;
    sweep_incoming(tr, block);
    cache_unlink_incoming(tr, block);
    for (const struct link *link = &tr->links[block->first_link]; link < &tr->links[block->first_link + block->link_count]; link++)
        if (link->target != NO_BLOCK)
            sweep_incoming(tr, &tr->blocks[link->target]);
    cache_remove_from_hash(tr, block);
    jump_cache_drop_place(cpu, block_place(block));
    for (unsigned k = 0; k < block_pages(block); k++)
        if (block->page_next[k] != NO_BLOCK)
            sweep_page(cpu, block->page[k]);
    block->dead = true;
}

/* Of this thread, in nanoseconds: what others take on a busy host is not the cache's. */
static uint64_t cpu_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Drops blocks [first, end) of one region, which is not being filled. */
static void evict_blocks(struct jit_vcpu *cpu, uint32_t first, uint32_t end)
{
    struct translator *tr = cpu->translator;
    for (uint32_t id = first; id < end; id++)
        tr->blocks[id].evicted = !tr->blocks[id].dead;
    for (uint32_t id = first; id < end; id++) {
        if (tr->blocks[id].evicted)
            evict_block(cpu, &tr->blocks[id]);
        if (!tr->blocks[id].pic) /* the dead too: their entries lead here until now */
            jump_cache_drop(cpu, tr->blocks[id].key.pool, tr->blocks[id].rip);
    }
    const struct block *last = &tr->blocks[end - 1];
    jump_cache_drop_user(cpu, block_entry(tr, &tr->blocks[first]), block_entry(tr, last) + last->code_length);
    tr->generation++;
}

/* Drops the next blocks of a region, and says whether there are more. */
static bool evict_some(struct jit_vcpu *cpu, uint32_t region)
{
    struct translator *tr = cpu->translator;
    struct region *r = &tr->regions[region];
    uint32_t first = first_block(tr, region) + r->evicted, end = r->end_block;
    if (first == end)
        return false;
    if (end - first > EVICT_BLOCKS)
        end = first + EVICT_BLOCKS;
    uint64_t start = cpu_time();
    enum profile_part part = profile_begin(cpu, PROFILE_EVICT);
    if (tr->dropped_count > DROPPED_MAX) {
        memset(tr->dropped, 0, sizeof tr->dropped);
        tr->dropped_count = 0;
    }
    evict_blocks(cpu, first, end);
    r->evicted += end - first;
    profile_switch(cpu, part);
    tr->stat_evictions++;
    uint64_t took = cpu_time() - start;
    tr->stat_eviction_ns += took;
    if (took > tr->stat_longest_eviction_ns)
        tr->stat_longest_eviction_ns = took;
    return end < r->end_block;
}

static bool growth_pays(const struct translator *tr)
{
    uint32_t made = tr->block_count - first_block(tr, tr->region);
    return tr->regions_used < tr->region_count && tr->again > made / 8 * 7;
}

static uint32_t oldest_region(const struct translator *tr)
{
    uint32_t oldest = 0;
    for (uint32_t r = 1; r < tr->regions_used; r++)
        if (tr->regions[r].turn < tr->regions[oldest].turn)
            oldest = r;
    return oldest;
}

static bool is_full(const struct translator *tr)
{
    return (size_t)(tr->hot_end - tr->hot) < CACHE_ROOM_HOT || (size_t)(tr->cold_end - tr->cold) < CACHE_ROOM_COLD ||
           tr->block_count + 1 >= first_block(tr, tr->region + 1) ||
           tr->site_count + SITES_PER_INSN * BLOCK_MAX_INSNS >= (tr->region + 1) * tr->site_slice ||
           tr->map_count + BLOCK_MAX_INSNS >= (tr->region + 1) * tr->map_slice ||
           tr->link_count + BLOCK_MAX_LINKS >= (tr->region + 1) * tr->link_slice;
}

/* When the current region is half full, what it is followed by is emptied bit by bit. */
static void evict_ahead(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    uint32_t made = tr->block_count - first_block(tr, tr->region);
    size_t used = (size_t)(tr->hot - region_start(tr, tr->region));
    if (made % EVICT_EVERY == 0 && used > tr->region_bytes / 8 * 3 && !growth_pays(tr))
        (void)evict_some(cpu, oldest_region(tr));
}

void cache_make_room(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    note_region(tr);
    if (is_full(tr)) {
        uint32_t next = growth_pays(tr) ? tr->regions_used++ : oldest_region(tr);
        while (evict_some(cpu, next))
            ;
        start_region(tr, next);
    } else {
        evict_ahead(cpu);
    }
    mcode_touch(&tr->mcode, tr->hot, CACHE_ROOM_HOT);
    mcode_touch(&tr->mcode, tr->cold, CACHE_ROOM_COLD);
}

void cache_drop_all(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    fpu_save(cpu);
    note_region(tr);
    for (uint32_t r = tr->region_count; r-- > 0;) {
        for (uint32_t id = first_block(tr, r); id < tr->regions[r].end_block; id++) {
            for (unsigned k = 0; k < block_pages(&tr->blocks[id]); k++) {
                tr->page_heads[tr->blocks[id].page[k]] = 0;
                unmark(cpu, tr->blocks[id].page[k]);
            }
        }
        start_region(tr, r);
    }
    memset(tr->hash, 0, sizeof tr->hash);
    tr->generation++;
    tr->stat_resets++;
    jump_cache_flush(cpu);
    jump_cache_drop_places(cpu);
}
