/* Dirty bitmaps in memory: recording, reading, and what tools do to them. */
#include "block/qcow2/dirty_bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

/* ---- bits ---- */

static void set_bits(uint8_t *bits, uint64_t first, uint64_t last)
{
    uint8_t head = (uint8_t)(0xffu << (first & 7)), tail = (uint8_t)(0xffu >> (7 - (last & 7)));
    uint64_t from = first >> 3, to = last >> 3;
    if (from == to) {
        bits[from] |= head & tail;
        return;
    }
    bits[from] |= head;
    memset(bits + from + 1, 0xff, to - from - 1);
    bits[to] |= tail;
}

static bool get_bit(const uint8_t *bits, uint64_t at)
{
    return bits[at >> 3] >> (at & 7) & 1;
}

/* The first bit from `at` on that is not `value`; at most `end`. */
static uint64_t run_end(const uint8_t *bits, uint64_t at, uint64_t end, bool value)
{
    uint8_t same = value ? 0xff : 0;
    while (at < end && get_bit(bits, at) == value) {
        at++;
        while (!(at & 7) && end - at >= 8 && at < end && bits[at >> 3] == same)
            at += 8;
    }
    return at;
}

uint64_t dirty_bitmap_bit_count(const struct dirty_bitmap *bitmap, uint64_t disk_size)
{
    uint64_t granularity = UINT64_C(1) << bitmap->granularity_bits;
    return (disk_size >> bitmap->granularity_bits) + ((disk_size & (granularity - 1)) != 0);
}

/* ---- recording and reading ---- */

void dirty_bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    for (uint32_t i = 0; i < q->bitmaps.count && len; i++) {
        struct dirty_bitmap *b = &q->bitmaps.list[i];
        if (!(b->flags & BITMAP_AUTO) || !b->bits)
            continue;
        set_bits(b->bits, offset >> b->granularity_bits, (offset + len - 1) >> b->granularity_bits);
        b->changed = true;
    }
}

struct dirty_bitmap *dirty_bitmap_find(const struct qcow2 *q, const char *name)
{
    for (uint32_t i = 0; i < q->bitmaps.count; i++)
        if (strcmp(q->bitmaps.list[i].name, name) == 0)
            return &q->bitmaps.list[i];
    return NULL;
}

bool dirty_bitmap_usable(const struct qcow2 *q, const struct dirty_bitmap *b)
{
    if (b->type != BITMAP_TYPE_DIRTY || b->flags & ~(BITMAP_AUTO | BITMAP_EXTRA_COMPATIBLE))
        return false;
    if (b->granularity_bits < BITMAP_GRANULARITY_BITS_MIN || b->granularity_bits > BITMAP_GRANULARITY_BITS_MAX)
        return false;
    uint64_t bytes = (dirty_bitmap_bit_count(b, q->node.size) + 7) / 8;
    return bytes <= BITMAP_BYTES_MAX && (!b->extra_len || b->flags & BITMAP_EXTRA_COMPATIBLE) &&
           (!b->table_offset || b->table_size == cluster_count(q, bytes));
}

static int find_loaded(struct qcow2 *q, const char *name, struct dirty_bitmap **ret_bitmap)
{
    struct dirty_bitmap *b = dirty_bitmap_find(q, name);
    if (!b)
        return -ENOENT;
    *ret_bitmap = b;
    return dirty_bitmap_load(q, b);
}

int dirty_bitmap_status(struct block_node *node, const char *name, uint64_t offset, uint64_t len, uint64_t *ret_len,
                        bool *ret_dirty)
{
    struct qcow2 *q = qcow2_of(node);
    struct dirty_bitmap *b = NULL;
    fiber_lock(&q->lock);
    int r = find_loaded(q, name, &b);
    fiber_unlock(&q->lock);
    if (r < 0)
        return r;
    uint64_t first = offset >> b->granularity_bits, end = ((offset + len - 1) >> b->granularity_bits) + 1;
    *ret_dirty = get_bit(b->bits, first);
    uint64_t alike = (run_end(b->bits, first, end, *ret_dirty) << b->granularity_bits) - offset;
    *ret_len = alike < len ? alike : len;
    return 0;
}

/* ---- resize ---- */

