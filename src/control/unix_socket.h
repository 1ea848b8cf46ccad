/* Unix stream sockets by path, of any length: the folder is opened first, so that sun_path's 108 bytes bind only the name. */
#pragma once

#include "base/err.h"

/* A connected, close-on-exec socket whose sends and receives each end after `timeout_ms` with -EAGAIN (0: never). */
must_check int unix_connect(const char *path, unsigned timeout_ms, int *ret_fd, struct err *err);
/* Listens at `path`, mode 0600, in the place of what was there. */
must_check int unix_listen(const char *path, int *ret_fd, struct err *err);
