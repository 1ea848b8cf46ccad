/* Files between this host and an instance, as tar streams. What comes out of an instance is foreign: nothing is written
 * outside of the target, by whatever names and links the archive has. */
#pragma once

#include "base/err.h"

struct cli;

/* `target`: a path here, "-" for the archive itself on standard output. */
must_check int copy_from(struct cli *cli, const char *instance, const char *path, const char *target, struct err *err);
/* `source`: a path here, "-" for an archive on standard input, which is unpacked into the folder `path`. */
must_check int copy_to(struct cli *cli, const char *source, const char *instance, const char *path, struct err *err);
