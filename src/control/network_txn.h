/* A commit of the store that is put together step by step and owns its keys and values. */
#pragma once

#include "store/store.h"

#define TXN_OPS_MAX 160 /* a lease with as many ports, before and after, as an instance may have */

struct txn {
    struct store_op ops[TXN_OPS_MAX];
    size_t count;
    bool failed; /* memory was out */
};

/* `expected` as in store_op; the value is taken over, NULL counts as out of memory. */
void txn_put(struct txn *txn, uint64_t expected, json_t *value, const char *key_format, ...) __attribute__((format(printf, 4, 5)));
void txn_delete(struct txn *txn, uint64_t expected, const char *key_format, ...) __attribute__((format(printf, 3, 4)));
/* Commits, and frees what it owns in any case. */
must_check int txn_commit(struct txn *txn, struct store *store, const struct store_audit *audit, struct err *err);
void txn_clear(struct txn *txn);

/* Whether a commit that gave `r` is to be decided anew; waits a little, ever longer, and gives up after some seconds. */
bool txn_again(int r, unsigned *tries);
