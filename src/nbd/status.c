/* What takes steps: BLOCK_STATUS, a chunk a context, and CACHE, which reads and forgets. In fibers. */
#include <errno.h>

#include "base/bytes.h"
#include "nbd/server_impl.h"

/* How far the range beginning at `offset` is alike in a context, and the flags it has there. */
static int look(const struct slot *slot, unsigned context, uint64_t offset, uint64_t len, uint64_t *ret_len, uint32_t *ret_flags)
{
    const struct nbd_export *export = slot->c->export;
    if (context == CONTEXT_BITMAP) {
        bool dirty = false;
        int r = block_bitmap_status(export->node, export->bitmap, offset, len, ret_len, &dirty);
        *ret_flags = dirty;
        return r;
    }
    struct block_extent extent;
    int r = block_status(export->node, offset, len, &extent);
    if (r == 0) {
        *ret_len = extent.len;
        *ret_flags = (extent.data ? 0 : NBD_STATE_HOLE) | (extent.zero ? NBD_STATE_ZERO : 0);
    }
    return r;
}

/* Extents from `to` on, neighbours that are alike as one. Returns how many, or -errno. */
static int gather(const struct slot *slot, unsigned context, uint8_t *to)
{
    unsigned most = slot->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS, count = 0;
    uint64_t at = slot->offset, end = at + slot->len, len = 0;
    uint32_t flags = 0, last = 0;
    for (; at < end; at += len) {
        int r = look(slot, context, at, end - at, &len, &flags);
        if (r < 0)
            return r;
        uint8_t *entry = to + 8 * (size_t)count;
        if (count && flags == last) {
            store_be32(entry - 8, load_be32(entry - 8) + (uint32_t)len);
            continue;
        }
        if (count == most)
            break;
        store_be32(entry, (uint32_t)len);
        store_be32(entry + 4, flags);
        last = flags;
        count++;
    }
    return (int)count;
}

static int status(struct slot *slot)
{
    uint8_t *to = slot->data, *head = NULL;
    for (unsigned context = 0; context < CONTEXTS; context++) {
        if (!(slot->c->contexts & 1u << context))
            continue;
        head = to;
        int count = gather(slot, context, head + NBD_CHUNK_LEN + 4);
        if (count < 0)
            return count;
        store_be32(head, NBD_CHUNK_MAGIC);
        store_be16(head + 4, 0);
        store_be16(head + 6, NBD_CHUNK_BLOCK_STATUS);
        store_be64(head + 8, slot->cookie);
        store_be32(head + 16, 4 + 8 * (uint32_t)count);
        store_be32(head + NBD_CHUNK_LEN, context + 1);
        to = head + NBD_CHUNK_LEN + 4 + 8 * (size_t)count;
    }
    if (!head)
        return -EINVAL; /* the client has chosen no context */
    store_be16(head + 4, NBD_CHUNK_DONE);
    slot->data_len = (uint32_t)(to - slot->data);
    slot->iov = (struct iovec){slot->data, slot->data_len};
    return 0;
}

static int cache(struct slot *slot)
{
    uint64_t size = buffers_size(slot->data_class), n;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < slot->len; at += n) {
        n = slot->len - at < size ? slot->len - at : size;
        r = block_do(slot->c->export->node, BLOCK_READ, slot->offset + at, slot->data, n);
    }
    return r;
}

static void run(void *arg)
{
    struct slot *slot = arg;
    transmit_done(slot, slot->type == NBD_CMD_CACHE ? cache(slot) : status(slot));
}

void status_start(struct slot *slot)
{
    if (fiber_start(&slot->c->server->fibers, run, slot) < 0)
        transmit_done(slot, -ENOMEM);
}
