/* The engine's own options: --engine jit,name=value,... and --jit-opt no-NAME,... One table each. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

/* Optimisations: enumerator, name, what is done. All are on; each can be switched off by itself, to find out what it gives and what
 * it breaks, and so that tests run both ways. They are looked at while code is translated, and by C code that is no fast path. */
#define JIT_OPTS(X)                                                                                           \
    X(JIT_OPT_FLAGLESS, "flagless", "accesses are checked without a change to flags that are live")           \
    X(JIT_OPT_NEAR, "near", "such accesses go by the check of the one before")                                \
    X(JIT_OPT_NEAR_PARKED, "near-parked", "so do others")                                                     \
    X(JIT_OPT_STACK, "stack", "accesses by rsp are checked against the stack's page")                         \
    X(JIT_OPT_RUN, "run", "a run of pushes or pops has one check")                                            \
    X(JIT_OPT_RUN_ACROSS, "run-across", "a run that crosses pages is done as one")                            \
    X(JIT_OPT_STRING, "string", "movs, stos and lods are inline")                                             \
    X(JIT_OPT_BIT, "bit", "bit strings in memory are inline")                                                 \
    X(JIT_OPT_GATHER, "gather", "gathers are inline")                                                         \
    X(JIT_OPT_UNLOCK, "unlock", "with one CPU, user mode's locked instructions are plain ones")               \
    X(JIT_OPT_SYSCALL, "syscall", "syscall and sysret are inline")                                            \
    X(JIT_OPT_SYSTEM, "system", "other system instructions are inline")                                       \
    X(JIT_OPT_KNOWN, "known", "instructions that differ in displacement and immediate alone are decoded once") \
    X(JIT_OPT_POOL, "pool", "instructions for the interpreter are kept decoded")                              \
    X(JIT_OPT_THROUGH, "through", "blocks go on behind conditional jumps")                                    \
    X(JIT_OPT_LINK, "link", "blocks of a page jump to each other")                                            \
    X(JIT_OPT_FAR, "far", "blocks of different pages jump to each other")                                     \
    X(JIT_OPT_FORWARD, "forward", "jumps forwards do not look for interrupts")                                \
    X(JIT_OPT_JUMP, "jump", "indirect jumps look into the jump cache inline")                                 \
    X(JIT_OPT_JUMP2, "jump2", "the jump cache has a second level")                                            \
    X(JIT_OPT_PLACE, "place", "its second level knows user code by its place in guest RAM")                   \
    X(JIT_OPT_PARK, "park", "flags stay parked through the jump cache")                                       \
    X(JIT_OPT_AHEAD, "ahead", "code behind a block says which flags are live")                                \
    X(JIT_OPT_TLB2, "tlb2", "translated code looks into a second level of the TLB")                           \
    X(JIT_OPT_PIC, "pic", "code of user mode is translated once for all its addresses")                       \
    X(JIT_OPT_GROW, "grow", "the code cache starts small")

#define JIT_OPT_ENUMERATOR(id, name, text) id,
enum jit_opt { JIT_OPTS(JIT_OPT_ENUMERATOR) JIT_OPT_COUNT };

struct jit_options {
    bool interpret;       /* interpret=on: no translation */
    bool profile;         /* profile=on: profile.h */
    bool perf_map;        /* perf-map=on: names of translated code for perf */
    uint64_t cache_bytes; /* cache=SIZE: translated code of one vCPU */
    uint32_t off;         /* optimisations that are off: a bit each, by enum jit_opt */
};

/* Parses "name=value,..." over the defaults; NULL or "" gives the defaults. The error names the option and the known ones. */
must_check int jit_options_parse(const char *text, struct jit_options *ret_options, struct err *err);
/* Parses "no-NAME,..." with the names above, or "no-all"; NULL for nothing. The error names them. */
must_check int jit_options_parse_opt(const char *text, uint32_t *ret_off, struct err *err);
