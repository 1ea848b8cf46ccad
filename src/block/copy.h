/* A disk copied while it is in use: a node over `source` that serves its requests, and copies it to `target` besides.
 *
 * MIRROR: what is written goes to both; once everything was copied they stay the same, and the disk can move to the
 * target. COMMIT: the same with the source's backing node as target, which gets what the source holds itself. BACKUP: the
 * target gets what the source held at the start; a chunk is copied before it is overwritten. FLATTEN: what comes from the
 * source's backing node is written to the source itself, which then needs it no more. REBASE: the same for what another base
 * gives otherwise; the source can then have that one.
 * Whatever goes wrong with the target ends the copy and never the disk. Copying is work of the node's own: between
 * requests it is idle, and may be attached elsewhere or closed, only before block_copy_start and after block_copy_stop.
 * Threads: create anywhere; the rest in the ring's thread. */
#pragma once

#include "block/block.h"

enum block_copy_mode { BLOCK_COPY_MIRROR, BLOCK_COPY_BACKUP, BLOCK_COPY_COMMIT, BLOCK_COPY_FLATTEN, BLOCK_COPY_REBASE };
enum block_copy_state {
    BLOCK_COPY_RUNNING,
    BLOCK_COPY_READY,  /* mirror, commit: both are the same */
    BLOCK_COPY_DONE,   /* backup, flatten, rebase: complete and stable */
    BLOCK_COPY_FAILED, /* the target is of no use */
};

struct block_copy_options {
    enum block_copy_mode mode;
    /* Of one size; nobody else uses the target. COMMIT: it is the source's own, and writable; FLATTEN: NULL. REBASE: the
     * new base, of any size, which is only read; the source has a backing file, so that what is discarded becomes no hole. */
    struct block_node *source, *target;
    bool based;         /* the target does not read as zeroes where nothing is written */
    const char *bitmap; /* copy only what the source's bitmap of this name calls dirty; NULL: everything */
    /* When READY, DONE or FAILED, in the ring's thread. It must not end the copy itself. NULL: none. */
    void (*changed)(void *arg);
    void *arg;
};

struct block_copy_status {
    enum block_copy_state state;
    int error;             /* FAILED: -errno */
    uint64_t copied, size; /* bytes */
};

/* In a fiber of the source's ring when there is a bitmap. Owns the nodes once it is created; source and target are attached
 * to one ring, or will be by attaching the copy. */
must_check int block_copy_create(const struct block_copy_options *options, struct block_node **ret_node, struct err *err);
/* Begins. */
must_check int block_copy_start(struct block_node *node);
void block_copy_status(const struct block_node *node, struct block_copy_status *ret_status);
struct block_node *block_copy_source(const struct block_node *node);
bool block_is_copy(const struct block_node *node);
/* In a fiber: waits until nothing is copied any more; later requests go to both (what is READY) or to the
 * source only. */
void block_copy_stop(struct block_node *node);
/* After block_copy_stop, with no request in flight, and in a fiber that has waited for neither: frees the copy alone. The nodes are
 * the caller's again. */
void block_copy_take(struct block_node *node, struct block_node **ret_source, struct block_node **ret_target);
