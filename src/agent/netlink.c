#include "agent/netlink.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/own.h"

struct request {
    struct nlmsghdr header;
    uint8_t bytes[128];
};

static void *request_begin(struct request *q, uint16_t type, uint16_t flags, size_t body_len)
{
    *q = (struct request){.header = {.nlmsg_len = (uint32_t)NLMSG_LENGTH(body_len),
                                     .nlmsg_type = type,
                                     .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags}};
    return q->bytes;
}

static void request_add(struct request *q, uint16_t type, const void *data, size_t len)
{
    struct rtattr attr = {.rta_len = (uint16_t)RTA_LENGTH(len), .rta_type = type};
    uint8_t *at = (uint8_t *)q + NLMSG_ALIGN(q->header.nlmsg_len);
    memcpy(at, &attr, sizeof attr);
    memcpy(at + RTA_LENGTH(0), data, len);
    q->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(q->header.nlmsg_len) + RTA_ALIGN(attr.rta_len));
}

/* Sends one request and takes its acknowledgement. */
static int request_run(const struct request *q, const char *what, struct err *err)
{
    own_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return err_set(err, errno, "netlink");
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[1024];
    } answer;
    if (send(fd, q, q->header.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < (ssize_t)NLMSG_LENGTH(sizeof answer.error))
        return err_set(err, errno, "netlink");
    int code = -answer.error.error;
    if (answer.header.nlmsg_type != NLMSG_ERROR || (code && code != EEXIST))
        return err_set(err, code ? code : EPROTO, "%s", what);
    return 0;
}

static int set_up(unsigned index, struct err *err)
{
    struct request q;
    struct ifinfomsg *body = request_begin(&q, RTM_NEWLINK, 0, sizeof *body);
    *body = (struct ifinfomsg){.ifi_family = AF_UNSPEC, .ifi_index = (int)index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    return request_run(&q, "bring the interface up", err);
}

static int add_address(unsigned index, struct in_addr address, unsigned prefix, struct err *err)
{
    struct request q;
    struct ifaddrmsg *body = request_begin(&q, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *body);
    *body = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = index};
    request_add(&q, IFA_LOCAL, &address, sizeof address);
    request_add(&q, IFA_ADDRESS, &address, sizeof address);
    struct in_addr broadcast = {.s_addr = address.s_addr | htonl(prefix ? (uint32_t)(UINT64_C(0xffffffff) >> prefix) : ~0u)};
    if (prefix < 31)
        request_add(&q, IFA_BROADCAST, &broadcast, sizeof broadcast);
    return request_run(&q, "set the address", err);
}

static int add_default_route(unsigned index, struct in_addr gateway, struct err *err)
{
    struct request q;
    struct rtmsg *body = request_begin(&q, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *body);
    *body = (struct rtmsg){.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
                           .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
    request_add(&q, RTA_GATEWAY, &gateway, sizeof gateway);
    request_add(&q, RTA_OIF, &index, sizeof index);
    return request_run(&q, "set the default route", err);
}

/* The interface whose /sys/class/net/NAME/address is `mac`; 0 when there is none. */
static unsigned find_interface(const char *mac)
{
    DIR *dir = opendir("/sys/class/net");
    unsigned index = 0;
    for (struct dirent *e; dir && !index && (e = readdir(dir));) {
        char path[300], line[32] = "";
        snprintf(path, sizeof path, "/sys/class/net/%s/address", e->d_name);
        FILE *f = fopen(path, "re");
        if (f && fgets(line, sizeof line, f) && !strncasecmp(line, mac, 17))
            index = if_nametoindex(e->d_name);
        if (f)
            fclose(f);
    }
    if (dir)
        closedir(dir);
    return index;
}

int netlink_loopback(struct err *err)
{
    unsigned index = if_nametoindex("lo");
    return index ? set_up(index, err) : 0;
}

static int parse_address(const char *text, struct in_addr *ret_address, unsigned *ret_prefix, struct err *err)
{
    char address[INET_ADDRSTRLEN] = "";
    unsigned prefix = 0;
    char more;
    if (sscanf(text, "%15[0-9.]/%2u%c", address, &prefix, &more) != 2 || prefix > 32 ||
        inet_pton(AF_INET, address, ret_address) != 1)
        return err_say(err, EINVAL, "'%.40s' is not an address like 10.88.0.2/24", text);
    *ret_prefix = prefix;
    return 0;
}

int netlink_configure(const char *mac, const char *address, const char *gateway, struct err *err)
{
    unsigned index = mac && strlen(mac) == 17 ? find_interface(mac) : 0;
    if (!index)
        return err_say(err, ENODEV, "the machine has no network interface with the MAC '%.20s'", mac ? mac : "");
    int r = set_up(index, err);
    if (r < 0 || !address || !address[0])
        return r;
    struct in_addr own, router;
    unsigned prefix = 0;
    r = parse_address(address, &own, &prefix, err);
    if (r == 0)
        r = add_address(index, own, prefix, err);
    if (r < 0 || !gateway || !gateway[0])
        return r;
    if (inet_pton(AF_INET, gateway, &router) != 1)
        return err_say(err, EINVAL, "'%.40s' is not a gateway's address", gateway);
    return add_default_route(index, router, err);
}
