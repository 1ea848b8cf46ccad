/* polder-unpack: unpacks the layers of an image into a folder, for polderd (src/image/rootfs_child.c), which trusts it with
 * nothing else. `polder-unpack COUNT` has the folder as descriptor 3 and the layers, from the bottom up, as 4, 5, ...
 *
 * Layers are foreign. Before it reads the first byte of one it has namespaces, a process id and memory of its own
 * (sandbox_spawn), the folder as its root, the five of root's powers that setting owners and modes takes, no more than it needs
 * of memory, no path outside by Landlock, and the system calls of SANDBOX_FILTER_UNPACK.
 *
 * What went wrong is one line on standard error, its errno the exit status. */
#include <errno.h>
#include <linux/capability.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "image/image.h"
#include "image/rootfs.h"
#include "sandbox/filter.h"
#include "sandbox/sandbox.h"

#define ROOT_FD 3
#define FIRST_LAYER_FD 4
#define MEMORY_BYTES (1ul << 30) /* beyond what the program itself has mapped */
#define POWERS                                                                                                         \
    (1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER | 1u << CAP_FSETID | UINT64_C(1) << CAP_SETFCAP)

/* Ends with the thread that started it; which may be gone already, and with it the reader of standard error. */
static int follow_parent(struct err *err)
{
    struct pollfd said = {.fd = STDERR_FILENO};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return err_set(err, errno, "unpack");
    return poll(&said, 1, 0) > 0 && said.revents & POLLERR ? err_say(err, ECANCELED, "nobody waits for it") : 0;
}

static int limit(int which, rlim_t most)
{
    const struct rlimit both = {most, most};
    return setrlimit((__rlimit_resource_t)which, &both) < 0 ? -errno : 0;
}

static int set_limits(struct err *err)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    int fields = file ? fscanf(file, "%lu", &pages) : 0; // NOLINT(cert-err34-c): the kernel writes it
    if (file)
        fclose(file);
    int r = fields == 1 ? limit(RLIMIT_AS, pages * (rlim_t)sysconf(_SC_PAGESIZE) + MEMORY_BYTES) : -EIO;
    if (r == 0)
        r = limit(RLIMIT_FSIZE, ROOTFS_BYTES_MAX);
    if (r == 0)
        r = limit(RLIMIT_NPROC, 0);
    return r < 0 ? err_set(err, -r, "limits of the unpacking") : 0;
}

static int shut_in(struct err *err)
{
    int abi;
    if (fchdir(ROOT_FD) < 0 || chroot(".") < 0)
        return err_set(err, errno, "shut the unpacking in");
    int r = sandbox_keep_capabilities(POWERS);
    if (r < 0)
        return err_set(err, -r, "capabilities of the unpacking");
    r = sandbox_landlock(ROOT_FD, &abi, err);
    return r == 0 ? sandbox_filter(SANDBOX_FILTER_UNPACK, true, err) : r;
}

static int unpack_layers(int count, struct err *err)
{
    struct rootfs_counts counts = {0};
    int r = 0;
    for (int i = 0; r == 0 && i < count; i++) {
        r = rootfs_unpack(ROOT_FD, FIRST_LAYER_FD + i, &counts, err);
        if (r < 0)
            return err_ctx(err, "layer %d of %d", i + 1, count);
    }
    return r;
}

static int run(int argc, char **argv, struct err *err)
{
    int count = argc == 2 ? atoi(argv[1]) : 0; // NOLINT(cert-err34-c): anything else is 0
    if (count < 1 || count > IMAGE_LAYERS_MAX)
        return err_say(err, EINVAL, "polderd starts this program for its images; there is nothing else to do with it");
    if (!setlocale(LC_CTYPE, "C.UTF-8")) /* its files cannot be had later */
        return err_say(err, ENOENT, "the locale C.UTF-8 is missing");
    int r = follow_parent(err);
    if (r == 0)
        r = set_limits(err);
    if (r == 0)
        r = shut_in(err);
    return r == 0 ? unpack_layers(count, err) : r;
}

int main(int argc, char **argv)
{
    struct err err = {0};
    int r = run(argc, argv, &err);
    if (r < 0)
        fprintf(stderr, "polder-unpack: %s\n", err.message);
    _exit(-r); /* nothing is buffered, and what a sanitizer does at an end is not allowed any more */
}
