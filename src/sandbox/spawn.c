/* The parent's half: the child is made in its namespaces by one clone3, waits until its ids are mapped, confines itself
 * (child.c) and executes the program. A pipe that exec closes carries the reason when one of its steps fails.
 * The parent may have threads: between clone3 and exec the child uses nothing that takes a lock. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/own.h"
#include "sandbox/sandbox_impl.h"

#define MAP_SIZE 4096 /* as much as the kernel takes at once */
#define NAMESPACES                                                                                                     \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWCGROUP)

/* ---- what the child inherits ---- */

static void plan_close(struct sandbox_child *child)
{
    const int fds[] = {child->program_fd, child->null_fd, child->status[0],
                       child->status[1],  child->go[0],   child->go[1]};
    for (unsigned i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static int plan_open(struct sandbox_child *child, struct err *err)
{
    const struct sandbox_spec *spec = child->spec;
    if (spec->fd_count > SANDBOX_MAX_FDS)
        return err_say(err, E2BIG, "%u descriptors for '%s', at most %d", spec->fd_count, spec->program,
                       SANDBOX_MAX_FDS);
    child->program_fd = open(spec->program, O_PATH | O_CLOEXEC);
    if (child->program_fd < 0)
        return err_set(err, errno, "program '%s'", spec->program);
    child->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (child->null_fd < 0 || pipe2(child->status, O_CLOEXEC) < 0 || pipe2(child->go, O_CLOEXEC) < 0)
        return err_set(err, errno, "start of '%s'", spec->program);
    return 0;
}

/* ---- ids ---- */

static int write_proc(pid_t pid, const char *name, const char *text, struct err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    own_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        return err_set(err, errno, "map ids by '%s'", path);
    return 0;
}

/* All ids that the caller knows, the same inside and outside. */
static int list_ids(const char *own_map, char ret_map[static MAP_SIZE], struct err *err)
{
    unsigned first, count;
    size_t len = 0;
    FILE *file = fopen(own_map, "re");
    if (!file)
        return err_set(err, errno, "read '%s'", own_map);
    while (len < MAP_SIZE && fscanf(file, "%u %*u %u", &first, &count) == 2)
        len += (size_t)snprintf(ret_map + len, MAP_SIZE - len, "%u %u %u\n", first, first, count);
    fclose(file);
    return len < MAP_SIZE ? 0 : err_say(err, E2BIG, "'%s' is too long", own_map);
}

/* One id, which is the same inside and outside unless it is to be root. */
static void list_id(const struct sandbox_child *child, unsigned id, char ret_map[static MAP_SIZE])
{
    snprintf(ret_map, MAP_SIZE, "%u %u 1", child->spec->all_ids ? 0 : id, id);
}

/* Groups can be left only by those who could leave them anyway. */
static int map_ids(const struct sandbox_child *child, pid_t pid, struct err *err)
{
    char uids[MAP_SIZE] = "", gids[MAP_SIZE] = "";
    if (child->spec->all_ids && child->uid == 0) {
        int r = list_ids("/proc/self/uid_map", uids, err);
        if (r == 0)
            r = list_ids("/proc/self/gid_map", gids, err);
        if (r < 0)
            return r;
    } else {
        list_id(child, child->uid, uids);
        list_id(child, child->gid, gids);
    }
    int r = child->spec->own_ids ? 0 : write_proc(pid, "setgroups", "deny", err);
    if (r == 0)
        r = write_proc(pid, "gid_map", gids, err);
    return r == 0 ? write_proc(pid, "uid_map", uids, err) : r;
}

/* ---- the start ---- */

static int make_child(struct sandbox_child *child, uint64_t namespaces, int cgroup_fd, int *pidfd)
{
    const uint64_t into_cgroup = CLONE_INTO_CGROUP;
    struct clone_args args = {
        .flags = CLONE_PIDFD | namespaces | (cgroup_fd >= 0 ? into_cgroup : 0),
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup_fd >= 0 ? (unsigned)cgroup_fd : 0,
    };
    child->confined = namespaces != 0;
    return (int)syscall(SYS_clone3, &args, sizeof args);
}

static int clone_child(struct sandbox_child *child, int *ret_pid, int *pidfd, struct err *err)
{
    const struct sandbox_spec *spec = child->spec;
    uint64_t namespaces = spec->host_network ? NAMESPACES & ~(uint64_t)CLONE_NEWNET : NAMESPACES;
    own_fd int cgroup_fd = spec->cgroup ? open(spec->cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (spec->cgroup && cgroup_fd < 0)
        return err_set(err, errno, "cgroup '%s'", spec->cgroup);
    int pid = make_child(child, namespaces, cgroup_fd, pidfd);
    if (pid < 0 && spec->may_weaken && (errno == EPERM || errno == ENOSPC || errno == EINVAL))
        pid = make_child(child, 0, cgroup_fd, pidfd);
    if (pid < 0)
        return err_set(err, errno, "namespaces for '%s' (see `polder system doctor`)", spec->program);
    *ret_pid = pid;
    return 0;
}

/* What the child says before its exec closes the pipe: nothing when all is well. */
static int await_exec(struct sandbox_child *child, struct err *err)
{
    struct err failure;
    ssize_t n;
    do
        n = read(child->status[0], &failure, sizeof failure);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        return 0;
    if (n == sizeof failure && err)
        *err = failure;
    return n == sizeof failure ? -failure.code : err_say(err, EIO, "'%s' did not start", child->spec->program);
}

static int see_to_exec(struct sandbox_child *child, pid_t pid, struct err *err)
{
    close(child->status[1]);
    close(child->go[0]);
    child->status[1] = child->go[0] = -1;
    int r = child->confined ? map_ids(child, pid, err) : 0;
    if (r == 0 && write(child->go[1], "", 1) != 1)
        r = err_set(err, errno, "start of '%s'", child->spec->program);
    close(child->go[1]);
    child->go[1] = -1;
    return r == 0 ? await_exec(child, err) : r;
}

int sandbox_spawn(const struct sandbox_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    struct sandbox_child child = {.spec = spec,
                                  .uid = spec->own_ids ? spec->uid : geteuid(),
                                  .gid = spec->own_ids ? spec->gid : getegid(),
                                  .program_fd = -1,
                                  .null_fd = -1,
                                  .status = {-1, -1},
                                  .go = {-1, -1}};
    int pid = -1;
    own_fd int pidfd = -1;
    int r = plan_open(&child, err);
    if (r == 0)
        r = clone_child(&child, &pid, &pidfd, err);
    if (pid == 0)
        sandbox_child_run(&child);
    if (r == 0)
        r = see_to_exec(&child, pid, err);
    plan_close(&child);
    if (r < 0 && pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    if (r < 0)
        return r;
    *ret_pid = pid;
    if (ret_pidfd)
        *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}
