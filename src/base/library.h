/* Shared libraries that are loaded when they are first needed: what most runs of a program never use, and what takes longer to
 * load than all else that the program does at its start.
 *
 *     #define FOO_FUNCTIONS(X) X(foo_new) X(foo_free)
 *     struct foo_library { FOO_FUNCTIONS(LIBRARY_MEMBER) };
 *     static const char *const functions[] = {FOO_FUNCTIONS(LIBRARY_ENTRY) NULL};
 *
 * Functions are called through the table: `foo_lib.foo_new(...)`. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

#define LIBRARY_MEMBER(name) __typeof__(name) *(name);
#define LIBRARY_ENTRY(name) #name,

struct library {
    const char *file;             /* such as libfoo.so.1 */
    const char *package;          /* of Debian */
    const char *needed_for;       /* begins the message when it cannot be loaded */
    const char *const *functions; /* NULL ends them */
    void *table;                  /* a pointer to each, in that order */
    bool loaded;                  /* and the table is complete */
};

/* Does nothing when it was loaded before; it stays until the process ends. -ENOENT when it is missing or too old, and the table is as it
 * was. Threads: any. */
must_check int library_load(struct library *library, struct err *err);
