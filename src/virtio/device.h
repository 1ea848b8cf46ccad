/* A virtio device: what all of them share, whatever the transport (VIRTIO 1.2 chapters 2 and 3).
 *
 * For the machine: each device has a header with virtio_X_create(config, host, &device, err); everything after that
 * goes through the functions below. For devices: one `const struct virtio_class` in one file, listed in table.c.
 *
 * Threads: `lock` protects everything a guest can see of the device. Class functions run with the lock held: start,
 * reset and config access on vCPU threads, `kicked` in the thread that serves the queues (the host's loop, or the
 * device's own for `own_thread` classes). Nothing touches guest memory while the device is paused or not running.
 * A guest's mistake ends in virtio_fail(): NEEDS_RESET, one log line, and silence until the driver resets. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/loop.h"
#include "virtio/queue.h"

struct engine;
struct mem;
struct pci_root;
struct virtio_device;

/* What the machine lends to every device; all outlive it. */
struct virtio_host {
    struct mem *mem;
    struct loop *loop;     /* the device thread's loop; sources are added at creation, so before it runs */
    struct pci_root *pci;  /* the bus the device goes on; NULL leaves it without a transport (tests) */
    struct engine *engine; /* for ioeventfd; NULL when there is none */
};

#define VIRTIO_F_RING_INDIRECT_DESC 28
#define VIRTIO_F_RING_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32
#define VIRTIO_FEATURE(bit) (UINT64_C(1) << (bit))

#define VIRTIO_STATUS_ACKNOWLEDGE 1u
#define VIRTIO_STATUS_DRIVER 2u
#define VIRTIO_STATUS_DRIVER_OK 4u
#define VIRTIO_STATUS_FEATURES_OK 8u
#define VIRTIO_STATUS_NEEDS_RESET 64u
#define VIRTIO_STATUS_FAILED 128u

#define VIRTIO_MAX_QUEUES 48
#define VIRTIO_CONFIG_SIZE 64

/* A counter of a device: a uint64_t at `offset` in the device's own struct. Tables end with a NULL name. */
struct virtio_stat {
    const char *name;
    size_t offset;
};

struct virtio_class {
    const char *name; /* "virtio-blk"; also names the source in the log */
    uint8_t type;     /* VIRTIO 1.2 chapter 5 */
    uint32_t pci_class;
    bool own_thread; /* the device serves its queues' eventfds itself */
    const struct virtio_stat *stats;

    /* DRIVER_OK: features and queues are final. */
    void (*start)(struct virtio_device *dev);
    /* Queue `index` was notified; also called for every queue after resume. */
    void (*kicked)(struct virtio_device *dev, unsigned index);
    /* The driver writes [offset, offset+len) of config space; the device stores what may change. NULL: read-only. */
    void (*config_write)(struct virtio_device *dev, unsigned offset, const void *data, unsigned len);
    /* Forget all that the guest set up and return with no request in flight. May drop the lock while it waits. */
    void (*reset)(struct virtio_device *dev);
    /* Return with no request in flight; the queues are not looked at until resume. May drop the lock; may be NULL. */
    void (*pause)(struct virtio_device *dev);
    /* Frees what the device's own struct holds, then the struct (its first member is the virtio_device). */
    void (*free)(struct virtio_device *dev);
};

struct virtio_device {
    const struct virtio_class *class;
    struct virtio_host host;
    char id[64]; /* as the user names it ("rootfs", "eth0"); for logs and metrics */
    pthread_mutex_t lock;
    uint64_t offered, accepted; /* feature bits */
    uint8_t status;
    bool running;   /* DRIVER_OK, not failed */
    bool resetting; /* class->reset may have dropped the lock: the driver's writes are ignored */
    bool paused;
    uint8_t config_generation;
    unsigned config_len;
    uint8_t config[VIRTIO_CONFIG_SIZE]; /* device config space, little-endian */
    unsigned queue_count;
    struct virtq queues[VIRTIO_MAX_QUEUES];
    int kick_fd[VIRTIO_MAX_QUEUES]; /* eventfd a queue: its "available buffer" notification */
    struct loop_source *kick_source[VIRTIO_MAX_QUEUES];
    /* The transport's: tells the driver about used buffers of a queue, or a change of configuration. Lock held. */
    void *transport;
    void (*queue_interrupt)(struct virtio_device *dev, unsigned index);
    void (*config_interrupt)(struct virtio_device *dev);
    void (*transport_free)(struct virtio_device *dev);
    void (*transport_reset)(struct virtio_device *dev);
};

