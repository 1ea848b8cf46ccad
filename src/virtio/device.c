#include "virtio/device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "mem/mem.h"
#include "virtio/pci.h"

#define RING_FEATURES                                                                                        \
    (VIRTIO_FEATURE(VIRTIO_F_VERSION_1) | VIRTIO_FEATURE(VIRTIO_F_RING_EVENT_IDX) |                          \
     VIRTIO_FEATURE(VIRTIO_F_RING_INDIRECT_DESC))

#define SERVE_IOV_MAX 256 /* no smaller than any queue served this way: a chain is never longer than its queue */
#define SERVE_CHAINS_MAX 256u

static void on_kick(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct virtio_device *dev = arg;
    uint64_t count;
    if (read(fd, &count, sizeof count) != sizeof count)
        return;
    unsigned index = 0;
    while (dev->kick_fd[index] != fd)
        index++;
    pthread_mutex_lock(&dev->lock);
    if (virtio_live(dev))
        dev->class->kicked(dev, index);
    pthread_mutex_unlock(&dev->lock);
}

static int open_queue(struct virtio_device *dev, unsigned index, uint16_t size, struct err *err)
{
    virtq_init(&dev->queues[index], dev->host.mem, size);
    dev->kick_fd[index] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (dev->kick_fd[index] < 0)
        return err_set(err, errno, "%s '%s': eventfd", dev->class->name, dev->id);
    if (dev->class->own_thread)
        return 0;
    dev->kick_source[index] = loop_add_fd(dev->host.loop, dev->kick_fd[index], EPOLLIN, on_kick, dev);
    return dev->kick_source[index] ? 0 : err_set(err, ENOMEM, "%s '%s'", dev->class->name, dev->id);
}

int virtio_init(struct virtio_device *dev, const struct virtio_class *class, const struct virtio_host *host,
                const struct virtio_setup *setup, struct err *err)
{
    *dev = (struct virtio_device){.class = class,
                                  .host = *host,
                                  .offered = setup->features | RING_FEATURES,
                                  .queue_count = setup->queue_count,
                                  .config_len = setup->config_len};
    snprintf(dev->id, sizeof dev->id, "%s", setup->id ? setup->id : class->name);
    pthread_mutex_init(&dev->lock, NULL);
    memset(dev->kick_fd, -1, sizeof dev->kick_fd);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        if (open_queue(dev, i, setup->queue_sizes[i], err) < 0) {
            virtio_release(dev);
            return -ENOMEM;
        }
    }
    return 0;
}

void virtio_release(struct virtio_device *dev)
{
    if (dev->transport_free)
        dev->transport_free(dev);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        loop_remove(dev->kick_source[i]);
        if (dev->kick_fd[i] >= 0)
            close(dev->kick_fd[i]);
    }
    pthread_mutex_destroy(&dev->lock);
}

int virtio_attach(struct virtio_device *dev, struct err *err)
{
    return dev->host.pci ? virtio_pci_attach(dev, err) : 0;
}

/* Back to the state after creation. Lock held; class->reset may drop it for a while, with the device stopped. */
static void reset_locked(struct virtio_device *dev)
{
    dev->running = false;
    dev->resetting = true;
    dev->class->reset(dev);
    dev->resetting = false;
    dev->status = 0;
    dev->accepted = 0;
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtq_reset(&dev->queues[i]);
    if (dev->transport_reset)
        dev->transport_reset(dev);
}

static bool features_fit(const struct virtio_device *dev)
{
    return !(dev->accepted & ~dev->offered) && virtio_has(dev, VIRTIO_F_VERSION_1);
}

void virtio_set_status(struct virtio_device *dev, uint8_t status)
{
    if (dev->resetting)
        return;
    if (!status) {
        reset_locked(dev);
        return;
    }
    uint8_t set = (uint8_t)(status & ~dev->status & ~VIRTIO_STATUS_NEEDS_RESET);
    if ((set & VIRTIO_STATUS_FEATURES_OK) && !features_fit(dev)) {
        log_guest(dev->class->name, "'%s': driver chose features 0x%llx of 0x%llx", dev->id,
                  (unsigned long long)dev->accepted, (unsigned long long)dev->offered);
        set &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    }
    dev->status |= set;
    if (!(set & VIRTIO_STATUS_DRIVER_OK))
        return;
    if (!(dev->status & VIRTIO_STATUS_FEATURES_OK)) {
        virtio_fail(dev, "driver started without agreeing on features");
        return;
    }
    if (dev->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    dev->running = true;
    dev->class->start(dev);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        virtq_listen(&dev->queues[i]); /* the event index may be anything until we set it */
        virtio_kick(dev, i);
    }
}

