#include "virtio_guest.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"

#define RING_FEATURES                                                                                        \
    (VIRTIO_FEATURE(VIRTIO_F_VERSION_1) | VIRTIO_FEATURE(VIRTIO_F_RING_EVENT_IDX) |                          \
     VIRTIO_FEATURE(VIRTIO_F_RING_INDIRECT_DESC))

static unsigned queue_interrupts[VIRTIO_MAX_QUEUES], config_interrupts;

void guest_create(struct guest *g, uint64_t bytes, bool threaded)
{
    *g = (struct guest){.threaded = threaded, .next_gpa = 0x10000};
    struct err err = {0};
    int r = mem_create(bytes, false, &g->mem, &err);
    assert(r == 0);
    r = loop_create(&g->loop, &err);
    assert(r == 0);
    g->host = (struct virtio_host){.mem = g->mem, .loop = g->loop};
}

static void *run(void *arg)
{
    loop_run(arg);
    return NULL;
}

void guest_run(struct guest *g)
{
    int r = pthread_create(&g->thread, NULL, run, g->loop);
    assert(r == 0);
}

void guest_halt(struct guest *g)
{
    loop_stop(g->loop);
    pthread_join(g->thread, NULL);
}

void guest_free(struct guest *g)
{
    loop_free(g->loop);
    mem_free(g->mem);
}

uint64_t guest_alloc(struct guest *g, uint64_t len)
{
    uint64_t gpa = g->next_gpa;
    g->next_gpa += (len + 63) & ~UINT64_C(63);
    assert(g->next_gpa <= mem_size(g->mem));
    return gpa;
}

void *guest_at(struct guest *g, uint64_t gpa, uint64_t len)
{
    void *p = mem_ptr(g->mem, gpa, len);
    assert(p);
    return p;
}

static void queue_interrupt(struct virtio_device *dev, unsigned index)
{
    (void)dev;
    __atomic_fetch_add(&queue_interrupts[index], 1, __ATOMIC_SEQ_CST);
}

static void config_interrupt(struct virtio_device *dev)
{
    (void)dev;
    __atomic_fetch_add(&config_interrupts, 1, __ATOMIC_SEQ_CST);
}

unsigned guest_interrupts(const struct guest_queue *q)
{
    return __atomic_load_n(&queue_interrupts[q->index], __ATOMIC_SEQ_CST);
}

unsigned guest_config_interrupts(void)
{
    return __atomic_load_n(&config_interrupts, __ATOMIC_SEQ_CST);
}

void guest_set_status(struct virtio_device *dev, uint8_t status)
{
    pthread_mutex_lock(&dev->lock);
    virtio_set_status(dev, status);
    pthread_mutex_unlock(&dev->lock);
}

uint8_t guest_status(struct virtio_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    uint8_t status = dev->status;
    pthread_mutex_unlock(&dev->lock);
    return status;
}

void guest_queue_init(struct guest *g, struct virtio_device *dev, unsigned index, struct guest_queue *ret_q)
{
    pthread_mutex_lock(&dev->lock);
    struct virtq *vq = &dev->queues[index];
    uint16_t size = vq->size;
    struct guest_queue q = {.guest = g, .dev = dev, .index = index, .size = size};
    q.desc = guest_alloc(g, size * 16u);
    q.avail = guest_alloc(g, 6 + size * 2u);
    q.used = guest_alloc(g, 6 + size * 8u);
    q.indirect = guest_alloc(g, size * 16u * 16u); /* 16 entries for each head */
    memset(guest_at(g, q.avail, 6 + size * 2u), 0, 6 + size * 2u);
    memset(guest_at(g, q.used, 6 + size * 8u), 0, 6 + size * 8u);
    vq->desc_gpa = q.desc;
    vq->avail_gpa = q.avail;
    vq->used_gpa = q.used;
    int r = virtq_enable(vq, virtio_has(dev, VIRTIO_F_RING_EVENT_IDX), virtio_has(dev, VIRTIO_F_RING_INDIRECT_DESC));
    assert(r == 0);
    pthread_mutex_unlock(&dev->lock);
    *ret_q = q;
}

