#include "block/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/fiber.h"

const struct block_class *const block_classes[] = {
    &block_file,
    &block_luks,
    &block_memory,
    &block_null,
    &block_qcow2,
    &block_vdi,
    &block_vhd,
    &block_vhdx,
    &block_vmdk,
    NULL,
};

const struct block_class *block_find_class(const char *name)
{
    for (unsigned i = 0; block_classes[i]; i++)
        if (strcmp(block_classes[i]->name, name) == 0)
            return block_classes[i];
    return NULL;
}

int block_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    const char *driver = options->driver && strcmp(options->driver, "raw") != 0 ? options->driver : "file";
    const struct block_class *class = block_find_class(driver);
    if (!class)
        return err_say(err, EINVAL, "disk format '%s' is not known, give raw, qcow2 or luks", driver);
    return class->open(options, ret_node, err);
}

void block_close(struct block_node *node)
{
    if (node)
        node->class->close(node);
}

int block_attach(struct block_node *node, struct block_ring *ring, struct err *err)
{
    node->ring = ring;
    return node->class->attach ? node->class->attach(node, ring, err) : 0;
}

struct waiting {
    struct fiber *fiber;
    bool done;
    int result;
};

static void request_done(struct block_request *request, int result)
{
    struct waiting *waiting = request->user;
    waiting->result = result;
    waiting->done = true;
    if (waiting->fiber)
        fiber_resume(waiting->fiber);
}

int block_do_request(struct block_node *node, struct block_request *request)
{
    struct waiting waiting = {0};
    request->user = &waiting; // cppcheck-suppress autoVariables ; only until this returns
    request->done = request_done;
    block_submit(node, request);
    if (!waiting.done) {
        waiting.fiber = fiber_current();
        fiber_wait();
    }
    return waiting.result;
}

int block_do(struct block_node *node, enum block_op op, uint64_t offset, void *buf, uint64_t len)
{
    struct iovec iov = {buf, len};
    struct block_request request = {.op = op, .offset = offset, .len = len, .iov = &iov, .iov_count = buf ? 1 : 0};
    request.may_unmap = op == BLOCK_DISCARD;
    return block_do_request(node, &request);
}

int block_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    if (node->class->status)
        return node->class->status(node, offset, len, ret_extent);
    *ret_extent = (struct block_extent){
        .len = len, .present = true, .data = true, .has_offset = true, .offset = offset, .name = node->name};
    return 0;
}

int block_resize(struct block_node *node, uint64_t size, struct err *err)
{
    if (size == 0 || size % node->block_size)
        return err_say(err, EINVAL, "disk '%s': a size is a multiple of %u bytes", node->name, node->block_size);
    return node->class->resize ? node->class->resize(node, size, err)
                               : err_say(err, ENOTSUP, "disk '%s' cannot be resized now", node->name);
}

int block_bitmap_status(struct block_node *node, const char *name, uint64_t offset, uint64_t len, uint64_t *ret_len,
                        bool *ret_dirty)
{
    return node->class->bitmap_status ? node->class->bitmap_status(node, name, offset, len, ret_len, ret_dirty) : -ENOENT;
}

struct run {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool ended;
};

static void run_fiber(void *arg)
{
    struct run *run = arg;
    run->result = run->fn(run->arg);
    run->ended = true;
}

int block_run(struct block_ring *ring, int (*fn)(void *arg), void *arg)
{
    struct fiber_pool pool = {0};
    struct run run = {.fn = fn, .arg = arg};
    int r = fiber_start(&pool, run_fiber, &run);
    while (r == 0 && !run.ended) {
        block_ring_wait(ring, UINT64_MAX);
        block_ring_dispatch(ring);
    }
    fiber_pool_drain(&pool);
    return r < 0 ? r : run.result;
}

bool block_is_nbd_uri(const char *path)
{
    static const char *const schemes[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};
    for (unsigned i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (strncmp(path, schemes[i], strlen(schemes[i])) == 0)
            return true;
    return false;
}
