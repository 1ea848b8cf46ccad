#include "control/network_link.h"

#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/own.h"
#include "control/network_netlink.h"

static struct ifinfomsg *begin_link(struct netlink_request *request, uint16_t type, uint16_t flags, unsigned index)
{
    struct ifinfomsg *header = netlink_begin(request, type, flags, sizeof *header);
    header->ifi_family = AF_UNSPEC;
    header->ifi_index = (int)index;
    return header;
}

/* ---- links ---- */

static int take_kind(const struct nlattr *attr, void *arg)
{
    struct link_info *link = arg;
    if (mnl_attr_get_type(attr) == IFLA_INFO_KIND)
        link->is_bridge = !strcmp(mnl_attr_get_str(attr), "bridge");
    return MNL_CB_OK;
}

static int take_attribute(const struct nlattr *attr, void *arg)
{
    struct link_info *link = arg;
    uint16_t type = mnl_attr_get_type(attr);
    if (type == IFLA_MASTER)
        link->master = mnl_attr_get_u32(attr);
    else if (type == IFLA_ADDRESS && mnl_attr_get_payload_len(attr) == sizeof link->mac)
        memcpy(&link->mac, mnl_attr_get_payload(attr), sizeof link->mac);
    else if (type == IFLA_LINKINFO)
        return mnl_attr_parse_nested(attr, take_kind, link);
    return MNL_CB_OK;
}

static int take_link(const struct nlmsghdr *message, void *arg)
{
    struct link_info *link = arg;
    const struct ifinfomsg *header = mnl_nlmsg_get_payload(message);
    *link = (struct link_info){.index = (unsigned)header->ifi_index, .is_up = header->ifi_flags & IFF_UP};
    return mnl_attr_parse(message, sizeof *header, take_attribute, link);
}

int link_find(const char *name, struct link_info *ret_link, struct err *err)
{
    struct netlink_request request;
    begin_link(&request, RTM_GETLINK, NLM_F_ACK, 0);
    mnl_attr_put_strz(request.message, IFLA_IFNAME, name);
    int r = netlink_perform(NETLINK_ROUTE, &request, take_link, ret_link);
    if (r == -ENODEV)
        return r;
    return r < 0 ? err_set(err, -r, "interface '%s'", name) : 0;
}

int link_create_bridge(const char *name, struct mac mac, struct err *err)
{
    struct netlink_request request;
    struct ifinfomsg *header = begin_link(&request, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0);
    header->ifi_flags = header->ifi_change = IFF_UP;
    mnl_attr_put_strz(request.message, IFLA_IFNAME, name);
    mnl_attr_put(request.message, IFLA_ADDRESS, sizeof mac, &mac);
    struct nlattr *info = mnl_attr_nest_start(request.message, IFLA_LINKINFO);
    mnl_attr_put_strz(request.message, IFLA_INFO_KIND, "bridge");
    struct nlattr *data = mnl_attr_nest_start(request.message, IFLA_INFO_DATA);
    mnl_attr_put_u8(request.message, IFLA_BR_MCAST_SNOOPING, 0); /* there is no querier: it would only lose groups */
    mnl_attr_nest_end(request.message, data);
    mnl_attr_nest_end(request.message, info);
    int r = netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
    return r < 0 ? err_set(err, -r, "bridge '%s'", name) : 0;
}

int link_remove(const char *name, struct err *err)
{
    struct link_info link;
    int r = link_find(name, &link, err);
    if (r < 0)
        return r == -ENODEV ? 0 : r;
    struct netlink_request request;
    begin_link(&request, RTM_DELLINK, NLM_F_ACK, link.index);
    r = netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
    return r < 0 && r != -ENODEV ? err_set(err, -r, "remove interface '%s'", name) : 0;
}

int link_set_up(unsigned index, struct err *err)
{
    struct netlink_request request;
    struct ifinfomsg *header = begin_link(&request, RTM_SETLINK, NLM_F_ACK, index);
    header->ifi_flags = header->ifi_change = IFF_UP;
    int r = netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
    return r < 0 ? err_set(err, -r, "interface %u up", index) : 0;
}

static int set_isolated(unsigned index, bool isolated)
{
    struct netlink_request request;
    begin_link(&request, RTM_NEWLINK, NLM_F_ACK, index);
    struct nlattr *info = mnl_attr_nest_start(request.message, IFLA_LINKINFO);
    mnl_attr_put_strz(request.message, IFLA_INFO_SLAVE_KIND, "bridge");
    struct nlattr *data = mnl_attr_nest_start(request.message, IFLA_INFO_SLAVE_DATA);
    mnl_attr_put_u8(request.message, IFLA_BRPORT_ISOLATED, isolated);
    mnl_attr_nest_end(request.message, data);
    mnl_attr_nest_end(request.message, info);
    return netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
}

int link_set_master(unsigned index, unsigned master, bool isolated, struct err *err)
{
    struct netlink_request request;
    begin_link(&request, RTM_SETLINK, NLM_F_ACK, index);
    mnl_attr_put_u32(request.message, IFLA_MASTER, master);
    int r = netlink_perform(NETLINK_ROUTE, &request, NULL, NULL);
    if (r == 0)
        r = set_isolated(index, isolated); /* before it is up: nothing passes unisolated */
    if (r < 0)
        return err_set(err, -r, "interface %u into bridge %u", index, master);
    return link_set_up(index, err);
}

/* ---- taps ---- */

int link_open_tap(const char *name, int *ret_fd, struct err *err)
{
    own_fd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno, "open /dev/net/tun (modprobe tun)");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        int code = errno;
        if (code == EBUSY)
            return err_say(err, code, "interface '%s' is still held by a machine: stop it first", name);
        return err_set(err, code, "tap '%s'", name);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int link_open_monitor(void)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR};
    own_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    return TAKE_FD(fd);
}
