#include "virtio/queue.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "mem/mem.h"

#define DESC_SIZE 16u
#define DESC_F_NEXT 1u
#define DESC_F_WRITE 2u
#define DESC_F_INDIRECT 4u
#define AVAIL_F_NO_INTERRUPT 1u
#define USED_F_NO_NOTIFY 1u

/* Layout of the two rings: flags, idx, ring[size], event. */
#define RING_FLAGS 0u
#define RING_IDX 2u
#define RING_ENTRIES 4u
#define AVAIL_ENTRY 2u
#define USED_ENTRY 8u

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

/* What a walk has gathered so far. */
struct walk {
    struct iovec *iov;
    unsigned capacity, out_count, in_count;
    uint64_t out_len, in_len;
};

static uint16_t ring_load(const uint8_t *p, int order)
{
    const uint16_t *word = (const uint16_t *)(const void *)p;
    return le16toh(order == __ATOMIC_ACQUIRE ? __atomic_load_n(word, __ATOMIC_ACQUIRE)
                                             : __atomic_load_n(word, __ATOMIC_RELAXED));
}

static void ring_store(uint8_t *p, uint16_t v)
{
    __atomic_store_n((uint16_t *)(void *)p, htole16(v), __ATOMIC_RELEASE);
}

/* One read of guest memory; the barrier keeps the compiler from going back to it. */
static struct desc desc_load(const uint8_t *p)
{
    uint8_t raw[DESC_SIZE];
    memcpy(raw, p, sizeof raw);
    __asm__ volatile("" ::: "memory");
    return (struct desc){load_le64(raw), load_le32(raw + 8), load_le16(raw + 12), load_le16(raw + 14)};
}

static int queue_break(struct virtq *q, const char *why)
{
    q->error = why;
    return -EINVAL;
}

void virtq_init(struct virtq *q, struct mem *mem, uint16_t max_size)
{
    *q = (struct virtq){.mem = mem, .max_size = max_size, .size = max_size};
}

void virtq_reset(struct virtq *q)
{
    virtq_init(q, q->mem, q->max_size);
}

int virtq_enable(struct virtq *q, bool event_idx, bool indirect)
{
    uint32_t size = q->size;
    if (!size || size > q->max_size || (size & (size - 1)))
        return queue_break(q, "queue size is not a power of two within bounds");
    if (q->desc_gpa % 16 || q->avail_gpa % 2 || q->used_gpa % 4)
        return queue_break(q, "ring addresses are not aligned");
    const uint8_t *desc = mem_ptr(q->mem, q->desc_gpa, (uint64_t)size * DESC_SIZE);
    uint8_t *avail = mem_ptr(q->mem, q->avail_gpa, RING_ENTRIES + size * AVAIL_ENTRY + 2);
    uint8_t *used = mem_ptr(q->mem, q->used_gpa, RING_ENTRIES + size * USED_ENTRY + 2);
    if (!desc || !avail || !used)
        return queue_break(q, "rings lie outside of memory");
    q->desc = desc;
    q->avail = avail;
    q->used = used;
    q->event_idx = event_idx;
    q->indirect = indirect;
    q->error = NULL;
    q->enabled = true;
    return 0;
}

static int walk_add(struct virtq *q, struct walk *w, const struct desc *d)
{
    bool write = d->flags & DESC_F_WRITE;
    if (!write && w->in_count)
        return queue_break(q, "readable descriptor behind a writable one");
    if (!d->len)
        return 0;
    void *hva = mem_ptr(q->mem, d->addr, d->len);
    if (!hva)
        return queue_break(q, "buffer outside of memory");
    if (w->out_count + w->in_count >= w->capacity)
        return queue_break(q, "chain has too many buffers");
    w->iov[w->out_count + w->in_count] = (struct iovec){hva, d->len};
    if (write) {
        w->in_count++;
        w->in_len += d->len;
    } else {
        w->out_count++;
        w->out_len += d->len;
    }
    if (w->out_len + w->in_len > UINT32_MAX)
        return queue_break(q, "chain is longer than 4 GiB");
    return 0;
}

/* Follows one table from entry `at`. An indirect descriptor ends it and is left in *ret_last. */
static int walk_table(struct virtq *q, struct walk *w, const uint8_t *table, unsigned table_size, unsigned at,
                      struct desc *ret_last)
{
    for (unsigned steps = 0; steps < table_size; steps++) {
        struct desc d = desc_load(table + (size_t)at * DESC_SIZE);
        *ret_last = d;
        if (d.flags & DESC_F_INDIRECT)
            return 0;
        if (walk_add(q, w, &d) < 0)
            return -EINVAL;
        if (!(d.flags & DESC_F_NEXT))
            return 0;
        at = d.next;
        if (at >= table_size)
            return queue_break(q, "next descriptor outside of the table");
    }
    return queue_break(q, "descriptors form a loop");
}

