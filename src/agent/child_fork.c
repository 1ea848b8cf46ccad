/* Starting a process: pipes or a terminal, a session of its own, user, working directory, environment, program. All that
 * may block on the image's files happens in the child. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/child_impl.h"
#include "agent/user.h"
#include "base/own.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define ENV_MAX 4096

enum { MINE, ITS };

/* Pairs of descriptors: [MINE] the agent's, [ITS] the child's. */
struct pairs {
    int in[2], out[2], err[2], report[2];
};

static void close_pairs(struct pairs *p, int side)
{
    int *all[] = {p->in, p->out, p->err, p->report};
    for (unsigned i = 0; i < 4; i++) {
        if (all[i][side] >= 0)
            close(all[i][side]);
        all[i][side] = -1;
    }
}

static int make_pipe(int pair[2], int read_side)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    pair[read_side] = fds[0];
    pair[!read_side] = fds[1];
    return fcntl(pair[MINE], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static int make_terminal(const struct child_spec *spec, struct pairs *p)
{
    struct winsize size = {.ws_row = (unsigned short)(spec->rows ? spec->rows : 24),
                           .ws_col = (unsigned short)(spec->cols ? spec->cols : 80)};
    if (openpty(&p->out[MINE], &p->out[ITS], NULL, NULL, &size) < 0)
        return -errno;
    fcntl(p->out[MINE], F_SETFD, FD_CLOEXEC);
    fcntl(p->out[ITS], F_SETFD, FD_CLOEXEC);
    if (fcntl(p->out[MINE], F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    p->in[MINE] = fcntl(p->out[MINE], F_DUPFD_CLOEXEC, 3);
    p->in[ITS] = fcntl(p->out[ITS], F_DUPFD_CLOEXEC, 3);
    p->err[ITS] = fcntl(p->out[ITS], F_DUPFD_CLOEXEC, 3);
    return p->in[MINE] < 0 || p->in[ITS] < 0 || p->err[ITS] < 0 ? -errno : 0;
}

static int make_pairs(const struct child_spec *spec, struct pairs *p)
{
    int r = make_pipe(p->report, MINE);
    if (r < 0)
        return r;
    if (spec->tty)
        return make_terminal(spec, p);
    r = make_pipe(p->out, MINE);
    if (r == 0)
        r = make_pipe(p->err, MINE);
    if (r == 0 && spec->use_stdin)
        return make_pipe(p->in, ITS);
    if (r == 0 && (p->in[ITS] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        return -errno;
    return r;
}

/* In the child: says why and ends. */
static _Noreturn void fail(int report_fd, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
static _Noreturn void fail(int report_fd, int code, const char *format, ...)
{
    struct child_report report = {.code = code};
    va_list args;
    va_start(args, format);
    vsnprintf(report.text, sizeof report.text, format, args);
    va_end(args);
    ssize_t ignored = write(report_fd, &report, sizeof report);
    (void)ignored;
    _exit(code);
}

static void reset_signals(void)
{
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Streams to 0, 1 and 2; a session of its own, with the terminal as its controlling one. */
static void take_streams(const struct child_spec *spec, const struct pairs *p)
{
    setsid();
    if (dup2(p->in[ITS], 0) < 0 || dup2(p->out[ITS], 1) < 0 || dup2(p->err[ITS], 2) < 0)
        fail(p->report[ITS], 125, "streams: %s", strerror(errno));
    if (spec->tty && ioctl(0, TIOCSCTTY, 0) < 0)
        fail(p->report[ITS], 125, "controlling terminal: %s", strerror(errno));
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* the agent's own is out of reach */
    if (fd >= 0 && write(fd, "0", 1) == 1)
        close(fd);
}

static void enter_cwd(const char *cwd, int report_fd)
{
    char path[PATH_MAX];
    size_t len = strlen(cwd);
    if (cwd[0] != '/' || len >= sizeof path)
        fail(report_fd, 125, "working directory '%.100s': not an absolute path", cwd);
    memcpy(path, cwd, len + 1);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
    if (chdir(path) < 0)
        fail(report_fd, 125, "working directory '%.100s': %s", cwd, strerror(errno));
}

static void become(const struct user *user, int report_fd)
{
    if (geteuid() != 0 && user->uid == geteuid())
        return;
    if (setgroups(user->group_count, user->groups) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
        setresuid(user->uid, user->uid, user->uid) < 0)
        fail(report_fd, 125, "user %u: %s", (unsigned)user->uid, strerror(errno));
}

static void put_env(char **env, unsigned *count, char *pair)
{
    size_t name_len = strcspn(pair, "=") + 1;
    for (unsigned i = 0; i < *count; i++) {
        if (!strncmp(env[i], pair, name_len)) {
            env[i] = pair;
            return;
        }
    }
    if (*count < ENV_MAX)
        env[(*count)++] = pair;
}

static void execute(const struct child_spec *spec, const struct user *user, int report_fd)
{
    static char *env[ENV_MAX + 1];
    static char home[PATH_MAX + 8], host[80] = "HOSTNAME=";
    unsigned count = 0;
    snprintf(home, sizeof home, "HOME=%s", user->home);
    gethostname(host + 9, sizeof host - 10);
    static char path[] = "PATH=" DEFAULT_PATH, term[] = "TERM=xterm";
    put_env(env, &count, path);
    put_env(env, &count, home);
    put_env(env, &count, host);
    if (spec->tty)
        put_env(env, &count, term);
    for (char *const *e = spec->env; e && *e; e++)
        put_env(env, &count, *e);
    environ = env; /* execvpe looks up the program in the calling process's PATH */
    execvpe(spec->args[0], spec->args, env);
    int code = errno == ENOENT || errno == ENOTDIR ? AGENT_NOT_FOUND : AGENT_NOT_RUNNABLE;
    fail(report_fd, code, "%.120s: %s", spec->args[0], strerror(errno));
}

static _Noreturn void run_child(const struct child_spec *spec, const struct pairs *p)
{
    int report_fd = p->report[ITS];
    reset_signals();
    take_streams(spec, p);
    if (spec->run) {
        close_range(3, ~0u, 0); /* other sessions' streams, and the far end of its own */
        _exit(spec->run(spec->path));
    }
    struct user user;
    struct err err;
    if (user_find(spec->user ? spec->user : "0", &user, &err) < 0)
        fail(report_fd, 125, "%s", err.message);
    enter_cwd(spec->cwd && spec->cwd[0] ? spec->cwd : "/", report_fd);
    become(&user, report_fd);
    execute(spec, &user, report_fd);
    _exit(125);
}

int child_fork(const struct child_spec *spec, pid_t *ret_pid, struct child_ends *ret_ends, struct err *err)
{
    struct pairs p = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int r = make_pairs(spec, &p);
    pid_t pid = r == 0 ? fork() : -1;
    if (pid == 0)
        run_child(spec, &p);
    if (pid < 0) {
        r = r < 0 ? r : -errno;
        close_pairs(&p, MINE);
        close_pairs(&p, ITS);
        return err_set(err, -r, "start a process");
    }
    close_pairs(&p, ITS);
    *ret_pid = pid;
    *ret_ends = (struct child_ends){p.in[MINE], p.out[MINE], p.err[MINE], p.report[MINE]};
    return 0;
}
