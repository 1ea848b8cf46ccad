/* The NBD client's node: requests become commands on one of its links. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/iov.h"
#include "block/fiber.h"
#include "block/nbd_impl.h"

/* A request of our own, which asks what a range holds. */
struct status_request {
    struct block_request request; /* first; its stage is STATUS */
    struct block_extent *extent;
    struct fiber *fiber;
    bool done;
    int result;
};
enum { PLAIN, STATUS };

static struct nbd_node *nbd_of(struct block_node *node)
{
    return (struct nbd_node *)node;
}

static void queue_append(struct nbd_queue *queue, struct block_request *req)
{
    req->next = NULL;
    *queue->end = req;
    queue->end = &req->next;
}

static struct block_request *queue_take(struct nbd_queue *queue)
{
    struct block_request *req = queue->first;
    if (req)
        queue->first = req->next;
    if (!queue->first)
        queue->end = &queue->first;
    return req;
}

/* ---- commands: parts of a request ---- */

static void put(struct block_request *req)
{
    if (--req->pending == 0)
        queue_append(&nbd_of(req->node)->finished, req);
}

/* libnbd calls this from inside: nothing of it may be called from here. */
static int part_done(void *arg, int *error)
{
    struct block_request *req = arg;
    if (*error && (req->result == 0 || req->result == -ENOTCONN))
        req->result = -*error;
    put(req);
    return 1; /* forget the command */
}

static int extents_came(void *arg, const char *context, uint64_t offset, uint32_t *entries, size_t count, int *error)
{
    struct status_request *status = arg;
    struct block_request *req = &status->request;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || count < 2 || offset != req->offset || *error)
        return 0;
    uint64_t len = 0, unit = req->node->block_size;
    for (size_t i = 0; i + 1 < count && entries[i + 1] == entries[1]; i += 2)
        len += entries[i];
    if (len < req->len)
        len -= len % unit; /* what is finer than our unit */
    status->extent->len = !len ? unit : len < req->len ? len : req->len;
    status->extent->data = !len || !(entries[1] & LIBNBD_STATE_HOLE);
    status->extent->zero = len && entries[1] & LIBNBD_STATE_ZERO;
    return 0;
}

static int64_t send_command(struct nbd_handle *h, struct block_request *req, uint8_t *data, uint64_t offset, uint64_t len)
{
    nbd_completion_callback done = {.callback = part_done, .user_data = req};
    uint32_t flags = req->stable && nbd_lib.nbd_can_fua(h) == 1 ? LIBNBD_CMD_FLAG_FUA : 0;
    if (req->stage == STATUS)
        return nbd_lib.nbd_aio_block_status(h, len, offset, (nbd_extent_callback){.callback = extents_came, .user_data = req}, done, 0);
    switch (req->op) {
    case BLOCK_READ:
        return nbd_lib.nbd_aio_pread(h, data, len, offset, done, 0);
    case BLOCK_WRITE:
        return nbd_lib.nbd_aio_pwrite(h, data, len, offset, done, flags);
    case BLOCK_DISCARD:
        return nbd_lib.nbd_aio_trim(h, len, offset, done, flags);
    case BLOCK_WRITE_ZEROES:
        if (!req->may_unmap)
            flags |= LIBNBD_CMD_FLAG_NO_HOLE;
        if (req->fast)
            flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
        return nbd_lib.nbd_aio_zero(h, len, offset, done, flags);
    case BLOCK_FLUSH:
        break;
    }
    return nbd_lib.nbd_aio_flush(h, done, 0);
}

static uint8_t *data_of(const struct block_request *req)
{
    return req->bounce.iov_base ? req->bounce.iov_base : req->iov_count ? req->iov->iov_base : NULL;
}

static void send_parts(struct nbd_link *link, struct block_request *req)
{
    bool data = req->stage == PLAIN && (req->op == BLOCK_READ || req->op == BLOCK_WRITE);
    uint64_t most = data ? NBD_PART_MAX : NBD_RANGE_MAX, at = 0;
    req->pending = 1;
    req->result = 0;
    do {
        uint64_t len = req->len - at < most ? req->len - at : most;
        req->pending++;
        if (send_command(link->h, req, data ? data_of(req) + at : NULL, req->offset + at, len) < 0) {
            req->pending--;
            req->result = nbd_link_is_dead(link) ? -ENOTCONN : -nbd_lib.nbd_get_errno();
        }
        at += len;
    } while (at < req->len && req->result == 0);
    put(req);
}

