#include "sandbox/filter.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/sandbox_impl.h"

#include <filters.h> /* made by filter_gen.c, while building */

int sandbox_filter(enum sandbox_filter which, bool all, struct err *err)
{
    int ret = all ? sandbox_report_violation() : 0;
    if (ret < 0)
        return err_set(err, -ret, "sandbox: SIGSYS");
    /* seccomp(2) wants the pointer without const, and only reads. */
    struct sock_fprog program = {.len = filter_lengths[which], .filter = (struct sock_filter *)(uintptr_t)filters[which]};
    unsigned long flags = SECCOMP_FILTER_FLAG_LOG | (all ? SECCOMP_FILTER_FLAG_TSYNC : 0);
    long r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    if (r > 0)
        return err_say(err, EBUSY, "sandbox: thread %ld cannot take the system call filter", r);
    return r < 0 ? err_set(err, errno, "sandbox: system call filter") : 0;
}
