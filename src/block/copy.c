/* Ranges are locked: each write and each piece of copying waits for those before it that overlap. So a chunk is copied
 * between writes, never during one, and a mirror's two sides see overlapping writes in one order. */
#include "block/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/own.h"
#include "block/fiber.h"
#include "block/rebase.h"

#define CHUNK_BITS 16u                  /* what a backup copies before a write */
#define CHUNK (UINT64_C(1) << CHUNK_BITS)
#define PIECE (UINT64_C(1) << 20)       /* what is copied at once */
#define BUFFER (2 * PIECE)              /* a rebase compares two */
#define WORKERS 8u

struct held {
    uint64_t from, to; /* bytes */
    struct held *next;
};

struct copy {
    struct block_node node; /* first */
    struct block_node *source, *target; /* target: the source itself for FLATTEN and REBASE */
    struct block_node *base;            /* REBASE: the new one */
    enum block_copy_mode mode;
    enum block_copy_state state;
    int error;
    bool stop, based, owns_target;
    void (*changed)(void *arg);
    void *arg;

    uint64_t *todo; /* bit a chunk: is to be copied */
    uint64_t chunks, todo_count, next; /* next: no chunk before it is to be copied, but by a backup's writes */
    unsigned workers;
    struct held *held, **held_end; /* in the order in which they came */
    struct fiber_queue held_waiters, worker_waiters;
    struct fiber_pool pool;
};

static const struct block_class block_copy;

static struct copy *copy_of(const struct block_node *node)
{
    return (struct copy *)(uintptr_t)node;
}

bool block_is_copy(const struct block_node *node)
{
    return node->class == &block_copy;
}

struct block_node *block_copy_source(const struct block_node *node)
{
    return copy_of(node)->source;
}

/* Writes go to source and target. */
static bool follows(const struct copy *copy)
{
    return copy->mode == BLOCK_COPY_MIRROR || copy->mode == BLOCK_COPY_COMMIT;
}

/* ---- locked ranges ---- */

static bool must_wait(const struct copy *copy, const struct held *own)
{
    for (const struct held *other = copy->held; other != own; other = other->next)
        if (other->from < own->to && own->from < other->to)
            return true;
    return false;
}

static void hold(struct copy *copy, struct held *own)
{
    own->next = NULL;
    *copy->held_end = own;
    copy->held_end = &own->next;
    while (must_wait(copy, own))
        fiber_queue_wait(&copy->held_waiters);
}

static void release(struct copy *copy, const struct held *own)
{
    struct held **at = &copy->held;
    while (*at != own)
        at = &(*at)->next;
    *at = own->next;
    if (!own->next)
        copy->held_end = at;
    fiber_queue_wake_all(&copy->held_waiters);
}

/* ---- chunks ---- */

static bool is_todo(const struct copy *copy, uint64_t chunk)
{
    return copy->todo[chunk / 64] >> chunk % 64 & 1;
}

static void set_done(struct copy *copy, uint64_t chunk)
{
    copy->todo[chunk / 64] &= ~(UINT64_C(1) << chunk % 64);
    copy->todo_count--;
}

/* The next chunks that are to be copied, PIECE bytes at most; false: none. */
static bool take_piece(struct copy *copy, struct held *ret_range)
{
    uint64_t first = copy->next;
    while (first < copy->chunks && !is_todo(copy, first))
        first = copy->todo[first / 64] >> first % 64 ? first + 1 : (first / 64 + 1) * 64;
    uint64_t end = first;
    while (end < copy->chunks && end - first < PIECE / CHUNK && is_todo(copy, end))
        end++;
    copy->next = end;
    *ret_range = (struct held){.from = first << CHUNK_BITS, .to = end << CHUNK_BITS};
    return end > first;
}

static void fail(struct copy *copy, int error)
{
    if (copy->state == BLOCK_COPY_FAILED)
        return;
    copy->state = BLOCK_COPY_FAILED;
    copy->error = error;
    if (copy->changed)
        copy->changed(copy->arg);
}

enum need { NOTHING, COPY, ZERO };

