/* The other half of network_link.h: addresses, routes, sysctls. */
#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/own.h"
#include "control/network_link.h"
#include "control/network_netlink.h"

int link_set_address(unsigned index, uint32_t address, unsigned prefix, struct err *err)
{
    struct netlink_request request;
    struct ifaddrmsg *header = netlink_begin(&request, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof *header);
    header->ifa_family = AF_INET;
    header->ifa_prefixlen = (uint8_t)prefix;
    header->ifa_scope = RT_SCOPE_UNIVERSE;
    header->ifa_index = index;
    uint32_t host = htobe32(address), broadcast = htobe32(subnet_broadcast((struct subnet){address, prefix}));
    mnl_attr_put_u32(request.message, IFA_LOCAL, host);
    mnl_attr_put_u32(request.message, IFA_ADDRESS, host);
    mnl_attr_put_u32(request.message, IFA_BROADCAST, broadcast);
    int r = netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
    return r < 0 && r != -EEXIST ? err_set(err, -r, "address of interface %u", index) : 0;
}

struct routes {
    struct subnet *subnets;
    size_t count, room;
};

static int append(struct routes *routes, struct subnet subnet)
{
    if (routes->count == routes->room) {
        size_t room = routes->room ? 2 * routes->room : 16;
        struct subnet *more = realloc(routes->subnets, room * sizeof *more);
        if (!more)
            return MNL_CB_ERROR;
        routes->subnets = more;
        routes->room = room;
    }
    routes->subnets[routes->count++] = subnet;
    return MNL_CB_OK;
}

static int take_destination(const struct nlattr *attr, void *arg)
{
    if (mnl_attr_get_type(attr) == RTA_DST && mnl_attr_get_payload_len(attr) == sizeof(uint32_t))
        *(uint32_t *)arg = be32toh(mnl_attr_get_u32(attr));
    return MNL_CB_OK;
}

static int take_route(const struct nlmsghdr *message, void *arg)
{
    uint32_t destination = 0;
    const struct rtmsg *header = mnl_nlmsg_get_payload(message);
    if (!header->rtm_dst_len || header->rtm_table == RT_TABLE_LOCAL)
        return MNL_CB_OK;
    int r = mnl_attr_parse(message, sizeof *header, take_destination, &destination);
    return r < 0 ? r : append(arg, (struct subnet){destination, header->rtm_dst_len});
}

int link_routes(struct subnet **ret_subnets, size_t *ret_count, struct err *err)
{
    struct netlink_request request;
    struct routes routes = {.count = 0};
    struct rtmsg *header = netlink_begin(&request, RTM_GETROUTE, NLM_F_DUMP, sizeof *header);
    header->rtm_family = AF_INET;
    int r = netlink_perform(NETLINK_ROUTE, &request, take_route, &routes);
    if (r < 0) {
        free(routes.subnets);
        return err_set(err, -r, "routes of the host");
    }
    *ret_subnets = routes.subnets;
    *ret_count = routes.count;
    return 0;
}

int link_sysctl(const char *name, const char *value, struct err *err)
{
    char path[128], now[16];
    snprintf(path, sizeof path, "/proc/sys/%s", name);
    own_fd int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "open %s", path);
    ssize_t n = read(fd, now, sizeof now);
    if (n > 0 && !strncmp(now, value, strlen(value)) && now[strlen(value)] == '\n')
        return 0;
    if (pwrite(fd, value, strlen(value), 0) < 0)
        return err_set(err, errno, "write %s to %s", value, path);
    return 0;
}
