/* The last words of a program that its system call filter ends: which call it was. */
#include <errno.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/sandbox.h"
#include "sandbox/sandbox_impl.h"

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1 /* si_code of SIGSYS: by a filter */
#endif

/* In decimal, without what a signal handler may not call; the start within `text`. */
static char *write_number(char text[static 12], unsigned number)
{
    char *at = text + 11;
    *at = '\0';
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    return at;
}

static void say(const char *text)
{
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

/* One-shot: the call that no filter allows then meets the default action, which not even the first process of a pid namespace
 * survives. */
static void on_violation(int signal_number, siginfo_t *info, void *context)
{
    char text[12];
    (void)context;
    if (info->si_code == SYS_SECCOMP) {
        say(program_invocation_short_name);
        say(": " SANDBOX_VIOLATION);
        say(write_number(text, (unsigned)info->si_syscall));
        say("\n");
    }
    syscall(SYS_ptrace, -1);
    _exit(128 + signal_number);
}

int sandbox_report_violation(void)
{
    struct sigaction action = {.sa_sigaction = on_violation, .sa_flags = (int)SA_RESETHAND | SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGSYS, &action, NULL) < 0 ? -errno : 0;
}
