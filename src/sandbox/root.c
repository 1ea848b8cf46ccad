/* The jail's last steps, taken by the program itself. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/own.h"
#include "sandbox/sandbox_impl.h"

static bool has_capability(int which)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    return syscall(SYS_capget, &header, data) == 0 && data[which / 32].effective >> which % 32 & 1;
}

static int write_self(const char *path, const char *text, struct err *err)
{
    own_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        return err_set(err, errno, "sandbox: %s", path);
    return 0;
}

/* Started by a user or a script rather than by sandbox_spawn: namespaces without privilege, the user's own id in them. */
static int make_namespaces(struct err *err)
{
    char uids[48], gids[48];
    snprintf(uids, sizeof uids, "%u %u 1", geteuid(), geteuid());
    snprintf(gids, sizeof gids, "%u %u 1", getegid(), getegid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS) < 0)
        return err_set(err, errno, "sandbox: this host refuses user namespaces");
    int r = write_self("/proc/self/setgroups", "deny", err);
    if (r == 0)
        r = write_self("/proc/self/gid_map", gids, err);
    return r == 0 ? write_self("/proc/self/uid_map", uids, err) : r;
}

/* Of the process itself; nothing else of proc is below the new root. */
static int bind_fd_names(const char *root)
{
    const char *const folders[] = {"proc", "proc/self", "proc/self/fd"};
    char path[64];
    for (unsigned i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        if (mkdir(path, 0555) < 0)
            return -errno;
    }
    return mount("/proc/self/fd", path, NULL, MS_BIND, NULL) < 0 ? -errno : 0;
}

/* Any folder will do to mount on: it is gone in the next step. */
static int change_root(bool keep_fd_names, struct err *err)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("polder", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=5,mode=0755") < 0)
        return err_set(err, errno, "sandbox: empty root");
    int r = keep_fd_names ? bind_fd_names("/tmp") : 0;
    if (r < 0)
        return err_set(err, -r, "sandbox: names of descriptors");
    if (chdir("/tmp") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ||
        mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return err_set(err, errno, "sandbox: empty root");
    return 0;
}

int sandbox_empty_root(bool keep_fd_names, struct err *err)
{
    int r = has_capability(CAP_SYS_ADMIN) && getpid() == 1 ? 0 : make_namespaces(err);
    if (r == 0)
        r = change_root(keep_fd_names, err);
    if (r == 0 && (r = sandbox_keep_capabilities(0)) < 0)
        return err_set(err, -r, "sandbox: capabilities");
    if (r == 0 && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0))
        return err_set(err, errno, "sandbox");
    return r;
}
