/* What the translator and the run loop ask of the block cache. */
#pragma once

#include "base/err.h"
#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

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
/* Follows link `id` (block * 2 + which) and patches it when both ends allow. Returns where to go on, or NULL. */
const uint8_t *cache_follow_link(struct jit_vcpu *cpu, uint32_t id);
/* The block whose code holds the host address, or NULL. */
struct block *cache_find_host(struct jit_vcpu *cpu, const uint8_t *host);
/* Drops this vCPU's blocks made from bytes [start, end) of a page; or all of them. */
void cache_drop_range(struct jit_vcpu *cpu, const uint8_t *page, uint64_t start, uint64_t end);
void cache_drop_all(struct jit_vcpu *cpu);
/* Key of the mode the vCPU is in now. */
struct block_key cache_key(const struct jit_vcpu *cpu);
