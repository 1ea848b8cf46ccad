/* Guest linear memory: page walk with permissions and A/D bits, soft TLB fills, and the accessors C code uses.
 * All accessors raise #PF (or #GP for non-canonical addresses; #SS when `ACCESS_STACK`) in the guest by unwinding.
 * Source: Intel SDM 3A chapter 4. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/state.h"

struct jit_vcpu;

#define ACCESS_READ 0u
#define ACCESS_WRITE 1u
#define ACCESS_FETCH 2u
#define ACCESS_SYSTEM 4u /* implicit supervisor access whatever the CPL: descriptor tables, TSS, IDT, exception frames */
#define ACCESS_STACK 8u  /* non-canonical gives #SS */
#define ACCESS_UNALIGNED 32u /* no alignment check: elements of masked and gathered vectors, images that have their own */

/* Linear accesses of any size and alignment, MMIO included. Writes that cross pages are checked in full before a byte changes. */
void mmu_read(struct jit_vcpu *cpu, uint64_t linear, void *data, size_t len, unsigned access);
void mmu_write(struct jit_vcpu *cpu, uint64_t linear, const void *data, size_t len, unsigned access);
/* size 1, 2, 4 or 8; zero-extended. */
uint64_t mmu_load(struct jit_vcpu *cpu, uint64_t linear, unsigned size, unsigned access);
void mmu_store(struct jit_vcpu *cpu, uint64_t linear, uint64_t value, unsigned size, unsigned access);

/* An instruction's memory operand as one host address to run the instruction on: guest RAM itself when it lies in one
 * page (so that locked operations are atomic), else a private copy that mmu_operand_done() writes back.
 * All faults happen in map; done never raises. */
struct mmu_operand {
    uint8_t *host;
    uint64_t linear;
    uint32_t size;
    uint32_t access;
    bool bounced;
    _Alignas(64) uint8_t bounce[X86_XSAVE_SIZE];
};
#define ACCESS_READ_WRITE 16u /* with ACCESS_WRITE: the old content is needed too */
void mmu_operand_map(struct jit_vcpu *cpu, struct mmu_operand *operand, uint64_t linear, uint32_t size, unsigned access);
void mmu_operand_done(struct jit_vcpu *cpu, struct mmu_operand *operand);

/* Enters the page of `linear` into the soft TLB for this kind of access. False: it cannot be there (not RAM, or a write to a page
 * with translated code). Raises faults. */
bool mmu_tlb_load(struct jit_vcpu *cpu, uint64_t linear, unsigned access);

/* Host pointer for [linear, linear+len) that must lie in one page; NULL when the page is not RAM, or holds translated code
 * and access is a write. Raises faults. For string operations in page-sized chunks. */
uint8_t *mmu_page_ptr(struct jit_vcpu *cpu, uint64_t linear, unsigned access);

/* Instruction fetch: copies up to `max` bytes (15) at `linear` and stops short at a page that faults. Raises only when not even
 * one byte can be fetched. Returns how many. */
unsigned mmu_fetch(struct jit_vcpu *cpu, uint64_t linear, uint8_t *bytes, unsigned max);
/* Raises the fault of fetching at `linear`, used when an instruction runs into a page that faults. */
void mmu_fetch_fault(struct jit_vcpu *cpu, uint64_t linear);
struct fetch_entry; /* tlb.h */
/* The page that code at `linear` is fetched from; valid until the next call. The first raises faults, peek gives NULL. */
const struct fetch_entry *mmu_fetch_page(struct jit_vcpu *cpu, uint64_t linear);
const struct fetch_entry *mmu_fetch_peek(struct jit_vcpu *cpu, uint64_t linear);
/* Guest physical address of a code byte; UINT64_MAX when not RAM. Raises faults. */
uint64_t mmu_fetch_gpa(struct jit_vcpu *cpu, uint64_t linear);

/* Forgets translations: all, or those of non-global pages only (a CR3 load), or one page. */
void mmu_flush_all(struct jit_vcpu *cpu);
void mmu_flush_local(struct jit_vcpu *cpu);
void mmu_flush_page(struct jit_vcpu *cpu, uint64_t linear);
/* After EFLAGS.AC, CPL, CR0.WP, CR4.SMAP/SMEP or EFER.NXE changed: CPL and AC need nothing (separate pools), the others flush all. */
