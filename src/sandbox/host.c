/* What the host can do, and how a confined program ended. */
#include <errno.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/sandbox.h"

/* In a child, as namespaces cannot be left. */
static int try_namespaces(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) < 0 ? errno : 0);
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -EAGAIN;
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

void sandbox_host_check(struct sandbox_host *ret_host)
{
    uint32_t action = SECCOMP_RET_KILL_PROCESS;
    int r = try_namespaces();
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    *ret_host = (struct sandbox_host){
        .namespaces = r == 0,
        .seccomp = syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0,
        .landlock_abi = abi > 0 ? (int)abi : 0,
    };
    char *message = ret_host->message;
    if (!ret_host->namespaces)
        snprintf(message, ERR_MESSAGE_SIZE, "user namespaces are refused (%s): see sysctl user.max_user_namespaces",
                 strerror(-r));
    else if (!ret_host->seccomp)
        snprintf(message, ERR_MESSAGE_SIZE, "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)");
    else if (!ret_host->landlock_abi)
        snprintf(message, ERR_MESSAGE_SIZE,
                 "the kernel has no Landlock: file access is barred by the empty root and seccomp alone");
}

void sandbox_describe_end(int wait_status, char *ret_text, unsigned size)
{
    if (WIFEXITED(wait_status))
        snprintf(ret_text, size, "ended with status %d", WEXITSTATUS(wait_status));
    else if (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGSYS)
        snprintf(ret_text, size,
                 "killed for a system call that its jail forbids; its log or the kernel's (type=1326) has the number");
    else if (WIFSIGNALED(wait_status))
        snprintf(ret_text, size, "killed by signal %d (%s)", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    else
        snprintf(ret_text, size, "still runs");
}
