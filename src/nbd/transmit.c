/* Transmission: a request's head becomes a slot, which becomes a block request, whose end becomes an answer. */
#include <errno.h>

#include "base/bytes.h"
#include "nbd/server_impl.h"

/* One line a command. */
static const struct command {
    bool known, writes, payload, reads;
    uint16_t flags;
    enum block_op op;
    bool in_fiber;
} commands[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = {.known = true, .reads = true, .flags = NBD_CMD_FLAG_DF, .op = BLOCK_READ},
    [NBD_CMD_WRITE] = {.known = true, .writes = true, .payload = true, .op = BLOCK_WRITE},
    [NBD_CMD_FLUSH] = {.known = true, .op = BLOCK_FLUSH},
    [NBD_CMD_TRIM] = {.known = true, .writes = true, .op = BLOCK_DISCARD},
    [NBD_CMD_CACHE] = {.known = true, .in_fiber = true},
    [NBD_CMD_WRITE_ZEROES] = {.known = true,
                              .writes = true,
                              .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              .op = BLOCK_WRITE_ZEROES},
    [NBD_CMD_BLOCK_STATUS] = {.known = true, .flags = NBD_CMD_FLAG_REQ_ONE, .in_fiber = true},
};

/* What goes over the wire. */
static uint32_t wire_error(int result)
{
    switch (-result) {
    case EROFS:
    case EPERM:
    case EACCES:
        return 1;
    case ENOMEM:
        return 12;
    case EINVAL:
        return 22;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return 28;
    case EOVERFLOW:
        return 75;
    case ENOTSUP:
        return 95;
    default:
        return 5;
    }
}

/* ---- slots ---- */

static struct slot *take_slot(struct connection *c)
{
    struct slot *slot = c->free_slots;
    c->free_slots = slot->next;
    c->in_flight++;
    slot->data = NULL;
    slot->data_len = 0;
    slot->done = 0;
    slot->next = NULL;
    return slot;
}

void transmit_release(struct slot *slot)
{
    struct connection *c = slot->c;
    if (slot->data) {
        buffers_give(&c->server->buffers, slot->data, slot->data_class);
        c->bytes -= buffers_size(slot->data_class);
    }
    slot->next = c->free_slots;
    c->free_slots = slot;
    c->in_flight--;
    connection_ready(c);
    server_feed(c->server);
}

/* False: there is no room now. */
static bool take_data(struct connection *c, size_t len, uint8_t **ret_data, unsigned *ret_class)
{
    unsigned class = (unsigned)buffers_class(len); /* checked against NBD_PAYLOAD_MAX */
    if (c->bytes + buffers_size(class) > CONNECTION_BYTES_MAX)
        return false; /* an answer that goes makes room */
    uint8_t *data = buffers_take(&c->server->buffers, class);
    c->starved = !data;
    c->server->starving |= !data;
    if (!data)
        return false;
    c->bytes += buffers_size(class);
    *ret_data = data;
    *ret_class = class;
    return true;
}

/* ---- answers ---- */

static uint32_t fields_len(uint16_t type)
{
    switch (type) {
    case NBD_CHUNK_OFFSET_DATA:
        return 8;
    case NBD_CHUNK_OFFSET_HOLE:
        return 12;
    case NBD_CHUNK_ERROR:
        return 6;
    default:
        return 0;
    }
}

static void structured_head(struct slot *slot, uint16_t type, uint32_t data_len)
{
    uint8_t *h = slot->head;
    uint32_t extra = fields_len(type);
    store_be32(h, NBD_CHUNK_MAGIC);
    store_be16(h + 4, NBD_CHUNK_DONE);
    store_be16(h + 6, type);
    store_be64(h + 8, slot->cookie);
    store_be32(h + 16, extra + data_len);
    if (type == NBD_CHUNK_OFFSET_DATA || type == NBD_CHUNK_OFFSET_HOLE)
        store_be64(h + 20, slot->offset);
    if (type == NBD_CHUNK_OFFSET_HOLE)
        store_be32(h + 28, slot->len);
    if (type == NBD_CHUNK_ERROR) {
        store_be32(h + 20, wire_error(slot->result));
        store_be16(h + 24, 0);
    }
    slot->head_len = NBD_CHUNK_LEN + extra;
    slot->data_len = data_len;
}

