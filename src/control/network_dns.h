/* DHCP and DNS of a nat network: one dnsmasq, with its files in a folder of its own. One thread at a time. */
#pragma once

#include "control/network_rules.h"

/* Writes what has changed below `dir` and makes dnsmasq run on it; `index` of the bridge: a new bridge wants a new dnsmasq. */
must_check int dns_apply(const char *dir, const struct network_info *network, unsigned index, const struct network_state *state,
                         struct err *err);
/* Ends dnsmasq and removes its files. */
void dns_remove(const char *dir, const char *bridge);
