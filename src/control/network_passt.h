/* A `user` network's side on the host: one passt an interface, in a folder of all of them. polder-vmm holds a listening
 * socket there, by descriptor, and takes its frames from who connects. Whoever passt is, it ends by itself when its socket
 * is closed, and one that ends before is followed by another. One thread at a time. */
#pragma once

#include "control/network_rules.h"

/* DNS server and gateway that the guest sees, by the network's subnet. */
uint32_t passt_dns(const struct network_info *network);
/* *ret_fd: the listening socket for polder-vmm, with a passt connected to it. An error says which port of the host could not
 * be had. */
must_check int passt_start(const char *dir, const struct network_info *network, const struct network_lease *lease, int *ret_fd,
                           struct err *err);
/* For each polder-vmm that listens and has no passt, starts one; removes what is left of those that have ended. Does all,
 * tells the first error. */
must_check int passt_keep(const char *dir, const struct network_state *state, struct err *err);
