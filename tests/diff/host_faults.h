/* Calls to the host's file system of which one fails, with EIO or ENOSPC, for programs that are linked with --wrap for them;
 * they have no io_uring, whose calls cannot be wrapped. And what such a program does: each call of its cases fails once. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

extern atomic_uint calls;   /* so far */
extern atomic_uint fail_at; /* the call that fails; 0: none */
extern const char *failed;  /* its name */

struct fault_test {
    const char *const *images; /* NULL-terminated: files that `make` makes, which each run finds as they were then */
    void (*make)(void);
    const char *(*name)(unsigned index); /* of a case; NULL behind the last */
    /* A case in which call `at` fails (0: none). False: something is wrong, and it has said what. `ret_reached`: it made so many. */
    bool (*run)(unsigned index, unsigned at, bool *ret_reached);
};
/* All cases, or those named, in a folder that goes afterwards. The program's exit status. */
int fault_test_run(const struct fault_test *test, int argc, char **argv);
