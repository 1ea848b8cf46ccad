/* Run at build time: writes the seccomp filters as C arrays on standard output, so that the programs themselves need no
 * libseccomp. One table: a system call, the filters that allow it, and what its arguments must be. */
#include <errno.h>
#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define JIT 1u
#define KVM 2u
#define VCPU 4u
#define UNPACK 8u
#define FILTERS 4u
#define PROGRAM (JIT | KVM)
#define ALL (PROGRAM | VCPU)
#define NAMESPACES                                                                                           \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

struct rule {
    int call;
    unsigned filters;
    bool checked; /* argument `compare.arg` has to be so */
    struct scmp_arg_cmp compare;
};

#define ANY(name, which) {SCMP_SYS(name), which, false, {0, 0, 0, 0}}
#define EQUALS(name, which, arg, value) {SCMP_SYS(name), which, true, {arg, SCMP_CMP_EQ, (uint64_t)(value), 0}}
#define WITHOUT(name, which, arg, bits) {SCMP_SYS(name), which, true, {arg, SCMP_CMP_MASKED_EQ, (uint64_t)(bits), 0}}
#define IOCTL(which, value) EQUALS(ioctl, which, 1, value)

static const struct rule rules[] = {
    /* descriptors that are there */
    ANY(read, ALL), ANY(write, ALL), ANY(readv, ALL), ANY(writev, ALL), ANY(close, ALL), ANY(poll, ALL), ANY(ppoll, ALL),
    ANY(pread64, PROGRAM), ANY(pwrite64, PROGRAM), ANY(preadv, PROGRAM), ANY(pwritev, PROGRAM), ANY(preadv2, PROGRAM),
    ANY(pwritev2, PROGRAM), ANY(fsync, PROGRAM), ANY(fdatasync, PROGRAM), ANY(sync_file_range, PROGRAM), ANY(fallocate, PROGRAM),
    ANY(ftruncate, PROGRAM), ANY(lseek, PROGRAM), ANY(fstat, PROGRAM), ANY(newfstatat, PROGRAM), ANY(statx, PROGRAM),
    ANY(dup, PROGRAM), ANY(fadvise64, PROGRAM),
    EQUALS(fcntl, ALL, 1, F_GETFL), EQUALS(fcntl, ALL, 1, F_SETFL), EQUALS(fcntl, ALL, 1, F_GETFD), EQUALS(fcntl, ALL, 1, F_SETFD),
    EQUALS(fcntl, ALL, 1, F_DUPFD_CLOEXEC), EQUALS(fcntl, PROGRAM, 1, F_OFD_SETLK), EQUALS(fcntl, PROGRAM, 1, F_OFD_GETLK),
    IOCTL(ALL, TUNSETOFFLOAD), /* when the driver of a network interface is ready, in the thread that wrote the status */
    IOCTL(PROGRAM, TIOCGWINSZ), IOCTL(PROGRAM, TCGETS), IOCTL(PROGRAM, TCSETS),
    IOCTL(PROGRAM, FIONREAD), IOCTL(PROGRAM, FIONBIO),
    /* the virtual machine and its vCPUs: run, interrupts, doorbells; the dirty log; state at a reboot and for messages. No new ones. */
    IOCTL(KVM | VCPU, KVM_RUN), IOCTL(KVM | VCPU, KVM_SIGNAL_MSI), IOCTL(KVM | VCPU, KVM_SET_GSI_ROUTING),
    IOCTL(KVM | VCPU, KVM_IOEVENTFD), IOCTL(KVM, KVM_SET_USER_MEMORY_REGION), IOCTL(KVM, KVM_GET_DIRTY_LOG),
    IOCTL(KVM | VCPU, KVM_GET_REGS), IOCTL(KVM, KVM_SET_REGS), IOCTL(KVM, KVM_GET_SREGS), IOCTL(KVM, KVM_SET_SREGS),
    IOCTL(KVM, KVM_GET_DEBUGREGS), IOCTL(KVM, KVM_SET_DEBUGREGS), IOCTL(KVM, KVM_GET_XSAVE), IOCTL(KVM, KVM_SET_XSAVE),
    IOCTL(KVM, KVM_GET_XCRS), IOCTL(KVM, KVM_SET_XCRS), IOCTL(KVM, KVM_GET_MSRS), IOCTL(KVM, KVM_SET_MSRS),
    IOCTL(KVM, KVM_GET_LAPIC), IOCTL(KVM, KVM_SET_LAPIC), IOCTL(KVM, KVM_GET_VCPU_EVENTS), IOCTL(KVM, KVM_SET_VCPU_EVENTS),
    IOCTL(KVM, KVM_GET_MP_STATE), IOCTL(KVM, KVM_SET_MP_STATE),
    /* waiting, events */
    ANY(epoll_create1, PROGRAM), ANY(epoll_ctl, ALL), ANY(epoll_wait, PROGRAM), ANY(epoll_pwait, PROGRAM), ANY(eventfd2, PROGRAM),
    ANY(timerfd_create, PROGRAM), ANY(timerfd_settime, ALL), ANY(futex, ALL), ANY(io_uring_enter, PROGRAM), ANY(pipe2, PROGRAM),
    /* sockets that were given, and what they accept */
    ANY(accept4, PROGRAM), ANY(recvfrom, PROGRAM), ANY(recvmsg, PROGRAM), ANY(sendto, PROGRAM), ANY(sendmsg, PROGRAM),
    ANY(shutdown, PROGRAM), ANY(getsockopt, PROGRAM), ANY(setsockopt, PROGRAM), ANY(getsockname, PROGRAM), ANY(getpeername, PROGRAM),
    /* memory: never writable and executable at one address */
    WITHOUT(mmap, ALL, 2, PROT_EXEC), WITHOUT(mprotect, ALL, 2, PROT_EXEC), EQUALS(mmap, JIT | VCPU, 2, PROT_READ | PROT_EXEC),
    EQUALS(mprotect, JIT | VCPU, 2, PROT_READ | PROT_EXEC), ANY(munmap, ALL), ANY(mremap, ALL), ANY(madvise, ALL), ANY(brk, ALL),
    ANY(mlock, PROGRAM), ANY(munlock, PROGRAM), ANY(mincore, PROGRAM),
    ANY(memfd_create, PROGRAM), /* the engine's counters */
    /* time, numbers, itself */
    ANY(clock_gettime, ALL), ANY(clock_nanosleep, ALL), ANY(nanosleep, ALL), ANY(gettimeofday, ALL), ANY(getrandom, ALL),
    ANY(gettid, ALL), ANY(getpid, ALL), ANY(sched_yield, ALL), ANY(getrusage, ALL), ANY(uname, PROGRAM), ANY(sysinfo, PROGRAM),
    ANY(sched_getaffinity, PROGRAM), ANY(getcpu, ALL), ANY(geteuid, PROGRAM),
    ANY(timer_create, ALL),
    ANY(timer_gettime, ALL), ANY(timer_settime, ALL), ANY(timer_delete, ALL), ANY(alarm, PROGRAM), ANY(setitimer, PROGRAM),
    {SCMP_SYS(rt_sigaction), PROGRAM, true, {0, SCMP_CMP_NE, SIGSYS, 0}}, /* whose handler is violation.c's */
    ANY(rt_sigprocmask, ALL), ANY(rt_sigreturn, ALL), ANY(sigaltstack, ALL), ANY(tgkill, ALL),
    ANY(membarrier, ALL), ANY(restart_syscall, ALL), ANY(unlink, PROGRAM),
    /* files below the root, and a layer */
    ANY(read, UNPACK), ANY(write, UNPACK), ANY(close, UNPACK), ANY(lseek, UNPACK), ANY(pwrite64, UNPACK), ANY(ftruncate, UNPACK),
    ANY(fstat, UNPACK), ANY(newfstatat, UNPACK), ANY(statx, UNPACK), ANY(openat, UNPACK), ANY(openat2, UNPACK), ANY(getdents64, UNPACK),
    ANY(mkdirat, UNPACK), ANY(unlinkat, UNPACK), ANY(linkat, UNPACK), ANY(symlinkat, UNPACK),
    {SCMP_SYS(mknodat), UNPACK, true, {2, SCMP_CMP_MASKED_EQ, S_IFMT, S_IFIFO}},
    ANY(fchmod, UNPACK), ANY(fchmodat, UNPACK), ANY(fchown, UNPACK), ANY(fchownat, UNPACK), ANY(utimensat, UNPACK), ANY(fsetxattr, UNPACK),
    EQUALS(fcntl, UNPACK, 1, F_GETFL), EQUALS(fcntl, UNPACK, 1, F_DUPFD_CLOEXEC), EQUALS(fcntl, UNPACK, 1, F_SETFD),
    WITHOUT(mmap, UNPACK, 2, PROT_EXEC), WITHOUT(mprotect, UNPACK, 2, PROT_EXEC), ANY(munmap, UNPACK), ANY(mremap, UNPACK),
    ANY(madvise, UNPACK), ANY(brk, UNPACK), ANY(futex, UNPACK), ANY(getrandom, UNPACK), ANY(clock_gettime, UNPACK),
    ANY(gettid, UNPACK), ANY(getpid, UNPACK), ANY(sched_yield, UNPACK), ANY(rt_sigprocmask, UNPACK), ANY(rt_sigreturn, UNPACK),
    ANY(exit_group, UNPACK),
    /* threads, no processes */
    {SCMP_SYS(clone), PROGRAM, true, {0, SCMP_CMP_MASKED_EQ, CLONE_THREAD | NAMESPACES, CLONE_THREAD}},
    EQUALS(arch_prctl, JIT | VCPU, 0, ARCH_SET_GS), EQUALS(arch_prctl, JIT | VCPU, 0, ARCH_GET_GS), /* the vCPU on its thread */
    ANY(set_robust_list, ALL), ANY(rseq, ALL), EQUALS(prctl, ALL, 0, PR_SET_NAME), ANY(seccomp, PROGRAM),
    ANY(exit, ALL), ANY(exit_group, ALL),
};

