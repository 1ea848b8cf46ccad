/* The child's half, between clone3 and exec: only system calls, no allocation, no locks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#define FIRST_FD 3u
#define OPEN_FILES 1024
#define LOCKED_MEMORY (64u << 10)

static void set_signals_to_default(void)
{
    sigset_t none;
    for (int i = 1; i < _NSIG; i++)
        signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Both limits, never above what the parent has. */
static int set_limit(int which, uint64_t wanted)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)which, &limit) < 0)
        return -errno;
    if (limit.rlim_max > wanted)
        limit.rlim_max = wanted;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit((__rlimit_resource_t)which, &limit) < 0 ? -errno : 0;
}

static int set_limits(const struct sandbox_spec *spec, struct err *err)
{
    int r = set_limit(RLIMIT_CORE, 0);
    if (r == 0)
        r = set_limit(RLIMIT_NOFILE, spec->open_files_max ? spec->open_files_max : OPEN_FILES);
    if (r == 0)
        r = set_limit(RLIMIT_MEMLOCK, spec->locked_memory_max ? spec->locked_memory_max : LOCKED_MEMORY);
    if (r == 0 && spec->file_size_max)
        r = set_limit(RLIMIT_FSIZE, spec->file_size_max);
    if (r == 0 && spec->nice && setpriority(PRIO_PROCESS, 0, spec->nice) < 0)
        r = -errno;
    return r < 0 ? err_set(err, -r, "limits of '%s'", spec->program) : 0;
}

/* ---- descriptors ---- */

/* `ret_kept`: where status pipe and program are from then on. */
static int place_descriptors(const struct sandbox_child *child, int ret_kept[2], struct err *err)
{
    const struct sandbox_spec *spec = child->spec;
    int log = spec->log_fd >= 0 ? spec->log_fd : child->null_fd;
    int from[SANDBOX_MAX_FDS + FIRST_FD + 2] = {child->null_fd, log, log};
    unsigned count = FIRST_FD;
    for (unsigned i = 0; i < spec->fd_count; i++)
        from[count++] = spec->fds[i];
    from[count++] = child->status[1];
    from[count++] = child->program_fd;
    for (unsigned i = 0; i < count; i++) /* out of the way of those that come first */
        if ((from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, (int)count)) < 0)
            return err_set(err, errno, "descriptor %u of '%s'", i, spec->program);
    for (unsigned i = 0; i < count; i++)
        if (dup3(from[i], (int)i, i + 2 < count ? 0 : O_CLOEXEC) < 0)
            return err_set(err, errno, "descriptor %u of '%s'", i, spec->program);
    if (close_range(count, ~0u, 0) < 0)
        return err_set(err, errno, "descriptors of '%s'", spec->program);
    ret_kept[0] = (int)count - 2;
    ret_kept[1] = (int)count - 1;
    return 0;
}

/* ---- ids and capabilities ---- */

int sandbox_keep_capabilities(uint64_t mask)
{
    for (int i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
        if (!(mask >> i & 1) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno != EPERM)
            return -errno;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (unsigned i = 0; i < 2; i++) {
        uint32_t word = (uint32_t)(mask >> 32 * i);
        data[i] = (struct __user_cap_data_struct){.effective = word, .permitted = word, .inheritable = word};
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capset, &header, data) < 0)
        return -errno;
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0) < 0)
            return -errno;
    return 0;
}

/* No capability comes with uid 0, none goes with another. With all ids, the parent has made it root where it was not. */
static int set_ids(const struct sandbox_child *child, struct err *err)
{
    const unsigned long bits =
        SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED;
    if (child->confined && prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
        return err_set(err, errno, "securebits");
    /* not the C library's: behind a clone3 of ours it would wait for a thread that the parent was just making */
    if (child->spec->own_ids && (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, child->gid, child->gid, child->gid) < 0 ||
                                 syscall(SYS_setresuid, child->uid, child->uid, child->uid) < 0))
        return err_set(err, errno, "uid %u and gid %u", child->uid, child->gid);
    bool may_mount = child->confined && !child->spec->host_root;
    int r = sandbox_keep_capabilities(child->spec->capabilities | (may_mount ? UINT64_C(1) << CAP_SYS_ADMIN : 0));
    if (r < 0)
        return err_set(err, -r, "capabilities");
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? err_set(err, errno, "no_new_privs") : 0;
}

static int confine(const struct sandbox_child *child, int ret_kept[2], struct err *err)
{
    char byte;
    if (read(child->go[0], &byte, 1) != 1) /* the parent has gone, or could not map the ids */
        return err_say(err, ECANCELED, "'%s' was not started", child->spec->program);
    set_signals_to_default();
    setsid();
    if (child->confined && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return err_set(err, errno, "mount namespace");
    int r = set_limits(child->spec, err);
    if (r == 0)
        r = place_descriptors(child, ret_kept, err);
    return r == 0 ? set_ids(child, err) : r;
}

_Noreturn void sandbox_child_run(const struct sandbox_child *child)
{
    static char *const no_environment[] = {NULL};
    struct err err = {0};
    int kept[2] = {child->status[1], -1};
    close(child->go[1]); /* or it would never see its parent go */
    if (confine(child, kept, &err) == 0) {
        syscall(SYS_execveat, kept[1], "", child->spec->argv, no_environment, AT_EMPTY_PATH);
        (void)err_set(&err, errno, "execute '%s'", child->spec->program);
    }
    ssize_t ignored = write(kept[0], &err, sizeof err);
    (void)ignored;
    _exit(127);
}
