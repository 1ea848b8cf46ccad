/* Translated blocks of one vCPU: lookup, links between them, and dropping those whose source bytes change.
 *
 * A block is guest code at one linear address, from one or two guest pages, in one mode key. It stays while its source bytes do; the
 * jump cache and direct links within a page make sure that it is entered only where the linear address still
 * maps to these bytes.
 * Writes: a page with translated code (code_pages bit) never has a TLB write entry on any vCPU, so each write takes the slow
 * path and ends in cache_code_written(), which drops what it touches here and asks the other vCPUs to do so at their
 * next poll: no later than the IPI or serializing instruction that x86 demands for cross-modifying code. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct jit_vcpu;
struct jit_engine;

/* Says that the vCPU is about to enter a write translation for a page of RAM: false when the page holds translated code. */
bool cache_allow_writes(struct jit_vcpu *cpu, const uint8_t *host_page);
/* Is there translated code in the page of this host address (of any vCPU)? */
bool cache_page_has_code(struct jit_vcpu *cpu, const uint8_t *host);
/* The vCPU wrote guest RAM [host, host+len) past the TLB. */
void cache_code_written(struct jit_vcpu *cpu, const uint8_t *host, uint64_t len);
/* mem_write_fn for the machine's devices; any thread. `arg` is the engine. */
void cache_host_wrote(void *engine, uint64_t gpa, uint64_t len);
