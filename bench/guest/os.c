/* os: what an operating system does all day, timed from inside: system calls, page faults, processes, switches.
 * Busybox must be /bin/busybox. A round's checksum is the number of operations that did what they should. */
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

enum { GETPIDS = 20000, READS = 10000, PAGES = 2000, FORKS = 50, EXECS = 20 };
enum { PING_PONGS = 500, SWITCHES = 500, TURNS = 5000, COMMANDS = 10 };

static char *self;

static void check(bool good, const char *what)
{
    if (!good)
        harness_fail("os: %s failed", what);
}

static uint64_t getpid_round(void)
{
    uint64_t good = 0;
    long pid = getpid();
    for (int i = 0; i < GETPIDS; i++)
        good += syscall(SYS_getpid) == pid;
    return good;
}

static uint64_t read_zero_round(void)
{
    uint64_t good = 0;
    int fd = open("/dev/zero", O_RDONLY);
    check(fd >= 0, "open /dev/zero");
    for (int i = 0; i < READS; i++) {
        char byte = 1;
        good += read(fd, &byte, 1) == 1 && byte == 0;
    }
    close(fd);
    return good;
}

static uint64_t page_fault_round(void)
{
    size_t bytes = (size_t)PAGES * 4096;
    uint64_t good = 0;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(p != MAP_FAILED && !madvise(p, bytes, MADV_NOHUGEPAGE), "mmap");
    for (int i = 0; i < PAGES; i++)
        good += ++p[i * 4096] == 1;
    munmap(p, bytes);
    return good;
}

static void run(char *const argv[])
{
    execv(argv[0], argv);
    _exit(127);
}

static bool ended_well(pid_t pid, int want)
{
    int status;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == want;
}

static uint64_t fork_exit_round(void)
{
    uint64_t good = 0;
    for (int i = 0; i < FORKS; i++) {
        pid_t pid = fork();
        if (!pid)
            _exit(i);
        good += ended_well(pid, i);
    }
    return good;
}

static uint64_t fork_exec_round(void)
{
    uint64_t good = 0;
    for (int i = 0; i < EXECS; i++) {
        pid_t pid = fork();
        if (!pid)
            run((char *[]){self, "--nothing", NULL});
        good += ended_well(pid, 42);
    }
    return good;
}

static uint64_t pipe_round(void)
{
    int there[2], back[2];
    uint64_t good = 0;
    check(!pipe(there) && !pipe(back), "pipe");
    pid_t pid = fork();
    if (!pid) {
        unsigned char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && (byte++, write(back[1], &byte, 1) == 1))
            ;
        _exit(0);
    }
    for (int i = 0; i < PING_PONGS; i++) {
        unsigned char byte = (unsigned char)i;
        good += write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1 && byte == (unsigned char)(i + 1);
    }
    close(there[1]);
    good += ended_well(pid, 0);
    close(there[0]), close(back[0]), close(back[1]);
    return good;
}

static _Atomic uint32_t turn;

static long futex(int op, uint32_t value)
{
    return syscall(SYS_futex, &turn, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Waits until it is `mine`, then gives the turn away; SWITCHES times. */
static void take_turns(uint32_t mine)
{
    for (int i = 0; i < SWITCHES; i++) {
        while (atomic_load(&turn) != mine)
            futex(FUTEX_WAIT, !mine);
        atomic_store(&turn, !mine);
        futex(FUTEX_WAKE, 1);
    }
}

static void *other_thread(void *unused)
{
    take_turns(1);
    return unused;
}

static uint64_t threads_round(void)
{
    pthread_t thread;
    atomic_store(&turn, 0);
    check(!pthread_create(&thread, NULL, other_thread, NULL), "pthread_create");
    take_turns(0);
    check(!pthread_join(thread, NULL), "pthread_join");
    return atomic_load(&turn);
}

static uint64_t shell(const char *format, int n)
{
    char text[128];
    snprintf(text, sizeof text, format, n);
    pid_t pid = fork();
    if (!pid)
        run((char *[]){"/bin/busybox", "sh", "-c", text, NULL});
    return ended_well(pid, 7);
}

static uint64_t shell_loop_round(void)
{
    return shell("i=0; while [ $i -lt %d ]; do i=$((i+1)); done; exit 7", TURNS);
}

static uint64_t shell_command_round(void)
{
    return shell("i=0; while [ $i -lt %d ]; do /bin/busybox true; i=$((i+1)); done; exit 7", COMMANDS);
}

static const struct kernel kernels[] = {
    {.name = "getpid", .unit = "call", .units = GETPIDS, .round = getpid_round},
    {.name = "read-zero", .unit = "call", .units = READS, .round = read_zero_round},
    {.name = "page-fault", .unit = "page", .units = PAGES, .round = page_fault_round},
    {.name = "fork-exit", .unit = "process", .units = FORKS, .round = fork_exit_round},
    {.name = "fork-exec", .unit = "process", .units = EXECS, .round = fork_exec_round},
    {.name = "pipe-ping-pong", .unit = "round trip", .units = PING_PONGS, .round = pipe_round},
    {.name = "thread-switch", .unit = "round trip", .units = SWITCHES, .round = threads_round},
    {.name = "shell-loop", .unit = "turn", .units = TURNS, .round = shell_loop_round},
    {.name = "shell-command", .unit = "command", .units = COMMANDS, .round = shell_command_round},
};

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--nothing"))
        return 42;
    self = argv[0];
    return harness_main(kernels, sizeof kernels / sizeof *kernels, argv);
}
