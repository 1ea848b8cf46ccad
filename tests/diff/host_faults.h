/* Calls to the host's file system of which one fails, with EIO or ENOSPC. For programs that are linked with --wrap for them; they
 * have no io_uring, whose calls cannot be wrapped. */
#pragma once

#include <stdatomic.h>

extern atomic_uint calls;   /* so far */
extern atomic_uint fail_at; /* the call that fails; 0: none */
extern const char *failed;  /* its name */
