/* The child that unpacks: its root is the folder being filled, it has no descriptor that leads out of it, and of root's powers
 * it has those over owners, modes and capabilities of files. It is a fork, not a program: what it needs is descriptors and
 * libarchive, which is here. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/userns.h"
#include "image/rootfs_impl.h"
#include "image/rootfs_child.h"

#define MEMORY_BYTES (1ul << 30) /* beyond what the caller has mapped */
#define POLL_MS 100

static int limit_memory(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    int fields = file ? fscanf(file, "%lu", &pages) : 0; // NOLINT(cert-err34-c): the kernel writes it
    if (file)
        fclose(file);
    rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + MEMORY_BYTES;
    const struct rlimit memory = {bytes, bytes}, none = {0, 0};
    if (fields != 1 || setrlimit(RLIMIT_AS, &memory) < 0 || setrlimit(RLIMIT_CORE, &none) < 0)
        return -errno;
    return 0;
}

static int keep_capabilities(void)
{
    static const unsigned kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
        data[kept[i] / 32].effective |= 1u << (kept[i] % 32);
    for (unsigned i = 0; i < 2; i++)
        data[i].permitted = data[i].effective;
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

static int by_number(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* What else the caller has open, a store and folders outside of the root among it, is not for who reads foreign bytes. */
static int close_others(const struct rootfs_work *work, int result_fd, struct err *err)
{
    int kept[3 + IMAGE_LAYERS_MAX] = {STDERR_FILENO, work->root_fd, result_fd};
    size_t count = 3;
    if (work->layer_count > IMAGE_LAYERS_MAX)
        return err_say(err, EINVAL, "an image has at most %d layers", IMAGE_LAYERS_MAX);
    for (size_t i = 0; i < work->layer_count; i++)
        kept[count++] = work->layers[i];
    qsort(kept, count, sizeof *kept, by_number);
    for (size_t i = 0; i < count; i++) {
        unsigned first = (unsigned)kept[i] + 1, last = i + 1 < count ? (unsigned)kept[i + 1] - 1 : ~0u;
        if (first <= last && close_range(first, last, 0) < 0)
            return err_set(err, errno, "close what the unpacking shall not have");
    }
    return 0;
}

static int shut_in(int root_fd, struct err *err)
{
    int r = limit_memory();
    if (r == 0 && geteuid() != 0)
        r = userns_become_root();
    if (r == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0) /* new powers may have taken it away */
        r = -errno;
    if (r == 0 && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || fchdir(root_fd) < 0 || chroot(".") < 0))
        r = -errno;
    if (r == 0)
        r = keep_capabilities();
    return r < 0 ? err_set(err, -r, "shut the unpacking in") : 0;
}

static int unpack_all(const struct rootfs_work *work, int result_fd, struct err *err)
{
    struct rootfs_counts counts = {0};
    locale_t before, set;
    int r = rootfs_locale_set(&before, &set, err); /* its files cannot be had later */
    if (r == 0)
        r = close_others(work, result_fd, err);
    if (r == 0)
        r = shut_in(work->root_fd, err);
    for (size_t i = 0; r == 0 && i < work->layer_count; i++) {
        r = rootfs_unpack(work->root_fd, work->layers[i], &counts, err);
        if (r < 0)
            return err_ctx(err, "layer %zu of %zu", i + 1, work->layer_count);
    }
    return r;
}

static _Noreturn void run_child(const struct rootfs_work *work, int result_fd, pid_t parent)
{
    struct err err = {0};
    int r = -EINTR;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 && getppid() == parent)
        r = unpack_all(work, result_fd, &err);
    _exit(r == 0 ? 0 : write(result_fd, &err, sizeof err) == sizeof err ? 1 : 2);
}

/* The layers' descriptors are shared with the child: how far it has read is seen from here. */
static void report(const struct rootfs_work *work)
{
    uint64_t done = 0;
    if (!work->progress || !work->progress->report)
        return;
    for (size_t i = 0; i < work->layer_count; i++) {
        off_t at = lseek(work->layers[i], 0, SEEK_CUR);
        done += at > 0 ? (uint64_t)at : 0;
    }
    work->progress->report(work->progress->context, work->what, done, work->total_bytes);
}

static bool is_cancelled(const struct rootfs_work *work)
{
    return work->progress && work->progress->cancelled && work->progress->cancelled(work->progress->context);
}

static int wait_child(const struct rootfs_work *work, pid_t pid, bool *ret_cancelled)
{
    own_fd int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd ended = {pidfd, POLLIN, 0};
    int status;
    while (pidfd >= 0 && poll(&ended, 1, POLL_MS) <= 0) {
        report(work);
        if (!*ret_cancelled && is_cancelled(work)) {
            *ret_cancelled = true;
            kill(pid, SIGKILL);
        }
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    report(work);
    return status;
}

/* The child has read foreign bytes: what it says is a text to show, no more. */
static int take_error(int result_fd, int status, struct err *err)
{
    struct err said = {0};
    if (read(result_fd, &said, sizeof said) == sizeof said && said.code > 0 && said.code < 4096) {
        said.message[sizeof said.message - 1] = '\0';
        return err_say(err, said.code, "%s", said.message);
    }
    if (status >= 0 && WIFSIGNALED(status))
        return err_say(err, EIO, "unpacking was ended by signal %d", WTERMSIG(status));
    return err_say(err, EIO, "unpacking failed");
}

int rootfs_work_run(const struct rootfs_work *work, struct err *err)
{
    int ends[2];
    bool cancelled = false;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_set(err, errno, "unpack");
    own_fd int result_fd = ends[0];
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        run_child(work, ends[1], parent);
    int code = errno;
    close(ends[1]);
    if (pid < 0)
        return err_set(err, code, "unpack");
    int status = wait_child(work, pid, &cancelled);
    if (cancelled)
        return err_say(err, ECANCELED, "cancelled");
    return status == 0 ? 0 : take_error(result_fd, status, err);
}
