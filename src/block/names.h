/* Files that an image names, such as its backing file. */
#pragma once

#include "block/block.h"

/* Opens a file that an image names, when it lies in the image's folder or below or in one of the options' allow_dirs. The
 * descriptor and the path are the caller's. */
must_check int names_open(const struct block_options *image, const char *name, bool read_only, int *ret_fd, char **ret_path,
                          struct err *err);