/* ---- for the machine; any thread unless said otherwise ---- */

/* Stops touching guest memory and returns when in-flight requests are done; also drains for a clean exit. */
void virtio_pause(struct virtio_device *dev);
void virtio_resume(struct virtio_device *dev);
/* The machine's reset (guest reboot): as if the device had just been created. vCPUs are stopped. */
void virtio_reset(struct virtio_device *dev);
/* Waits for in-flight requests, puts volatile data on stable storage, releases all. NULL is fine. The loop does not run
 * any more, or this is its thread. */
void virtio_free(struct virtio_device *dev);
uint64_t virtio_stat_value(const struct virtio_device *dev, const struct virtio_stat *stat);

/* All classes, NULL-terminated; what documentation and metrics derive from. */
extern const struct virtio_class virtio_balloon, virtio_blk, virtio_console, virtio_net, virtio_rng, virtio_vsock;
extern const struct virtio_class *const virtio_classes[];

/* ---- for devices ---- */

struct virtio_setup {
    const char *id;
    uint64_t features; /* the device's own; ring features are added */
    unsigned queue_count;
    const uint16_t *queue_sizes; /* most entries a queue, powers of two */
    unsigned config_len;
};

/* Initialises the common part in place and opens the eventfds. On error nothing is held. */
must_check int virtio_init(struct virtio_device *dev, const struct virtio_class *class, const struct virtio_host *host,
                           const struct virtio_setup *setup, struct err *err);
/* The last step of creation: puts the device on the bus, from where the guest sees it. */
must_check int virtio_attach(struct virtio_device *dev, struct err *err);
/* Undoes virtio_init; called by class->free. */
void virtio_release(struct virtio_device *dev);

static inline bool virtio_has(const struct virtio_device *dev, unsigned feature)
{
    return dev->accepted >> feature & 1;
}
/* True when queues may be looked at. */
static inline bool virtio_live(const struct virtio_device *dev)
{
    return dev->running && !dev->paused;
}
/* The guest broke the rules: NEEDS_RESET and one line. */
void virtio_fail(struct virtio_device *dev, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Takes the next chain: see virtq_pop. A malformed ring fails the device and reads as empty. */
bool virtio_pop(struct virtio_device *dev, unsigned index, struct virtq_chain *chain, struct iovec *iov,
                unsigned capacity);
/* Serves queue `index` until it is empty or `serve` returns false (having kept the chain or put it back with
 * virtq_unpop), then signals what was pushed. Bounded: a guest that never stops is taken up again after other work. */
typedef bool virtio_serve_fn(struct virtio_device *dev, unsigned index, struct virtq_chain *chain);
void virtio_serve(struct virtio_device *dev, unsigned index, virtio_serve_fn *serve);
/* Interrupts the driver if it wants to know about what virtq_push returned since the last call. */
void virtio_signal(struct virtio_device *dev, unsigned index);
/* Looks at queue `index` again soon, as if the driver had notified. Any thread, no lock needed. */
void virtio_kick(struct virtio_device *dev, unsigned index);
/* After changing dev->config: new generation and a configuration interrupt. Lock held. */
void virtio_config_changed(struct virtio_device *dev);

static inline void stat_add(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* ---- for transports; lock held by the caller ---- */

void virtio_set_status(struct virtio_device *dev, uint8_t status);
void virtio_config_read(struct virtio_device *dev, unsigned offset, void *data, unsigned len);
void virtio_config_write(struct virtio_device *dev, unsigned offset, const void *data, unsigned len);
