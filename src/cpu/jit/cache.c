/* Tables of translated blocks and the rules by which they come and go; see cache.h. */
#include "cpu/jit/cache.h"

#include <string.h>

#include "cpu/jit/cache_impl.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/mmu.h"
#include "cpu/jit/profile.h"
#include "cpu/jit/requests.h"
#include "cpu/jit/vcpu.h"

#define PAGE_MASK ((uint64_t)MEM_PAGE_SIZE - 1)

static uint32_t hash_of(uint32_t page, uint32_t offset, struct block_key key)
{
    uint64_t h = (((uint64_t)page << 12 | offset) ^ (uint64_t)key.pool << 56) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(h >> (64 - HASH_BITS));
}

struct block *cache_new_block(struct jit_vcpu *cpu)
{
    struct translator *tr = cpu->translator;
    return &tr->blocks[tr->block_count++];
}

bool cache_allow_writes(struct jit_vcpu *cpu, const uint8_t *host_page)
{
    uint32_t page = translator_page(cpu->translator, host_page), me = 1u << cpu->base.index;
    /* Only this thread clears its bit: while it is set, whoever marks the page asks. */
    if (!(__atomic_load_n(&cpu->engine->write_pages[page], __ATOMIC_RELAXED) & me))
        __atomic_fetch_or(&cpu->engine->write_pages[page], me, __ATOMIC_SEQ_CST);
    return !__atomic_load_n(&cpu->engine->code_pages[page], __ATOMIC_SEQ_CST);
}

bool cache_page_has_code(struct jit_vcpu *cpu, const uint8_t *host)
{
    return __atomic_load_n(&cpu->engine->code_pages[translator_page(cpu->translator, host)], __ATOMIC_RELAXED) != 0;
}

static bool marked(const struct jit_vcpu *cpu, uint32_t page)
{
    return __atomic_load_n(&cpu->engine->code_pages[page], __ATOMIC_SEQ_CST) >> cpu->base.index & 1;
}

/* While this vCPU waits for another it serves requests itself, which may take its own mark away: then again. */
void cache_mark_code(struct jit_vcpu *cpu, const uint8_t *host_page)
{
    struct jit_engine *engine = cpu->engine;
    uint32_t page = translator_page(cpu->translator, host_page), me = 1u << cpu->base.index;
    do {
        __atomic_fetch_or(&engine->code_pages[page], me, __ATOMIC_SEQ_CST);
        uint32_t writers = __atomic_load_n(&engine->write_pages[page], __ATOMIC_SEQ_CST);
        if (writers & me)
            requests_drop_writes(cpu, host_page);
        for (writers &= ~me; writers; writers &= writers - 1)
            requests_ask_drop_writes(cpu, engine->vcpus[__builtin_ctz(writers)], host_page);
    } while (!marked(cpu, page));
}

bool cache_is_marked(const struct jit_vcpu *cpu, const uint8_t *host_page)
{
    return marked(cpu, translator_page(cpu->translator, host_page));
}

void cache_add_block(struct jit_vcpu *cpu, struct block *block)
{
    struct translator *tr = cpu->translator;
    cache_note_block(tr, block);
    uint32_t id = (uint32_t)(block - tr->blocks);
    uint32_t *head = &tr->hash[hash_of(block->page[0], block->offset, block->key)];
    block->hash_next = *head;
    *head = id;
    for (unsigned k = 0; k < block_pages(block); k++) {
        uint32_t *first = &tr->page_heads[block->page[k]];
        block->page_next[k] = *first;
        *first = id;
    }
}

/* ---- links ---- */

static void point(struct translator *tr, const struct link *link, uint32_t target)
{
    int32_t distance = (int32_t)(target - (link->patch + 4));
    memcpy(tr->mcode.write + link->patch, &distance, sizeof distance);
}

void cache_unlink_incoming(struct translator *tr, struct block *block)
{
    for (uint32_t id = block->incoming; id != NO_LINK;) {
        struct link *link = &tr->links[id];
        id = link->next;
        point(tr, link, link->stub);
        link->target = NO_BLOCK;
        link->next = NO_LINK;
    }
    block->incoming = NO_LINK;
}

