/* Disks that are no files, to test and measure with: `memory` keeps what is written until it is closed, `null` nothing, and
 * reads as zeroes. In place of a path they take a size. Everything is done when block_submit returns. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/iov.h"
#include "base/own.h"
#include "base/size.h"
#include "block/block.h"

#define PAGE 4096u

struct memory_node {
    struct block_node node;
    uint8_t *bytes; /* NULL: null */
};

static struct memory_node *memory_of(struct block_node *node)
{
    return (struct memory_node *)(void *)node;
}

/* Pages that are whole go back to the host. */
static int zero(struct memory_node *m, uint64_t offset, uint64_t len)
{
    uint64_t end = offset + len, first = (offset + PAGE - 1) / PAGE * PAGE, last = end / PAGE * PAGE;
    if (first >= last) {
        memset(m->bytes + offset, 0, len);
        return 0;
    }
    memset(m->bytes + offset, 0, first - offset);
    memset(m->bytes + last, 0, end - last);
    return madvise(m->bytes + first, last - first, MADV_DONTNEED) < 0 ? -errno : 0;
}

static void read_bytes(const struct memory_node *m, const struct block_request *request)
{
    if (m->bytes) {
        iov_write(request->iov, request->iov_count, 0, m->bytes + request->offset, request->len);
        return;
    }
    for (unsigned i = 0; i < request->iov_count; i++)
        memset(request->iov[i].iov_base, 0, request->iov[i].iov_len);
}

static int write_bytes(struct memory_node *m, const struct block_request *request)
{
    if (request->compress)
        return -ENOTSUP;
    if (m->bytes)
        iov_read(request->iov, request->iov_count, 0, m->bytes + request->offset, request->len);
    return 0;
}

static int serve(struct memory_node *m, const struct block_request *request)
{
    switch (request->op) {
    case BLOCK_READ: read_bytes(m, request); break;
    case BLOCK_WRITE: return write_bytes(m, request);
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES: return m->bytes ? zero(m, request->offset, request->len) : 0;
    case BLOCK_FLUSH: break;
    }
    return 0;
}

static void memory_submit(struct block_node *node, struct block_request *request)
{
    request->done(request, serve(memory_of(node), request));
}

static void memory_close(struct block_node *node)
{
    struct memory_node *m = memory_of(node);
    if (m->bytes)
        munmap(m->bytes, node->size);
    free(node->name);
    free(m);
}

static int map_bytes(struct memory_node *m, struct err *err)
{
    void *bytes = mmap(NULL, m->node.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
        return err_set(err, errno, "memory disk of %llu bytes", (unsigned long long)m->node.size);
    m->bytes = bytes;
    return 0;
}

static int open_node(const struct block_class *class, const struct block_options *options, struct block_node **ret_node,
                     struct err *err)
{
    uint64_t size;
    if (!size_parse(options->path, 1, &size) || !size || size % BLOCK_SECTOR_SIZE)
        return err_say(err, EINVAL, "'%s' is no size of a %s disk, give one such as 64M", options->path, class->name);
    struct memory_node *m = calloc(1, sizeof *m);
    own_free char *name = strdup(class->name);
    if (!m || !name) {
        free(m);
        return err_set(err, ENOMEM, "%s disk", class->name);
    }
    m->node = (struct block_node){.class = class, .size = size, .block_size = BLOCK_SECTOR_SIZE, .physical_block_size = PAGE,
                                  .optimal_io_size = 0, .memory_alignment = 1, .discard_alignment = PAGE,
                                  .read_only = options->read_only, .can_discard = true, .can_write_zeroes = true};
    int r = class == &block_memory ? map_bytes(m, err) : 0;
    if (r < 0) {
        free(m);
        return r;
    }
    m->node.name = TAKE(name);
    *ret_node = &m->node;
    return 0;
}

static int open_memory(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return open_node(&block_memory, options, ret_node, err);
}

static int open_null(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    return open_node(&block_null, options, ret_node, err);
}

const struct block_class block_memory = {.name = "memory", .open = open_memory, .close = memory_close, .submit = memory_submit};
const struct block_class block_null = {.name = "null", .open = open_null, .close = memory_close, .submit = memory_submit};
