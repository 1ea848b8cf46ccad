/* What an operating system does all day, timed from inside a guest: system calls, page faults, processes, switches.
 * Prints "OS name nanoseconds" for one operation each; static, so that it runs in an initramfs. */
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static const char *self;

static void getpid_once(long n)
{
    for (long i = 0; i < n; i++)
        syscall(SYS_getpid);
}

static void read_zero(long n)
{
    int fd = open("/dev/zero", O_RDONLY);
    char byte;
    for (long i = 0; i < n; i++)
        if (read(fd, &byte, 1) != 1)
            exit(1);
    close(fd);
}

static void page_fault(long n)
{
    size_t bytes = (size_t)n * 4096;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, bytes, MADV_NOHUGEPAGE);
    for (long i = 0; i < n; i++)
        p[i * 4096] = 1;
    munmap(p, bytes);
}

static void fork_exit(long n)
{
    for (long i = 0; i < n; i++) {
        pid_t pid = fork();
        if (!pid)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
}

static void fork_exec(long n)
{
    for (long i = 0; i < n; i++) {
        pid_t pid = fork();
        if (!pid) {
            execl(self, self, "nothing", (char *)NULL);
            _exit(1);
        }
        waitpid(pid, NULL, 0);
    }
}

static void pipe_ping_pong(long n)
{
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back))
        exit(1);
    pid_t pid = fork();
    if (!pid) {
        while (read(there[0], &byte, 1) == 1 && byte == 0)
            if (write(back[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    for (long i = 0; i < n; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            exit(1);
    byte = 1;
    if (write(there[1], &byte, 1) == 1)
        waitpid(pid, NULL, 0);
    close(there[0]), close(there[1]), close(back[0]), close(back[1]);
}

static void integer_loop(long n)
{
    uint64_t x = 88172645463325252u;
    for (long i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    __asm__ volatile("" : : "r"(x));
}

static void shell_loop(long n)
{
    char text[96];
    snprintf(text, sizeof text, "i=0; while [ $i -lt %ld ]; do i=$((i+1)); done", n);
    pid_t pid = fork();
    if (!pid) {
        execl("/bin/sh", "sh", "-c", text, (char *)NULL);
        _exit(1);
    }
    waitpid(pid, NULL, 0);
}

static void shell_command(long n)
{
    char text[96];
    snprintf(text, sizeof text, "i=0; while [ $i -lt %ld ]; do /bin/true; i=$((i+1)); done", n);
    pid_t pid = fork();
    if (!pid) {
        execl("/bin/sh", "sh", "-c", text, (char *)NULL);
        _exit(1);
    }
    waitpid(pid, NULL, 0);
}

static const struct {
    const char *name;
    void (*run)(long n);
    long n;
} tests[] = {
    {"getpid", getpid_once, 300000},      {"read-zero", read_zero, 200000},
    {"page-fault", page_fault, 8000},     {"fork-exit", fork_exit, 300},
    {"fork-exec", fork_exec, 200},        {"pipe-ping-pong", pipe_ping_pong, 5000},
    {"integer-loop", integer_loop, 30000000}, {"shell-loop", shell_loop, 40000},
    {"shell-command", shell_command, 150},
};

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "nothing"))
        return 0;
    self = argv[0];
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i].run(tests[i].n / 10 + 1); /* warm */
        double start = now_ns();
        tests[i].run(tests[i].n);
        printf("OS %s %.1f\n", tests[i].name, (now_ns() - start) / (double)tests[i].n);
        fflush(stdout);
    }
    return 0;
}