static void simple_head(struct slot *slot, uint32_t data_len)
{
    store_be32(slot->head, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(slot->head + 4, slot->result < 0 ? wire_error(slot->result) : 0);
    store_be64(slot->head + 8, slot->cookie);
    slot->head_len = NBD_SIMPLE_REPLY_LEN;
    slot->data_len = data_len;
}

/* BLOCK_STATUS has made its chunks itself. */
static void make_answer(struct slot *slot)
{
    bool data = slot->type == NBD_CMD_READ && slot->result == 0 && slot->len;
    uint32_t len = data ? slot->len : 0;
    slot->head_len = 0;
    if (slot->type == NBD_CMD_BLOCK_STATUS && slot->result == 0)
        return;
    if (!slot->c->structured)
        simple_head(slot, len);
    else if (data && slot->block.zeroes == slot->len)
        structured_head(slot, NBD_CHUNK_OFFSET_HOLE, 0);
    else if (slot->result < 0)
        structured_head(slot, NBD_CHUNK_ERROR, 0);
    else
        structured_head(slot, data ? NBD_CHUNK_OFFSET_DATA : NBD_CHUNK_NONE, len);
}

void transmit_done(struct slot *slot, int result)
{
    struct connection *c = slot->c;
    slot->result = result;
    make_answer(slot);
    slot->next = NULL;
    *c->answers_end = slot;
    c->answers_end = &slot->next;
    connection_ready(c);
}

static void block_done(struct block_request *request, int result)
{
    transmit_done((struct slot *)(void *)request, result);
}

/* ---- requests ---- */

static int check(const struct slot *slot, const struct command *command)
{
    const struct block_node *node = slot->c->export->node;
    uint16_t flags = command->flags | NBD_CMD_FLAG_FUA; /* where it means nothing it does no harm */
    if (!command->known || slot->flags & ~flags)
        return -EINVAL;
    if (command->writes && node->read_only)
        return -EPERM;
    if (slot->type == NBD_CMD_FLUSH)
        return slot->offset || slot->len ? -EINVAL : 0;
    if ((command->payload || command->reads) && slot->len > NBD_PAYLOAD_MAX)
        return -EOVERFLOW;
    if (slot->offset > node->size || slot->len > node->size - slot->offset)
        return command->writes ? -ENOSPC : -EINVAL;
    if (slot->offset % node->block_size || slot->len % node->block_size)
        return -EINVAL;
    if (slot->type == NBD_CMD_BLOCK_STATUS && (!slot->c->contexts || !slot->len))
        return -EINVAL;
    return 0;
}

static void submit(struct slot *slot)
{
    const struct command *command = &commands[slot->type];
    if (command->in_fiber) {
        status_start(slot);
        return;
    }
    slot->iov = (struct iovec){slot->data, slot->len};
    slot->block = (struct block_request){.op = command->op,
                                         .may_unmap = !(slot->flags & NBD_CMD_FLAG_NO_HOLE),
                                         .fast = slot->flags & NBD_CMD_FLAG_FAST_ZERO,
                                         .stable = command->writes && slot->flags & NBD_CMD_FLAG_FUA,
                                         .offset = slot->offset,
                                         .len = slot->len,
                                         .iov = &slot->iov,
                                         .iov_count = command->reads || command->payload ? 1 : 0,
                                         .done = block_done};
    if (slot->len || command->op == BLOCK_FLUSH)
        block_submit(slot->c->export->node, &slot->block);
    else
        transmit_done(slot, 0);
}

void transmit_written(struct slot *slot)
{
    submit(slot);
}

/* Bytes of buffer that a sound request needs. */
static size_t data_needed(uint16_t type, uint32_t len)
{
    switch (type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return len;
    case NBD_CMD_CACHE:
        return len < 1u << 20 ? len : 1u << 20;
    case NBD_CMD_BLOCK_STATUS:
        return CONTEXTS * (NBD_CHUNK_LEN + 4 + 8 * STATUS_EXTENTS);
    default:
        return 0;
    }
}

static void begin(struct slot *slot, int problem)
{
    struct connection *c = slot->c;
    const struct command *command = slot->type < NBD_CMD_COUNT ? &commands[slot->type] : &(const struct command){0};
    if (problem < 0) {
        if (command->payload)
            c->skip = slot->len;
        transmit_done(slot, problem);
    } else if (command->payload && slot->len) {
        c->writing = slot;
    } else {
        submit(slot);
    }
}

size_t transmit(struct connection *c, const uint8_t *data, size_t len)
{
    if (len < NBD_REQUEST_LEN || !c->free_slots)
        return 0;
    struct slot *slot = c->free_slots; /* not taken yet */
    slot->flags = load_be16(data + 4);
    slot->type = load_be16(data + 6);
    slot->cookie = load_be64(data + 8);
    slot->offset = load_be64(data + 16);
    slot->len = load_be32(data + 24);
    if (load_be32(data) != NBD_REQUEST_MAGIC) {
        connection_fail(c);
        return 0;
    }
    if (slot->type == NBD_CMD_DISC) {
        c->ending = true;
        return NBD_REQUEST_LEN;
    }
    int problem = check(slot, slot->type < NBD_CMD_COUNT ? &commands[slot->type] : &(const struct command){0});
    size_t needed = problem < 0 ? 0 : data_needed(slot->type, slot->len);
    uint8_t *buffer = NULL;
    unsigned class = 0;
    if (needed && !take_data(c, needed, &buffer, &class))
        return 0;
    take_slot(c);
    slot->data = buffer;
    slot->data_class = class;
    begin(slot, problem);
    return NBD_REQUEST_LEN;
}
