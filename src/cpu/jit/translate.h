/* Translation of long-mode guest code into host code: the translator's data, and what its files share.
 *
 * Conventions of translated code (enter.c has the ways in and out):
 *  - guest GPRs are in the host registers of the same name, but r14 and r15, which live in cpu->gpr and serve as scratch;
 *    x87/SSE/AVX state is live; gs points to the struct jit_vcpu.
 *  - arithmetic flags are native at links. Inside a block they may be parked in cpu->flags_saved while inline checks use the
 *    native ones; so they may be on the way through the jump cache, where cpu->flags_parked says it.
 *  - every guest instruction boundary is a point to leave at and to resume at.
 *  - rip is not kept: each way out names a site, a block or a link, from which C code knows it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "cpu/jit/decode.h"
#include "cpu/jit/decode_known.h"
#include "cpu/jit/emit.h"
#include "cpu/jit/insn_pool.h"
#include "cpu/jit/mcode.h"
#include "cpu/jit/tlb.h"
#include "mem/mem.h"

#define BLOCK_MAX_INSNS 48u
#define BLOCK_MAX_LINKS 8u /* two for the last instruction, the others for conditional jumps before it */
#define STACK_RUN_MAX 15u /* pushes or pops behind one check */
#define NO_BLOCK UINT32_MAX
#define NO_LINK UINT32_MAX
#define NO_PAGE UINT32_MAX

/* What translated code depends on beside its bytes and address. */
struct block_key {
    uint8_t pool : 4;   /* enum tlb_pool of data accesses: follows CPL and AC */
    uint8_t fpu_ok : 4; /* x87, SSE and AVX are all enabled: no checks needed */
};

/* A direct exit; may be patched to jump straight to its target. When that is on another page, what that linear page is fetched from
 * is checked on the way (fetch_tlb). */
struct link {
    int32_t distance; /* from the block's rip to the exit's */
    uint32_t patch : 31; /* place of the rel32 field in the code memory */
    uint32_t far : 1;    /* to another page: LINK_FAR_DISPLACEMENT before `patch` is the displacement that stands for the page */
    uint32_t stub;    /* where it points while unlinked */
    uint32_t from;    /* the block it leaves */
    uint32_t target;  /* linked block, or NO_BLOCK */
    uint32_t next;    /* next link into the same target, or NO_LINK */
};
#define LINK_FAR_DISPLACEMENT 21

/* Bytes [start, end) of a page; none when they are equal. */
struct code_span {
    uint16_t start, end;
};

/* Code of user mode is position-independent (`pic`): shared libraries lie at other addresses in each process. Its rip is relative
 * to the page it starts in, whose linear address is in cpu->code_page while it runs. Whoever comes through the jump cache
 * brings the rip in r15 to `entry`, which sets code_page and makes flags native that are read; links within the page and C code
 * go to `inner`, which polls. Links to a higher address go to `forward`, behind the poll: every loop has another way in it.
 * There are very many blocks: places are offsets into the code memory, pages are numbers in guest RAM. */
struct block {
    /* What a lookup needs comes first, 32 bytes. */
    uint64_t rip; /* of the first instruction; when pic, its offset in the page */
    uint32_t page[2]; /* guest pages it was made from; [1] NO_PAGE when it lies in one */
    uint32_t hash_next;
    uint32_t entry;
    uint8_t inner, forward;  /* from entry */
    uint16_t offset, length; /* source bytes from page[0] */
    struct block_key key;
    bool dead : 1, pic : 1;
    bool evicted : 1; /* cache_room.c: being dropped */

    struct code_span ahead[2]; /* of page[0]: code behind jumps and behind the end that says which flags need not be left */
    uint16_t code_length;      /* from entry */
    uint16_t map_count;
    uint32_t first_map; /* host code to guest instruction: translator.maps */
    uint32_t page_next[2];
    uint32_t incoming; /* first link into this block, or NO_LINK */
    uint32_t first_link;
    uint8_t link_count;
};

