/* Random reads through the block layer, as a guest's disk makes them; prints how many a second.
 * usage: block_read FORMAT PATH BYTES DEPTH COUNT ENGINE [KEY_FILE] */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "block/block.h"
#include "block/crypt/key.h"

#define DEPTH_MAX 256u

static struct block_node *node;
static struct block_request requests[DEPTH_MAX];
static struct iovec buffers[DEPTH_MAX];
static uint64_t left, bytes, state = 88172645463325252u;
static unsigned in_flight;

static uint64_t random_offset(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % (node->size / bytes) * bytes;
}

static void done(struct block_request *request, int result)
{
    if (result < 0)
        exit(1);
    in_flight--;
    (void)request;
}

static void start(unsigned i)
{
    requests[i] =
        (struct block_request){.op = BLOCK_READ, .offset = random_offset(), .len = bytes, .iov = &buffers[i], .iov_count = 1, .done = done};
    in_flight++;
    left--;
    block_submit(node, &requests[i]);
}

/* Rounds of DEPTH reads each. */
static void run(struct block_ring *ring, unsigned depth)
{
    while (left) {
        for (unsigned i = 0; i < depth && left; i++)
            start(i);
        while (in_flight) {
            block_ring_wait(ring, UINT64_MAX);
            block_ring_dispatch(ring);
        }
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct block_key *key = NULL;
    struct block_ring *ring;
    if (argc < 7)
        return 2;
    bytes = strtoull(argv[3], NULL, 10);
    unsigned depth = (unsigned)atoi(argv[4]);
    uint64_t count = left = strtoull(argv[5], NULL, 10);
    struct block_options options = {.driver = argv[1], .path = argv[2], .fd = -1, .read_only = true};
    int r = depth <= DEPTH_MAX && argc > 7 ? block_key_read(argv[7], &key, &err) : 0;
    options.key = key;
    if (r < 0 || block_open(&options, &node, &err) < 0 || block_ring_create(argv[6], &ring, &err) < 0 ||
        block_ring_start(ring, &err) < 0 || block_attach(node, ring, &err) < 0) {
        fprintf(stderr, "block_read: %s\n", err.message);
        return 2;
    }
    for (unsigned i = 0; i < depth; i++)
        buffers[i] = (struct iovec){aligned_alloc(4096, (bytes + 4095) & ~UINT64_C(4095)), bytes};
    double from = now_s();
    run(ring, depth);
    printf("%.0f\n", (double)count / (now_s() - from));
    block_key_free(key);
    block_close(node);
    block_ring_free(ring);
    return 0;
}
