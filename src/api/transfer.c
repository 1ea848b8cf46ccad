#include "api/transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"

#define TRANSFER_STACK (1u << 20)

struct running {
    struct transfer transfer;
    transfer_fn *fn;
    int read_fd, write_fd;
    bool joined;
    pthread_t thread;
    int result;
    struct err err;
};

bool transfer_stopping(void *platform)
{
    return platform_stopping(platform);
}

static void *write_all(void *arg)
{
    struct running *running = arg;
    running->result = running->fn(&running->transfer, running->write_fd, &running->err);
    close(running->write_fd);
    return NULL;
}

static int join(struct running *running)
{
    if (!running->joined)
        pthread_join(running->thread, NULL);
    running->joined = true;
    return running->result;
}

/* A writer whose reader is gone gets EPIPE and ends. */
static void running_free(void *arg)
{
    struct running *running = arg;
    close(running->read_fd);
    join(running);
    free(running);
}

static ssize_t next(void *arg, char *buffer, size_t size)
{
    struct running *running = arg;
    ssize_t n;
    do
        n = read(running->read_fd, buffer, size);
    while (n < 0 && errno == EINTR);
    if (n > 0)
        return n;
    if (n == 0 && join(running) == 0)
        return 0;
    log_warn("transfer of '%s' broke off: %s", running->transfer.name, running->err.message);
    return -1;
}

static int start(struct running *running, struct err *err)
{
    int ends[2];
    pthread_attr_t attr;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_set(err, errno, "pipe");
    running->read_fd = ends[0];
    running->write_fd = ends[1];
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, TRANSFER_STACK);
    int r = pthread_create(&running->thread, &attr, write_all, running);
    pthread_attr_destroy(&attr);
    if (r == 0)
        return 0;
    close(ends[0]);
    close(ends[1]);
    return err_set(err, r, "thread");
}

int request_reply_transfer(struct request *request, transfer_fn *fn, const char *name, const char *detail, struct err *err)
{
    struct running *running = calloc(1, sizeof *running);
    if (!running)
        return err_set(err, ENOMEM, "transfer");
    running->transfer.platform = request->platform;
    snprintf(running->transfer.name, sizeof running->transfer.name, "%s", name);
    snprintf(running->transfer.detail, sizeof running->transfer.detail, "%s", detail ? detail : "");
    running->fn = fn;
    int r = start(running, err);
    if (r < 0) {
        free(running);
        return r;
    }
    struct pollfd fd = {.fd = running->read_fd, .events = POLLIN};
    while (poll(&fd, 1, -1) < 0 && errno == EINTR)
        ;
    if (!(fd.revents & POLLIN) && (r = join(running)) < 0) {
        *err = running->err;
        running_free(running);
        return r;
    }
    return request_reply_stream(request, next, running, running_free);
}