/* Where translated code calls C code for one guest instruction. Offsets of host code count from the block's entry. */
struct site {
    uint32_t block : 25;
    uint32_t first : 7; /* offset of the access that is made first, when one check stands for several */
    union {
        uint16_t retry; /* the check again; 0: only by rip */
        uint16_t insn;  /* of interpreter sites: index into translator.insns, or INSN_POOL_NONE */
    };
    uint16_t next;                  /* the instruction after; 0 when the block ends here */
    uint32_t rip_offset : 10;       /* of the instruction, from the block's rip */
    uint32_t insn_length : 4;
    uint32_t size : 8;              /* of the access in bytes, capped at 255 */
    uint32_t parked : 1;            /* flags are in cpu->flags_saved here */
    uint32_t write : 1, stack : 1;
    uint32_t other_faults : 1;      /* they come before those of the access: the interpreter knows */
    uint32_t needs_write_entry : 1; /* the check goes by tlb.stack, which only has pages with a write entry */
    uint32_t run : 4;               /* the check stands for a run of so many pushes or pops; `next` is behind all of them */
};
#define SITE_BLOCK_MASK 0x1ffffffu /* of its first 32 bits */

/* Guest instruction whose host code starts at `host`; both from the block's start. */
struct insn_map {
    uint32_t host : 16, guest : 15;
    uint32_t parked : 1; /* while the guest's own instruction runs */
};

struct trampolines {
    const uint8_t *enter;                                 /* executable view: void (*)(void) */
    const uint8_t *miss, *interp, *link, *poll, *dead; /* writable view, for emission */
    const uint8_t *refill[TLB_POOLS][TLB_ACCESSES]; /* the TLB's first level does not know the page at r15; flags are lost */
    const uint8_t *flagless[TLB_POOLS][TLB_ACCESSES]; /* the same, flags are native and kept */
    const uint8_t *jump[TLB_POOLS];  /* the jump cache's first level does not know the target in r15 */
    const uint8_t *load_rsp;         /* loads rsp from cpu->gpr and jumps to cpu->resume */
    const uint8_t *stack[TLB_POOLS]; /* a stack check failed: puts another page into tlb.stack, or goes to miss */
};

/* A part of the code memory and of each table (cache_room.c), and what of it is in use: counts and bytes. */
struct region {
    uint64_t turn;      /* counts the regions that were started */
    uint32_t end_block; /* number of the last block + 1 */
    uint32_t evicted;   /* so many blocks from its first on are dropped */
    uint32_t sites, maps, links, hot, cold;
};
#define REGIONS_MAX 4096

#define HASH_BITS 17
#define DROPPED_BITS 21

/* In one huge page: the tables in it are looked at all over. */
struct translator {
    struct mcode mcode;
    struct trampolines to;
    uint8_t *hot, *hot_end; /* free code memory of the current region, writable view */
    uint8_t *cold, *cold_end;
    struct block *blocks;
    uint32_t block_count, block_slice; /* next free in the current region; how many a region has */
    struct site *sites;
    uint32_t site_count, site_slice;
    struct insn_pool insns;
    struct insn_known known;
    struct insn_map *maps;
    uint32_t map_count, map_slice;
    struct link *links;
    uint32_t link_count, link_slice;
    uint32_t hash[1u << HASH_BITS]; /* heads of block chains by source address */
    uint32_t *page_heads; /* first block of each guest page, by its number in guest RAM */
    uint32_t pages;
    uint8_t *ram;         /* host address of guest RAM */
    struct region regions[REGIONS_MAX];
    uint32_t region, region_count, regions_used; /* now being filled; how many there are; how many are in use */
    uint64_t turn;
    uint32_t again;    /* blocks in this region that had been dropped */
    uint64_t dropped[1u << (DROPPED_BITS - 6)]; /* bits by source address */
    uint32_t dropped_count;
    uint8_t *regions_start;
    size_t region_bytes;
    uint32_t generation;  /* changes when blocks are gone */
    bool fpu_ok;          /* of the blocks that the jump cache holds */
    bool smap;            /* CR4.SMAP when blocks were made: they know the pools by it */
    uint32_t by_mnemonic[2048]; /* interpreted from translated code */
    uint64_t stat_blocks, stat_insns, stat_misses, stat_interp, stat_jumps, stat_dead, stat_links, stat_followed, stat_runs;
    uint64_t stat_resets, stat_evictions, stat_eviction_ns, stat_longest_eviction_ns, stat_again; /* regions; blocks made again */
};