static int allocate_resized(struct dirty_bitmap *b, uint64_t size, uint64_t *bytes)
{
    uint64_t bit_count = dirty_bitmap_bit_count(b, size), len = (bit_count + 7) / 8;
    if (len > BITMAP_BYTES_MAX || len > BITMAPS_BYTES_MAX - *bytes)
        return -EFBIG;
    b->resized = calloc(len ? len : 1, 1);
    if (!b->resized)
        return -ENOMEM;
    b->resized_count = bit_count;
    *bytes += len;
    return 0;
}

int dirty_bitmaps_before_resize(struct qcow2 *q, uint64_t size)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < q->bitmaps.count; i++) {
        struct dirty_bitmap *b = &q->bitmaps.list[i];
        int r = dirty_bitmap_usable(q, b) ? dirty_bitmap_load(q, b) : 0;
        if (r == 0 && b->bits)
            r = allocate_resized(b, size, &bytes);
        if (r < 0)
            return r;
    }
    q->bitmaps.resizing = true;
    return q->bitmaps.count ? dirty_bitmaps_store(q, false) : 0;
}

static void take_resized(struct qcow2 *q, struct dirty_bitmap *b, uint64_t size)
{
    uint8_t *old = b->bits;
    uint64_t keep = b->bit_count < b->resized_count ? b->bit_count : b->resized_count;
    for (uint64_t at = 0, end; at < keep; at = end) {
        bool dirty = get_bit(old, at);
        end = run_end(old, at, keep, dirty);
        if (dirty)
            set_bits(b->resized, at, end - 1);
    }
    /* What a shrunk disk lost may be what a backup still has at a place that is there again. */
    if (size > q->node.size && b->flags & BITMAP_AUTO)
        set_bits(b->resized, q->node.size >> b->granularity_bits, b->resized_count - 1);
    q->bitmaps.bytes += (b->resized_count + 7) / 8;
    q->bitmaps.bytes -= (b->bit_count + 7) / 8;
    b->bits = b->resized;
    b->bit_count = b->resized_count;
    b->resized = old;
    b->changed = true;
}

void dirty_bitmaps_after_resize(struct qcow2 *q, uint64_t size)
{
    for (uint32_t i = 0; i < q->bitmaps.count; i++) {
        struct dirty_bitmap *b = &q->bitmaps.list[i];
        if (b->resized && size != q->node.size)
            take_resized(q, b, size);
        free(b->resized);
        b->resized = NULL;
    }
    q->bitmaps.resizing = false;
}

/* ---- for tools ---- */

uint32_t qcow2_bitmap_count(struct block_node *node)
{
    return qcow2_of(node)->bitmaps.count;
}

void qcow2_get_bitmap(struct block_node *node, uint32_t index, struct qcow2_bitmap *ret_bitmap)
{
    const struct dirty_bitmap *b = &qcow2_of(node)->bitmaps.list[index];
    *ret_bitmap =
        (struct qcow2_bitmap){.name = b->name,
                              .granularity = b->granularity_bits < 64 ? UINT64_C(1) << b->granularity_bits : 0,
                              .in_use = b->flags & BITMAP_IN_USE,
                              .enabled = b->flags & BITMAP_AUTO};
}

static int add(struct qcow2 *q, const struct qcow2_bitmap_change *change, struct err *err)
{
    uint32_t granularity = change->granularity;
    if (!granularity) /* as QEMU: a cluster, from 4 to 64 KiB */
        granularity = q->cluster_size < 4096 ? 4096 : q->cluster_size > 65536 ? 65536 : q->cluster_size;
    if (granularity < 512 || granularity > UINT32_C(1) << 31 || granularity & (granularity - 1))
        return err_say(err, EINVAL, "a bitmap's granularity is a power of two from 512 to 2G");
    if (!*change->name || strlen(change->name) > NAME_MAX_LEN)
        return err_say(err, EINVAL, "a bitmap's name has 1 to %u bytes", NAME_MAX_LEN);
    if (q->version < 3)
        return err_say(err, ENOTSUP, "images of version 2 have no bitmaps; convert it to compat=1.1");
    if (dirty_bitmap_find(q, change->name))
        return err_say(err, EEXIST, "there is a bitmap '%s' already", change->name);
    if (q->bitmaps.count == BITMAPS_MAX)
        return err_say(err, EMLINK, "there are %u bitmaps already", BITMAPS_MAX);
    struct dirty_bitmap *list = realloc(q->bitmaps.list, (q->bitmaps.count + 1) * sizeof *list), b = {0};
    if (!list)
        return -ENOMEM;
    q->bitmaps.list = list;
    b = (struct dirty_bitmap){.name = strdup(change->name),
                              .flags = BITMAP_AUTO,
                              .type = BITMAP_TYPE_DIRTY,
                              .granularity_bits = (uint8_t)__builtin_ctz(granularity),
                              .changed = true};
    int r = b.name ? dirty_bitmap_allocate(q, &b, dirty_bitmap_bit_count(&b, q->node.size)) : -ENOMEM;
    if (r < 0) {
        dirty_bitmap_free(&b);
        return r == -EFBIG ? err_say(err, EFBIG, "the bitmap would be too large, give a larger granularity: -g") : r;
    }
    list[q->bitmaps.count++] = b;
    return 0;
}

