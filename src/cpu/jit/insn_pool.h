/* Decoded instructions that translated code hands to the interpreter, each kept once: there are few different ones. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "cpu/jit/decode.h"

#define INSN_POOL_NONE UINT16_MAX

struct insn_pool {
    struct insn *insns;
    uint16_t *slots; /* hash table: index + 1, 0 when empty */
    uint32_t count;
};

/* False when memory is lacking. */
bool insn_pool_create(struct insn_pool *pool);
void insn_pool_free(struct insn_pool *pool);
/* Index of the instruction in pool->insns, entered when new; INSN_POOL_NONE when the pool is full. */
uint16_t insn_pool_add(struct insn_pool *pool, const struct insn *insn);
