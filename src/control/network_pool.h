/* Leases, addresses, MACs and host ports in the store. Every change is one commit that holds only if nothing it was
 * decided on has changed since; otherwise it is decided anew. So no two callers, in whatever process, get the same. */
#pragma once

#include "control/network_rules.h"

struct pool_grant {
    struct network_info network;
    struct network_lease lease;
    bool is_new; /* there was no lease before */
};

/* Gives the interface a lease or finds its own, and marks it attached with the request's ports. */
must_check int pool_attach(struct store *store, const struct network_request *request, struct pool_grant *ret_grant,
                           struct err *err);
/* Marks one lease detached and frees its host ports; with `release`, frees all of it. Fine when there is none. */
must_check int pool_detach(struct store *store, const char *instance, unsigned index, bool release, struct err *err);
must_check int pool_rename(struct store *store, const char *instance, unsigned index, const char *name, struct err *err);

/* All networks and the attached leases. Documents that are damaged are left out and the first is told in `err`: -EINVAL
 * with *ret_state valid. */
must_check int pool_load(struct store *store, struct network_state *ret_state, struct err *err);
void pool_state_clear(struct network_state *state);
/* *ret_revision may be NULL. */
must_check int pool_get_network(struct store *store, const char *name, struct network_info *ret_network, uint64_t *ret_revision,
                                struct err *err);