static int walk_indirect(struct virtq *q, struct walk *w, const struct desc *d)
{
    if (!q->indirect || (d->flags & DESC_F_NEXT))
        return queue_break(q, "indirect descriptor where none may be");
    if (!d->len || d->len % DESC_SIZE || d->len / DESC_SIZE > VIRTQ_MAX_SIZE)
        return queue_break(q, "indirect table of impossible size");
    const uint8_t *table = mem_ptr(q->mem, d->addr, d->len);
    if (!table)
        return queue_break(q, "indirect table outside of memory");
    struct desc last = {0};
    if (walk_table(q, w, table, d->len / DESC_SIZE, 0, &last) < 0)
        return -EINVAL;
    return last.flags & DESC_F_INDIRECT ? queue_break(q, "indirect descriptor in an indirect table") : 0;
}

static int walk_chain(struct virtq *q, struct walk *w, unsigned head)
{
    struct desc last = {0};
    if (walk_table(q, w, q->desc, q->size, head, &last) < 0)
        return -EINVAL;
    return last.flags & DESC_F_INDIRECT ? walk_indirect(q, w, &last) : 0;
}

unsigned virtq_pending(struct virtq *q)
{
    if (!q->enabled || q->error)
        return 0;
    return (uint16_t)(ring_load(q->avail + RING_IDX, __ATOMIC_ACQUIRE) - q->next_avail);
}

int virtq_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned capacity)
{
    if (q->error)
        return -EINVAL;
    unsigned pending = virtq_pending(q);
    if (!pending)
        return 0;
    if (pending > q->size)
        return queue_break(q, "available index is ahead of the ring");
    unsigned slot = q->next_avail & (q->size - 1u);
    unsigned head = ring_load(q->avail + RING_ENTRIES + slot * AVAIL_ENTRY, __ATOMIC_RELAXED);
    if (head >= q->size)
        return queue_break(q, "available entry outside of the table");
    struct walk w = {.iov = iov, .capacity = capacity};
    if (walk_chain(q, &w, head) < 0)
        return -EINVAL;
    q->next_avail++;
    *chain = (struct virtq_chain){.out = iov,
                                  .in = iov + w.out_count,
                                  .out_count = w.out_count,
                                  .in_count = w.in_count,
                                  .out_len = (uint32_t)w.out_len,
                                  .in_len = (uint32_t)w.in_len,
                                  .head = (uint16_t)head};
    return 1;
}

void virtq_unpop(struct virtq *q, unsigned count)
{
    q->next_avail = (uint16_t)(q->next_avail - count);
}

void virtq_stage(struct virtq *q, uint16_t head, uint32_t written)
{
    if (!q->enabled)
        return;
    uint16_t slot = (uint16_t)(q->next_used + q->staged++) & (uint16_t)(q->size - 1u);
    uint32_t offset = RING_ENTRIES + slot * USED_ENTRY;
    store_le32(q->used + offset, head);
    store_le32(q->used + offset + 4, written);
    mem_mark_dirty(q->mem, q->used_gpa + offset, USED_ENTRY);
}

void virtq_publish(struct virtq *q)
{
    if (!q->enabled || !q->staged)
        return;
    q->next_used = (uint16_t)(q->next_used + q->staged);
    q->staged = 0;
    ring_store(q->used + RING_IDX, q->next_used);
    mem_mark_dirty(q->mem, q->used_gpa + RING_IDX, 2);
}

void virtq_push_head(struct virtq *q, uint16_t head, uint32_t written)
{
    virtq_stage(q, head, written);
    virtq_publish(q);
}

void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t written)
{
    uint32_t left = written;
    for (unsigned i = 0; left && i < chain->in_count; i++) {
        uint32_t n = chain->in[i].iov_len < left ? (uint32_t)chain->in[i].iov_len : left;
        mem_mark_dirty(q->mem, mem_gpa_of(q->mem, chain->in[i].iov_base), n);
        left -= n;
    }
    virtq_push_head(q, chain->head, written);
}

/* Keeps later loads behind earlier stores; cheaper than mfence. */
static void store_load_barrier(void)
{
    __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory", "cc");
}

bool virtq_needs_signal(struct virtq *q)
{
    uint16_t old = q->signalled, new = q->next_used;
    if (!q->enabled || old == new)
        return false;
    q->signalled = new;
    /* The driver's store to the event index and our store to the used index must not pass each other. */
    store_load_barrier();
    if (!q->event_idx)
        return !(ring_load(q->avail + RING_FLAGS, __ATOMIC_RELAXED) & AVAIL_F_NO_INTERRUPT);
    uint16_t event = ring_load(q->avail + RING_ENTRIES + q->size * AVAIL_ENTRY, __ATOMIC_RELAXED);
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

void virtq_quiet(struct virtq *q)
{
    if (!q->enabled || q->event_idx) /* with event indexes, not moving ours is enough */
        return;
    ring_store(q->used + RING_FLAGS, USED_F_NO_NOTIFY);
    mem_mark_dirty(q->mem, q->used_gpa + RING_FLAGS, 2);
}

bool virtq_listen_more(struct virtq *q, unsigned seen)
{
    if (!q->enabled || q->error)
        return false;
    uint32_t offset = q->event_idx ? RING_ENTRIES + q->size * USED_ENTRY : RING_FLAGS;
    ring_store(q->used + offset, q->event_idx ? (uint16_t)(q->next_avail + seen) : 0);
    mem_mark_dirty(q->mem, q->used_gpa + offset, 2);
    store_load_barrier();
    return virtq_pending(q) != seen;
}

bool virtq_listen(struct virtq *q)
{
    return virtq_listen_more(q, 0);
}
