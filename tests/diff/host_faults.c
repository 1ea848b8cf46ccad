#include "host_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

atomic_uint calls, fail_at;
const char *failed;

static bool fails(const char *name)
{
    if (atomic_fetch_add(&calls, 1) + 1 != atomic_load(&fail_at))
        return false;
    failed = name;
    errno = atomic_load(&fail_at) % 2 ? EIO : ENOSPC;
    return true;
}

#define WRAP(type, name, parameters, arguments)                                                                                    \
    type __real_##name parameters;                                                                                                 \
    type __wrap_##name parameters;                                                                                                 \
    type __wrap_##name parameters                                                                                                  \
    {                                                                                                                              \
        return fails(#name) ? -1 : __real_##name arguments;                                                                             \
    }
WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *iov, int count, off_t at, int flags), (fd, iov, count, at, flags))
WRAP(ssize_t, pwritev64v2, (int fd, const struct iovec *iov, int count, off_t at, int flags), (fd, iov, count, at, flags))
WRAP(ssize_t, pread64, (int fd, void *data, size_t len, off_t at), (fd, data, len, at))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t len, off_t at), (fd, data, len, at))
WRAP(int, fdatasync, (int fd), (fd))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, fallocate64, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAP(int, ftruncate64, (int fd, off_t len), (fd, len))
WRAP(int, rename, (const char *from, const char *to), (from, to))
WRAP(off_t, lseek64, (int fd, off_t at, int whence), (fd, at, whence))

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails("open64") ? -1 : __real_open64(path, flags, mode);
}

struct io_uring;
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, void *params);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, void *params)
{
    (void)entries, (void)ring, (void)params;
    return -ENOSYS;
}
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    (void)entries, (void)ring, (void)flags;
    return -ENOSYS;
}
