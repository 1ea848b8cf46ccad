/* Where the programs are that a program calls. */
#pragma once

#include "base/err.h"

/* The path of the executable file `name`: beside the calling program (so that a build or an installation uses its own),
 * then in the folders of PATH. The caller frees it. -ENOENT says which package to install, if `package` (may be NULL) names
 * one. Any thread. */
must_check int program_find(const char *name, const char *package, char **ret_path, struct err *err);
