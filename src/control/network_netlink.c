#include "control/network_netlink.h"

#include <errno.h>
#include <sys/socket.h>

void *netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags, size_t header_size)
{
    request->message = mnl_nlmsg_put_header(request->buffer);
    request->message->nlmsg_type = type;
    request->message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    request->message->nlmsg_seq = 1;
    return mnl_nlmsg_put_extra_header(request->message, header_size);
}

static int converse(struct mnl_socket *socket, const struct netlink_request *request, mnl_cb_t fn, void *arg)
{
    char buffer[32768]; /* dumps come in messages of up to this size */
    if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0 ||
        mnl_socket_sendto(socket, request->message, request->message->nlmsg_len) < 0)
        return -errno;
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(socket, buffer, sizeof buffer);
        if (n < 0)
            return -errno;
        int r = mnl_cb_run(buffer, (size_t)n, 1, mnl_socket_get_portid(socket), fn, arg);
        if (r <= MNL_CB_STOP)
            return r < 0 ? -errno : 0;
    }
}

int netlink_perform(int bus, const struct netlink_request *request, mnl_cb_t fn, void *arg)
{
    struct mnl_socket *socket = mnl_socket_open2(bus, SOCK_CLOEXEC);
    if (!socket)
        return -errno;
    int r = converse(socket, request, fn, arg);
    mnl_socket_close(socket);
    return r;
}
