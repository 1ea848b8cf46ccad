/* compare: do two images read the same? The longer one may go on with zeroes, unless --strict. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/img.h"

#define CHUNK (UINT64_C(1) << 20)
#define STATUS_DIFFER 1
#define STATUS_FAILED 2

struct comparison {
    struct block_node *nodes[2];
    uint8_t *data[2];
    bool strict;
    const char *what; /* differs; NULL: the images are alike */
    uint64_t at;
};

/* `len` bytes of an image, zeroes behind its end; what is known to be zero is not read. */
static int fetch(struct comparison *c, unsigned i, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    struct block_node *node = c->nodes[i];
    uint64_t inside = offset >= node->size ? 0 : node->size - offset < len ? node->size - offset : len;
    *ret_extent = (struct block_extent){.len = len, .zero = true};
    memset(c->data[i], 0, len);
    if (!inside)
        return 0;
    int r = block_status(node, offset, inside, ret_extent);
    if (r == 0 && !(ret_extent->zero && ret_extent->len >= inside))
        r = block_do(node, BLOCK_READ, offset, c->data[i], inside);
    return r;
}

static void differ(struct comparison *c, uint64_t offset, uint64_t len)
{
    uint64_t i = 0;
    while (i < len && c->data[0][i] == c->data[1][i])
        i++;
    c->what = "Content mismatch";
    c->at = offset + i;
}

/* How far both images are known to be zero; 0: one of them is not. */
static int zero_run(struct comparison *c, uint64_t at, uint64_t size, uint64_t *ret_len)
{
    *ret_len = size - at;
    for (unsigned i = 0; i < 2 && *ret_len; i++) {
        struct block_extent extent = {.zero = true, .len = size - at};
        int r = at < c->nodes[i]->size ? block_status(c->nodes[i], at, c->nodes[i]->size - at, &extent) : 0;
        if (r < 0)
            return r;
        if (!extent.zero || (c->strict && extent.data))
            extent.len = 0;
        *ret_len = extent.len < *ret_len ? extent.len : *ret_len;
    }
    return 0;
}

static int compare(void *arg)
{
    struct comparison *c = arg;
    uint64_t size = c->nodes[0]->size > c->nodes[1]->size ? c->nodes[0]->size : c->nodes[1]->size, len;
    for (uint64_t at = 0; at < size && !c->what; at += len) {
        struct block_extent extents[2];
        int zero = zero_run(c, at, size, &len);
        if (zero < 0)
            return zero;
        if (len)
            continue;
        len = size - at < CHUNK ? size - at : CHUNK;
        for (unsigned i = 0; i < 2; i++) {
            int r = fetch(c, i, at, len, &extents[i]);
            if (r < 0)
                return r;
        }
        if (memcmp(c->data[0], c->data[1], len) != 0)
            differ(c, at, len);
        else if (c->strict && extents[0].data != extents[1].data)
            c->what = "Strict mode: Offset block status mismatch", c->at = at;
    }
    return 0;
}

static int report(const struct comparison *c)
{
    if (!c->what) {
        if (c->nodes[0]->size != c->nodes[1]->size)
            printf("Warning: Image size mismatch!\n");
        printf("Images are identical.\n");
        return 0;
    }
    printf("%s at offset %" PRIu64 "!\n", c->what, c->at);
    return STATUS_DIFFER;
}

static int compare_open(const struct img_options *options, struct img_image *a, struct img_image *b, struct err *err)
{
    struct comparison c = {.nodes = {a->node, b->node}, .strict = options->strict};
    if (c.strict && a->node->size != b->node->size) {
        printf("Strict mode: Image size mismatch!\n");
        return STATUS_DIFFER;
    }
    for (unsigned i = 0; i < 2; i++)
        c.data[i] = aligned_alloc(4096, CHUNK);
    int r = c.data[0] && c.data[1] ? block_run(a->ring, compare, &c) : -ENOMEM;
    free(c.data[0]);
    free(c.data[1]);
    return r < 0 ? err_set(err, -r, "compare") : report(&c);
}

static int run_compare(const struct img_options *options, struct err *err)
{
    struct img_image a, b;
    int r = img_open(options, options->operands[0], options->format, true, false, NULL, &a, err);
    if (r < 0)
        return r;
    struct img_options second = *options;
    second.key = options->target_key;
    r = img_open(&second, options->operands[1], options->backing_format, true, false, a.ring, &b, err);
    if (r == 0) {
        r = compare_open(options, &a, &b, err);
        b.ring = NULL;
        img_close(&b);
    }
    img_close(&a);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {'F', "backing-format"}, {'s', "strict"}, {0, NULL}};

const struct img_command img_compare = {
    .name = "compare",
    .usage = "[-f FORMAT] [-F FORMAT] [-s] [--key FILE] [--target-key FILE] IMAGE1 IMAGE2",
    .summary = "do both read the same?",
    .accepts = " format backing-format strict key target-key allow-backing ",
    .letters = letters,
    .operands_min = 2,
    .operands_max = 2,
    .error_status = STATUS_FAILED,
    .usage_status = STATUS_FAILED,
    .run = run_compare,
};
