/* Ports of the host as documents: host-ports/PROTOCOL/PORT {"holders": [{"host_address", "lease"}]}. */
#pragma once

#include "control/network_spec.h"
#include "control/network_txn.h"

/* Adds to `txn` what changes the ports that lease `key` ("ID/INDEX") holds from `before` to `after`. -EBUSY names the holder
 * of one that is taken. */
must_check int claim_ports(struct txn *txn, struct store *store, const char *key, const struct network_ports *before,
                           const struct network_ports *after, struct err *err);
/* Whether a program of the host listens on one of them: -EBUSY, by trying to. */
must_check int claim_check_host(const struct network_ports *ports, const struct network_ports *held, struct err *err);