/* Executable addresses of a block's ways in. */
static inline const uint8_t *block_entry(const struct translator *tr, const struct block *block)
{
    return tr->mcode.exec + block->entry;
}
static inline const uint8_t *block_inner(const struct translator *tr, const struct block *block)
{
    return block_entry(tr, block) + block->inner;
}

static inline uint32_t translator_page(const struct translator *tr, const uint8_t *host)
{
    return (uint32_t)((uint64_t)(host - tr->ram) / MEM_PAGE_SIZE);
}

/* translate.c: makes the block at cpu->rip, whose first page is at `page` (host address). NULL only when the first instruction
 * cannot be translated at all. Raises fetch faults of the first instruction. */
struct block *translate_block(struct jit_vcpu *cpu, const uint8_t *page, struct block_key key);

/* The state of one translation. */
struct translation {
    struct jit_vcpu *cpu;
    struct translator *tr;
    struct emit hot, cold;
    struct block *block;
    uint32_t block_id;
    struct block_key key;
    const struct insn *insn; /* now being emitted */
    uint64_t rip, next_rip;  /* of insn; relative to the page when the block is pic */
    bool parked;             /* flags are in cpu->flags_saved */
    uint16_t live_before, live_after;
    const uint16_t *live;    /* of insn and those behind it: live[0] is live_before */
    unsigned ahead;          /* how many instructions of the block are behind insn */
    bool rcx_stored;         /* cpu->gpr has the value of rcx */
    struct {
        bool valid, made; /* made: by this instruction */
        bool write;
        uint8_t base;
        int32_t disp;         /* of the access that r15 is the page offset of; r14 is its page's host address */
        int32_t last_disp;    /* of the last access */
        uint32_t first_site;
    } near;                   /* what the last check left in r14 and r15: translate_flagless.c */
    unsigned links;
    unsigned accesses, jumps; /* by the TLB, by the jump cache: profile.h */
    uint32_t pending_sites; /* first site that still wants `next` */
};

/* translate_mem.c */
/* Address of the instruction's memory operand to r15 (uses r14; when flags must be left alone, rcx). False: no inline form. */
bool translate_address(struct translation *t, bool flagless);
/* Where a check leaves the host address: in r15, or as the sum of r14 and r15, which is there a little earlier. */
enum check_form { CHECK_WHOLE, CHECK_PARTS };

struct check {
    unsigned size; /* bytes */
    bool write, stack;
    unsigned first, run; /* as in struct site */
    enum check_form form;
};

/* The TLB check itself: the linear address in r15 to an offset from what the entry at gs:[tag + r14] is for. It misses where that
 * is above (unsigned) what it is compared with. */
void translate_compare(struct emit *e, unsigned size, size_t tag);
/* Linear address in r15 to host address, after the TLB check. `retry` is where the address computation started. */
void translate_check(struct translation *t, const uint8_t *retry, const struct check *check);
/* The same for an address relative to rsp, checked against the stack's page. */
void translate_stack_check(struct translation *t, const uint8_t *retry, const struct check *check);
/* translate_flagless.c: the same without a change to flags, between two calls; rcx is in cpu->gpr meanwhile. `begin` comes before
 * the address computation. */
bool translate_flagless_pays(const struct translation *t);
void translate_flagless_begin(struct translation *t);
void translate_flagless_check(struct translation *t, const uint8_t *retry, const struct check *check);
/* Can the instruction's access go by what the last check found? It is one of the same base register a little higher up, with
 * flags left alone or parked: *ret_delta goes into the instruction's displacement. */
bool translate_near(const struct translation *t, bool flagless, int32_t *ret_delta);
void translate_flagless_near_check(struct translation *t, const struct check *check, int32_t delta);
void translate_near_check(struct translation *t, const struct check *check, int32_t delta);
/* Remembers what a whole check found, of the site that stands for it; `write`: the page may be written too. */
void translate_near_note(struct translation *t, const struct check *check, bool write, uint32_t site);
/* What an instruction did to what translate_flagless_begin and _near know. */
void translate_flagless_after(struct translation *t);
/* Adds gs:[offset] to r15; no flags, rcx is lost. */
void translate_flagless_add(struct emit *e, size_t offset);

