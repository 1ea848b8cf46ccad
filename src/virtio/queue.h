/* Split virtqueues (VIRTIO 1.2 §2.7), the device's side. The only place that reads descriptors.
 *
 * Everything in the rings is the guest's and may change at any instant: each field is read once into a local and
 * checked there. Walks are bounded by the queue size. Not thread-safe: the device's lock covers a queue. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include "base/err.h"

struct mem;

#define VIRTQ_MAX_SIZE 1024

struct virtq {
    struct mem *mem;
    uint16_t max_size;
    /* As the driver sets them before it enables the queue. */
    uint16_t size;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    bool enabled;
    /* Valid while enabled: host addresses of the three areas, wholly inside guest RAM. */
    const uint8_t *desc;
    uint8_t *avail, *used;
    bool event_idx, indirect;
    uint16_t next_avail; /* next entry of the available ring to take */
    uint16_t next_used;  /* next entry of the used ring to fill */
    uint16_t staged;     /* used elements filled but not shown yet */
    uint16_t signalled;  /* used index at the last signal decision */
    const char *error;   /* why the ring is malformed; NULL while it is not */
};

/* A request as devices see it: what the driver wrote for us, then where we may write. Points into guest RAM. */
struct virtq_chain {
    struct iovec *out; /* device-readable */
    struct iovec *in;  /* device-writable; directly behind out */
    unsigned out_count, in_count;
    uint32_t out_len, in_len; /* bytes; together they never pass 2^32-1 */
    uint16_t head;
};

void virtq_init(struct virtq *q, struct mem *mem, uint16_t max_size);
/* Back to what virtq_init left. */
void virtq_reset(struct virtq *q);
/* Checks what the driver set and maps the areas. -EINVAL with q->error set when size or addresses are impossible. */
must_check int virtq_enable(struct virtq *q, bool event_idx, bool indirect);

/* Takes the next available chain into `chain`, its buffers into `iov` (at most `capacity` of them; empty descriptors
 * are left out). 1: got one; 0: none there; -EINVAL: the ring is malformed or the chain too long, q->error says how and
 * the queue yields nothing from now on. */
must_check int virtq_pop(struct virtq *q, struct virtq_chain *chain, struct iovec *iov, unsigned capacity);
/* Puts back the `count` chains popped last; none of them was pushed. */
void virtq_unpop(struct virtq *q, unsigned count);
/* Returns a chain with `written` bytes placed from the start of its in buffers; marks those bytes dirty first. */
void virtq_push(struct virtq *q, const struct virtq_chain *chain, uint32_t written);
/* The same when the device marked what it wrote itself. */
void virtq_push_head(struct virtq *q, uint16_t head, uint32_t written);
/* The same in two steps, for buffers that the driver must see all at once: fills a used element, shows what was filled. */
void virtq_stage(struct virtq *q, uint16_t head, uint32_t written);
void virtq_publish(struct virtq *q);
/* True when the driver wants an interrupt for what was pushed since the last call (event index, flags). */
bool virtq_needs_signal(struct virtq *q);
/* Stops the driver's notifications while we are looking anyway. */
void virtq_quiet(struct virtq *q);
/* Asks for a notification at the next buffer; true when one came in meanwhile: look again. */
bool virtq_listen(struct virtq *q);
/* The same with `seen` chains left in the ring on purpose: true when there are more than those. */
bool virtq_listen_more(struct virtq *q, unsigned seen);
/* Chains waiting in the available ring. */
unsigned virtq_pending(struct virtq *q);
