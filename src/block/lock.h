/* Who uses an image beside us: locks of the open file description, which all descriptors made from it share, and which go
 * when the last of them is closed.
 *
 * One writer, or many readers; QEMU keeps the same rule by bytes at which it holds read locks (file.locking, in QEMU 2.10
 * and later): from 100 on, one for each thing that it does, and from 200 on, one for each that it lets nobody else do. A writer
 * of ours has the whole file for itself. A reader does as QEMU's readers of a format do. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

/* -EBUSY. From writer to reader it changes without a gap. 0 also where the file system has no locks. */
must_check int block_lock(int fd, bool read_only);
void block_unlock(int fd);
