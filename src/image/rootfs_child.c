/* Starts polder-unpack (src/unpack) in a jail of its own, follows how far it is, and takes what it says in the end. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/own.h"
#include "base/program_find.h"
#include "image/rootfs_child.h"
#include "sandbox/sandbox.h"

#define NAME "polder-unpack"
#define EXEC_FAILED 126
#define POLL_MS 100
#define POWERS                                                                                                         \
    (1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER | 1u << CAP_FSETID | 1u << CAP_SYS_CHROOT |           \
     UINT64_C(1) << CAP_SETFCAP)

_Static_assert(IMAGE_LAYERS_MAX + 1 <= SANDBOX_MAX_FDS, "the folder and the layers are descriptors");

/* Where the host has no namespaces, root's powers are enough; a plain user has those only in a namespace. */
static int start(const struct rootfs_work *work, int said_fd, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    int fds[1 + IMAGE_LAYERS_MAX] = {work->root_fd};
    char count[12];
    char *argv[] = {NAME, count, NULL};
    own_free char *program = NULL;
    if (work->layer_count > IMAGE_LAYERS_MAX)
        return err_say(err, EINVAL, "an image has at most %d layers", IMAGE_LAYERS_MAX);
    snprintf(count, sizeof count, "%zu", work->layer_count);
    memcpy(fds + 1, work->layers, work->layer_count * sizeof *fds);
    int r = program_find(argv[0], NULL, &program, err);
    struct sandbox_spec spec = {.program = program,
                                .argv = argv,
                                .fds = fds,
                                .fd_count = (unsigned)work->layer_count + 1,
                                .log_fd = said_fd,
                                .all_ids = true,
                                .capabilities = POWERS,
                                .host_root = true,
                                .may_weaken = geteuid() == 0};
    return r == 0 ? sandbox_spawn(&spec, ret_pid, ret_pidfd, err) : r;
}

/* The layers' descriptors are shared with the child: how far it has read is seen from here. */
static void report(const struct rootfs_work *work)
{
    uint64_t done = 0;
    if (!work->progress || !work->progress->report)
        return;
    for (size_t i = 0; i < work->layer_count; i++) {
        off_t at = lseek(work->layers[i], 0, SEEK_CUR);
        done += at > 0 ? (uint64_t)at : 0;
    }
    work->progress->report(work->progress->context, work->what, done, work->total_bytes);
}

static bool is_cancelled(const struct rootfs_work *work)
{
    return work->progress && work->progress->cancelled && work->progress->cancelled(work->progress->context);
}

static int wait_child(const struct rootfs_work *work, pid_t pid, int pidfd, bool *ret_cancelled)
{
    struct pollfd ended = {pidfd, POLLIN, 0};
    int status;
    while (poll(&ended, 1, POLL_MS) <= 0) {
        report(work);
        if (!*ret_cancelled && is_cancelled(work)) {
            *ret_cancelled = true;
            kill(pid, SIGKILL);
        }
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    report(work);
    return status;
}

/* The last line. The program has read foreign bytes: what it says is a text to show, no more. */
static void take_line(int said_fd, char *ret_line, size_t size)
{
    char text[2048], *save = NULL;
    ssize_t n = read(said_fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    *ret_line = '\0';
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        snprintf(ret_line, size, "%s", strncmp(line, NAME ": ", sizeof NAME + 1) == 0 ? line + sizeof NAME + 1 : line);
    for (char *c = ret_line; *c; c++)
        *c = *c < ' ' || *c == 127 ? '?' : *c;
}

static int take_error(int said_fd, int status, struct err *err)
{
    char line[ERR_MESSAGE_SIZE - sizeof NAME - 1], end[160];
    take_line(said_fd, line, sizeof line);
    if (WIFEXITED(status) && WEXITSTATUS(status) < EXEC_FAILED && *line)
        return err_say(err, WEXITSTATUS(status), "%s", line);
    if (*line)
        return err_say(err, EIO, "%s: %s", NAME, line);
    sandbox_describe_end(status, end, sizeof end);
    return err_say(err, EIO, "%s: %s", NAME, end);
}

int rootfs_work_run(const struct rootfs_work *work, struct err *err)
{
    int ends[2];
    pid_t pid = 0;
    own_fd int pidfd = -1;
    bool cancelled = false;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) /* who says too much loses the rest */
        return err_set(err, errno, "unpack");
    own_fd int said_fd = ends[0];
    int r = start(work, ends[1], &pid, &pidfd, err);
    close(ends[1]);
    if (r < 0)
        return r;
    int status = wait_child(work, pid, pidfd, &cancelled);
    if (cancelled)
        return err_say(err, ECANCELED, "cancelled");
    return status == 0 ? 0 : take_error(said_fd, status, err);
}
