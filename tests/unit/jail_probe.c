/* Stands in for polder-vmm and polder-unpack: `jail_probe KIND WHAT` enters the jail of one of their kinds of threads as they do and
 * then tries what must be refused. "paths" and "others PID PORT" try what has an error for an answer, "wait" waits, "open" is killed with
 * SIGSYS. "calls" tries many system calls, for which the kind is killed or not, as its bit in the table says. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/filter.h"
#include "sandbox/sandbox.h"

#define ANSWERED 103
#define JIT 1u
#define KVM 2u
#define VCPU 4u
#define LOOP 8u
#define DISK 16u
#define API 32u
#define UNPACK 64u
#define VMM (JIT | KVM | VCPU | LOOP | DISK | API)
static const struct kind {
    const char *name;
    unsigned bit;
    enum sandbox_filter filter;
} kinds[] = {{"jit", JIT, SANDBOX_FILTER_JIT},    {"kvm", KVM, SANDBOX_FILTER_KVM},    {"vcpu", VCPU, SANDBOX_FILTER_VCPU},
             {"loop", LOOP, SANDBOX_FILTER_LOOP}, {"disk", DISK, SANDBOX_FILTER_DISK}, {"api", API, SANDBOX_FILTER_API},
             {"unpack", UNPACK, SANDBOX_FILTER_UNPACK}};

#define CALL_ON(which, name, ...) {.kinds = (which), .number = SYS_##name, .args = {__VA_ARGS__}}
#define CALL(name, ...) CALL_ON(VMM | UNPACK, name, __VA_ARGS__)
static const struct {
    unsigned kinds; /* that are killed for it */
    long number;
    long args[6];
} probes[] = {
    CALL(open, (long)"/", O_RDONLY),
    CALL_ON(VMM, openat, AT_FDCWD, (long)"/proc/self/mem", O_RDWR),
    CALL_ON(VMM, openat2, AT_FDCWD, (long)"/dev"),
    CALL(mknodat, AT_FDCWD, (long)"x", S_IFCHR | 0600, 0x103),
    CALL(mknodat, AT_FDCWD, (long)"x", S_IFSOCK | 0600),
    CALL(fchdir, 3),
    CALL(setxattr, (long)"x"),
    CALL(renameat2, AT_FDCWD),
    CALL(creat, (long)"/x", 0600),
    CALL(mkdir, (long)"/x", 0700),
    CALL(rename, (long)"/a", (long)"/b"),
    CALL(chdir, (long)"/"),
    CALL(chroot, (long)"/"),
    CALL(socket, AF_UNIX, SOCK_STREAM),
    CALL(socket, AF_INET, SOCK_STREAM),
    CALL(socket, AF_NETLINK, SOCK_RAW),
    CALL(connect, 0),
    CALL(bind, 0),
    CALL(ptrace, PTRACE_ATTACH, 1),
    CALL(kill, -1, SIGTERM),
    CALL(process_vm_readv, 1),
    CALL(pidfd_open, 1),
    CALL(mount, 0, (long)"/", (long)"tmpfs"),
    CALL(umount2, (long)"/", MNT_DETACH),
    CALL(pivot_root, (long)"/", (long)"/"),
    CALL(unshare, CLONE_NEWUSER),
    CALL(setns, 0),
    CALL(clone, SIGCHLD),
    CALL(clone, CLONE_NEWUSER | SIGCHLD),
    CALL(fork),
    CALL(vfork),
    CALL(setuid, 0),
    CALL(setresuid, 0, 0, 0),
    CALL(setgroups, 0),
    CALL(capset, 0),
    CALL(execve, (long)"/bin/sh"),
    CALL(execveat, 0, (long)"", 0, 0, AT_EMPTY_PATH),
    CALL(bpf, 0),
    CALL(keyctl, 0),
    CALL(add_key, 0),
    CALL(perf_event_open, 0),
    CALL(userfaultfd, 0),
    CALL(io_uring_setup, 1),
    CALL(init_module, 0),
    CALL(kexec_load, 0),
    CALL(reboot, 0),
    CALL(swapon, 0),
    CALL(syslog, 3),
    CALL(personality, 0),
    CALL(modify_ldt, 0),
    CALL(iopl, 3),
    CALL(ioctl, 0, 0x5412 /* TIOCSTI */),
    CALL(prctl, PR_SET_DUMPABLE, 1),
    CALL(prctl, PR_SET_SECCOMP, 0),
    CALL(mmap, 0, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1),
    CALL(mprotect, 0, 4096, PROT_WRITE | PROT_EXEC),
    CALL(ioctl, 0, KVM_CREATE_VM),
    CALL(ioctl, 0, KVM_CREATE_VCPU),
    CALL(ioctl, 0, KVM_CREATE_DEVICE),
    CALL(ioctl, 0, KVM_ENABLE_CAP),
    CALL_ON(JIT | LOOP | DISK | API | UNPACK, ioctl, 0, KVM_RUN),
    CALL_ON(JIT | VCPU | DISK | API | UNPACK, ioctl, 0, KVM_SET_USER_MEMORY_REGION),
    /* what one kind of thread may do and others may not */
    CALL_ON(VCPU | LOOP | API | UNPACK, io_uring_enter, -1),
    CALL_ON(VCPU | API, pwrite64, -1),
    CALL_ON(VCPU | API | UNPACK, fallocate, -1),
    CALL_ON(VCPU | API | UNPACK, fdatasync, -1),
    CALL_ON(VCPU | DISK | UNPACK, sendmsg, -1),
    CALL_ON(VCPU | DISK | UNPACK, recvfrom, -1),
    CALL_ON(VCPU | DISK | UNPACK, accept4, -1),
    CALL_ON(VCPU | API | UNPACK, clone, CLONE_THREAD),
    CALL_ON(VCPU | DISK | API | UNPACK, seccomp, 0),
    CALL_ON(DISK | API | UNPACK, ioctl, 0, TUNSETOFFLOAD),
    CALL_ON(VCPU | DISK | API | UNPACK, rt_sigaction, SIGUSR1),
    CALL_ON((VMM | UNPACK) & ~(JIT | VCPU), mmap, 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1),
    CALL_ON((VMM | UNPACK) & ~(JIT | VCPU), mprotect, 0, 4096, PROT_READ | PROT_EXEC),
    CALL(rt_sigaction, SIGSYS),
    CALL(fcntl, 0, F_SETOWN, 1),
    CALL(setrlimit, 0),
    CALL(prlimit64, 1),
    CALL(sched_setscheduler, 0),
    CALL(name_to_handle_at, 0),
    CALL(open_by_handle_at, 0),
};