static const struct {
    const char *name;
    unsigned bit;
} kinds[FILTERS] = {{"jit", JIT}, {"kvm", KVM}, {"vcpu", VCPU}, {"unpack", UNPACK}};

static int add_rules(scmp_filter_ctx ctx, unsigned bit)
{
    for (unsigned i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const struct rule *rule = &rules[i];
        if (!(rule->filters & bit))
            continue;
        int r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, rule->call, rule->checked ? 1 : 0, &rule->compare);
        if (r < 0)
            return r;
    }
    /* Its flags are behind a pointer, where no filter sees them: the C library falls back to clone. */
    return bit & PROGRAM ? seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) : 0;
}

/* An array named filter_NAME. */
static int write_filter(unsigned kind)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
    FILE *file = tmpfile();
    struct sock_filter step;
    if (!ctx || !file)
        return -1;
    /* As a tree: jit guests make few calls, disks and networks make many. */
    int r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r == 0)
        r = add_rules(ctx, kinds[kind].bit);
    if (r == 0)
        r = seccomp_export_bpf(ctx, fileno(file));
    seccomp_release(ctx);
    rewind(file);
    printf("static const struct sock_filter filter_%s[] = {\n", kinds[kind].name);
    while (r == 0 && fread(&step, sizeof step, 1, file) == 1)
        printf("    {0x%x, %u, %u, 0x%x},\n", step.code, step.jt, step.jf, step.k);
    printf("};\n");
    fclose(file);
    return r;
}

int main(void)
{
    for (unsigned i = 0; i < FILTERS; i++)
        if (write_filter(i) != 0)
            return 1;
    printf("static const struct sock_filter *const filters[] = {");
    for (unsigned i = 0; i < FILTERS; i++)
        printf("filter_%s, ", kinds[i].name);
    printf("};\nstatic const unsigned short filter_lengths[] = {");
    for (unsigned i = 0; i < FILTERS; i++)
        printf("sizeof filter_%s / sizeof *filter_%s, ", kinds[i].name, kinds[i].name);
    printf("};\n");
    return 0;
}
