/* Names of files that may stand for an open one: "fd:N" is the descriptor N that the program was started with. A program in
 * a jail has no other names. */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>
#include "base/err.h"

/* N of "fd:N", or -1 for any other name. */
int fdname_parse(const char *name);
/* open(2), and for "fd:N" a duplicate of N (close-on-exec, the caller's), which shares its offset. Of the flags only the
 * access mode, O_APPEND, O_DIRECT and O_NONBLOCK matter then. -1 and errno: EBADF when N is not open, EACCES when it was
 * opened for less than the flags ask for. */
must_check int fdname_open(const char *name, int flags, mode_t mode);
/* stat(2) or fstat(2), and a check that it may be read, or also written. -1 and errno. */
must_check int fdname_stat(const char *name, bool writable, struct stat *ret_stat);
/* A listening unix socket, non-blocking: made at the path `name`, for this user only, or a duplicate of N of "fd:N". `what`
 * stands in front of messages. */
must_check int fdname_listen(const char *name, const char *what, int backlog, int *ret_fd, struct err *err);
