/* agent: runs the commands that come in on standard input, one a line, and times them by the clock of this machine.
 * For the line "ID COMMAND" it prints "BENCH-BEGIN ID", what the command prints, and "BENCH-END ID STATUS SECONDS". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void make_quiet(void)
{
    struct termios t;
    if (tcgetattr(0, &t))
        return;
    t.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
    t.c_oflag &= ~(tcflag_t)OPOST;
    tcsetattr(0, TCSANOW, &t);
}

static int run(const char *command)
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        if (!freopen("/dev/null", "r", stdin))
            _exit(126);
        dup2(1, 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 125;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void)
{
    static char line[4096];
    make_quiet();
    printf("\nBENCH-AGENT ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = '\0';
        char *command = strchr(line, ' ');
        if (!command)
            continue;
        *command++ = '\0';
        printf("BENCH-BEGIN %s\n", line);
        double start = now_s();
        int status = run(command);
        printf("\nBENCH-END %s %d %.6f\n", line, status, now_s() - start);
        fflush(stdout);
    }
    return 0;
}