/* What makes the target read as this part of the source does. */
static enum need needed(const struct copy *copy, const struct block_extent *extent)
{
    bool own = extent->present && !extent->depth;
    if ((copy->mode == BLOCK_COPY_COMMIT && !own) || (copy->mode == BLOCK_COPY_FLATTEN && !extent->depth))
        return NOTHING;
    if (extent->data || !extent->zero)
        return COPY;
    return copy->based || copy->mode == BLOCK_COPY_COMMIT ? ZERO : NOTHING;
}

static int copy_extent(struct copy *copy, const struct block_extent *extent, uint64_t offset, void *buffer)
{
    enum need need = needed(copy, extent);
    if (need == ZERO)
        return block_do(copy->target, BLOCK_WRITE_ZEROES, offset, NULL, extent->len);
    int r = need == COPY ? block_do(copy->source, BLOCK_READ, offset, buffer, extent->len) : 0;
    if (r == 0 && need == COPY)
        r = block_do(copy->target, BLOCK_WRITE, offset, buffer, extent->len);
    return r;
}

static int copy_range(struct copy *copy, uint64_t offset, uint64_t end, void *buffer)
{
    int r = 0;
    if (copy->mode == BLOCK_COPY_REBASE)
        return block_rebase_range(copy->source, copy->base, offset, end - offset, buffer);
    while (r == 0 && offset < end) {
        struct block_extent extent;
        r = block_status(copy->source, offset, end - offset, &extent);
        if (r == 0)
            r = copy_extent(copy, &extent, offset, buffer);
        offset += extent.len;
    }
    return r;
}

/* What of a held range is to be copied; `buffer` has BUFFER bytes. */
static void copy_held(struct copy *copy, const struct held *range, void *buffer)
{
    uint64_t chunk = range->from >> CHUNK_BITS, end = (range->to + CHUNK - 1) >> CHUNK_BITS;
    while (copy->state == BLOCK_COPY_RUNNING && chunk < end) {
        uint64_t first = chunk;
        while (chunk < end && chunk - first < PIECE / CHUNK && is_todo(copy, chunk))
            chunk++;
        if (chunk == first) {
            chunk++;
            continue;
        }
        uint64_t to = chunk << CHUNK_BITS < copy->node.size ? chunk << CHUNK_BITS : copy->node.size;
        int r = copy_range(copy, first << CHUNK_BITS, to, buffer);
        if (r < 0)
            fail(copy, r);
        for (; r == 0 && first < chunk; first++)
            set_done(copy, first);
    }
}

static void worker(void *arg)
{
    struct copy *copy = arg;
    struct held range;
    void *buffer = aligned_alloc(4096, BUFFER);
    if (!buffer)
        fail(copy, -ENOMEM);
    while (!copy->stop && copy->state == BLOCK_COPY_RUNNING && take_piece(copy, &range)) {
        hold(copy, &range);
        copy_held(copy, &range, buffer);
        release(copy, &range);
    }
    free(buffer);
    int r = 0;
    if (copy->workers == 1 && !copy->stop && copy->state == BLOCK_COPY_RUNNING)
        r = block_do(copy->target, BLOCK_FLUSH, 0, NULL, 0);
    if (r < 0)
        fail(copy, r);
    if (--copy->workers)
        return;
    if (copy->state == BLOCK_COPY_RUNNING && !copy->todo_count) {
        copy->state = follows(copy) ? BLOCK_COPY_READY : BLOCK_COPY_DONE;
        if (copy->changed)
            copy->changed(copy->arg);
    }
    fiber_queue_wake_all(&copy->worker_waiters);
}

/* ---- requests ---- */

static bool mirrored(const struct copy *copy, uint64_t offset, uint64_t len)
{
    if (!follows(copy) || copy->state == BLOCK_COPY_FAILED)
        return false;
    uint64_t end = (offset + len + CHUNK - 1) >> CHUNK_BITS;
    for (uint64_t chunk = offset >> CHUNK_BITS; chunk < end; chunk++)
        if (!is_todo(copy, chunk))
            return true;
    return false; /* it will be copied */
}

/* The request, once more, with results of its own. */
static int forward(struct block_node *node, const struct block_request *request, bool fast)
{
    struct block_request inner = {.op = request->op,
                                  .may_unmap = request->may_unmap,
                                  .fast = fast,
                                  .stable = request->stable,
                                  .offset = request->offset,
                                  .len = request->len,
                                  .iov = request->iov,
                                  .iov_count = request->iov_count};
    return block_do_request(node, &inner);
}

