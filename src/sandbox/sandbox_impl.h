/* Private to src/sandbox. */
#pragma once

#include "sandbox/sandbox.h"

/* What the child of sandbox_spawn has from its parent. */
struct sandbox_child {
    const struct sandbox_spec *spec;
    uid_t uid;
    gid_t gid;
    bool confined; /* in namespaces of its own */
    int program_fd, null_fd;
    int status[2]; /* a struct err when something failed, closed by exec */
    int go[2];     /* a byte once the ids are mapped */
};

/* Confines the calling process and executes the program. */
_Noreturn void sandbox_child_run(const struct sandbox_child *child);

/* From now on a system call that a filter forbids is named on standard error before it ends the process. -errno. */
int sandbox_report_violation(void);
