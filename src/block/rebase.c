#include "block/rebase.h"

#include <string.h>

#define UNIT UINT64_C(65536) /* is compared at once */

static uint64_t inside(const struct block_node *node, uint64_t offset, uint64_t len)
{
    if (!node || offset >= node->size)
        return 0;
    return node->size - offset < len ? node->size - offset : len;
}

static bool is_own(const struct block_extent *extent)
{
    return extent->present && extent->depth == 0;
}

int block_rebase_same(struct block_node *top, struct block_node *base, uint64_t offset, uint64_t *ret_len, bool *ret_same)
{
    struct block_extent extent, below = {.zero = true};
    int r = block_status(top, offset, top->size - offset, &extent);
    if (r < 0)
        return r;
    bool own = is_own(&extent);
    uint64_t len = inside(base, offset, extent.len);
    if (!own && extent.zero && len)
        r = block_status(base, offset, len, &below);
    *ret_len = !own && extent.zero && len ? below.len : extent.len;
    *ret_same = own || (extent.zero && below.zero);
    return r;
}

/* Behind the end there are zeroes. */
static int read_padded(struct block_node *node, uint64_t offset, uint64_t len, uint8_t *data)
{
    uint64_t count = inside(node, offset, len);
    memset(data + count, 0, len - count);
    return count ? block_do(node, BLOCK_READ, offset, data, count) : 0;
}

/* Zeroes that the top holds itself. What already reads as zeroes may have stayed a hole, through which the base would show. */
static int write_zeroes(struct block_node *top, uint64_t offset, uint64_t len, uint8_t *zeroes)
{
    struct block_request request = {.op = BLOCK_WRITE_ZEROES, .may_unmap = true, .offset = offset, .len = len};
    struct block_extent extent;
    int r = block_do_request(top, &request);
    for (uint64_t at = offset; r == 0 && at < offset + len; at += extent.len) {
        r = block_status(top, at, offset + len - at, &extent);
        if (r == 0 && !is_own(&extent))
            r = block_do(top, BLOCK_WRITE, at, zeroes + (at - offset), extent.len);
    }
    return r;
}

static bool all_zero(const uint8_t *data, size_t len)
{
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static int copy_differences(struct block_node *top, struct block_node *base, uint64_t offset, uint64_t len, uint8_t *old, uint8_t *new)
{
    int r = block_do(top, BLOCK_READ, offset, old, len);
    if (r == 0)
        r = read_padded(base, offset, len, new);
    for (uint64_t at = 0; r == 0 && at < len; at += UNIT) {
        uint64_t n = len - at < UNIT ? len - at : UNIT;
        if (memcmp(old + at, new + at, n) != 0)
            r = all_zero(old + at, n) ? write_zeroes(top, offset + at, n, old + at)
                                      : block_do(top, BLOCK_WRITE, offset + at, old + at, n);
    }
    return r;
}

int block_rebase_range(struct block_node *top, struct block_node *base, uint64_t offset, uint64_t len, uint8_t *buffer)
{
    int r = 0;
    uint64_t n;
    for (uint64_t at = offset; r == 0 && at < offset + len; at += n) {
        bool same;
        r = block_rebase_same(top, base, at, &n, &same);
        if (r < 0)
            break;
        if (n > offset + len - at)
            n = offset + len - at;
        if (!same)
            r = copy_differences(top, base, at, n, buffer, buffer + len);
    }
    return r;
}