static int forward_to_both(struct copy *copy, const struct block_request *request, bool both)
{
    int r = forward(copy->source, request, request->fast);
    if (!both || (r == -ENOTSUP && request->fast)) /* then nothing was changed */
        return r;
    int target = r < 0 ? r : forward(copy->target, request, false); /* the source failed: who knows what it holds */
    if (target < 0)
        fail(copy, target);
    return r;
}

static void copy_before_write(struct copy *copy, const struct held *range)
{
    own_free void *buffer = aligned_alloc(4096, BUFFER);
    if (buffer)
        copy_held(copy, range, buffer);
    else if (copy->state == BLOCK_COPY_RUNNING)
        fail(copy, -ENOMEM);
}

/* Whether what is to be copied of the range must be before the request: what a backup would lose; and what a mirror's target gets by a
 * write that goes to copied chunks, too, for a chunk that is still to be copied may read as zeroes by then and be passed over. */
static bool copies_first(const struct copy *copy, enum block_op op, const struct held *range)
{
    bool writes_both = follows(copy) && op == BLOCK_WRITE;
    if (copy->state != BLOCK_COPY_RUNNING || (copy->mode != BLOCK_COPY_BACKUP && !writes_both))
        return false;
    uint64_t todo = 0, chunk = range->from >> CHUNK_BITS, count = (range->to >> CHUNK_BITS) - chunk;
    for (uint64_t i = 0; i < count; i++)
        todo += is_todo(copy, chunk + i);
    return todo && (todo < count || copy->mode == BLOCK_COPY_BACKUP);
}

static void serve_write(void *arg)
{
    struct block_request *request = arg;
    struct copy *copy = copy_of(request->node);
    struct held range = {.from = request->offset & ~(CHUNK - 1), .to = (request->offset + request->len + CHUNK - 1) & ~(CHUNK - 1)};
    hold(copy, &range);
    if (copies_first(copy, request->op, &range))
        copy_before_write(copy, &range);
    int r = forward_to_both(copy, request, mirrored(copy, request->offset, request->len));
    release(copy, &range);
    request->done(request, r);
}

static void serve_flush(void *arg)
{
    struct block_request *request = arg;
    struct copy *copy = copy_of(request->node);
    request->done(request, forward_to_both(copy, request, follows(copy) && copy->state != BLOCK_COPY_FAILED));
}

static void copy_submit(struct block_node *node, struct block_request *request)
{
    struct copy *copy = copy_of(node);
    if (request->op == BLOCK_READ) {
        block_submit(copy->source, request);
        return;
    }
    if (fiber_start(&copy->pool, request->op == BLOCK_FLUSH ? serve_flush : serve_write, request) < 0)
        request->done(request, -ENOMEM);
}

static int copy_status(struct block_node *node, uint64_t offset, uint64_t len, struct block_extent *ret_extent)
{
    return block_status(copy_of(node)->source, offset, len, ret_extent);
}

static int copy_attach(struct block_node *node, struct block_ring *ring, struct err *err)
{
    struct copy *copy = copy_of(node);
    int r = block_attach(copy->source, ring, err);
    if (r == 0 && copy->base)
        r = block_attach(copy->base, ring, err);
    return r < 0 || !copy->owns_target ? r : block_attach(copy->target, ring, err);
}

static void copy_free(struct copy *copy)
{
    fiber_pool_drain(&copy->pool);
    free(copy->todo);
    free(copy->node.name);
    free(copy);
}

static void copy_close(struct block_node *node)
{
    struct copy *copy = copy_of(node);
    block_close(copy->source);
    block_close(copy->base);
    if (copy->owns_target)
        block_close(copy->target);
    copy_free(copy);
}

static const struct block_class block_copy = {
    .name = "copy",
    .close = copy_close,
    .attach = copy_attach,
    .submit = copy_submit,
    .status = copy_status,
    .stop = block_copy_stop,
};

/* ---- life ---- */

