/* Applies operations to an image through the block layer: one a line on standard input, OFFSET and LENGTH in bytes.
 *
 *   w OFFSET LENGTH BYTE   write            c OFFSET LENGTH BYTE   write, compressed
 *   z OFFSET LENGTH        write zeroes     u OFFSET LENGTH        the same, giving space back
 *   d OFFSET LENGTH        discard          f                      flush
 *   r OFFSET LENGTH BYTE   read; the status is 1 when a byte is another
 *
 * Up to DEPTH operations are in flight at once; one that touches the range of another waits for it.
 * usage: qcow2_io FORMAT PATH DEPTH ENGINE [direct] [key=FILE] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/block.h"
#include "block/crypt/key.h"

#define DEPTH_MAX 64u

struct slot {
    struct block_request request; /* first */
    struct iovec iov[3];
    unsigned char *data;
    char kind;
    int byte;
    bool used;
};

static struct slot slots[DEPTH_MAX];
static unsigned in_flight;
static int status;

static void done(struct block_request *request, int result)
{
    struct slot *slot = (struct slot *)(void *)request;
    if (result < 0) {
        fprintf(stderr, "%c %llu %llu: %s\n", slot->kind, (unsigned long long)request->offset,
                (unsigned long long)request->len, strerror(-result));
        status = 2;
    }
    for (uint64_t i = 0; result == 0 && slot->kind == 'r' && i < request->len; i++)
        if (slot->data[i] != slot->byte) {
            fprintf(stderr, "byte %llu is %d, not %d\n", (unsigned long long)(request->offset + i), slot->data[i], slot->byte);
            status = 1;
            break;
        }
    free(slot->data);
    slot->used = false;
    in_flight--;
}

static void wait_some(struct block_ring *ring)
{
    block_ring_wait(ring, UINT64_MAX);
    block_ring_dispatch(ring);
}

static bool overlaps(uint64_t offset, uint64_t len)
{
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        const struct block_request *r = &slots[i].request;
        if (slots[i].used && len && r->offset < offset + len && offset < r->offset + r->len)
            return true;
    }
    return false;
}

static enum block_op op_of(char kind)
{
    switch (kind) {
    case 'r':
        return BLOCK_READ;
    case 'w':
    case 'c':
        return BLOCK_WRITE;
    case 'd':
        return BLOCK_DISCARD;
    case 'f':
        return BLOCK_FLUSH;
    default:
        return BLOCK_WRITE_ZEROES;
    }
}

/* Data in three pieces of odd sizes, as guests have it. */
static void fill(struct slot *slot, uint64_t len)
{
    slot->data = malloc(len ? len : 1);
    if (!slot->data)
        abort();
    memset(slot->data, slot->kind == 'r' ? ~slot->byte : slot->byte, len);
    uint64_t a = len / 3, b = len / 2;
    slot->iov[0] = (struct iovec){slot->data, a};
    slot->iov[1] = (struct iovec){slot->data + a, b - a};
    slot->iov[2] = (struct iovec){slot->data + b, len - b};
}

static void start(struct block_node *node, char kind, uint64_t offset, uint64_t len, int byte)
{
    struct slot *slot = slots;
    while (slot->used)
        slot++;
    *slot = (struct slot){.kind = kind, .byte = byte, .used = true};
    bool data = kind == 'w' || kind == 'r' || kind == 'c';
    if (data)
        fill(slot, len);
    slot->request = (struct block_request){.op = op_of(kind),
                                           .may_unmap = kind == 'u' || kind == 'd',
                                           .compress = kind == 'c',
                                           .offset = offset,
                                           .len = len,
                                           .iov = slot->iov,
                                           .iov_count = data ? 3 : 0,
                                           .done = done};
    in_flight++;
    block_submit(node, &slot->request);
}

static void run(struct block_node *node, struct block_ring *ring, unsigned depth)
{
    char line[128], kind;
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long offset = 0, len = 0;
        int byte = 0;
        if (sscanf(line, "%c %llu %llu %d", &kind, &offset, &len, &byte) < 1)
            continue;
        while (in_flight >= depth || overlaps(offset, len))
            wait_some(ring);
        start(node, kind, offset, len, byte);
    }
    while (in_flight)
        wait_some(ring);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct block_node *node;
    struct block_ring *ring;
    if (argc < 5)
        return 2;
    unsigned depth = (unsigned)atoi(argv[3]);
    struct block_options options = {.driver = argv[1], .path = argv[2], .fd = -1};
    struct block_key *key = NULL;
    int r = 0;
    for (int i = 5; i < argc && r == 0; i++) {
        if (strcmp(argv[i], "direct") == 0)
            options.direct = true;
        else if (strncmp(argv[i], "key=", 4) == 0)
            r = block_key_read(argv[i] + 4, &key, &err);
    }
    options.key = key;
    if (r < 0 || depth < 1 || depth > DEPTH_MAX || block_open(&options, &node, &err) < 0 ||
        block_ring_create(argv[4], &ring, &err) < 0 || block_ring_start(ring, &err) < 0 ||
        block_attach(node, ring, &err) < 0) {
        fprintf(stderr, "qcow2_io: %s\n", err.message);
        return 2;
    }
    block_key_free(key);
    run(node, ring, depth);
    block_close(node);
    block_ring_free(ring);
    return status;
}
