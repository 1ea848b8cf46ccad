/* Soft TLB: guest linear page -> host page, read by translated code with one inline check.
 *
 * Separate pools for reads and writes, and for user, supervisor, and supervisor with EFLAGS.AC set under SMAP (which may
 * touch user pages): an entry of one pool is never valid in another. A hit is linear - tag <= 4096 - size, unsigned.
 * TLB_EMPTY is a non-canonical page, as tag and as host address: an access that "hits" it faults on the host's own #GP, which
 * is the guest's. Only RAM pages are here, and pages that hold translated code never have a write entry.
 *
 * Two levels: inline checks look into the first, a shared piece of code (enter.c) into the larger second, which is indexed by a
 * hash: pages of kernels and libraries that meet in one slot of the first are often used by turns. All that the first holds is in
 * the second too, so that flushes go by the second.
 *
 * The jump cache maps guest rip to translated code for indirect and page-crossing jumps, one table a pool; it is
 * flushed together with the TLB since a translation stands for bytes at a linear address. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define TLB_BITS 12
#define TLB_ENTRIES (1u << TLB_BITS)
#define TLB2_BITS 15
#define TLB2_ENTRIES (1u << TLB2_BITS)
#define TLB_HUGE_MAX 32u
#define TLB2_HASH 0x9e3779b1u
#define TLB_EMPTY UINT64_C(0x8000000000000000)

enum tlb_pool { TLB_USER, TLB_SUPER, TLB_SUPER_AC, TLB_POOLS };
enum tlb_access { TLB_READ, TLB_WRITE, TLB_ACCESSES };

enum tlb_list { TLB_LOCAL, TLB_GLOBAL, TLB_LISTS }; /* by the page's global bit */

#define TLB2_FLAT (TLB_POOLS * TLB_ACCESSES * TLB2_ENTRIES)

struct tlb_entry {
    uint64_t tag;  /* linear address of the page */
    uint8_t *host; /* host address of the page */
};

struct tlb {
    struct tlb_entry entries[TLB_POOLS][TLB_ACCESSES][TLB_ENTRIES];
    struct tlb_entry second[TLB_POOLS][TLB_ACCESSES][TLB2_ENTRIES];
    /* What was filled since the last flush, so that a flush costs what was used: indexes into the second level as one flat array,
     * each at most once in a list. */
    uint32_t count[TLB_LISTS];
    uint32_t list[TLB_LISTS][TLB2_FLAT];
    uint8_t listed[TLB2_FLAT]; /* a bit a list */
    /* Which 2 MiB regions (by number mod 4096) have entries that come from a page of 2 or 4 MiB, and which GiB those from one of
     * 1 GiB: flushing a page of those means flushing all, wherever in the large page it lies. */
    uint64_t large[64];
    uint64_t huge[TLB_HUGE_MAX];
    unsigned huge_count; /* TLB_HUGE_MAX + 1: there were more */
    bool has_large;
    /* The page that the stack pointer was last seen in, a pool: a translation that has a write entry too. Accesses relative to rsp
     * check this before the table. */
    struct tlb_entry stack[TLB_POOLS];
};

/* Where code was fetched from lately; C code only. Valid while `epoch` is the vCPU's flush_epoch. */
#define FETCH_ENTRIES 64

struct fetch_entry {
    uint64_t tag, epoch, gpa;
    uint8_t *host;
    uint32_t pool;
    bool global;
};

#define JUMP_BITS 14
#define JUMP_ENTRIES (1u << JUMP_BITS)
#define JUMP2_BITS 17
#define JUMP2_ENTRIES (1u << JUMP2_BITS)
#define JUMP2_ROTATE 14u
#define JUMP_FLAT (TLB_POOLS * (JUMP_ENTRIES + JUMP2_ENTRIES))
#define JUMP_LISTED 8192u

/* Two levels: translated code looks into the first, and a shared piece of code into the larger second, which knows all that the
 * first ever did. Position-independent code of user mode is in the second by its place in guest RAM instead of its rip
 * (JIT_OPT_PLACE): that outlives changes of address space, after which the piece of code enters it into the first again. It is
 * not in the lists then. The complement of the rip, so that a hit is found without touching flags, and so that memory never touched
 * is empty: 0 is the rip ~0, whose own slots alone (the last) start with another value. */
