/* From the initramfs to the image's root: kernel file systems, modules, the overlay of the image (vda, read-only erofs) and the
 * instance's own disk (vdb, ext4), the move there. And the way back down. As init of a microVM only. */
#pragma once

#include "agent/agent.h"

/* /dev, /proc, /sys, and standard streams on the serial console. */
void root_early(void);
must_check int root_enter(struct agent *agent, struct err *err);
/* Waits for a device "vdX" and mounts it; `flags` of mount(2). */
must_check int root_mount_disk(const char *device, const char *path, const char *fs, unsigned long flags, struct err *err);
/* Creates a directory and those above it. */
void root_make_dirs(const char *path);
/* Writes out and makes read-only all file systems: nothing runs any more. */
void root_close(void);
