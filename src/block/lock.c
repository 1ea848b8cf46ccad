#include "block/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/log.h"

enum { READS = 100, WRITES = 101, RESIZES = 103, NONE_WRITES = 201, NONE_RESIZES = 203 };

static int set(int fd, short type, off_t start, off_t len)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

static bool taken_by_another(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* First the own locks, then a look for others': of two that begin at once at least one sees the other. */
static int lock_for_reading(int fd)
{
    static const off_t held[] = {READS, NONE_WRITES, NONE_RESIZES};
    off_t from = 0;
    for (unsigned i = 0; i < sizeof held / sizeof *held; i++) {
        int r = set(fd, F_RDLCK, held[i], 1);
        if (r < 0)
            return r;
        set(fd, F_UNLCK, from, held[i] - from); /* what a writer had */
        from = held[i] + 1;
    }
    set(fd, F_UNLCK, from, 0);
    return taken_by_another(fd, WRITES) || taken_by_another(fd, RESIZES) ? -EAGAIN : 0;
}

int block_lock(int fd, bool read_only)
{
    int r = read_only ? lock_for_reading(fd) : set(fd, F_WRLCK, 0, 0);
    if (r == -EAGAIN || r == -EACCES) {
        block_unlock(fd);
        return -EBUSY;
    }
    if (r < 0)
        log_debug("disk: this file system has no locks");
    return 0;
}

void block_unlock(int fd)
{
    set(fd, F_UNLCK, 0, 0);
}
