/* One netlink request and its answer. Source: netlink(7), libmnl. */
#pragma once

#include <libmnl/libmnl.h>
#include <stddef.h>
#include <stdint.h>

struct netlink_request {
    char buffer[8192];
    struct nlmsghdr *message; /* for mnl_attr_put_… */
};

/* Starts a message; gives its zeroed family header. */
void *netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags, size_t header_size);
/* Sends it on `bus` (NETLINK_ROUTE, ...) in the calling thread's network namespace; `fn` (or NULL) sees each message of the
 * answer. 0 or -errno. */
int netlink_perform(int bus, const struct netlink_request *request, mnl_cb_t fn, void *arg);
