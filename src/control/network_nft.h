/* nftables: applying a text in one transaction, and noticing that someone else has changed what it made.
 * One thread at a time. Source: libnftables(3), linux/netfilter/nf_tables.h. */
#pragma once

#include <stdint.h>
#include "base/err.h"

must_check int nft_apply(const char *text, struct err *err);
/* The kernel's counter of rule set changes: equal means that nobody has changed anything. -EPERM without privilege, -ENOTSUP
 * when the kernel has no nftables. */
must_check int nft_generation(uint32_t *ret_generation, struct err *err);
/* A hash of what tables inet TABLE and bridge TABLE hold, counters apart; 0 when one of them is not there. */
uint64_t nft_fingerprint(const char *table);
