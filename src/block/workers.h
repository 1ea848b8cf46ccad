/* Threads that take computing (compression, checksums) from a ring's thread. They share nothing with it but the job: while
 * one runs its fiber waits, and only the function it was given touches what the job names.
 * Threads: block_workers_* and block_work belong to the ring's thread; create comes before block_ring_start. */
#pragma once

#include "block/ring.h"

struct block_workers;

/* `threads` of them, which start with the first job; the ring's from now on, gone with block_ring_free. */
must_check int block_workers_create(struct block_ring *ring, unsigned threads, struct err *err);
/* In a fiber: runs fn(arg), in a worker if the ring has some and in place otherwise. */
void block_work(struct block_ring *ring, void (*fn)(void *arg), void *arg);
/* No job is left. NULL is fine. */
void block_workers_free(struct block_workers *workers);
