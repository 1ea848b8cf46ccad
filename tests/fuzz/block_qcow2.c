/* Fuzz target: qcow2 images. Whatever a file holds, opening, reading, mapping and checking it end soon, with errors at worst;
 * an image that can be opened for writing is written, repaired, and then reads back what was written; its bitmaps, backing file
 * and size are changed. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/block.h"
#include "block/qcow2/qcow2.h"

#define STEPS_MAX 64
#define FILE_MAX (UINT64_C(64) << 20) /* beyond, only a sparse file: a check would count clusters for long */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct work {
    struct block_node *node;
    int fd;
};

static void write_and_read(struct block_node *node, uint64_t offset, uint8_t byte)
{
    uint8_t out[512], in[512];
    memset(out, byte, sizeof out);
    if (block_do(node, BLOCK_WRITE, offset, out, sizeof out) == 0 && block_do(node, BLOCK_READ, offset, in, sizeof in) == 0)
        assert(memcmp(in, out, sizeof in) == 0);
}

static void look_at_bitmaps(struct block_node *node)
{
    for (uint32_t i = 0; i < qcow2_bitmap_count(node) && i < STEPS_MAX; i++) {
        struct qcow2_bitmap bitmap;
        uint64_t len = 0;
        bool dirty;
        qcow2_get_bitmap(node, i, &bitmap);
        for (uint64_t at = 0, steps = 0; at < node->size && steps < STEPS_MAX; at += len, steps++) {
            if (block_bitmap_status(node, bitmap.name, at, node->size - at, &len, &dirty) < 0)
                break;
            assert(len && len <= node->size - at);
        }
    }
}

/* A bitmap that records, beside those that the image has. */
static int change_bitmaps(struct block_node *node)
{
    struct qcow2_bitmap_change change = {.name = "x y", .granularity = 1u << 20};
    struct qcow2_bitmap first = {0};
    int r = qcow2_bitmap_change(node, &change, NULL);
    if (r < 0 || !node->size)
        return r;
    write_and_read(node, 0, 5);
    uint64_t len;
    bool dirty = false;
    assert(block_bitmap_status(node, change.name, 0, node->size, &len, &dirty) < 0 || dirty);
    qcow2_get_bitmap(node, 0, &first);
    change.action = QCOW2_BITMAP_MERGE;
    change.source = first.name;
    r = qcow2_bitmap_change(node, &change, NULL);
    char *name = strdup(first.name);
    if (!name)
        abort();
    r |= qcow2_bitmap_change(node, &(struct qcow2_bitmap_change){.action = QCOW2_BITMAP_REMOVE, .name = name}, NULL);
    free(name);
    return r;
}

static void look(struct block_node *node)
{
    static uint8_t buf[65536];
    struct block_extent extent;
    uint64_t at = 0, most = node->size < sizeof buf ? node->size : sizeof buf;
    for (unsigned i = 0; i < STEPS_MAX && at < node->size; i++, at += extent.len) {
        if (block_status(node, at, node->size - at, &extent) < 0)
            break;
        assert(extent.len && extent.len <= node->size - at);
        uint64_t len = extent.len < most ? extent.len : most;
        int ignored = block_do(node, BLOCK_READ, at, buf, len);
        (void)ignored;
    }
    look_at_bitmaps(node);
    struct qcow2_snapshots snapshots;
    if (qcow2_snapshots_load(node, &snapshots, NULL) == 0)
        qcow2_snapshots_free(&snapshots);
}

static int examine(void *arg)
{
    struct work *work = arg;
    struct qcow2_check check = {0};
    look(work->node);
    int ignored = qcow2_check(work->node, QCOW2_CHECK_ONLY, &check, NULL);
    (void)ignored;
    return 0;
}

static int alter(void *arg)
{
    struct work *work = arg;
    struct block_node *node = work->node;
    struct qcow2_check check = {0};
    uint64_t last = node->size ? node->size - 512 : 0;
    int ignored = qcow2_check(node, QCOW2_REPAIR_ALL, &check, NULL);
    if (node->size) {
        write_and_read(node, 0, 1);
        write_and_read(node, last / 1024 * 512, 2);
        ignored |= block_do(node, BLOCK_DISCARD, 0, NULL, node->size < 1 << 20 ? node->size : 1 << 20);
        ignored |= block_do(node, BLOCK_WRITE_ZEROES, last, NULL, 512);
        ignored |= block_do(node, BLOCK_FLUSH, 0, NULL, 0);
        write_and_read(node, last, 3);
    }
    ignored |= qcow2_snapshot_create(node, "x", NULL);
    write_and_read(node, 0, 4);
    if ((uint64_t)lseek(work->fd, 0, SEEK_END) < FILE_MAX)
        ignored |= qcow2_snapshot_delete(node, "x", NULL);
    ignored |= change_bitmaps(node);
    ignored |= qcow2_set_backing(node, "somewhere else", "raw", NULL);
    if ((uint64_t)lseek(work->fd, 0, SEEK_END) < FILE_MAX)
        ignored |= node->class->resize(node, node->size / 1024 * 512, NULL) | qcow2_empty(node, NULL);
    (void)ignored;
    return 0;
}

static void with_image(int fd, struct block_ring *ring, bool read_only, int (*fn)(void *arg))
{
    struct err err = {0};
    struct work work = {.fd = fd};
    struct block_options options = {
        .driver = "qcow2", .fd = dup(fd), .read_only = read_only, .repair = true, .no_backing = true, .no_key = true};
    if (block_open(&options, &work.node, &err) < 0) {
        assert(err.code && *err.message);
        close(options.fd);
        return;
    }
    if (block_attach(work.node, ring, NULL) == 0 && block_run(ring, fn, &work) < 0)
        abort();
    block_close(work.node);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    struct block_ring *ring;
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || block_ring_create("sync", &ring, NULL) < 0)
        abort();
    if (block_ring_start(ring, NULL) == 0) {
        with_image(fd, ring, true, examine);
        with_image(fd, ring, false, alter);
    }
    block_ring_free(ring);
    close(fd);
    return 0;
}
