/* From the fork to the program: used by child.c only. */
#pragma once

#include "agent/child.h"

/* What a child that could not become its program says on the report pipe. */
struct child_report {
    int code;
    char text[CHILD_ERROR_SIZE];
};

/* The agent's ends, all non-blocking; -1 where there is none. On a terminal, `in` and `out` are its master. */
struct child_ends {
    int in, out, err, report;
};

must_check int child_fork(const struct child_spec *spec, pid_t *ret_pid, struct child_ends *ret_ends, struct err *err);
