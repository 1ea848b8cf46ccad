/* Admission: what the host has is promised once. Formulas and sources: docs/algorithms/allocation.md.
 *
 * Promises are the store's document "admission": {"promises": {ID: {"memory_bytes", "cpus"}}}. One is made in the same commit
 * that makes an instance desired to run, and taken back in the one that notes that its process is gone; the document's
 * revision orders them, so that two that come at once cannot both count on the same free byte, and no crash leaves a promise
 * without its instance. Pure functions but for admission_host. */
#pragma once

#include <jansson.h>
#include <stdint.h>
#include "base/err.h"

#define ADMISSION_KEY "admission"
#define ADMISSION_MEMORY_OVERCOMMIT 1.0
#define ADMISSION_CPU_OVERCOMMIT 16.0

struct admission_host {
    uint64_t memory_bytes;  /* MemTotal, or the cgroup's limit where that is lower */
    uint64_t reserve_bytes; /* for the host itself */
    unsigned cpus;          /* that this process may run on */
    double memory_overcommit, cpu_overcommit;
};

/* What one instance takes, or what all have together. */
struct admission_share {
    uint64_t memory_bytes;
    uint64_t cpus;
};

/* Looks at this host. Zeros ask for the defaults: a reserve of 256 MiB and 1/32 of the memory. */
must_check int admission_host_read(uint64_t reserve_bytes, double memory_overcommit, double cpu_overcommit,
                                   struct admission_host *ret_host, struct err *err);
struct admission_share admission_capacity(const struct admission_host *host);
/* Guest memory and what its polder-vmm needs besides. */
struct admission_share admission_need(uint64_t memory_bytes, unsigned cpus);

/* Of all promises in `document` (NULL: none). */
struct admission_share admission_promised(const json_t *document);
/* A new document with `id`'s promise set to `share`; -ENOSPC says what is free when the sum would exceed the capacity. */
must_check int admission_promise(const struct admission_host *host, const json_t *document, const char *id,
                                 const struct admission_share *share, json_t **ret_document, struct err *err);
/* A new document without `id`'s promise; NULL when it has none. */
json_t *admission_release(const json_t *document, const char *id);
