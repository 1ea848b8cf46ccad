/* Points at which a daemon that is asked to dies by SIGKILL: for tests of what the next daemon makes of what was left.
 *
 * Nothing is armed unless polderd was started with the option --fault, which no help shows. */
#pragma once

#include "base/err.h"

/* All points, one line each in fault.c; ends with NULL. */
extern const char *const fault_names[];

/* Before there are threads. -EINVAL: there is no such point. */
must_check int fault_arm(const char *name, struct err *err);
/* Where `name` is armed, this is the end. The action of a commit names the moment behind it. */
void fault_here(const char *name);