static void unlink(struct translator *tr, uint32_t id)
{
    struct link *link = &tr->links[id];
    if (link->target == NO_BLOCK)
        return;
    uint32_t *at = &tr->blocks[link->target].incoming;
    while (*at != id)
        at = &tr->links[*at].next;
    *at = link->next;
    link->target = NO_BLOCK;
    link->next = NO_LINK;
}

static void unlink_outgoing(struct translator *tr, struct block *block)
{
    for (unsigned i = 0; i < block->link_count; i++)
        unlink(tr, block->first_link + i);
}

/* A target that reaches into a second page may be entered only through the jump cache: the link's stub becomes that. */
static void detour(struct jit_vcpu *cpu, struct block *from, struct link *link)
{
    struct translator *tr = cpu->translator;
    if ((size_t)(tr->cold_end - tr->cold) < CACHE_ROOM_COLD)
        return;
    struct translation t = {.cpu = cpu, .tr = tr, .block = from, .key = from->key};
    struct emit e = {tr->cold};
    translate_detour(&t, &e, link);
    link->stub = (uint32_t)(tr->cold - tr->mcode.write);
    tr->cold = e.at;
    point(tr, link, link->stub);
}

/* The way to another page is open while its linear page is fetched from the target's page. */
static void open_far(struct jit_vcpu *cpu, const struct link *link, const struct block *to)
{
    int32_t displacement = (int32_t)(1 - 2 * (int64_t)to->page[0] - (int64_t)(cpu->rip & PAGE_MASK));
    memcpy(cpu->translator->mcode.write + link->patch - LINK_FAR_DISPLACEMENT, &displacement, sizeof displacement);
    fetch_tlb_fill(cpu, to->key.pool == TLB_USER, cpu->rip, to->page[0], mmu_fetch_page(cpu, cpu->rip)->global);
}

static void make_link(struct jit_vcpu *cpu, uint32_t id, struct block *to)
{
    struct translator *tr = cpu->translator;
    struct link *link = &tr->links[id];
    struct block *from = &tr->blocks[link->from];
    bool same_page = to->page[0] == from->page[0];
    if ((!link->far && !same_page) || to->key.pool != from->key.pool || to->key.fpu_ok != from->key.fpu_ok)
        return;
    uint32_t target = (uint32_t)(to - tr->blocks);
    if (link->far)
        open_far(cpu, link, to);
    if (to->page[1] != NO_PAGE) {
        unlink(tr, id);
        detour(cpu, from, link);
    } else if (link->target != target) {
        unlink(tr, id);
        link->target = target;
        link->next = to->incoming;
        to->incoming = id;
        bool forward = link->distance > 0 && vcpu_optimises(cpu, JIT_OPT_FORWARD);
        point(tr, link, to->entry + (link->far ? 0u : forward ? to->forward : to->inner));
        tr->stat_links++;
    }
}

const uint8_t *cache_follow_link(struct jit_vcpu *cpu, uint32_t id)
{
    struct translator *tr = cpu->translator;
    uint32_t generation = tr->generation;
    struct block *from = &tr->blocks[tr->links[id].from];
    cpu->rip = block_rip(cpu, from) + (uint64_t)(int64_t)tr->links[id].distance;
    struct block *to = cache_lookup(cpu);
    if (!to)
        return NULL;
    if (tr->generation == generation && !from->dead)
        make_link(cpu, id, to);
    return block_inner(tr, to);
}

/* ---- dropping ---- */

void cache_remove_from_hash(struct translator *tr, struct block *block)
{
    uint32_t id = (uint32_t)(block - tr->blocks);
    uint32_t *at = &tr->hash[hash_of(block->page[0], block->offset, block->key)];
    while (*at != id)
        at = &tr->blocks[*at].hash_next;
    *at = block->hash_next;
}

static void remove_from_page(struct translator *tr, struct block *block, unsigned k)
{
    uint32_t id = (uint32_t)(block - tr->blocks);
    uint32_t *at = &tr->page_heads[block->page[k]];
    while (*at != id) {
        struct block *b = &tr->blocks[*at];
        at = &b->page_next[b->page[0] != block->page[k]];
    }
    *at = block->page_next[k];
}

