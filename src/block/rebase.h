/* An image gets another backing file: what it does not hold itself, and its old chain and the new base read differently, is copied
 * into it first. Then either of them is right. */
#pragma once

#include "block/block.h"

/* In a fiber: whether nothing of the range is to be copied from `offset` on, as far as that is the same throughout (`ret_len`, which
 * may go beyond `len`, not beyond the top's end). By what the images say of themselves, not by their data. `base` NULL: zeroes. */
must_check int block_rebase_same(struct block_node *top, struct block_node *base, uint64_t offset, uint64_t *ret_len, bool *ret_same);
/* In a fiber: copies what is to be copied of the range. `buffer` has twice `len` bytes, aligned to 4096. */
must_check int block_rebase_range(struct block_node *top, struct block_node *base, uint64_t offset, uint64_t len, uint8_t *buffer);
