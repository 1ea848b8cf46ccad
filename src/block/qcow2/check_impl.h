/* Private to check*.c. */
#pragma once

#include "block/qcow2/qcow2.h"
#include "block/qcow2/qcow2_impl.h"

struct checker {
    struct qcow2 *q;
    struct qcow2_check *out;
    uint32_t *counts; /* references found, of each cluster of the file */
    uint32_t *tables; /* of each cluster: how many L1 entries name it as a table that is not walked yet; later 1 when its
                       * flags are compared */
    bool *left_out; /* L1 entries that name no table, or the same as one before */
    uint64_t table_clusters; /* of snapshots' L1 tables and of bitmaps' tables */
    bool incomplete;  /* some table could not be walked: what seems to be leaked may be what it names */
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
/* Sets what is counted too high to what was found, if that is complete. */
int check_fix_leaks(struct checker *c);
/* New refcount table and blocks behind the end of the file, made of what was found, and if that is not complete of the old
 * counts, too. */
int check_rebuild(struct checker *c);
