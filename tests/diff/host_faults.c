#include "host_faults.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- calls ---- */

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

/* ---- cases ---- */

static void copy_file(const char *from, const char *to)
{
    static char data[1 << 20];
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t n = in < 0 ? -1 : read(in, data, sizeof data);
    assert(n >= 0 && n < (ssize_t)sizeof data && out >= 0 && write(out, data, (size_t)n) == n);
    close(in);
    close(out);
}

static void copy_images(const char *const *images, bool keep)
{
    char kept[64];
    for (; *images; images++) {
        snprintf(kept, sizeof kept, "%s.kept", *images);
        copy_file(keep ? *images : kept, keep ? kept : *images);
    }
}

static bool run_case(const struct fault_test *test, unsigned index)
{
    bool reached = true;
    unsigned at = 0;
    for (; reached; at++) {
        copy_images(test->images, false);
        if (!test->run(index, at, &reached))
            return false;
    }
    printf("%s: %u calls\n", test->name(index), at - 2);
    return true;
}

static bool chosen(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return argc == 1;
}

static void remove_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL)
        unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(folder);
}

int fault_test_run(const struct fault_test *test, int argc, char **argv)
{
    char in_memory[] = "/dev/shm/polder-faults-XXXXXX", on_disk[] = "/tmp/polder-faults-XXXXXX";
    const char *folder = mkdtemp(in_memory) ? in_memory : mkdtemp(on_disk);
    bool good = true;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!folder || chdir(folder) < 0)
        return 2;
    test->make();
    copy_images(test->images, true);
    for (unsigned i = 0; test->name(i); i++)
        if (chosen(test->name(i), argc, argv))
            good = run_case(test, i) && good;
    remove_folder(folder);
    return good ? 0 : 1;
}
