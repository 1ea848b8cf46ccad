/* A cable that is not plugged in: nothing comes, what is sent is lost. */
#include <errno.h>
#include <stdlib.h>

#include "net/net.h"

static int none_open(const struct net_options *options, struct net_backend **ret_backend, struct err *err)
{
    (void)options;
    struct net_backend *backend = calloc(1, sizeof *backend);
    if (!backend)
        return err_set(err, ENOMEM, "network");
    *backend = (struct net_backend){.class = &net_none, .queues = 1, .fd = {-1}};
    *ret_backend = backend;
    return 0;
}

static void none_close(struct net_backend *backend)
{
    free(backend);
}

static ssize_t none_receive(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    (void)backend, (void)queue, (void)iov, (void)count;
    return -EAGAIN;
}

static int none_send(struct net_backend *backend, unsigned queue, const struct iovec *iov, unsigned count)
{
    (void)backend, (void)queue, (void)iov, (void)count;
    return 0;
}

const struct net_class net_none = {
    .name = "none",
    .open = none_open,
    .close = none_close,
    .receive = none_receive,
    .send = none_send,
};
