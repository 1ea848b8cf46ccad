/* A `user` network's side on the host: one passt an interface. It ends by itself when its socket is closed. */
#pragma once

#include "control/network_spec.h"

/* DNS server and gateway that the guest sees, by the network's subnet. */
uint32_t passt_dns(const struct network_info *network);
/* *ret_fd: the socket for polder-vmm. An error says which port of the host could not be had. */
must_check int passt_start(const struct network_info *network, const struct network_lease *lease, int *ret_fd, struct err *err);
