/* Only what is safe between fork and exec. */
#include "base/userns.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/own.h"

static int write_text(const char *path, const char *text)
{
    own_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

int userns_become_root(void)
{
    char uids[32], gids[32];
    snprintf(uids, sizeof uids, "0 %u 1", (unsigned)geteuid());
    snprintf(gids, sizeof gids, "0 %u 1", (unsigned)getegid());
    if (unshare(CLONE_NEWUSER) < 0)
        return -errno;
    int r = write_text("/proc/self/setgroups", "deny"); /* else a plain user may not map its group */
    if (r == 0)
        r = write_text("/proc/self/uid_map", uids);
    return r < 0 ? r : write_text("/proc/self/gid_map", gids);
}
