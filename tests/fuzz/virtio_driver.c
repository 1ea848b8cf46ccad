#include "virtio_driver.h"

#include <assert.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

#define RING_SIZE 16u
#define QUEUE_SPAN 0x1000u /* rings of queue i at i * QUEUE_SPAN: descriptors, available at +0x200, used at +0x400 */
#define HEAP 0x40000u
#define COMMANDS_MAX 400u

uint8_t driver_byte(struct driver *d)
{
    if (!d->left)
        return 0;
    d->left--;
    return *d->data++;
}

static uint16_t take16(struct driver *d)
{
    uint16_t low = driver_byte(d);
    return (uint16_t)(low | driver_byte(d) << 8);
}

static size_t take_bytes(struct driver *d, size_t want, const uint8_t **ret_bytes)
{
    size_t n = want < d->left ? want : d->left;
    *ret_bytes = d->data;
    d->data += n;
    d->left -= n;
    return n;
}

static uint8_t *at(struct driver *d, uint64_t gpa, size_t len)
{
    uint8_t *p = mem_ptr(d->mem, gpa, len);
    assert(p);
    return p;
}

static uint64_t ring(unsigned queue)
{
    return (uint64_t)queue * QUEUE_SPAN;
}

static unsigned take_queue(struct driver *d)
{
    return driver_byte(d) % d->dev->queue_count;
}

static void stop_loop(void *arg)
{
    loop_stop(arg);
}

/* Lets the loop handle what is ready. */
static void pump(struct driver *d)
{
    loop_call(d->loop, stop_loop, d->loop);
    loop_run(d->loop);
}

/* Waits until the device's own thread has seen its kicks and finished. */
static void settle(struct driver *d)
{
    for (unsigned i = 0; i < d->dev->queue_count; i++) {
        struct pollfd p = {.fd = d->dev->kick_fd[i], .events = POLLIN};
        while (poll(&p, 1, 0) > 0)
            usleep(10);
    }
    virtio_pause(d->dev);
    virtio_resume(d->dev);
}

static void kick(struct driver *d, unsigned queue)
{
    virtio_kick(d->dev, queue);
    if (d->dev->class->own_thread)
        settle(d);
    else
        pump(d);
}

static void enable_queue(struct driver *d, unsigned queue)
{
    struct virtq *q = &d->dev->queues[queue];
    if (q->enabled)
        return;
    q->size = RING_SIZE < q->max_size ? RING_SIZE : q->max_size;
    q->desc_gpa = ring(queue);
    q->avail_gpa = ring(queue) + 0x200;
    q->used_gpa = ring(queue) + 0x400;
    memset(at(d, ring(queue), QUEUE_SPAN), 0, QUEUE_SPAN);
    int r = virtq_enable(q, virtio_has(d->dev, VIRTIO_F_RING_EVENT_IDX),
                         virtio_has(d->dev, VIRTIO_F_RING_INDIRECT_DESC));
    assert(r == 0);
}

static void set_status(struct driver *d, uint8_t status)
{
    pthread_mutex_lock(&d->dev->lock);
    virtio_set_status(d->dev, status);
    pthread_mutex_unlock(&d->dev->lock);
}

static void bring_up(struct driver *d, uint8_t choice)
{
    static const uint64_t masks[4] = {UINT64_MAX, UINT64_C(0xffffffffdfffffff), UINT64_C(0xfffffffff00000ff),
                                      UINT64_C(0xffffffff00000000)};
    set_status(d, 0);
    set_status(d, 3);
    pthread_mutex_lock(&d->dev->lock);
    d->dev->accepted = (d->dev->offered & masks[choice & 3]) | VIRTIO_FEATURE(VIRTIO_F_VERSION_1);
    virtio_set_status(d->dev, 11);
    for (unsigned i = 0; i < d->dev->queue_count; i++)
        enable_queue(d, i);
    virtio_set_status(d->dev, 15);
    pthread_mutex_unlock(&d->dev->lock);
}

static void write_desc(uint8_t *p, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    store_le64(p, addr);
    store_le32(p + 8, len);
    store_le16(p + 12, flags);
    store_le16(p + 14, next);
}

static void publish(struct driver *d, unsigned queue, uint16_t head)
{
    uint8_t *avail = at(d, ring(queue) + 0x200, 6 + RING_SIZE * 2);
    uint16_t idx = load_le16(avail + 2);
    store_le16(avail + 4 + (idx % RING_SIZE) * 2, head);
    __atomic_store_n((uint16_t *)(void *)(avail + 2), (uint16_t)(idx + 1), __ATOMIC_RELEASE);
}

/* ---- commands ---- */

