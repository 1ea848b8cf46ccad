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

/* What a thread of polder-vmm may do is on the list of its program and on that of its kind: each list is whole. */
#define JIT 1u
#define KVM 2u
#define VCPU 4u
#define LOOP 8u
#define DISK 16u
#define API 32u
#define UNPACK 64u
#define FILTERS 7u
#define PROGRAM (JIT | KVM)
#define MAIN (PROGRAM | LOOP)
#define FILES (MAIN | DISK)
#define SOCKETS (MAIN | API)
#define BOARD (MAIN | VCPU)
#define THREADS (MAIN | DISK) /* may start others: a disk's thread its workers */
#define ALL (MAIN | VCPU | DISK | API)
#define EVERY (ALL | UNPACK)
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
    ANY(read, EVERY), ANY(write, EVERY), ANY(readv, ALL), ANY(writev, ALL), ANY(close, EVERY), ANY(poll, ALL), ANY(ppoll, ALL),
    ANY(pread64, FILES | API), ANY(pwrite64, FILES | UNPACK), ANY(preadv, FILES), ANY(pwritev, FILES), ANY(preadv2, FILES),
    ANY(pwritev2, FILES), ANY(fsync, FILES), ANY(fdatasync, FILES), ANY(sync_file_range, FILES), ANY(fallocate, FILES),
    ANY(ftruncate, FILES | UNPACK), ANY(lseek, FILES | SOCKETS | UNPACK), ANY(fstat, FILES | SOCKETS | UNPACK),
    ANY(newfstatat, FILES | SOCKETS | UNPACK), ANY(statx, FILES | SOCKETS | UNPACK), ANY(dup, FILES), ANY(fadvise64, FILES),
    EQUALS(fcntl, EVERY, 1, F_GETFL), EQUALS(fcntl, ALL, 1, F_SETFL), EQUALS(fcntl, ALL, 1, F_GETFD), EQUALS(fcntl, EVERY, 1, F_SETFD),
    EQUALS(fcntl, EVERY, 1, F_DUPFD_CLOEXEC), EQUALS(fcntl, FILES, 1, F_OFD_SETLK), EQUALS(fcntl, FILES, 1, F_OFD_GETLK),
    IOCTL(BOARD, TUNSETOFFLOAD), /* when the driver of a network interface is ready, in the thread that wrote the status */
    IOCTL(MAIN, TIOCGWINSZ), IOCTL(MAIN, TCGETS), IOCTL(MAIN, TCSETS), IOCTL(SOCKETS, FIONREAD), IOCTL(SOCKETS, FIONBIO),
    /* the virtual machine and its vCPUs: run, interrupts, doorbells; the dirty log; state at a reboot and for messages. No new ones. */
    IOCTL(KVM | VCPU, KVM_RUN), IOCTL(KVM | LOOP | VCPU | DISK | API, KVM_SIGNAL_MSI), IOCTL(KVM | LOOP | VCPU, KVM_SET_GSI_ROUTING),
    IOCTL(KVM | LOOP | VCPU, KVM_IOEVENTFD), IOCTL(KVM | LOOP, KVM_SET_USER_MEMORY_REGION), IOCTL(KVM | LOOP, KVM_GET_DIRTY_LOG),
    IOCTL(KVM | LOOP | VCPU, KVM_GET_REGS), IOCTL(KVM | LOOP, KVM_SET_REGS), IOCTL(KVM | LOOP, KVM_GET_SREGS),
    IOCTL(KVM | LOOP, KVM_SET_SREGS), IOCTL(KVM | LOOP, KVM_GET_DEBUGREGS), IOCTL(KVM | LOOP, KVM_SET_DEBUGREGS),
    IOCTL(KVM | LOOP, KVM_GET_XSAVE), IOCTL(KVM | LOOP, KVM_SET_XSAVE), IOCTL(KVM | LOOP, KVM_GET_XCRS), IOCTL(KVM | LOOP, KVM_SET_XCRS),
    IOCTL(KVM | LOOP, KVM_GET_MSRS), IOCTL(KVM | LOOP, KVM_SET_MSRS), IOCTL(KVM | LOOP, KVM_GET_LAPIC), IOCTL(KVM | LOOP, KVM_SET_LAPIC),
    IOCTL(KVM | LOOP, KVM_GET_VCPU_EVENTS), IOCTL(KVM | LOOP, KVM_SET_VCPU_EVENTS), IOCTL(KVM | LOOP, KVM_GET_MP_STATE),
    IOCTL(KVM | LOOP, KVM_SET_MP_STATE),
    /* waiting, events */
    ANY(epoll_create1, MAIN), ANY(epoll_ctl, ALL), ANY(epoll_wait, FILES | API), ANY(epoll_pwait, FILES | API), ANY(eventfd2, FILES),
    ANY(timerfd_create, MAIN), ANY(timerfd_settime, ALL), ANY(futex, EVERY), ANY(io_uring_enter, PROGRAM | DISK), ANY(pipe2, MAIN),
    /* sockets that were given, and what they accept */
    ANY(accept4, SOCKETS), ANY(recvfrom, SOCKETS), ANY(recvmsg, SOCKETS), ANY(sendto, SOCKETS), ANY(sendmsg, SOCKETS),
    ANY(shutdown, SOCKETS), ANY(getsockopt, SOCKETS), ANY(setsockopt, SOCKETS), ANY(getsockname, SOCKETS), ANY(getpeername, SOCKETS),
    /* files below the root, and only there */
    ANY(openat, UNPACK), ANY(openat2, UNPACK), ANY(getdents64, UNPACK), ANY(mkdirat, UNPACK), ANY(unlinkat, UNPACK), ANY(linkat, UNPACK),
    ANY(symlinkat, UNPACK), {SCMP_SYS(mknodat), UNPACK, true, {2, SCMP_CMP_MASKED_EQ, S_IFMT, S_IFIFO}}, ANY(fchmod, UNPACK),
    ANY(fchmodat, UNPACK), ANY(fchown, UNPACK), ANY(fchownat, UNPACK), ANY(utimensat, UNPACK), ANY(fsetxattr, UNPACK),
    /* memory: never writable and executable at one address */
    WITHOUT(mmap, EVERY, 2, PROT_EXEC), WITHOUT(mprotect, EVERY, 2, PROT_EXEC), EQUALS(mmap, JIT | VCPU, 2, PROT_READ | PROT_EXEC),
    EQUALS(mprotect, JIT | VCPU, 2, PROT_READ | PROT_EXEC), ANY(munmap, EVERY), ANY(mremap, EVERY), ANY(madvise, EVERY), ANY(brk, EVERY),
    ANY(mlock, FILES), ANY(munlock, FILES), ANY(mincore, FILES),
    ANY(memfd_create, SOCKETS), /* the engine's counters */
    /* time, numbers, itself */
    ANY(clock_gettime, EVERY), ANY(clock_nanosleep, ALL), ANY(nanosleep, ALL), ANY(gettimeofday, ALL), ANY(getrandom, EVERY),
    ANY(gettid, EVERY), ANY(getpid, EVERY), ANY(sched_yield, EVERY), ANY(getrusage, ALL), ANY(uname, MAIN), ANY(sysinfo, FILES | API),
    ANY(sched_getaffinity, FILES), ANY(getcpu, ALL), ANY(geteuid, MAIN), ANY(timer_create, BOARD), ANY(timer_gettime, BOARD),
    ANY(timer_settime, BOARD), ANY(timer_delete, BOARD), ANY(alarm, MAIN), ANY(setitimer, MAIN),
    {SCMP_SYS(rt_sigaction), MAIN, true, {0, SCMP_CMP_NE, SIGSYS, 0}}, /* whose handler is violation.c's */
    ANY(rt_sigprocmask, EVERY), ANY(rt_sigreturn, EVERY), ANY(sigaltstack, EVERY), ANY(tgkill, ALL),
    ANY(membarrier, ALL), ANY(restart_syscall, ALL), ANY(unlink, MAIN),
    /* threads, no processes */
    {SCMP_SYS(clone), THREADS, true, {0, SCMP_CMP_MASKED_EQ, CLONE_THREAD | NAMESPACES, CLONE_THREAD}},
    EQUALS(arch_prctl, JIT | VCPU, 0, ARCH_SET_GS), EQUALS(arch_prctl, JIT | VCPU, 0, ARCH_GET_GS), /* the vCPU on its thread */
    ANY(set_robust_list, ALL), ANY(rseq, ALL), EQUALS(prctl, ALL, 0, PR_SET_NAME), ANY(seccomp, MAIN), /* for what they start */
    ANY(exit, ALL), ANY(exit_group, EVERY),
};

static const struct {
    const char *name;
    unsigned bit;
} kinds[FILTERS] = {{"jit", JIT}, {"kvm", KVM}, {"vcpu", VCPU}, {"loop", LOOP}, {"disk", DISK}, {"api", API}, {"unpack", UNPACK}};

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
    return bit & THREADS ? seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) : 0;
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
