/* What the translator and the run loop ask of the block cache. */
#pragma once

#include "base/err.h"
#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

/* More code than any block has. */
#define CACHE_ROOM_HOT ((size_t)16 << 10)
#define CACHE_ROOM_COLD ((size_t)8 << 10)

must_check int cache_create(struct jit_vcpu *cpu, size_t code_bytes, struct err *err);
void cache_free(struct jit_vcpu *cpu);

/* Announces that translations of this page are about to be made: from now on every write to it is seen. */
void cache_mark_code(struct jit_vcpu *cpu, const uint8_t *page);
bool cache_is_marked(const struct jit_vcpu *cpu, const uint8_t *page);
/* The next free block record; cache_lookup made sure of room for the largest block in every pool. */
struct block *cache_new_block(struct jit_vcpu *cpu);
/* Enters a finished block into the tables. */
void cache_add_block(struct jit_vcpu *cpu, struct block *block);
/* Linear address of a block's first instruction; for a pic one, while code_page is its page's. */
static inline uint64_t block_rip(const struct jit_vcpu *cpu, const struct block *block)
{
    return block->pic ? cpu->code_page + block->rip : block->rip;
}

/* The block at cpu->rip, translated when needed, entered into the jump cache and code_page set: go on at `inner`.
 * NULL when only the interpreter can go on. Raises fetch faults. */
struct block *cache_lookup(struct jit_vcpu *cpu);
/* The same by the jump cache's second level alone; the entry of the block, or NULL. */
const uint8_t *cache_find_by_place(struct jit_vcpu *cpu);
/* Is there a block that starts at this place? */
bool cache_has_block(const struct translator *tr, uint32_t page, uint32_t offset, struct block_key key);
/* Follows link `id` and patches it when both ends allow. Returns where to go on, or NULL. */
const uint8_t *cache_follow_link(struct jit_vcpu *cpu, uint32_t id);
/* The block whose code holds the host address, or NULL. */
struct block *cache_find_host(struct jit_vcpu *cpu, const uint8_t *host);
/* Drops this vCPU's blocks made from bytes [start, end) of a page. */
void cache_drop_range(struct jit_vcpu *cpu, const uint8_t *page, uint64_t start, uint64_t end);
/* Key of the mode the vCPU is in now. */
struct block_key cache_key(const struct jit_vcpu *cpu);

/* cache_room.c */
/* Makes sure of room for the largest block in every table; may drop blocks. Only from C code that goes back to translated code
 * through cache_lookup, or looks at translator.generation first. */
void cache_make_room(struct jit_vcpu *cpu);
/* Looks whether a new block is one that had been dropped. */
void cache_note_block(struct translator *tr, const struct block *block);
/* Drops all of this vCPU's blocks; by the same rule. */
void cache_drop_all(struct jit_vcpu *cpu);
/* What is in use: blocks (in end_block) and the rest of struct region. */
struct region cache_usage(const struct translator *tr);

/* cache.c, for cache_room.c */
/* Points all links into a block at their stubs. */
void cache_unlink_incoming(struct translator *tr, struct block *block);
void cache_remove_from_hash(struct translator *tr, struct block *block);
/* How many of page[] count: one when both are the same frame. */
static inline unsigned block_pages(const struct block *block)
{
    return block->page[1] == NO_PAGE || block->page[1] == block->page[0] ? 1 : 2;
}
/* Offset in guest RAM of a block's first byte. */
static inline uint64_t block_place(const struct block *block)
{
    return (uint64_t)block->page[0] * MEM_PAGE_SIZE + block->offset;
}
