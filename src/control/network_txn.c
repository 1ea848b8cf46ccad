#include "control/network_txn.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define TRIES_MAX 200u
#define WAIT_MAX_MS 20u

static void add(struct txn *txn, enum store_op_kind kind, uint64_t expected, json_t *value, char *key)
{
    assert(txn->count < TXN_OPS_MAX);
    txn->failed |= !key || (kind == STORE_PUT && !value);
    txn->ops[txn->count++] = (struct store_op){.kind = kind, .key = key, .value = value, .expected = expected};
}

void txn_put(struct txn *txn, uint64_t expected, json_t *value, const char *key_format, ...)
{
    char *key = NULL;
    va_list args;
    va_start(args, key_format);
    int n = vasprintf(&key, key_format, args);
    va_end(args);
    add(txn, STORE_PUT, expected, value, n < 0 ? NULL : key);
}

void txn_delete(struct txn *txn, uint64_t expected, const char *key_format, ...)
{
    char *key = NULL;
    va_list args;
    va_start(args, key_format);
    int n = vasprintf(&key, key_format, args);
    va_end(args);
    add(txn, STORE_DELETE, expected, NULL, n < 0 ? NULL : key);
}

void txn_clear(struct txn *txn)
{
    for (size_t i = 0; i < txn->count; i++) {
        free((char *)(uintptr_t)txn->ops[i].key);
        json_decref((json_t *)(uintptr_t)txn->ops[i].value);
    }
    *txn = (struct txn){.count = 0};
}

int txn_commit(struct txn *txn, struct store *store, const struct store_audit *audit, struct err *err)
{
    int r = txn->failed ? err_set(err, ENOMEM, "a change of networks")
                        : store_commit(store, txn->ops, txn->count, audit, NULL, err);
    txn_clear(txn);
    return r;
}

bool txn_again(int r, unsigned *tries)
{
    uint8_t noise = 0;
    if (r != -EAGAIN || ++*tries > TRIES_MAX)
        return false;
    unsigned most = *tries < WAIT_MAX_MS ? *tries : WAIT_MAX_MS;
    (void)!getrandom(&noise, sizeof noise, GRND_NONBLOCK);
    poll(NULL, 0, noise % (int)(most + 1));
    return true;
}
