/* Network interfaces of the host, by rtnetlink: bridges, taps, addresses, routes. No state: each call is complete in itself
 * and works in the calling thread's network namespace. Source: rtnetlink(7), linux/if_link.h, linux/if_tun.h. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include "control/network_ipv4.h"

struct link_info {
    unsigned index;
    bool is_bridge, is_up;
    unsigned master; /* index of the bridge it is a port of; 0: none */
    struct mac mac;
};

/* -ENODEV when there is none; says nothing then. */
must_check int link_find(const char *name, struct link_info *ret_link, struct err *err);
/* A bridge that is up, with this MAC. -EEXIST when the name is taken. */
must_check int link_create_bridge(const char *name, struct mac mac, struct err *err);
/* Fine when there is none. */
must_check int link_remove(const char *name, struct err *err);
must_check int link_set_up(unsigned index, struct err *err);
/* Makes it a port of a bridge, and up; isolated ports reach only the bridge itself. */
must_check int link_set_master(unsigned index, unsigned master, bool isolated, struct err *err);

/* Sets the address unless it is there. */
must_check int link_set_address(unsigned index, uint32_t address, unsigned prefix, struct err *err);
/* The destinations of the host's routes but default ones. The caller frees *ret_subnets. */
must_check int link_routes(struct subnet **ret_subnets, size_t *ret_count, struct err *err);

/* A new tap as src/net/tap.c wants its fd: one queue, no packet information, virtio_net_hdr. It lives as long as its fd.
 * -EBUSY while someone holds one of that name. */
must_check int link_open_tap(const char *name, int *ret_fd, struct err *err);

/* A socket that is readable when links or addresses have changed; -errno. */
int link_open_monitor(void);
/* Writes a sysctl ("net/ipv4/ip_forward") unless it has that value. */
must_check int link_sysctl(const char *name, const char *value, struct err *err);
