/* Private to blk*.c: a disk's state. blk.c has the device, its thread and its configuration, blk_request.c the way of a
 * request from queue to block node and back. The device's lock covers all of it. */
#pragma once

#include <stdatomic.h>
#include "block/block.h"
#include "block/fiber.h"
#include "block/throttle.h"
#include "virtio/blk.h"

#define QUEUE_SIZE 256u
#define ID_SIZE 20u
#define RANGES_MAX 16u /* of one discard or write-zeroes request */
#define RANGE_SIZE 16u
#define RANGE_SECTORS_MAX (UINT32_C(1) << 22) /* 2 GiB */
#define IN_FLIGHT_MAX 512u

struct blk_request {
    struct block_request block; /* first */
    struct virtio_blk *blk;
    struct blk_request *next_free;
    struct virtq_chain chain;
    uint8_t *status;
    uint16_t queue;
    uint32_t type;
    uint32_t written; /* bytes in the in buffers besides the status */
    unsigned range, range_count;
    uint8_t ranges[RANGES_MAX * RANGE_SIZE];
    struct iovec iov[QUEUE_SIZE];
};

struct blk_watch {
    struct virtio_blk *blk;
    unsigned queue;
};

/* A function that another thread wants to have run in the disk's; on that thread's stack. */
struct blk_call {
    virtio_blk_fn *fn;
    void *arg;
    int result;
    bool started, done;
};

struct virtio_blk {
    struct virtio_device dev; /* first */
    struct block_node *node;
    struct block_ring *ring;
    struct limiter limiter;
    struct throttle_member *throttle; /* NULL: in no group */
    bool throttle_passed;             /* the request at the head has its turn, and waits for the limiter */
    atomic_bool throttle_woken;
    char serial[ID_SIZE];
    bool writeback, unsafe;
    pthread_t thread;
    bool thread_runs, stop;
    int start_result; /* 0 until the thread has started its ring; then 1 or -errno */
    struct blk_watch watches[VIRTIO_BLK_MAX_QUEUES];
    int control_fd; /* wakes the thread for reasons that are not the guest's */
    pthread_cond_t idle;
    struct blk_call *call; /* the one that is to be run or runs */
    struct fiber_pool pool; /* of calls */
    unsigned in_flight;
    unsigned holds; /* >0: no new requests are taken (a swap of nodes waits) */
    uint64_t kicked, touched; /* bit a queue: to be served; to be signalled */
    uint64_t resume_at_ns; /* rate limit or turn of the group; 0: none */
    struct blk_request *slots, *free_slots;
    unsigned slots_used; /* slots beyond were never touched */

    uint64_t read_bytes, write_bytes, read_count, write_count, flush_count, discard_count, write_zeroes_count,
        queue_event_count, execute_fails, invalid_reqs_count, rate_limiter_throttled_events, rate_limiter_event_count,
        no_avail_slot, update_count;
};

/* Serves the queues that were kicked, as far as slots and rate tokens go. */
void blk_serve_queues(struct virtio_blk *blk);
/* Interrupts for what was completed since the last call. */
void blk_signal_queues(struct virtio_blk *blk);
