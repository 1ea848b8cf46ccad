/* The packet rules as nftables text, all of them, for one transaction. Pure function. */
#pragma once

#include <stddef.h>
#include "control/network_spec.h"

/* What the host shall look like. */
struct network_state {
    struct network_info *networks;
    size_t network_count;
    struct network_lease *leases; /* attached ones */
    size_t lease_count;
};

/* The network of a lease; NULL when there is none of that name. */
const struct network_info *network_state_find(const struct network_state *state, const char *name);

/* Replaces tables inet TABLE and bridge TABLE. Leases of other networks than `nat` are passed over. The caller frees it; NULL
 * when memory is out. */
char *network_rules_text(const char *table, const struct network_state *state);
