/* Work that takes root's powers over files, done by a plain user: in a user namespace of its own, which knows that user alone
 * and calls it root. Files it makes are the user's outside; no other owner can be given (-EINVAL of chown). */
#pragma once

#include "base/err.h"

/* Makes the calling process root of a new namespace. It has one thread: a child between fork and exec. -errno: the kernel does
 * not allow it (user_namespaces(7), max_user_namespaces). */
must_check int userns_become_root(void);
