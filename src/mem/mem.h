/* Guest physical memory: one mapping, contiguous in the host; RAM below 3 GiB and the rest from 4 GiB.
 *
 * It is anonymous, because there the host has transparent huge pages: one host fault for 2 MiB instead of 512 (shared memory has
 * them only where the administrator said so, and a fault costs several microseconds on virtual hosts).
 * Every access from the host side is checked here. The guest can change any byte at any time: read once, then
 * validate the copy. Whoever writes guest memory through a pointer calls mem_mark_dirty() afterwards; the functions
 * below that write do so themselves. Thread-safe after creation. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define MEM_LOW_MAX UINT64_C(0xc0000000)   /* RAM below ends here at most; PCI hole and ECAM above */
#define MEM_HIGH_BASE UINT64_C(0x100000000)
#define MEM_PAGE_SIZE 4096u

struct mem;

/* A run of guest RAM: `gpa` .. `gpa + len`, at host address `hva`, at `offset` in the mapping. */
struct mem_slot {
    uint64_t gpa, len, offset;
    uint8_t *hva;
};

/* Called after the host side (devices, loaders) wrote guest memory; from any thread. */
typedef void mem_write_fn(void *arg, uint64_t gpa, uint64_t len);

/* Zeroed anonymous memory that starts on a huge page, so that the host can use transparent ones all through; NULL: there is no more.
 * Give it back with munmap(). */
void *mem_map(size_t bytes);
/* `bytes` is rounded up to whole pages. With `hugepages`, 2 MiB pages that the administrator set aside; otherwise transparent ones. */
must_check int mem_create(uint64_t bytes, bool hugepages, struct mem **ret_mem, struct err *err);
void mem_free(struct mem *mem);

unsigned mem_slot_count(const struct mem *mem);
const struct mem_slot *mem_slot(const struct mem *mem, unsigned index);
uint64_t mem_size(const struct mem *mem);

/* Host address of guest RAM [gpa, gpa+len), or NULL when any byte lies outside of one slot. */
void *mem_ptr(const struct mem *mem, uint64_t gpa, uint64_t len);
/* Guest physical address of a host pointer into guest RAM; UINT64_MAX when it is none. */
uint64_t mem_gpa_of(const struct mem *mem, const void *hva);
/* 0, or -EFAULT with nothing copied when the range is not all RAM. */
must_check int mem_read(const struct mem *mem, uint64_t gpa, void *data, size_t len);
must_check int mem_write(struct mem *mem, uint64_t gpa, const void *data, size_t len);

/* Records that the host wrote [gpa, gpa+len): sets dirty bits and tells the engine (translated code). */
void mem_mark_dirty(struct mem *mem, uint64_t gpa, uint64_t len);
/* One listener at most (the engine); NULL removes it. Set before the vCPUs run. */
void mem_set_write_hook(struct mem *mem, mem_write_fn *fn, void *arg);

/* Dirty log of host writes, a bit a page; off until started. Engines keep their own log for what vCPUs write. */
must_check int mem_dirty_start(struct mem *mem, struct err *err);
void mem_dirty_stop(struct mem *mem);
/* Reads and clears the bits of slot `index` into `bitmap` (one bit a page, OR-ed in). */
void mem_dirty_fetch(struct mem *mem, unsigned index, uint64_t *bitmap);

/* Gives the pages wholly inside [gpa, gpa+len) back to the host (they read as zero afterwards). 0 or -errno. */
int mem_discard(struct mem *mem, uint64_t gpa, uint64_t len);