/* Does the instruction need native flags, or leave some of the parked ones alone that are live later? */
bool translate_wants_native(const struct insn *insn, uint16_t live_after);
/* Parks live flags before an inline check. */
void translate_park_flags(struct translation *t);
void translate_unpark_flags(struct translation *t);
/* From cpu->flags_saved; r14 is lost. */
void translate_load_flags(struct emit *e);
/* An instruction that works on registers and at most one memory operand; false: no inline form. */
bool translate_plain(struct translation *t);
bool translate_stack(struct translation *t);
/* One check for a run of pushes, or of pops with a ret behind them, that starts at insns[0]. Returns how many instructions were
 * emitted: 0 or at least 2. */
unsigned translate_stack_run(struct translation *t, const struct insn *insns, unsigned count);
bool translate_bit_string(struct translation *t);
/* Hands this instruction to the interpreter. */
void translate_interp(struct translation *t, bool ends_block);
uint32_t translate_new_site(struct translation *t);
/* A site that leaves to the interpreter. */
uint32_t translate_new_interp_site(struct translation *t);
/* Offset from the block's entry of a place in its hot code (writable view). */
uint16_t translate_offset(const struct translation *t, const uint8_t *at);

/* translate_branch.c */
bool translate_branch(struct translation *t);
/* Leaves to the rip in r15, flags native or parked. `site` is the branch's, for a target that is no canonical address; NO_SITE for
 * constant targets. */
#define NO_SITE UINT32_MAX
void translate_exit_to_r15(struct translation *t, struct emit *e, uint32_t site);
/* Leaves the block to a known rip. */
void translate_exit(struct translation *t, struct emit *e, uint64_t rip);

/* The same through the jump cache of t->key's pool, whatever the target. */
void translate_exit_indirectly(struct translation *t, struct emit *e, uint64_t rip);
/* Where a link into a block of two pages goes instead: through the jump cache. */
void translate_detour(struct translation *t, struct emit *e, const struct link *link);
/* A rip (as t->rip counts) as an absolute address in `reg`; touches no flags. */
void translate_rip(struct translation *t, struct emit *e, unsigned reg, uint64_t rip);
/* Can translate_rip express it? */
static inline bool translate_rip_fits(const struct translation *t, uint64_t rip)
{
    return !t->block->pic || (int64_t)rip == (int32_t)rip;
}

/* translate_system.c */
/* Goes on in line if the condition holds, else the interpreter runs this instruction. */
void translate_leave_unless(struct translation *t, unsigned condition);
/* Out of line: the interpreter runs this instruction, with flags as they are now. For several checks of one instruction, which has as many
 * sites as SITES_PER_INSN (cache_room.c) at most. */
const uint8_t *translate_leave(struct translation *t);
/* The same if r15 is a canonical address; r14 is lost. Flags are parked or dead. */
void translate_leave_unless_canonical(struct translation *t);
/* rflags as PUSHF shows it, the arithmetic flags of which are parked, to `to`; all 32-bit registers. */
void translate_flags_image(struct emit *e, unsigned to, unsigned temporary);
bool translate_system(struct translation *t);

/* translate_call.c */
bool translate_syscall(struct translation *t);
bool translate_sysret(struct translation *t);

/* translate_string.c */
bool translate_string(struct translation *t);

/* translate_gather.c */
bool translate_gather(struct translation *t);

/* liveness.c */
uint16_t liveness_kills(const struct insn *insn);
uint16_t liveness_reads(const struct insn *insn);
/* Makes a span reach over [start, end) too; nothing when that is empty. */
void liveness_widen(struct code_span *span, unsigned start, unsigned end);
/* Arithmetic flags that code at `rip` (same page as `page_rip`, bytes at `page`) may read before it writes them. The answer
 * holds as long as the bytes of *ret_span do. */
uint16_t liveness_at(struct insn_known *known, uint64_t rip, uint64_t page_rip, const uint8_t *page, struct code_span *ret_span);

/* enter.c: into the start of the code memory. Returns what is free behind them. */
uint8_t *enter_make_trampolines(struct jit_vcpu *cpu);
