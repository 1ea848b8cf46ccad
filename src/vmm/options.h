/* The command line of polder-vmm: one table that parsing, --help and the man page derive from. */
#pragma once

#include "base/option.h"
#include "vmm/config.h"

struct vmm_options {
    struct vm_config *config;
    bool help, version, man, openapi, probe;
    bool print_stats; /* the engine's counters on stderr at the end */
};

extern const struct option_program vmm_program;

/* How polder-vmm ends. 128 + N: signal N asked it to. */
enum vmm_status {
    VMM_STATUS_OK = 0,           /* the guest powered off, or the user left */
    VMM_STATUS_FAILURE = 1,      /* the host or the configuration */
    VMM_STATUS_USAGE = 2,        /* the command line */
    VMM_STATUS_REBOOT = 3,       /* the guest rebooted, with --no-reboot */
    VMM_STATUS_TRIPLE_FAULT = 4, /* the guest's CPU shut down */
    VMM_STATUS_PANIC = 5,        /* the guest's kernel panicked (pvpanic) */
    VMM_STATUS_ENGINE = 6,       /* the engine gave up */
};
