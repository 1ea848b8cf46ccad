/* The engine's own options: --engine jit,name=value,... One table in jit_options.c. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct jit_options {
    bool interpret;       /* interpret=on: no translation */
    bool perf_map;        /* perf-map=on: names of translated code for perf */
    bool no_flagless;     /* opt=no-flagless: checks of accesses always park live flags */
    bool no_near;         /* opt=no-near: such checks do not go by the one before */
    bool no_gather;       /* opt=no-gather: gathers are interpreted */
    uint64_t cache_bytes; /* cache=SIZE: translated code of one vCPU */
};

/* Parses "name=value,..." over the defaults; NULL or "" gives the defaults. The error names the option and the known ones. */
must_check int jit_options_parse(const char *text, struct jit_options *ret_options, struct err *err);
