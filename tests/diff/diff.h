/* Differential test of the jit engine: generated instruction sequences with random state, run by the engine as a guest's user code and by
 * the bare CPU in a child process at the same linear addresses; registers, flags, vector state, memory and faults must
 * agree. A case is made from its seed alone, so that any can be run again.
 *
 * One thread. The child is trusted with nothing: it may die, and is then started anew. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cpu/jit/decode.h"

#define DIFF_CODE UINT64_C(0x10000000)
#define DIFF_DATA UINT64_C(0x20000000)
#define DIFF_STATE (DIFF_DATA + 5 * 4096) /* where xsave areas are; the page is writable */
#define DIFF_PAGE 4096u
#define DIFF_DATA_PAGES 8u
#define DIFF_BATCH 64u
#define DIFF_SLOT 256u /* bytes of code for each case of a batch */
#define DIFF_XSAVE 832u
#define DIFF_INSNS 8u

/* Access of each data page, the same for both sides. */
enum diff_page { DIFF_HOLE, DIFF_READ, DIFF_WRITE };
extern const enum diff_page diff_pages[DIFF_DATA_PAGES];

struct diff_state {
    uint64_t gpr[16], rip, rflags, fs_base, gs_base;
    _Alignas(64) uint8_t xsave[DIFF_XSAVE];
};

struct diff_case {
    uint64_t seed;
    unsigned bits;                   /* code size: 64, or 32 or 16 (compatibility mode) */
    unsigned count, length;          /* instructions; bytes without the final ud2 */
    uint8_t start[DIFF_INSNS];       /* offsets */
    uint16_t mnemonic[DIFF_INSNS];
    uint8_t code[DIFF_SLOT];
    struct diff_state state;
};

/* 16-bit code has segments of 64 KiB at DIFF_CODE and DIFF_DATA; all others are flat. */
static inline uint64_t diff_code_linear(const struct diff_case *c)
{
    return c->bits == 16 ? DIFF_CODE + c->state.rip : c->state.rip;
}

struct diff_result {
    struct diff_state state;
    uint32_t vector, error;
    uint64_t cr2;
    uint8_t data[DIFF_DATA_PAGES][DIFF_PAGE];
};

struct diff_batch {
    unsigned count;
    uint8_t data[DIFF_DATA_PAGES][DIFF_PAGE]; /* initial content */
    struct diff_case cases[DIFF_BATCH];
    struct diff_result results[DIFF_BATCH];   /* of the bare CPU */
};

/* diff_gen.c */
void diff_generate_init(void);
void diff_generate(struct diff_case *c, uint64_t seed, unsigned slot, unsigned bits);
/* One instruction of 64-bit code under alignment checks. */
void diff_generate_aligned(struct diff_case *c, uint64_t seed, unsigned slot);
void diff_generate_data(uint8_t data[DIFF_DATA_PAGES][DIFF_PAGE], uint64_t seed);
uint64_t diff_random(uint64_t *state);

/* diff_native.c: 0, or -1 when the child cannot be started or died (the case it died in is in *ret_case). */
struct diff_native;
struct diff_native *diff_native_start(struct diff_batch *shared);
int diff_native_run(struct diff_native *native, unsigned *ret_case);
void diff_native_stop(struct diff_native *native);

/* What runs a case; `interp` and `jit` are the engine's two ways. */
struct diff_runner {
    const char *name;
    bool loose_flags; /* undefined flags, and flags at faults that the code ahead overwrites, need not be the CPU's */
    int (*create)(const struct diff_runner *runner, const char *jit_opt); /* jit_opt: as in struct engine_config */
    /* Before the cases of a batch: their code is new. */
    void (*load)(const struct diff_batch *batch);
    void (*run)(const struct diff_batch *batch, unsigned index, struct diff_result *ret_result);
};
extern const struct diff_runner diff_runner_interp, diff_runner_jit;
