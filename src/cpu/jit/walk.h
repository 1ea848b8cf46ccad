/* Guest page walk: linear to guest physical address in every paging mode, with permissions and A/D bits.
 * Source: Intel SDM 3A chapter 4. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;

struct walk_result {
    uint64_t gpa;
    uint8_t bits;  /* size of the page: 12, 21, 22 or 30 */
    bool global;   /* survives a CR3 load */
    bool writable; /* a write by the same kind of access would be allowed and the dirty bit is set */
};

/* `access` as in mmu.h, `user`: with user rights. 0 with the accessed (and for writes, dirty) bits set, else the page-fault error
 * code with WALK_FAULT or-ed in. Raises nothing. */
#define WALK_FAULT (1u << 31)
uint32_t walk_page(struct jit_vcpu *cpu, uint64_t linear, unsigned access, bool user, struct walk_result *ret_result);