static int remove_bitmap(struct qcow2 *q, struct dirty_bitmap *b)
{
    uint32_t index = (uint32_t)(b - q->bitmaps.list);
    int r = dirty_bitmap_drop_table(q, b);
    if (r < 0)
        return r;
    if (b->bits)
        q->bitmaps.bytes -= (b->bit_count + 7) / 8;
    dirty_bitmap_free(b);
    memmove(b, b + 1, (q->bitmaps.count - index - 1) * sizeof *b);
    q->bitmaps.count--;
    q->bitmaps.changed = true;
    return 0;
}

static int merge(struct qcow2 *q, struct dirty_bitmap *into, const struct qcow2_bitmap_change *change, struct err *err)
{
    struct qcow2 *from = change->source_node ? qcow2_of(change->source_node) : q;
    struct dirty_bitmap *source = NULL;
    int r = find_loaded(from, change->source, &source);
    if (r < 0)
        return err_say(err, -r, "bitmap '%s' in '%s': %s", change->source, from->node.name,
                       r == -ENOENT ? "there is none" : "it cannot be used");
    if (from->node.size != q->node.size)
        return err_say(err, EINVAL, "bitmap '%s' is of a disk of another size", change->source);
    for (uint64_t at = 0, end; at < source->bit_count; at = end) {
        bool dirty = get_bit(source->bits, at);
        end = run_end(source->bits, at, source->bit_count, dirty);
        uint64_t last = (end << source->granularity_bits) - 1;
        if (last >= q->node.size)
            last = q->node.size - 1;
        if (dirty)
            set_bits(into->bits, (at << source->granularity_bits) >> into->granularity_bits,
                     last >> into->granularity_bits);
    }
    into->changed = true;
    return 0;
}

static int change_loaded(struct qcow2 *q, struct dirty_bitmap *b, const struct qcow2_bitmap_change *change,
                         struct err *err)
{
    int r = dirty_bitmap_load(q, b);
    if (r < 0)
        return err_say(err, EINVAL,
                       "bitmap '%s' was not stored by its last writer or is not understood; it can only be removed",
                       change->name);
    switch (change->action) {
    case QCOW2_BITMAP_CLEAR:
        memset(b->bits, 0, (b->bit_count + 7) / 8);
        b->changed = true;
        return 0;
    case QCOW2_BITMAP_ENABLE: b->flags |= BITMAP_AUTO; return 0;
    case QCOW2_BITMAP_DISABLE: b->flags &= ~BITMAP_AUTO; return 0;
    case QCOW2_BITMAP_MERGE: return merge(q, b, change, err);
    case QCOW2_BITMAP_ADD:
    case QCOW2_BITMAP_REMOVE: break;
    }
    return -EINVAL;
}

static int change_bitmap(struct qcow2 *q, const struct qcow2_bitmap_change *change, struct err *err)
{
    struct dirty_bitmap *b = dirty_bitmap_find(q, change->name);
    if (change->action == QCOW2_BITMAP_ADD)
        return add(q, change, err);
    if (!b)
        return err_say(err, ENOENT, "there is no bitmap '%s'", change->name);
    return change->action == QCOW2_BITMAP_REMOVE ? remove_bitmap(q, b) : change_loaded(q, b, change, err);
}

int qcow2_bitmap_change(struct block_node *node, const struct qcow2_bitmap_change *change, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    struct err why = {0};
    fiber_lock(&q->lock);
    int r = q->failed ? q->failed : change_bitmap(q, change, &why);
    if (r == 0)
        r = dirty_bitmaps_store(q, false);
    fiber_unlock(&q->lock);
    if (r < 0 && !why.code)
        err_set(&why, -r, "bitmap '%s'", change->name);
    if (r < 0 && err)
        *err = why;
    return r < 0 && err ? err_ctx(err, "disk '%s'", node->name) : r;
}
