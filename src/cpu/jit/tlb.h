/* Soft TLB: guest linear page -> host page, read by translated code with one inline check.
 *
 * Separate pools for reads and writes, and for user, supervisor, and supervisor with EFLAGS.AC set under SMAP (which may
 * touch user pages): an entry of one pool is never valid in another. A hit needs (linear & ~0xfff) == tag, so a tag of
 * TLB_EMPTY never hits: it is not page-aligned. Only RAM pages are here, and pages that hold translated code never have
 * a write entry. */
#pragma once

#include <stdint.h>

#define TLB_BITS 10
#define TLB_ENTRIES (1u << TLB_BITS)
#define TLB_EMPTY UINT64_C(1)

enum tlb_pool { TLB_USER, TLB_SUPER, TLB_SUPER_AC, TLB_POOLS };
enum tlb_access { TLB_READ, TLB_WRITE, TLB_ACCESSES };

struct tlb_entry {
    uint64_t tag;  /* linear address of the page */
    uint8_t *host; /* host address of the page */
};

struct tlb {
    struct tlb_entry entries[TLB_POOLS][TLB_ACCESSES][TLB_ENTRIES];
    /* What was filled since the last flush, so that a flush costs what was used: index into the flat entry array. */
    uint32_t local_count, global_count;
    uint16_t local[TLB_POOLS * TLB_ACCESSES * TLB_ENTRIES]; /* non-global translations */
    uint16_t global[TLB_POOLS * TLB_ACCESSES * TLB_ENTRIES];
};
