/* Programs that do a piece of work and end: started, watched, and what they say passed on. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

#define CHILD_NOBODY 65534          /* user and group */
#define CHILD_OUTPUT_MAX (4u << 20) /* bytes of output that are kept; a program that says more has failed */
#define CHILD_LINE_MAX 512          /* bytes of a line of standard error; the rest of it is left out */

struct child {
    const char *const *argv; /* argv[0]: the program's path, or its name to be found in PATH; ends with NULL */
    int in_fd;               /* standard input; stays the caller's. -1: /dev/null */
    int out_fd;              /* standard output; stays the caller's. -1: kept, see child_run */
    int dir_fd;              /* the program's working directory; stays the caller's. -1: the caller's */

    /* For work on foreign bytes: no new privileges, 4 GiB of address space, no core file. */
    bool confined;
    /* And, when the caller is root, as CHILD_NOBODY: what it works on must be that user's, in `dir_fd`. */
    bool nobody;

    /* For work on files of any owner: a caller that is not root is root of a namespace that knows itself alone (userns.h). */
    bool as_root;

    /* All may be NULL. Each line of standard error as it comes, ended by \n or \r; asked some times a second. */
    void (*line)(void *context, const char *line);
    bool (*cancelled)(void *context);
    void *context;
};
#define CHILD_INIT .in_fd = -1, .out_fd = -1, .dir_fd = -1

/* Runs the program to its end. `ret_output` (the caller frees it, NUL-terminated; NULL: not wanted) is its standard output.
 * -EIO when it fails, with the last line of its standard error; -ECANCELED when `cancelled` said so: it and the processes
 * that it started got SIGTERM, and SIGKILL 5 s later. It ends with the calling thread. */
must_check int child_run(const struct child *child, char **ret_output, struct err *err);
