/* A child in a process group of its own; its output and its messages come by pipes, its end by a pidfd. */
#include "base/child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "base/own.h"
#include "base/userns.h"

#define POLL_MS 100
#define GRACE_MS 5000
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define MEMORY_MAX RLIM_INFINITY /* shadow memory takes terabytes of addresses */
#else
#define MEMORY_MAX (4ul << 30)
#endif

struct running {
    const struct child *child;
    pid_t pid;
    int pidfd, out_fd, err_fd;
    char *output;
    size_t output_len;
    char line[CHILD_LINE_MAX];
    size_t line_len;
    char last[CHILD_LINE_MAX]; /* the last line of standard error that was not empty */
    bool too_much, cancelled;
    int64_t kill_at_ms; /* after SIGTERM */
};

/* ---- in the child: only what is safe between fork and exec ---- */

static bool confine(const struct child *child)
{
    static const struct rlimit memory = {MEMORY_MAX, MEMORY_MAX}, none = {0, 0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || setrlimit(RLIMIT_AS, &memory) < 0 || setrlimit(RLIMIT_CORE, &none) < 0)
        return false;
    if (!child->nobody || geteuid() != 0)
        return true;
    return setgroups(0, NULL) == 0 && setresgid(CHILD_NOBODY, CHILD_NOBODY, CHILD_NOBODY) == 0 &&
           setresuid(CHILD_NOBODY, CHILD_NOBODY, CHILD_NOBODY) == 0;
}

/* Puts the descriptor at its place, open across exec. */
static bool place(int fd, int target)
{
    return fd == target ? fcntl(fd, F_SETFD, 0) == 0 : dup2(fd, target) == target;
}

/* A descriptor of the child's must not be where another one is going to be. */
static int lift(int fd)
{
    return fd < 0 ? open("/dev/null", O_RDWR) : fcntl(fd, F_DUPFD_CLOEXEC, 10);
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

static _Noreturn void become(const struct child *child, int out_fd, int err_fd, pid_t parent)
{
    int in = lift(child->in_fd), out = lift(out_fd), messages = lift(err_fd);
    int program = strchr(child->argv[0], '/') ? open(child->argv[0], O_PATH | O_CLOEXEC) : -1;
    char *const *argv = (char *const *)(uintptr_t)child->argv;
    setpgid(0, 0);
    reset_signals();
    bool ready = in >= 0 && out >= 0 && messages >= 0 && place(in, 0) && place(out, 1) && place(messages, 2) &&
                 close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) == 0 && (child->dir_fd < 0 || fchdir(child->dir_fd) == 0) &&
                 (!child->as_root || geteuid() == 0 || userns_become_root() == 0) && (!child->confined || confine(child));
    if (ready && prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0) == 0 && getppid() == parent) {
        if (program >= 0) /* by its descriptor: its folder may be closed to the user that this is now */
            execveat(program, "", argv, environ, AT_EMPTY_PATH);
        else
            execvp(argv[0], argv);
    }
    const char *why = strerrordesc_np(errno);
    if (write(2, why, strlen(why)) < 0)
        _exit(126);
    _exit(127);
}

/* ---- in the caller ---- */

static void end_line(struct running *run)
{
    run->line[run->line_len] = '\0';
    if (run->line_len) {
        memcpy(run->last, run->line, run->line_len + 1);
        if (run->child->line)
            run->child->line(run->child->context, run->line);
    }
    run->line_len = 0;
}

static void take_messages(struct running *run, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (bytes[i] == '\n' || bytes[i] == '\r')
            end_line(run);
        else if (run->line_len < sizeof run->line - 1)
            run->line[run->line_len++] = (unsigned char)bytes[i] < ' ' ? ' ' : bytes[i];
}

static void take_output(struct running *run, const char *bytes, size_t len)
{
    char *more = run->output_len + len >= CHILD_OUTPUT_MAX ? NULL : realloc(run->output, run->output_len + len + 1);
    run->too_much |= !more;
    if (!more)
        return;
    memcpy(more + run->output_len, bytes, len);
    run->output = more;
    run->output_len += len;
    more[run->output_len] = '\0';
}