static int check_nodes(const struct block_node *source, const struct block_node *target, bool same_size, struct err *err)
{
    if (same_size && source->size != target->size)
        return err_say(err, EINVAL, "'%s' has %llu bytes and '%s' %llu; make the target as large as the disk", source->name,
                       (unsigned long long)source->size, target->name, (unsigned long long)target->size);
    if (target->block_size > source->block_size)
        return err_say(err, EINVAL, "'%s' is used in blocks of %u bytes, and the disk in blocks of %u", target->name,
                       target->block_size, source->block_size);
    return 0;
}

static void add_todo(struct copy *copy, uint64_t offset, uint64_t len)
{
    uint64_t end = (offset + len + CHUNK - 1) >> CHUNK_BITS;
    for (uint64_t chunk = offset >> CHUNK_BITS; chunk < end; chunk++) {
        copy->todo_count += !is_todo(copy, chunk);
        copy->todo[chunk / 64] |= UINT64_C(1) << chunk % 64;
    }
}

static int add_dirty(struct copy *copy, const char *bitmap)
{
    uint64_t len = 0;
    for (uint64_t offset = 0; offset < copy->node.size; offset += len) {
        bool dirty;
        int r = block_bitmap_status(copy->source, bitmap, offset, copy->node.size - offset, &len, &dirty);
        if (r < 0)
            return r;
        if (dirty)
            add_todo(copy, offset, len);
    }
    return 0;
}

int block_copy_create(const struct block_copy_options *options, struct block_node **ret_node, struct err *err)
{
    struct block_node *source = options->source;
    bool rebase = options->mode == BLOCK_COPY_REBASE;
    int r = options->target ? check_nodes(source, options->target, !rebase, err) : 0;
    if (r < 0)
        return r;
    struct copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return err_set(err, ENOMEM, "copy");
    copy->chunks = (source->size + CHUNK - 1) >> CHUNK_BITS;
    copy->todo = calloc((copy->chunks + 63) / 64, sizeof *copy->todo);
    copy->node = *source;
    copy->node.class = &block_copy;
    copy->node.name = strdup(source->name);
    copy->source = options->source;
    copy->target = options->target && !rebase ? options->target : source;
    copy->base = rebase ? options->target : NULL;
    copy->owns_target = options->mode == BLOCK_COPY_MIRROR || options->mode == BLOCK_COPY_BACKUP;
    copy->mode = options->mode;
    copy->based = options->based;
    copy->changed = options->changed;
    copy->arg = options->arg;
    copy->held_end = &copy->held;
    r = copy->todo && copy->node.name ? 0 : -ENOMEM;
    if (r == 0 && options->bitmap)
        r = add_dirty(copy, options->bitmap);
    else if (r == 0)
        add_todo(copy, 0, source->size);
    if (r < 0) {
        copy_free(copy);
        return err_set(err, -r, "%s '%s'", options->bitmap ? "bitmap" : "copy of", options->bitmap ? options->bitmap : source->name);
    }
    *ret_node = &copy->node;
    return 0;
}

int block_copy_start(struct block_node *node)
{
    struct copy *copy = copy_of(node);
    int r = 0;
    copy->workers = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++) {
        if (fiber_start(&copy->pool, worker, copy) == 0)
            continue;
        copy->workers--;
        r = -ENOMEM;
    }
    return copy->workers ? 0 : r;
}

void block_copy_status(const struct block_node *node, struct block_copy_status *ret_status)
{
    const struct copy *copy = copy_of(node);
    uint64_t left = copy->todo_count << CHUNK_BITS;
    *ret_status = (struct block_copy_status){.state = copy->state,
                                             .error = copy->error,
                                             .copied = left < node->size ? node->size - left : 0,
                                             .size = node->size};
}

void block_copy_stop(struct block_node *node)
{
    struct copy *copy = copy_of(node);
    copy->stop = true;
    while (copy->workers)
        fiber_queue_wait(&copy->worker_waiters);
}

void block_copy_take(struct block_node *node, struct block_node **ret_source, struct block_node **ret_target)
{
    struct copy *copy = copy_of(node);
    *ret_source = copy->source;
    *ret_target = copy->target == copy->source ? copy->base : copy->target;
    copy_free(copy);
}
