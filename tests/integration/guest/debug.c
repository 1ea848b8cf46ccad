/* Runs a child under a hardware watchpoint, as gdb does, then steps it over a system call to its end.
 * Says what it saw: "watch <value> <dr6>" at each stop, "steps <count> over-syscall <0 or 1> exit <status>" at the end. */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define DR(n) ((void *)offsetof(struct user, u_debugreg[n]))
#define WRITE_8_BYTES (1L | 1L << 16 | 2L << 18)

static volatile long watched, other[64];

static void child(void)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    for (long i = 0; i < 100000; i++)
        other[i & 63] += i;
    watched = 1;
    for (long i = 0; i < 100; i++)
        other[i & 63] += watched;
    watched = 2;
    syscall(SYS_getpid);
    _exit(7);
}

static int step_to_end(pid_t pid)
{
    int steps = 0, over = 0, status;
    struct user_regs_struct before, after;
    for (;; steps++) {
        ptrace(PTRACE_GETREGS, pid, 0, &before);
        long code = ptrace(PTRACE_PEEKTEXT, pid, (void *)before.rip, 0);
        ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
        waitpid(pid, &status, 0);
        if (!WIFSTOPPED(status))
            break;
        ptrace(PTRACE_GETREGS, pid, 0, &after);
        if ((code & 0xffff) == 0x050f && after.rip == before.rip + 2)
            over++;
    }
    printf("steps %d over-syscall %d exit %d\n", steps, over, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return 0;
}

int main(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        child();
    waitpid(pid, &status, 0);
    ptrace(PTRACE_POKEUSER, pid, DR(0), &watched);
    ptrace(PTRACE_POKEUSER, pid, DR(7), WRITE_8_BYTES);
    for (long value = 0; value != 2;) {
        ptrace(PTRACE_CONT, pid, 0, 0);
        waitpid(pid, &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) {
            printf("no trap\n");
            return 1;
        }
        value = ptrace(PTRACE_PEEKDATA, pid, (void *)&watched, 0);
        printf("watch %ld %lx\n", value, ptrace(PTRACE_PEEKUSER, pid, DR(6), 0));
    }
    ptrace(PTRACE_POKEUSER, pid, DR(7), 0L);
    return step_to_end(pid);
}
