/* Files to and from polderd, with progress: archives of images and volumes. */
#pragma once

#include "base/err.h"

struct cli;

/* PUT of the file at `path` ("-": standard input) to `request`; the answer is finished and its result shown as `name`. */
must_check int transfer_put(struct cli *cli, const char *request, const char *path, const char *name, struct err *err);
/* GET of `request` into a new file at `path` ("-": standard output), which is complete when this is 0 and gone otherwise. */
must_check int transfer_get(struct cli *cli, const char *request, const char *path, struct err *err);