struct jump_cache {
    uint64_t not_rip[TLB_POOLS][JUMP_ENTRIES], not_rip2[TLB_POOLS][JUMP2_ENTRIES]; /* one flat array for flushes */
    const uint8_t *entry[TLB_POOLS][JUMP_ENTRIES], *entry2[TLB_POOLS][JUMP2_ENTRIES];
    /* What was filled since the last flush, as indexes into the flat array; more than fit: everything goes. */
    uint64_t local_count, global_count;
    uint32_t local[JUMP_LISTED], global[JUMP_LISTED];
    uint64_t pages[2][64]; /* which pages (by number mod 4096) have entries; lower and upper half of the address space */
    uint64_t stat_flush_local, stat_flush_page, stat_flush_all; /* mmu_flush_*, and page flushes that took all jumps along */
    uint64_t stat_flush_page_jumps;
};

/* Which guest page each linear page is fetched from, for direct links between pages: the complement of linear page - 2 * number of
 * the page in guest RAM. Pages of one slot differ by multiples of 2^24, numbers by less, so one value says both; it is never
 * even, so that 0 is empty. */
#define FETCH_TLB_BITS 12
#define FETCH_TLB_ENTRIES (1u << FETCH_TLB_BITS)
#define FETCH_TLB_PAGES_MAX (1u << (FETCH_TLB_BITS + 11)) /* guests with more RAM have no such links */

/* And for the jump cache's second level, where the pages of user code lie in guest RAM. */
#define PLACE_TLB_BITS 10
#define PLACE_TLB_ENTRIES (1u << PLACE_TLB_BITS)

struct fetch_tlb {
    uint64_t not_key[2][FETCH_TLB_ENTRIES]; /* supervisor, user */
    bool supervisor_local;                  /* the first has pages that are not global */
    uint64_t not_page[PLACE_TLB_ENTRIES];   /* the complement of the linear page's number; 0: empty */
    uint64_t place[PLACE_TLB_ENTRIES];      /* offset of the page in guest RAM */
};

struct jit_vcpu;
struct walk_result;

void tlb_init(struct jit_vcpu *cpu);
/* The pool that an access with `access` (mmu.h) uses now. */
enum tlb_pool tlb_pool_of(const struct jit_vcpu *cpu, unsigned access);
/* For mmu_flush_page: a page of 1 << bits bytes is known at `linear`. */
void tlb_note_size(struct jit_vcpu *cpu, uint64_t linear, unsigned bits);
/* Enters a walked page of RAM for reads, and for writes where `walk` allows it and the page holds no translated code. */
void tlb_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t linear, const struct walk_result *walk, uint8_t *host_page);
/* The entry of the second level for the page of `linear`, or NULL. */
const struct tlb_entry *tlb_second(const struct jit_vcpu *cpu, enum tlb_pool pool, enum tlb_access kind, uint64_t linear);
bool tlb_has_write_entry(const struct jit_vcpu *cpu, uint64_t linear);
/* Drops write entries for a page of guest RAM (host page address); own thread. */
void tlb_drop_writes(struct jit_vcpu *cpu, const uint8_t *host_page);
/* `page` is the number of the page in guest RAM. */
void fetch_tlb_fill(struct jit_vcpu *cpu, bool user, uint64_t linear, uint32_t page, bool global);
void jump_cache_fill(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip, bool global, const uint8_t *entry);
/* The same for code at `place` in guest RAM that the second level knows by it. */
void jump_cache_fill_place(struct jit_vcpu *cpu, uint64_t rip, uint64_t place, bool global, const uint8_t *entry);
/* The code at `rip` reaches into the next page: flushing that one drops it, too. */
void jump_cache_note_second_page(struct jit_vcpu *cpu, uint64_t rip);
const uint8_t *jump_cache_find_place(const struct jit_vcpu *cpu, uint64_t place);
void jump_cache_drop_place(struct jit_vcpu *cpu, uint64_t place);
void jump_cache_drop_places(struct jit_vcpu *cpu);
/* What is known by place stays. */
void jump_cache_flush(struct jit_vcpu *cpu);
/* Drops what is known by this rip. */
void jump_cache_drop(struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip);
/* Drops what is known for user mode of code in [start, end), at whatever rips; not what the second level knows by its place. */
void jump_cache_drop_user(struct jit_vcpu *cpu, const uint8_t *start, const uint8_t *end);
/* The entry for `rip`, or NULL. */
const uint8_t *jump_cache_find(const struct jit_vcpu *cpu, enum tlb_pool pool, uint64_t rip);