static void raw_write(struct driver *d)
{
    uint64_t gpa = (uint64_t)take16(d) << (driver_byte(d) & 4);
    const uint8_t *bytes;
    size_t n = take_bytes(d, driver_byte(d), &bytes);
    int r = mem_write(d->mem, gpa, bytes, n);
    (void)r;
}

static void any_desc(struct driver *d)
{
    unsigned queue = take_queue(d);
    unsigned index = driver_byte(d) % RING_SIZE;
    uint64_t addr = (uint64_t)take16(d) << (driver_byte(d) % 49);
    uint32_t len = (uint32_t)take16(d) << (driver_byte(d) % 17);
    write_desc(at(d, ring(queue) + index * 16, 16), addr, len, driver_byte(d) & 7, driver_byte(d) % (RING_SIZE + 1));
}

/* A well-formed request: a readable buffer of input bytes (cut in two, some more behind them), a writable one. */
static void request(struct driver *d)
{
    unsigned queue = take_queue(d), index = driver_byte(d) % (RING_SIZE - 3);
    uint16_t in_len = (uint16_t)(take16(d) & 0x3fff);
    uint8_t cut = driver_byte(d);
    uint32_t more = driver_byte(d) * 16u;
    const uint8_t *bytes;
    uint32_t n = (uint32_t)take_bytes(d, driver_byte(d), &bytes);
    uint32_t first = n ? cut % n : 0;
    uint64_t out = HEAP + index * 0x8000u, in = out + 0x2000;
    memcpy(at(d, out, n), bytes, n);
    uint8_t *desc = at(d, ring(queue), RING_SIZE * 16);
    write_desc(desc + index * 16, out, first, 1, (uint16_t)(index + 1));
    write_desc(desc + (index + 1) * 16, out + first, n - first + more, in_len ? 1 : 0, (uint16_t)(index + 2));
    write_desc(desc + (index + 2) * 16, in, in_len, 2, 0);
    publish(d, queue, (uint16_t)(n + more ? index : index + 2));
    kick(d, queue);
}

static void from_the_wire(struct driver *d)
{
    const uint8_t *bytes;
    size_t n = take_bytes(d, driver_byte(d), &bytes);
    if (d->wire >= 0) {
        ssize_t ignored = send(d->wire, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)ignored;
    }
    pump(d);
}

static void drain_wire(struct driver *d)
{
    uint8_t bytes[4096];
    if (d->wire >= 0) {
        ssize_t ignored = recv(d->wire, bytes, sizeof bytes, MSG_DONTWAIT);
        (void)ignored;
    }
    pump(d);
}

static void config_write(struct driver *d)
{
    unsigned offset = driver_byte(d), len = 1u << (driver_byte(d) & 3);
    uint8_t bytes[8];
    for (unsigned i = 0; i < 8; i++)
        bytes[i] = driver_byte(d);
    pthread_mutex_lock(&d->dev->lock);
    virtio_config_write(d->dev, offset, bytes, len);
    virtio_config_read(d->dev, offset, bytes, len);
    pthread_mutex_unlock(&d->dev->lock);
}

static void command(struct driver *d)
{
    switch (driver_byte(d) % 12) {
    case 0:
        raw_write(d);
        break;
    case 1:
        any_desc(d);
        break;
    case 2:
        publish(d, take_queue(d), driver_byte(d) % (RING_SIZE + 1));
        break;
    case 3:
        kick(d, take_queue(d));
        break;
    case 4:
        pump(d);
        break;
    case 5:
        set_status(d, driver_byte(d));
        break;
    case 6:
        bring_up(d, driver_byte(d));
        break;
    case 7:
        config_write(d);
        break;
    case 8:
        from_the_wire(d);
        break;
    case 9:
        drain_wire(d);
        break;
    case 10:
        virtio_pause(d->dev);
        pump(d);
        virtio_resume(d->dev);
        break;
    default:
        request(d);
    }
}

void driver_open(struct driver *d, const uint8_t *data, size_t size)
{
    static int once;
    if (!once++)
        log_threshold = LOG_ERROR;
    *d = (struct driver){.data = data, .left = size, .wire = -1};
    int r = mem_create(DRIVER_MEMORY, false, &d->mem, NULL);
    assert(r == 0);
    r = loop_create(&d->loop, NULL);
    assert(r == 0);
    d->host = (struct virtio_host){.mem = d->mem, .loop = d->loop};
}

void driver_run(struct driver *d)
{
    bring_up(d, driver_byte(d));
    for (unsigned i = 0; d->left && i < COMMANDS_MAX; i++)
        command(d);
    if (!d->dev->class->own_thread)
        pump(d);
}

void driver_close(struct driver *d)
{
    virtio_free(d->dev);
    loop_free(d->loop);
    mem_free(d->mem);
    if (d->wire >= 0)
        close(d->wire);
}