/* ---- requests ---- */

static struct nbd_link *pick_link(struct nbd_node *n)
{
    for (unsigned i = 0; i < n->link_count; i++) {
        struct nbd_link *link = &n->links[n->next_link++ % n->link_count];
        if (link->up)
            return link;
    }
    return NULL;
}

static bool is_flush(const struct block_request *req)
{
    return req->op == BLOCK_FLUSH && req->stage == PLAIN;
}

/* Writes that are done while it is on its way may be none of its. */
static void flush_starts(struct nbd_node *n, struct block_request *req)
{
    req->progress = n->unflushed;
    n->flushing += n->unflushed;
    n->unflushed = false;
}

static void flush_ended(struct nbd_node *n, const struct block_request *req)
{
    n->flushing -= (unsigned)req->progress;
    n->unflushed |= req->progress && req->result < 0;
}

static void start(struct nbd_node *n, struct block_request *req)
{
    struct nbd_link *link = pick_link(n);
    if (!link) {
        queue_append(&n->waiting, req);
        nbd_reconnect(n);
        return;
    }
    if (req->op == BLOCK_WRITE_ZEROES && req->fast && nbd_lib.nbd_can_fast_zero(link->h) != 1) {
        req->done(req, -ENOTSUP);
        return;
    }
    n->in_flight++;
    if (is_flush(req))
        flush_starts(n, req);
    send_parts(link, req);
    nbd_link_drive(link);
    nbd_finish(n);
}

void nbd_resend(struct nbd_node *n)
{
    struct nbd_queue waiting = n->waiting;
    if (!waiting.first)
        return;
    n->waiting = (struct nbd_queue){.end = &n->waiting.first};
    for (struct block_request *req; (req = queue_take(&waiting));)
        start(n, req);
}

static void end(struct nbd_node *n, struct block_request *req, int result)
{
    if (req->bounce.iov_base && req->op == BLOCK_READ && result == 0)
        iov_write(req->iov, req->iov_count, 0, req->bounce.iov_base, req->len);
    free(req->bounce.iov_base);
    req->bounce.iov_base = NULL;
    if (is_flush(req)) {
        if (result == 0 && n->lost)
            result = -EIO;
        n->lost = false;
    } else if (req->op != BLOCK_READ) {
        n->unflushed = true;
    }
    req->done(req, result);
}

void nbd_give_up(struct nbd_node *n)
{
    struct nbd_queue waiting = n->waiting;
    n->waiting = (struct nbd_queue){.end = &n->waiting.first};
    if (!waiting.first)
        return;
    for (struct block_request *req; (req = queue_take(&waiting));)
        end(n, req, -ENOTCONN);
}

void nbd_finish(struct nbd_node *n)
{
    if (n->finishing)
        return;
    n->finishing = true;
    for (struct block_request *req; (req = queue_take(&n->finished));) {
        n->in_flight--;
        if (is_flush(req))
            flush_ended(n, req);
        if (req->result == -ENOTCONN || req->result == -ESHUTDOWN)
            start(n, req);
        else
            end(n, req, req->result);
    }
    n->finishing = false;
}

static void nbd_submit(struct block_node *node, struct block_request *req)
{
    struct nbd_node *n = nbd_of(node);
    bool data = req->op == BLOCK_READ || req->op == BLOCK_WRITE;
    req->stage = PLAIN;
    req->bounce = (struct iovec){0};
    if (req->op != BLOCK_FLUSH && !req->len) {
        req->done(req, 0);
        return;
    }
    if (data && req->iov_count > 1) {
        req->bounce.iov_base = malloc(req->len);
        if (!req->bounce.iov_base) {
            req->done(req, -ENOMEM);
            return;
        }
        if (req->op == BLOCK_WRITE)
            iov_read(req->iov, req->iov_count, 0, req->bounce.iov_base, req->len);
    }
    start(n, req);
}

