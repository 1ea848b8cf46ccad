#include "polder/transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "polder/cli.h"
#include "polder/progress.h"

#define STEP (1u << 20) /* bytes between two looks at the bar */

struct transfer {
    int fd, error;
    const char *what;
    uint64_t done, shown, total;
    struct progress progress;
};

static void count(struct transfer *transfer, size_t len)
{
    transfer->done += len;
    if (transfer->done - transfer->shown < STEP)
        return;
    transfer->shown = transfer->done;
    progress_show(&transfer->progress, transfer->what, transfer->done, transfer->total);
}

static size_t from_file(void *arg, char *data, size_t size)
{
    struct transfer *transfer = arg;
    ssize_t n;
    do
        n = read(transfer->fd, data, size);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        transfer->error = errno;
        return CURL_READFUNC_ABORT;
    }
    count(transfer, (size_t)n);
    return (size_t)n;
}

static bool to_file(void *arg, const char *data, size_t len)
{
    struct transfer *transfer = arg;
    count(transfer, len);
    while (len) {
        ssize_t n = write(transfer->fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            transfer->error = errno;
            return false;
        }
        data += n;
        len -= (size_t)n;
    }
    return true;
}

int transfer_put(struct cli *cli, const char *request, const char *path, const char *name, struct err *err)
{
    struct transfer transfer = {.what = path};
    struct stat st;
    json_t *answer = NULL;
    bool standard = strcmp(path, "-") == 0;
    own_fd int fd = standard ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "'%s'", path);
    bool sized = S_ISREG(st.st_mode) && !standard;
    transfer.fd = fd;
    transfer.total = sized ? (uint64_t)st.st_size : 0;
    int r = cli_open(cli, err);
    progress_begin(&transfer.progress, cli->quiet);
    if (r == 0)
        r = client_upload(cli->client, request, from_file, &transfer, sized ? st.st_size : -1, &answer, err);
    progress_end(&transfer.progress);
    if (transfer.error)
        return err_set(err, transfer.error, "read '%s'", path);
    if (r == 0)
        r = cli_finish(cli, answer, NULL, err);
    if (r == 0)
        cli_say(cli, "%s", name);
    return r;
}

int transfer_get(struct cli *cli, const char *request, const char *path, struct err *err)
{
    char part[4096];
    struct transfer transfer = {.what = path};
    bool standard = strcmp(path, "-") == 0;
    if (standard && isatty(STDOUT_FILENO))
        return err_say(err, EINVAL, "an archive is nothing for a terminal: name a file, or send it into a pipe");
    snprintf(part, sizeof part, "%s.part", path);
    own_fd int fd = standard ? dup(STDOUT_FILENO) : open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return err_set(err, errno, "make '%s'", part);
    transfer.fd = fd;
    int r = cli_open(cli, err);
    progress_begin(&transfer.progress, cli->quiet);
    if (r == 0)
        r = client_stream(cli->client, request, to_file, &transfer, err);
    progress_end(&transfer.progress);
    if (r == 0 && transfer.error)
        r = err_set(err, transfer.error, "write '%s'", path);
    if (!standard && r == 0 && rename(part, path) < 0)
        r = err_set(err, errno, "make '%s'", path);
    if (!standard && r < 0)
        unlink(part);
    return r;
}