void virtio_fail(struct virtio_device *dev, const char *format, ...)
{
    char why[160];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    log_guest(dev->class->name, "'%s': %s; waiting for a reset", dev->id, why);
    dev->running = false;
    dev->status |= VIRTIO_STATUS_NEEDS_RESET;
    if ((dev->status & VIRTIO_STATUS_DRIVER_OK) && dev->config_interrupt)
        dev->config_interrupt(dev);
}

bool virtio_pop(struct virtio_device *dev, unsigned index, struct virtq_chain *chain, struct iovec *iov,
                unsigned capacity)
{
    if (!virtio_live(dev))
        return false;
    struct virtq *q = &dev->queues[index];
    int r = virtq_pop(q, chain, iov, capacity);
    if (r < 0)
        virtio_fail(dev, "queue %u: %s", index, q->error);
    return r > 0;
}

void virtio_serve(struct virtio_device *dev, unsigned index, virtio_serve_fn *serve)
{
    struct iovec iov[SERVE_IOV_MAX];
    struct virtq *q = &dev->queues[index];
    struct virtq_chain chain;
    unsigned budget = SERVE_CHAINS_MAX;
    bool more = true;
    while (more && budget) {
        virtq_quiet(q);
        while (more && budget && virtio_pop(dev, index, &chain, iov, SERVE_IOV_MAX)) {
            more = serve(dev, index, &chain);
            budget--;
        }
        if (more && budget)
            more = virtio_live(dev) && virtq_listen(q);
    }
    if (more)
        virtio_kick(dev, index);
    virtio_signal(dev, index);
}

void virtio_signal(struct virtio_device *dev, unsigned index)
{
    if (dev->queue_interrupt && virtq_needs_signal(&dev->queues[index]))
        dev->queue_interrupt(dev, index);
}

void virtio_kick(struct virtio_device *dev, unsigned index)
{
    uint64_t one = 1;
    ssize_t ignored = write(dev->kick_fd[index], &one, sizeof one);
    (void)ignored;
}

void virtio_config_changed(struct virtio_device *dev)
{
    dev->config_generation++;
    if ((dev->status & VIRTIO_STATUS_DRIVER_OK) && dev->config_interrupt)
        dev->config_interrupt(dev);
}

void virtio_config_read(struct virtio_device *dev, unsigned offset, void *data, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        ((uint8_t *)data)[i] = offset + i < dev->config_len ? dev->config[offset + i] : 0;
}

void virtio_config_write(struct virtio_device *dev, unsigned offset, const void *data, unsigned len)
{
    if (dev->class->config_write && offset < dev->config_len && len <= dev->config_len - offset)
        dev->class->config_write(dev, offset, data, len);
}

void virtio_pause(struct virtio_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->paused = true;
    if (dev->class->pause)
        dev->class->pause(dev);
    pthread_mutex_unlock(&dev->lock);
}

void virtio_resume(struct virtio_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->paused = false;
    pthread_mutex_unlock(&dev->lock);
    for (unsigned i = 0; i < dev->queue_count; i++)
        virtio_kick(dev, i);
}

void virtio_reset(struct virtio_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    reset_locked(dev);
    pthread_mutex_unlock(&dev->lock);
}

void virtio_free(struct virtio_device *dev)
{
    if (!dev)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->queue_interrupt = NULL; /* the bus may be gone already */
    dev->config_interrupt = NULL;
    reset_locked(dev);
    pthread_mutex_unlock(&dev->lock);
    dev->class->free(dev);
}

uint64_t virtio_stat_value(const struct virtio_device *dev, const struct virtio_stat *stat)
{
    const uint64_t *counter = (const uint64_t *)(const void *)((const uint8_t *)dev + stat->offset);
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}
