#include "cpu/jit/insn_pool.h"

#include <stdlib.h>
#include <string.h>

#define CAPACITY 4096u
#define SLOT_BITS 13

bool insn_pool_create(struct insn_pool *pool)
{
    *pool = (struct insn_pool){.insns = calloc(CAPACITY, sizeof *pool->insns),
                               .slots = calloc((size_t)1 << SLOT_BITS, sizeof *pool->slots)};
    return pool->insns && pool->slots;
}

void insn_pool_free(struct insn_pool *pool)
{
    free(pool->insns);
    free(pool->slots);
    *pool = (struct insn_pool){0};
}

static uint32_t hash_of(const struct insn *insn)
{
    uint64_t hash = insn->length;
    for (unsigned i = 0; i < insn->length; i++)
        hash = (hash ^ insn->bytes[i]) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(hash >> (64 - SLOT_BITS));
}

static bool same(const struct insn *a, const struct insn *b)
{
    return a->length == b->length && a->code_bits == b->code_bits && !memcmp(a->bytes, b->bytes, a->length);
}

uint16_t insn_pool_add(struct insn_pool *pool, const struct insn *insn)
{
    uint32_t slot = hash_of(insn);
    for (; pool->slots[slot]; slot = (slot + 1) % (1u << SLOT_BITS))
        if (same(&pool->insns[pool->slots[slot] - 1], insn))
            return (uint16_t)(pool->slots[slot] - 1);
    if (pool->count == CAPACITY)
        return INSN_POOL_NONE;
    pool->insns[pool->count] = *insn;
    pool->slots[slot] = (uint16_t)++pool->count;
    return (uint16_t)(pool->count - 1);
}
