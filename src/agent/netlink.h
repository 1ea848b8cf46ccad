/* Addresses and routes of the machine, by rtnetlink(7). IPv4. */
#pragma once

#include "base/err.h"

must_check int netlink_loopback(struct err *err);
/* The interface with that MAC: up, with an address "10.88.0.2/24", and a default route when `gateway` is not NULL or "".
 * Without an address it is only brought up. Configuring again what is there already is fine. */
must_check int netlink_configure(const char *mac, const char *address, const char *gateway, struct err *err);
