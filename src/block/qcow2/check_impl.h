/* Private to check*.c. */
#pragma once

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

struct checker {
    struct qcow2 *q;
    struct qcow2_check *out;
    uint32_t *counts; /* references found, of each cluster of the file */
    uint64_t clusters;
    uint64_t counted; /* how many may have a count: a crash leaves some behind the end, where the file grows later */
    uint64_t next_data; /* where the disk's next cluster would lie if nothing were fragmented */
    uint64_t stale;     /* counts that are too low, or missing: a repair makes all of them anew */
    uint64_t flags;     /* COPIED flags that are wrong */
};

/* References to a cluster, which may lie behind the end. */
static inline uint32_t check_found(const struct checker *c, uint64_t cluster)
{
    return cluster < c->clusters ? c->counts[cluster] : 0;
}

void check_report(const struct checker *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Sets what is counted too high to what was found. */
int check_fix_leaks(struct checker *c);
/* New refcount table and blocks behind the end of the file, made of what was found. */
int check_rebuild(struct checker *c);
