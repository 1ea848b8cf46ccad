/* The contract between store.c and the drivers. Arguments have been checked; functions are those of store.h. */
#pragma once

#include "store/store.h"

struct store {
    const struct store_class *class;
};

struct store_watch {
    struct store *store;
};

struct store_class {
    const char *name; /* "sqlite": the address begins with "sqlite:" */
    int (*open)(const char *where, struct store **ret_store, struct err *err);
    void (*close)(struct store *store);
    int (*get)(struct store *store, const char *key, struct store_doc *ret_doc, struct err *err);
    int (*list)(struct store *store, const char *prefix, struct store_list *ret_list, struct err *err);
    int (*list_text)(struct store *store, const char *prefix, char **ret_text, struct err *err);
    /* texts[i]: the JSON text of ops[i].value */
    int (*commit)(struct store *store, const struct store_op *ops, char *const *texts, size_t count,
                  const struct store_audit *audit, uint64_t *ret_revision, struct err *err);
    int (*watch_open)(struct store *store, const char *prefix, uint64_t since, struct store_watch **ret_watch, struct err *err);
    int (*watch_next)(struct store_watch *watch, int timeout_ms, struct store_event *ret_event, struct err *err);
    void (*watch_wake)(struct store_watch *watch);
    void (*watch_close)(struct store_watch *watch);
    int (*lease_grant)(struct store *store, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err);
    int (*lease_keep)(struct store *store, uint64_t lease, struct err *err);
    int (*lease_revoke)(struct store *store, uint64_t lease, struct err *err);
    int (*audit_list)(struct store *store, uint64_t before, size_t limit, json_t **ret_records, struct err *err);
    int (*backup)(struct store *store, const char *path, struct err *err);
};

extern const struct store_class store_sqlite;
