#include "control/network_daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/own.h"
#include "base/program_find.h"

#define CHILD_FD 3
#define EXEC_FAILED 127
#define STOP_MS 2000

/* ---- start ---- */

/* Between fork and exec, in a process of several threads: system calls only. */
static int child_setup(const struct daemon_start *start, int log_fd)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (start->mount_dir &&
        (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
         mount(start->mount_dir, DAEMON_MOUNT, NULL, MS_BIND, NULL) < 0 || chdir("/") < 0))
        return -errno;
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(log_fd, STDOUT_FILENO) < 0 || dup2(log_fd, STDERR_FILENO) < 0)
        return -errno;
    if (start->fd == CHILD_FD ? fcntl(CHILD_FD, F_SETFD, 0) < 0 : start->fd >= 0 && dup2(start->fd, CHILD_FD) < 0)
        return -errno;
    /* libraries open some that would go on through exec */
    return close_range(start->fd >= 0 ? CHILD_FD + 1 : CHILD_FD, ~0u, CLOSE_RANGE_CLOEXEC) < 0 ? -errno : 0;
}

_Noreturn static void child(const struct daemon_start *start, const char *path, int log_fd)
{
    int r = child_setup(start, log_fd);
    if (r == 0) {
        execv(path, start->argv);
        r = -errno;
    }
    const char *text = strerrordesc_np(-r);
    (void)!write(log_fd, text, strlen(text));
    _exit(EXEC_FAILED);
}

/* passt says this of its own messages where there is no syslog. */
static bool is_noise(const char *line)
{
    return !strncmp(line, "Failed to send", 14);
}

static void last_line(int log_fd, char *ret_line, size_t size)
{
    char text[4096], *save = NULL;
    ssize_t n = pread(log_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    snprintf(ret_line, size, "no reason given");
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (!is_noise(line))
            snprintf(ret_line, size, "%s", line);
    }
}

static int find_program(const struct daemon_start *start, char **ret_path, struct err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/usr/sbin/%s", start->program); /* not in the PATH of plain users */
    if (access(path, X_OK) != 0)
        return program_find(start->program, start->package, ret_path, err);
    *ret_path = strdup(path);
    return *ret_path ? 0 : err_set(err, ENOMEM, "%s", start->program);
}

int daemon_start(const struct daemon_start *start, struct err *err)
{
    own_free char *path = NULL;
    int r = find_program(start, &path, err);
    if (r < 0)
        return r;
    own_fd int log_fd = memfd_create("daemon-log", MFD_CLOEXEC);
    pid_t pid = log_fd < 0 ? -1 : fork();
    if (pid < 0)
        return err_set(err, errno, "%s", start->program);
    if (pid == 0)
        child(start, path, log_fd);
    int status = 0;
    while ((r = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
        ;
    if (r == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    char line[160];
    last_line(log_fd, line, sizeof line);
    return err_say(err, EIO, "%s does not start: %s", start->program, line);
}

/* ---- find, stop ---- */

static pid_t read_pid(const char *pid_file)
{
    char text[16] = "";
    own_fd int fd = open(pid_file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    return (pid_t)strtol(text, NULL, 10);
}

static bool has_argument(pid_t pid, const char *argument)
{
    char path[40], text[4096];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    for (const char *at = text; at < text + n; at += strlen(at) + 1) {
        if (!strcmp(at, argument))
            return true;
    }
    return false;
}

int daemon_find(const char *pid_file, const char *argument)
{
    pid_t pid = read_pid(pid_file);
    if (pid <= 1)
        return -ESRCH;
    own_fd int pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* first: what is checked then is what it holds */
    if (pidfd < 0 || !has_argument(pid, argument))
        return -ESRCH;
    return TAKE_FD(pidfd);
}

void daemon_stop(int pidfd)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
    if (poll(&ended, 1, STOP_MS) == 0) {
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        poll(&ended, 1, STOP_MS);
    }
    close(pidfd);
}