static void status_done(struct block_request *req, int result)
{
    struct status_request *status = (struct status_request *)(void *)req;
    status->result = result;
    status->done = true;
    if (status->fiber)
        fiber_resume(status->fiber);
}

static int nbd_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    struct nbd_node *n = nbd_of(node);
    struct block_extent extent = {.len = len, .present = true, .data = true, .has_offset = true, .offset = offset, .name = node->name};
    struct status_request status = {.request = {.stage = STATUS,
                                                .op = BLOCK_READ,
                                                .offset = offset,
                                                .len = len < NBD_RANGE_MAX ? len : NBD_RANGE_MAX,
                                                .node = node,
                                                .done = status_done},
                                    .extent = &extent};
    if (n->has_extents)
        start(n, &status.request);
    else
        status.done = true;
    if (!status.done) {
        status.fiber = fiber_current();
        fiber_wait();
    }
    if (status.result == 0)
        *ret_extent = extent;
    return status.result;
}

/* ---- opening ---- */

static int learn(struct nbd_node *n, struct err *err)
{
    struct block_node *node = &n->node;
    struct nbd_handle *h = n->links[0].h;
    int64_t size = nbd_lib.nbd_get_size(h), unit = nbd_lib.nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    node->block_size = unit > BLOCK_SECTOR_SIZE ? (uint32_t)unit : BLOCK_SECTOR_SIZE;
    if (size < 0 || unit > 65536 || node->block_size & (node->block_size - 1) || size % node->block_size)
        return err_say(err, EINVAL, "'%s' has %lld bytes in blocks of %lld, which is no disk", node->name, (long long)size,
                       (long long)unit);
    if (!node->read_only && nbd_lib.nbd_is_read_only(h) == 1)
        return err_say(err, EROFS, "'%s' is served read-only", node->name);
    node->size = (uint64_t)size;
    node->physical_block_size = 4096;
    node->memory_alignment = 1;
    node->discard_alignment = 4096;
    node->can_discard = !node->read_only && nbd_lib.nbd_can_trim(h) == 1;
    node->can_write_zeroes = !node->read_only && nbd_lib.nbd_can_zero(h) == 1;
    n->has_extents = nbd_lib.nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    return 0;
}

static void nbd_node_close(struct block_node *node)
{
    struct nbd_node *n = nbd_of(node);
    for (unsigned i = 0; i < n->link_count; i++)
        nbd_link_close(&n->links[i]);
    if (n->timer_fd >= 0)
        close(n->timer_fd);
    free(node->name);
    free(n);
}

static int build(struct nbd_node *n, struct err *err)
{
    if (!n->node.name || n->timer_fd < 0)
        return err_set(err, ENOMEM, "NBD");
    n->link_count = 1;
    int r = nbd_link_open(&n->links[0], err);
    if (r == 0)
        r = learn(n, err);
    if (r < 0 || nbd_lib.nbd_can_multi_conn(n->links[0].h) != 1)
        return r;
    while (n->link_count < NBD_LINKS_MAX && nbd_link_open(&n->links[n->link_count], NULL) == 0) /* fewer will do */
        n->link_count++;
    return 0;
}

static int nbd_open(const struct block_options *options, struct block_node **ret_node, struct err *err)
{
    int r = nbd_library_load(err);
    if (r < 0)
        return r;
    struct nbd_node *n = calloc(1, sizeof *n);
    if (!n)
        return err_set(err, ENOMEM, "NBD");
    n->node = (struct block_node){.class = &block_nbd, .read_only = options->read_only, .name = strdup(options->path)};
    n->waiting.end = &n->waiting.first;
    n->finished.end = &n->finished.first;
    n->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    for (unsigned i = 0; i < NBD_LINKS_MAX; i++)
        n->links[i].n = n;
    r = build(n, err);
    if (r < 0)
        nbd_node_close(&n->node);
    else
        *ret_node = &n->node;
    return r;
}

const struct block_class block_nbd = {
    .name = "nbd",
    .open = nbd_open,
    .close = nbd_node_close,
    .submit = nbd_submit,
    .status = nbd_status,
};
