/* Several fibers on one disk: while one waits for its chunk's I/O, the others start theirs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/img.h"

#define FIBERS 8u
#define ZEROES_BYTES (UINT64_C(1) << 20)

/* Not img_walk's own: the worker that ends last wakes the walk's fiber from its own, and gives back its stack after that. */
static struct fiber_pool pool;

void img_walk_skip(struct img_walk *walk, uint64_t offset)
{
    offset -= offset % IMG_CHUNK;
    if (walk->next < offset)
        walk->next = offset;
}

static void show(struct img_walk *walk)
{
    unsigned percent = walk->next < walk->end ? (unsigned)(walk->next * 100 / walk->end) : 100;
    if (walk->progress && percent != walk->shown)
        fprintf(stderr, "\r    (%u/100%%)", percent);
    walk->shown = percent;
}

static void work(void *arg)
{
    struct img_walk *walk = arg;
    uint8_t *data = aligned_alloc(4096, IMG_CHUNK * IMG_BUFFERS);
    if (!data)
        walk->result = -ENOMEM;
    while (walk->result == 0 && walk->next < walk->end) {
        uint64_t offset = walk->next, len = walk->end - offset < IMG_CHUNK ? walk->end - offset : IMG_CHUNK;
        walk->next += len;
        show(walk);
        int r = walk->chunk(walk, offset, len, data);
        if (r < 0)
            walk->result = r;
    }
    free(data);
    if (--walk->fibers == 0)
        fiber_queue_wake_all(&walk->idle);
}

int img_walk(struct img_walk *walk)
{
    walk->shown = UINT32_MAX;
    for (unsigned i = 0; i < FIBERS; i++) {
        walk->fibers++;
        if (fiber_start(&pool, work, walk) < 0) {
            walk->fibers--;
            walk->result = -ENOMEM;
        }
    }
    if (walk->fibers)
        fiber_queue_wait(&walk->idle);
    if (walk->progress)
        fputc('\n', stderr);
    return walk->result;
}

int img_read(struct block_node *node, uint64_t offset, uint64_t len, uint8_t *data)
{
    uint64_t inside = offset >= node->size ? 0 : node->size - offset < len ? node->size - offset : len;
    memset(data + inside, 0, len - inside);
    return inside ? block_do(node, BLOCK_READ, offset, data, inside) : 0;
}

/* An NBD server may know no other zeroes than data. */
static int write_plain_zeroes(struct block_node *node, uint64_t offset, uint64_t len)
{
    uint8_t *zeroes = calloc(1, ZEROES_BYTES);
    int r = zeroes ? 0 : -ENOMEM;
    for (uint64_t at = 0, n; r == 0 && at < len; at += n) {
        n = len - at < ZEROES_BYTES ? len - at : ZEROES_BYTES;
        r = block_do(node, BLOCK_WRITE, offset + at, zeroes, n);
    }
    free(zeroes);
    return r;
}

int img_write(struct block_node *node, uint64_t offset, uint64_t len, uint8_t *data)
{
    struct block_request zeroes = {.op = BLOCK_WRITE_ZEROES, .may_unmap = true, .offset = offset, .len = len};
    if (data)
        return block_do(node, BLOCK_WRITE, offset, data, len);
    return node->can_write_zeroes ? block_do_request(node, &zeroes) : write_plain_zeroes(node, offset, len);
}