/* Reads what is there; at the end closes the descriptor and makes it -1. */
static void drain(struct running *run, int *fd, void (*take)(struct running *run, const char *bytes, size_t len))
{
    char buffer[4096];
    while (*fd >= 0) {
        ssize_t n = read(*fd, buffer, sizeof buffer);
        if (n > 0) {
            take(run, buffer, (size_t)n);
        } else if (n == 0 || (errno != EINTR && errno != EAGAIN)) {
            close(*fd);
            *fd = -1;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

static void watch_cancel(struct running *run)
{
    const struct child *child = run->child;
    if (!run->cancelled && (run->too_much || (child->cancelled && child->cancelled(child->context)))) {
        run->cancelled = !run->too_much;
        if (!run->kill_at_ms) {
            run->kill_at_ms = clock_now_ms() + GRACE_MS;
            kill(-run->pid, SIGTERM);
        }
    }
    if (run->kill_at_ms && clock_now_ms() >= run->kill_at_ms)
        kill(-run->pid, SIGKILL);
}

static int wait_end(struct running *run)
{
    struct pollfd fds[] = {{run->pidfd, POLLIN, 0}, {run->out_fd, POLLIN, 0}, {run->err_fd, POLLIN, 0}};
    while (run->pidfd >= 0 && !(fds[0].revents & POLLIN)) {
        fds[1].fd = run->out_fd;
        fds[2].fd = run->err_fd;
        bool watched = run->child->cancelled || run->kill_at_ms;
        if (poll(fds, 3, watched ? POLL_MS : -1) < 0 && errno != EINTR)
            break;
        drain(run, &run->out_fd, take_output);
        drain(run, &run->err_fd, take_messages);
        watch_cancel(run);
    }
    int status;
    while (waitpid(run->pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    drain(run, &run->out_fd, take_output); /* not to its end: a process that it left behind may hold the pipe */
    drain(run, &run->err_fd, take_messages);
    end_line(run);
    return status;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Programs put their own name in front of what they say. */
static const char *without_name(const char *line, const char *name)
{
    size_t len = strlen(name);
    return strncmp(line, name, len) == 0 && strncmp(line + len, ": ", 2) == 0 ? line + len + 2 : line;
}

static int judge(const struct running *run, int status, struct err *err)
{
    const char *name = base_name(run->child->argv[0]);
    if (run->cancelled)
        return err_say(err, ECANCELED, "%s: cancelled", name);
    if (run->too_much)
        return err_say(err, EIO, "%s printed more than %u bytes", name, CHILD_OUTPUT_MAX);
    if (status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (run->last[0])
        return err_say(err, EIO, "%s: %.190s", name, without_name(run->last, name));
    if (status >= 0 && WIFSIGNALED(status))
        return err_say(err, EIO, "%s was ended by signal %d", name, WTERMSIG(status));
    return err_say(err, EIO, "%s ended with status %d", name, status < 0 ? -1 : WEXITSTATUS(status));
}

static int make_pipe(int *ret_read, int *ret_write, struct err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set(err, errno, "pipe");
    *ret_read = fds[0];
    *ret_write = fds[1];
    return fcntl(fds[0], F_SETFL, O_NONBLOCK) < 0 ? err_set(err, errno, "pipe") : 0;
}

static void close_end(int fd)
{
    if (fd >= 0)
        close(fd);
}

int child_run(const struct child *child, char **ret_output, struct err *err)
{
    own_fd int out_read = -1, out_write = -1, err_read = -1, err_write = -1, pidfd = -1;
    int r = child->out_fd < 0 ? make_pipe(&out_read, &out_write, err) : 0;
    if (r == 0)
        r = make_pipe(&err_read, &err_write, err);
    if (r < 0)
        return r;
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        return err_set(err, errno, "start '%s'", child->argv[0]);
    if (pid == 0)
        become(child, child->out_fd < 0 ? out_write : child->out_fd, err_write, parent);
    setpgid(pid, pid); /* whichever of both comes first: a cancellation must not miss it */
    close(TAKE_FD(err_write));
    if (out_write >= 0)
        close(TAKE_FD(out_write));
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        kill(pid, SIGKILL);
    struct running run = {.child = child,
                          .pid = pid,
                          .pidfd = pidfd,
                          .out_fd = TAKE_FD(out_read),
                          .err_fd = TAKE_FD(err_read)};
    int status = wait_end(&run);
    close_end(run.out_fd);
    close_end(run.err_fd);
    own_free char *output = run.output;
    r = judge(&run, status, err);
    if (r == 0 && ret_output) {
        *ret_output = output ? TAKE(output) : strdup("");
        r = *ret_output ? 0 : -ENOMEM;
    }
    return r;
}
