/* polder-agent: the host's hand in a guest. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <linux/vm_sockets.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "agent/child.h"
#include "agent/power.h"
#include "agent/primary.h"
#include "agent/root.h"
#include "agent/session.h"
#include "base/own.h"

#define FILES_SOFT 1024 /* open files of a process: what select() can count */
#define FILES_HARD 524288

static const char usage[] =
    "usage: polder-agent --service        in a machine with its own init: serve the host on vsock port 1024\n"
    "       polder-agent --listen PATH    serve on a unix socket (for tests)\n"
    "       polder-agent --version\n"
    "As process 1 of a microVM it is the init.\n";

void agent_moment(struct agent *agent, enum agent_moment moment)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    agent->moments_us[moment] = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int listen_on(int family, const void *address, socklen_t len, int *ret_fd, struct err *err)
{
    own_fd int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, address, len) < 0 || listen(fd, AGENT_SESSIONS_MAX) < 0)
        return err_set(err, errno, family == AF_VSOCK ? "listen on vsock port 1024" : "listen on the unix socket");
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int listen_vsock(int *ret_fd, struct err *err)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = AGENT_PORT, .svm_cid = VMADDR_CID_ANY};
    return listen_on(AF_VSOCK, &address, sizeof address, ret_fd, err);
}

static int listen_unix(const char *path, int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len >= sizeof address.sun_path)
        return err_say(err, ENAMETOOLONG, "the path '%s' is too long for a socket", path);
    memcpy(address.sun_path, path, len + 1);
    return listen_on(AF_UNIX, &address, sizeof address, ret_fd, err);
}

static void on_child(void *arg, int fd, uint32_t events)
{
    (void)arg;
    (void)events;
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) == sizeof info)
        ;
    child_reap();
}

static int watch_children(struct agent *agent, struct err *err)
{
    signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0 || !loop_add_fd(agent->loop, fd, EPOLLIN, on_child, agent))
        return err_set(err, errno, "watch for the end of processes");
    return 0;
}

/* hvc0 takes output as it is: what a terminal makes of it was made before. */
static int open_console(void)
{
    int fd = open("/dev/hvc0", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    struct termios raw;
    if (fd >= 0 && tcgetattr(fd, &raw) == 0) {
        cfmakeraw(&raw);
        tcsetattr(fd, TCSANOW, &raw);
    }
    return fd;
}

static void become_init(struct agent *agent)
{
    struct err err;
    root_early();
    agent_moment(agent, MOMENT_AGENT);
    if (root_enter(agent, &err) < 0)
        power_give_up(&err);
    agent->console_fd = open_console();
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){FILES_SOFT, FILES_HARD});
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!write(fd, "-1000", 5);
        close(fd);
    }
}

static int run(struct agent *agent, const char *socket_path, struct err *err)
{
    own_fd int listen_fd = -1;
    int r = loop_create(&agent->loop, err);
    if (r == 0)
        r = primary_create(agent, err);
    if (r == 0)
        r = power_create(agent, err);
    if (r == 0)
        r = watch_children(agent, err);
    if (r == 0)
        r = socket_path ? listen_unix(socket_path, &listen_fd, err) : listen_vsock(&listen_fd, err);
    if (r == 0)
        r = sessions_listen(agent, listen_fd, err);
    if (r == 0)
        loop_run(agent->loop);
    return r;
}

int main(int argc, char **argv)
{
    struct agent agent = {.console_fd = -1, .mode = AGENT_INIT};
    const char *socket_path = NULL;
    struct err err;
    if (getpid() != 1 || argc > 1) {
        if (argc == 2 && !strcmp(argv[1], "--version"))
            return puts("polder-agent " POLDER_VERSION) < 0;
        agent.mode = argc == 2 && !strcmp(argv[1], "--service") ? AGENT_SERVICE : AGENT_TEST;
        socket_path = argc == 3 && !strcmp(argv[1], "--listen") ? argv[2] : NULL;
        if (agent.mode == AGENT_TEST && !socket_path)
            return fputs(usage, stderr) < 0 ? 1 : 2;
    } else {
        become_init(&agent);
    }
    if (run(&agent, socket_path, &err) < 0) {
        if (agent.mode == AGENT_INIT)
            power_give_up(&err);
        fprintf(stderr, "polder-agent: %s\n", err.message);
        return 1;
    }
    return 0;
}
