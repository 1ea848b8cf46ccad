/* Makes the host match a network_state: bridges, addresses, sysctls, ports of bridges, rules, dnsmasq. Every call does what
 * is missing and nothing else; it may be repeated at any time. One thread at a time. */
#pragma once

#include "control/network_rules.h"

struct host {
    char dir[256];     /* one folder a bridge: its files, and the record that there is one */
    char table[24];    /* of nftables */
    char *rules;       /* text that was applied last; NULL: none yet */
    uint64_t fingerprint; /* of what it made */
    uint32_t generation;  /* of the kernel's rule set when that was looked at */
};

#define PASST_DIR_SIZE (sizeof((struct host *)0)->dir + 8)
/* Where the files of passts are: see network_passt.h. */
void host_passt_dir(const struct host *host, char ret_dir[static PASST_DIR_SIZE]);

/* `only`: the network to work on besides the rules; NULL: all, and what is left of removed ones goes. The first error is
 * told, the rest is done nevertheless. */
must_check int host_apply(struct host *host, const struct network_state *state, const char *only, struct err *err);