static void drop_block(struct jit_vcpu *cpu, struct block *block)
{
    struct translator *tr = cpu->translator;
    block->dead = true;
    jump_cache_drop_place(cpu, block_place(block));
    cache_unlink_incoming(tr, block);
    unlink_outgoing(tr, block);
    cache_remove_from_hash(tr, block);
    for (unsigned k = 0; k < block_pages(block); k++)
        remove_from_page(tr, block, k);
    struct emit e = {tr->mcode.write + block->entry};
    emit_mov_imm(&e, R14, (uint64_t)(block - tr->blocks));
    emit_jmp(&e, tr->to.dead);
    tr->stat_dead++;
}

static bool overlaps(const struct block *block, uint32_t page, uint64_t start, uint64_t end)
{
    if (block->page[0] == page && block->offset < end && block->offset + (uint64_t)block->length > start)
        return true;
    for (unsigned i = 0; i < 2; i++)
        if (block->page[0] == page && block->ahead[i].start < end && block->ahead[i].end > start)
            return true;
    return block->page[1] == page && block->offset + (uint64_t)block->length - MEM_PAGE_SIZE > start;
}

/* Drops this vCPU's blocks made from bytes [start, end) of a page. */
void cache_drop_range(struct jit_vcpu *cpu, const uint8_t *page, uint64_t start, uint64_t end)
{
    struct translator *tr = cpu->translator;
    uint32_t number = translator_page(tr, page);
    for (uint32_t id = tr->page_heads[number]; id;) {
        struct block *block = &tr->blocks[id];
        id = block->page_next[block->page[0] != number];
        if (overlaps(block, number, start, end))
            drop_block(cpu, block);
    }
    if (!tr->page_heads[number])
        __atomic_fetch_and(&cpu->engine->code_pages[number], ~(1u << cpu->base.index), __ATOMIC_SEQ_CST);
}

/* Tells everyone who has code in these bytes. `cpu` is NULL for writes by devices. */
static void code_written(struct jit_engine *engine, struct jit_vcpu *cpu, const uint8_t *ram, uint64_t offset, uint64_t len)
{
    while (len) {
        uint64_t start = offset & PAGE_MASK, piece = MEM_PAGE_SIZE - start;
        if (piece > len)
            piece = len;
        uint32_t holders = __atomic_load_n(&engine->code_pages[offset / MEM_PAGE_SIZE], __ATOMIC_SEQ_CST);
        const uint8_t *page = ram + (offset & ~PAGE_MASK);
        for (; holders; holders &= holders - 1) {
            struct jit_vcpu *holder = engine->vcpus[__builtin_ctz(holders)];
            if (cpu && holder == cpu)
                cache_drop_range(cpu, page, start, start + piece);
            else
                requests_post_written(holder, page, start, start + piece);
        }
        offset += piece;
        len -= piece;
    }
}

void cache_code_written(struct jit_vcpu *cpu, const uint8_t *host, uint64_t len)
{
    code_written(cpu->engine, cpu, cpu->translator->ram, (uint64_t)(host - cpu->translator->ram), len);
}

void cache_host_wrote(void *arg, uint64_t gpa, uint64_t len)
{
    struct jit_engine *engine = arg;
    const uint8_t *ram = mem_slot(engine->mem, 0)->hva, *host = mem_ptr(engine->mem, gpa, len);
    if (host)
        code_written(engine, NULL, ram, (uint64_t)(host - ram), len);
}

/* ---- lookup ---- */

struct block_key cache_key(const struct jit_vcpu *cpu)
{
    bool fpu_ok = !(cpu->cr0 & (CR0_TS | CR0_EM)) && (cpu->cr4 & CR4_OSFXSR) && (cpu->cr4 & CR4_OSXSAVE) &&
                  (cpu->xcr0 & XCR0_AVX);
    return (struct block_key){.pool = tlb_pool_of(cpu, 0) & 0xf, .fpu_ok = fpu_ok};
}

bool cache_has_block(const struct translator *tr, uint32_t page, uint32_t offset, struct block_key key)
{
    uint32_t id = tr->hash[hash_of(page, offset, key)];
    while (id && (tr->blocks[id].page[0] != page || tr->blocks[id].offset != offset || tr->blocks[id].key.pool != key.pool))
        id = tr->blocks[id].hash_next;
    return id;
}