/* What the empty root and the namespaces refuse by themselves, before the system call filter is there. */
static int try_without_filter(void)
{
    const char *const paths[] = {"/proc", "/dev/null", "/etc/passwd", "/tmp", "/usr", "/sys"};
    for (unsigned i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (open(paths[i], O_RDONLY) >= 0 || errno != ENOENT)
            return 1;
    if (open("/", O_RDONLY | O_DIRECTORY) >= 0 || open("/x", O_WRONLY | O_CREAT, 0600) >= 0 || mkdir("/x", 0700) == 0)
        return 2;
    if (mount("x", "/", "tmpfs", 0, NULL) == 0 || setuid(0) == 0 || chroot("/") == 0 || sethostname("x", 1) == 0)
        return 3;
    if (getpid() != 1 || getppid() != 0 || (kill(-1, 0) == 0) || socket(AF_PACKET, SOCK_RAW, 0) >= 0)
        return 4;
    for (int fd = 3; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            return 5;
    if (mknod("/null", S_IFCHR | 0600, makedev(1, 3)) == 0 || mknod("/pipe", S_IFIFO | 0600, 0) == 0)
        return 6;
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : 7;
}

/* The same of polder-unpack, whose root is a folder, 3, and has a secret beside it, in the folder that is 4. */
static int try_unpack_without_filter(int landlock_abi)
{
    const char *const paths[] = {"/secret", "/../secret", "/proc", "/etc/passwd"};
    for (unsigned i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (open(paths[i], O_RDONLY) >= 0 || errno != ENOENT)
            return 1;
    if (openat(3, "../secret", O_RDONLY) >= 0 || errno != ENOENT)
        return 2;
    if (landlock_abi && (openat(4, "secret", O_RDONLY) >= 0 || errno != EACCES))
        return 3;
    if (mount("x", "/", "tmpfs", 0, NULL) == 0 || setuid(1) == 0 || chroot("/") == 0 || sethostname("x", 1) == 0)
        return 4;
    if (getpid() != 1 || getppid() != 0 || kill(-1, 0) == 0 || mknod("/null", S_IFCHR | 0600, makedev(1, 3)) == 0)
        return 5;
    int fd = open("/file", O_WRONLY | O_CREAT | O_EXCL, 0600); /* what it is there for */
    return fd < 0 || (fchown(fd, 12345, 12345) < 0 && errno != EINVAL) || mkfifo("/pipe", 0600) < 0 ? 6 : 0;
}

static bool can_connect(const void *address, socklen_t len)
{
    int fd = socket(*(const sa_family_t *)address, SOCK_STREAM, 0);
    return fd >= 0 && connect(fd, address, len) == 0;
}

/* A sibling of the same user in a jail of its own, by its pid outside, and sockets that listen on the host: as well without a filter. */
static int try_others(const char *which)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char byte;
    struct iovec here = {&byte, 1}, there = {&byte, 1};
    int pid;
    if (sscanf(which, "others %d %hu", &pid, &port.sin_port) != 2)
        return 1;
    port.sin_port = htons(port.sin_port);
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "polder-jail-%d", pid);
    if (ptrace(PTRACE_ATTACH, pid, 0, 0) == 0 || ptrace(PTRACE_SEIZE, pid, 0, 0) == 0)
        return 2;
    if (kill(pid, 0) == 0 || process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0 || syscall(SYS_pidfd_open, pid, 0) >= 0)
        return 3;
    return can_connect(&name, sizeof name) || can_connect(&port, sizeof port) ? 4 : 0;
}

static _Noreturn void try_probe(const struct kind *kind, unsigned i)
{
    const long *a = probes[i].args;
    if (sandbox_filter(kind->filter, true, NULL) < 0)
        _exit(101);
    syscall(probes[i].number, a[0], a[1], a[2], a[3], a[4], a[5]);
    _exit(ANSWERED);
}

/* Each in a process of its own. The number of the first that does not end as it has to, from 1 on; 0: none. */
static int try_probes(const struct kind *kind)
{
    for (unsigned i = 0; i < sizeof probes / sizeof probes[0]; i++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0)
            try_probe(kind, i);
        waitpid(pid, &status, 0);
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, answered = WIFEXITED(status) && WEXITSTATUS(status) == ANSWERED;
        if (probes[i].kinds & kind->bit ? !killed : !answered)
            return (int)i + 1;
    }
    return 0;
}

static const struct kind *find_kind(const char *name)
{
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    _exit(99);
}

static int give_up_paths(const struct kind *kind, int *ret_abi, struct err *err)
{
    if (kind->bit != UNPACK) {
        int r = sandbox_empty_root(false, err);
        return r == 0 ? sandbox_landlock(-1, ret_abi, err) : r;
    }
    if (fchdir(3) < 0 || chroot(".") < 0 || sandbox_keep_capabilities(1u << CAP_CHOWN) < 0)
        return err_set(err, errno, "root");
    return sandbox_landlock(3, ret_abi, err);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    int abi;
    if (argc < 3)
        return 98;
    const struct kind *kind = find_kind(argv[1]);
    const char *what = argv[2];
    if (give_up_paths(kind, &abi, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return 100;
    }
    /* all end at once: a search for leaks would want /proc */
    if (strcmp(what, "paths") == 0)
        _exit(kind->bit == UNPACK ? try_unpack_without_filter(abi) : try_without_filter());
    if (strncmp(what, "others", 6) == 0)
        _exit(try_others(what));
    if (strcmp(what, "wait") == 0)
        _exit(pause());
    if (strcmp(what, "open") == 0)
        try_probe(kind, 0);
    _exit(try_probes(kind));
}
