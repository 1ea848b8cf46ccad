/* The link as the guest sees it, and what happens when the backend ends: the guest sees the cable pulled, and the backend is
 * opened again after a pause that doubles each time, until it has failed RETRIES_MAX times with no long life between. One that
 * someone else starts is waited for. */
#include <errno.h>
#include <sys/epoll.h>

#include "base/bytes.h"
#include "base/log.h"
#include "virtio/net_impl.h"

#define C_STATUS 6
#define STATUS_LINK_UP 1
#define RETRY_MS 100u
#define RETRIES_MAX 10u
#define RETRIES_WAITING 3u /* of which the pauses go on while nobody has started it */
#define LONG_LIFE_NS UINT64_C(60000000000)

/* The user may have taken the link down too: both have to agree. */
static void show_link(struct virtio_net *net)
{
    uint16_t status = net->link_up && !net->backend_gone ? STATUS_LINK_UP : 0;
    if (load_le16(net->dev.config + C_STATUS) == status)
        return;
    store_le16(net->dev.config + C_STATUS, status);
    virtio_config_changed(&net->dev);
}

static void retry_later(struct virtio_net *net)
{
    if (net->backend->class->reopen && net->retries < RETRIES_MAX)
        loop_timer_set(net->retry_timer, (uint64_t)net->retry_ms * 1000000u << net->retries);
    else
        log_error("virtio-net '%s': backend '%s' is gone for good; the link stays down until the machine starts anew",
                  net->dev.id, net->backend->class->name);
    net->retries++;
}

void net_backend_lost(struct net_port *port)
{
    struct virtio_net *net = port->net;
    loop_remove(port->source);
    port->source = NULL;
    if (net->backend_gone)
        return;
    net->backend_gone = true;
    if (limiter_now() - net->opened_ns > LONG_LIFE_NS)
        net->retries = 0;
    show_link(net);
    retry_later(net);
}

/* New descriptors have to be watched anew. */
static bool watch_again(struct virtio_net *net)
{
    for (unsigned i = 0; i < net->backend->queues; i++) {
        struct net_port *port = &net->ports[i];
        loop_remove(port->source);
        port->events = 0;
        port->frame_len = 0;
        port->allowed = false;
        port->source = loop_add_fd(net->dev.host.loop, net->backend->fd[i], 0, net_on_backend, port);
        if (!port->source)
            return false;
    }
    return true;
}

static void on_retry(void *arg)
{
    struct virtio_net *net = arg;
    struct err err = {0};
    pthread_mutex_lock(&net->dev.lock);
    int r = net->backend->class->reopen(net->backend, &err);
    if (r == 0 && watch_again(net)) {
        net->backend_gone = false;
        net->opened_ns = limiter_now();
        log_warn("virtio-net '%s': backend '%s' was started again", net->dev.id, net->backend->class->name);
        net_apply_offloads(net, net->dev.accepted);
        show_link(net);
    } else {
        if (r == -ENOTSUP)
            net->retries = RETRIES_MAX;
        else if (r == -EAGAIN)
            net->retries = net->retries < RETRIES_WAITING ? net->retries : RETRIES_WAITING;
        else if (r < 0)
            log_error("virtio-net '%s': %s", net->dev.id, err.message);
        retry_later(net);
    }
    pthread_mutex_unlock(&net->dev.lock);
    net_kick_all(net);
}

int net_link_init(struct virtio_net *net, unsigned retry_ms)
{
    net->link_up = true;
    net->retry_ms = retry_ms ? retry_ms : RETRY_MS;
    net->opened_ns = limiter_now();
    store_le16(net->dev.config + C_STATUS, STATUS_LINK_UP);
    net->retry_timer = loop_add_timer(net->dev.host.loop, on_retry, net);
    return net->retry_timer ? 0 : -ENOMEM;
}

void virtio_net_set_link(struct virtio_device *dev, bool up)
{
    struct virtio_net *net = (struct virtio_net *)dev;
    pthread_mutex_lock(&dev->lock);
    net->link_up = up;
    show_link(net);
    pthread_mutex_unlock(&dev->lock);
}
