/* A driver for tests: builds rings in guest memory and drives a device's core as the PCI transport would.
 * The device's loop runs in a thread of its own; the test is the vCPU. Failures end in assert. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/loop.h"
#include "mem/mem.h"
#include "virtio/device.h"

struct guest {
    struct mem *mem;
    struct loop *loop;
    pthread_t thread;
    bool threaded;
    struct virtio_host host;
    uint64_t next_gpa;
};

struct guest_buf {
    uint64_t gpa;
    uint32_t len;
    bool write; /* device-writable */
};

struct guest_queue {
    struct guest *guest;
    struct virtio_device *dev;
    unsigned index;
    uint16_t size, avail_idx, used_seen, next_desc;
    uint64_t desc, avail, used, indirect;
};

/* With `threaded`, guest_run starts the loop's thread; else the test calls the device itself. */
void guest_create(struct guest *g, uint64_t bytes, bool threaded);
/* After the devices were created. */
void guest_run(struct guest *g);
/* Stops the loop's thread; devices are freed after this and before guest_free. */
void guest_halt(struct guest *g);
void guest_free(struct guest *g);

uint64_t guest_alloc(struct guest *g, uint64_t len);
void *guest_at(struct guest *g, uint64_t gpa, uint64_t len);

/* Negotiates `features` (of those offered; ring features come on top) and sets up all queues at their greatest size. */
void guest_start_device(struct guest *g, struct virtio_device *dev, uint64_t features, struct guest_queue *queues);
void guest_queue_init(struct guest *g, struct virtio_device *dev, unsigned index, struct guest_queue *ret_q);
void guest_set_status(struct virtio_device *dev, uint8_t status);
uint8_t guest_status(struct virtio_device *dev);

/* Writes the descriptors and makes the chain available; returns its head. No notification. */
uint16_t guest_add(struct guest_queue *q, const struct guest_buf *bufs, unsigned count, bool indirect);
void guest_set_desc(struct guest_queue *q, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next);
void guest_publish(struct guest_queue *q, uint16_t head);
void guest_kick(struct guest_queue *q);
/* One used element, waiting up to `timeout_ms`; false when none came. */
bool guest_used(struct guest_queue *q, uint16_t *ret_head, uint32_t *ret_len, unsigned timeout_ms);
/* Add, notify, wait 5 s: the length the device reports. */
uint32_t guest_do(struct guest_queue *q, const struct guest_buf *bufs, unsigned count);
/* Interrupts seen by a queue since the device was started. */
unsigned guest_interrupts(const struct guest_queue *q);
unsigned guest_config_interrupts(void);
/* Waits until the condition holds, 5 s at most. */
#define guest_until(condition)                                                                               \
    ({                                                                                                       \
        bool holds_ = false;                                                                                 \
        for (int try_ = 0; try_ < 5000 && !(holds_ = (condition)); try_++)                                   \
            usleep(1000);                                                                                    \
        holds_;                                                                                              \
    })