void guest_start_device(struct guest *g, struct virtio_device *dev, uint64_t features, struct guest_queue *queues)
{
    memset(queue_interrupts, 0, sizeof queue_interrupts);
    config_interrupts = 0;
    pthread_mutex_lock(&dev->lock);
    dev->queue_interrupt = queue_interrupt;
    dev->config_interrupt = config_interrupt;
    pthread_mutex_unlock(&dev->lock);
    guest_set_status(dev, VIRTIO_STATUS_ACKNOWLEDGE);
    guest_set_status(dev, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
    pthread_mutex_lock(&dev->lock);
    dev->accepted = (features | RING_FEATURES) & dev->offered;
    pthread_mutex_unlock(&dev->lock);
    uint8_t status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK;
    guest_set_status(dev, status);
    assert(guest_status(dev) == status);
    for (unsigned i = 0; i < dev->queue_count; i++)
        guest_queue_init(g, dev, i, &queues[i]);
    guest_set_status(dev, status | VIRTIO_STATUS_DRIVER_OK);
}

static void write_desc(uint8_t *table, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    store_le64(table + i * 16, addr);
    store_le32(table + i * 16 + 8, len);
    store_le16(table + i * 16 + 12, flags);
    store_le16(table + i * 16 + 14, next);
}

void guest_set_desc(struct guest_queue *q, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    write_desc(guest_at(q->guest, q->desc, q->size * 16u), i, addr, len, flags, next);
}

void guest_publish(struct guest_queue *q, uint16_t head)
{
    uint8_t *avail = guest_at(q->guest, q->avail, 6 + q->size * 2u);
    store_le16(avail + 4 + (q->avail_idx % q->size) * 2, head);
    q->avail_idx++;
    __atomic_store_n((uint16_t *)(void *)(avail + 2), q->avail_idx, __ATOMIC_RELEASE);
}

uint16_t guest_add(struct guest_queue *q, const struct guest_buf *bufs, unsigned count, bool indirect)
{
    uint16_t head = q->next_desc;
    if (indirect) {
        assert(count <= 16);
        uint64_t table = q->indirect + head * 256u;
        for (unsigned i = 0; i < count; i++)
            write_desc(guest_at(q->guest, table, 256), i, bufs[i].gpa, bufs[i].len,
                       (uint16_t)((i + 1 < count ? 1 : 0) | (bufs[i].write ? 2 : 0)), (uint16_t)(i + 1));
        guest_set_desc(q, head, table, count * 16, 4, 0);
        q->next_desc = (uint16_t)((head + 1) % q->size);
    } else {
        for (unsigned i = 0; i < count; i++)
            guest_set_desc(q, (head + i) % q->size, bufs[i].gpa, bufs[i].len,
                           (uint16_t)((i + 1 < count ? 1 : 0) | (bufs[i].write ? 2 : 0)),
                           (uint16_t)((head + i + 1) % q->size));
        q->next_desc = (uint16_t)((head + count) % q->size);
    }
    guest_publish(q, head);
    return head;
}

void guest_kick(struct guest_queue *q)
{
    if (q->guest->threaded || q->dev->class->own_thread) {
        virtio_kick(q->dev, q->index);
        return;
    }
    pthread_mutex_lock(&q->dev->lock);
    if (virtio_live(q->dev))
        q->dev->class->kicked(q->dev, q->index);
    pthread_mutex_unlock(&q->dev->lock);
}

bool guest_used(struct guest_queue *q, uint16_t *ret_head, uint32_t *ret_len, unsigned timeout_ms)
{
    uint8_t *used = guest_at(q->guest, q->used, 6 + q->size * 8u);
    for (unsigned tries = 0;; tries++) {
        if (__atomic_load_n((uint16_t *)(void *)(used + 2), __ATOMIC_ACQUIRE) != q->used_seen)
            break;
        if (tries >= timeout_ms * 10)
            return false;
        usleep(100);
    }
    uint8_t *element = used + 4 + (q->used_seen % q->size) * 8;
    q->used_seen++;
    uint8_t *event = (uint8_t *)guest_at(q->guest, q->avail, 6 + q->size * 2u) + 4 + q->size * 2;
    __atomic_store_n((uint16_t *)(void *)event, q->used_seen, __ATOMIC_SEQ_CST);
    if (ret_head)
        *ret_head = (uint16_t)load_le32(element);
    if (ret_len)
        *ret_len = load_le32(element + 4);
    return true;
}

uint32_t guest_do(struct guest_queue *q, const struct guest_buf *bufs, unsigned count)
{
    uint16_t head = guest_add(q, bufs, count, false), got;
    guest_kick(q);
    uint32_t len;
    bool done = guest_used(q, &got, &len, 5000);
    assert(done && got == head);
    return len;
}