static struct block *find(struct jit_vcpu *cpu, const uint8_t *page, struct block_key key)
{
    struct translator *tr = cpu->translator;
    uint32_t number = translator_page(tr, page);
    for (uint32_t id = tr->hash[hash_of(number, (uint32_t)(cpu->rip & PAGE_MASK), key)]; id;) {
        struct block *block = &tr->blocks[id];
        id = block->hash_next;
        if (block->rip != (block->pic ? cpu->rip & PAGE_MASK : cpu->rip) || block->page[0] != number || block->key.pool != key.pool ||
            block->key.fpu_ok != key.fpu_ok)
            continue;
        if (block->page[1] == NO_PAGE)
            return block;
        const struct fetch_entry *second = mmu_fetch_page(cpu, (cpu->rip | PAGE_MASK) + 1);
        if (second->host && translator_page(tr, second->host) == block->page[1])
            return block;
    }
    return NULL;
}

/* Only blocks without checks for an FPU that is off: with it off, no places are known. */
static bool knows_by_place(const struct jit_vcpu *cpu, struct block_key key)
{
    return key.pool == TLB_USER && key.fpu_ok && vcpu_jumps_by_place(cpu);
}

const uint8_t *cache_find_by_place(struct jit_vcpu *cpu)
{
    struct block_key key = cache_key(cpu);
    const struct translator *tr = cpu->translator;
    if (!knows_by_place(cpu, key) || !tr->fpu_ok || ((cpu->cr4 & CR4_SMAP) != 0) != tr->smap)
        return NULL;
    const struct fetch_entry *fetch = mmu_fetch_page(cpu, cpu->rip);
    if (!fetch->host)
        return NULL;
    uint64_t place = (uint64_t)translator_page(tr, fetch->host) * MEM_PAGE_SIZE + (cpu->rip & PAGE_MASK);
    const uint8_t *entry = jump_cache_find_place(cpu, place);
    if (entry)
        jump_cache_fill_place(cpu, cpu->rip, place, fetch->global, entry);
    return entry;
}

struct block *cache_lookup(struct jit_vcpu *cpu)
{
    const struct fetch_entry *fetch = mmu_fetch_page(cpu, cpu->rip);
    const uint8_t *page = fetch->host;
    bool global = fetch->global;
    if (!page)
        return NULL;
    struct block_key key = cache_key(cpu);
    bool smap = cpu->cr4 & CR4_SMAP;
    if (smap != cpu->translator->smap) {
        cache_drop_all(cpu);
        cpu->translator->smap = smap;
    }
    if (key.fpu_ok != cpu->translator->fpu_ok) {
        jump_cache_flush(cpu);
        cpu->translator->fpu_ok = key.fpu_ok;
    }
    struct block *block = find(cpu, page, key);
    if (!block) {
        fpu_save(cpu); /* decoder and translator are compiled like any other code */
        cache_make_room(cpu);
        enum profile_part part = profile_begin(cpu, PROFILE_TRANSLATE);
        block = translate_block(cpu, page, key);
        profile_switch(cpu, part);
        if (!block)
            return NULL;
    }
    if (block->page[1] != NO_PAGE) {
        global = global && mmu_fetch_page(cpu, (cpu->rip | PAGE_MASK) + 1)->global;
        jump_cache_note_second_page(cpu, cpu->rip);
    }
    if (knows_by_place(cpu, key) && block->page[1] == NO_PAGE)
        jump_cache_fill_place(cpu, cpu->rip, block_place(block), global, block_entry(cpu->translator, block));
    else
        jump_cache_fill(cpu, key.pool, cpu->rip, global, block_entry(cpu->translator, block));
    cpu->code_page = cpu->rip & ~PAGE_MASK;
    return block;
}

struct block *cache_find_host(struct jit_vcpu *cpu, const uint8_t *host)
{
    struct translator *tr = cpu->translator;
    const uint8_t *start = mcode_executable(&tr->mcode, tr->regions_start);
    uint64_t region = (uint64_t)(host - start) / tr->region_bytes;
    if (host < start || region >= tr->region_count)
        return NULL;
    uint32_t low = (uint32_t)region * tr->block_slice + 1, high = tr->regions[region].end_block;
    if (region == tr->region)
        high = tr->block_count;
    uint32_t end = high;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (block_entry(tr, &tr->blocks[middle]) + tr->blocks[middle].code_length <= host)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && block_entry(tr, &tr->blocks[low]) <= host ? &tr->blocks[low] : NULL;
}
