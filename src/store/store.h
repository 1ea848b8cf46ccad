/* Desired state: JSON documents under keys ("instances/web"), each with the revision of its last change.
 *
 * One revision counter for the whole store; every commit that changes anything takes the next one. A commit is atomic:
 * all of its operations, its audit record and its revision, or nothing. Watches see commits whole and in order. Leases
 * end by time unless kept alive (they get their whole time again when the store is opened); documents that hang on a lease
 * go with it, as deletions that watches see.
 *
 * Drivers are the lines of one table (store.c): `sqlite` keeps a file. The contract's tests (tests/unit/store_test.c) take
 * a driver by its address, so that each driver runs all of them.
 *
 * Any thread may call anything. Values are jansson's; a returned document is the caller's own copy. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define STORE_KEY_MAX 255            /* bytes; [a-z0-9._/-], no empty part between slashes */
#define STORE_VALUE_MAX (1u << 20)   /* bytes of JSON text */
#define STORE_ANY UINT64_MAX         /* store_op.expected: whatever is there */

struct store;
struct store_watch;

struct store_doc {
    char *key;
    json_t *value;
    uint64_t revision; /* of the last change */
    uint64_t created;  /* revision of the creation */
    uint64_t lease;    /* 0: none */
};

struct store_list {
    struct store_doc *docs; /* by key */
    size_t count;
    uint64_t revision; /* of the store when it was read: where a watch goes on without a gap */
};

enum store_op_kind { STORE_PUT, STORE_DELETE, STORE_CHECK };

struct store_op {
    enum store_op_kind kind;
    const char *key;
    const json_t *value; /* STORE_PUT */
    uint64_t expected;   /* revision that the document must have; 0: it must not exist; STORE_ANY */
    uint64_t lease;      /* STORE_PUT: 0 or a lease */
};

/* Who did what, from where; kept with the commit. All but `action` may be NULL. */
struct store_audit {
    const char *actor;  /* "uid:0", "token:ci", "controller" */
    const char *origin; /* "unix", "192.0.2.1" */
    const char *action; /* "instance.create" */
    const char *target; /* "instances/web" */
    const char *detail; /* one line; never a secret */
};

enum store_event_kind { STORE_EVENT_PUT, STORE_EVENT_DELETE };

struct store_event {
    enum store_event_kind kind;
    struct store_doc doc; /* of a deletion: the last value; revision: of the deletion */
};

/* `address`: "sqlite:PATH" (made if missing, mode 0600). Older schemas are migrated; newer ones refused with a sentence
 * that says which version wrote it. -EBUSY when another process has it open, -EBADMSG when it is damaged. */
must_check int store_open(const char *address, struct store **ret_store, struct err *err);
void store_close(struct store *store); /* NULL is fine; no watch may be left */

/* -ENOENT when there is none. */
must_check int store_get(struct store *store, const char *key, struct store_doc *ret_doc, struct err *err);
must_check int store_list_prefix(struct store *store, const char *prefix, struct store_list *ret_list, struct err *err);
/* The values below `prefix`, by key, as the text of one JSON array: for long lists that go out as they are, at a fraction of
 * what documents cost. The caller frees it. */
must_check int store_list_text(struct store *store, const char *prefix, char **ret_text, struct err *err);
void store_doc_clear(struct store_doc *doc);
void store_list_clear(struct store_list *list);

/* -EAGAIN when an `expected` does not hold (nothing was changed), -EINVAL for a bad key or value. `audit` and
 * `ret_revision` may be NULL. A put of an equal value changes nothing and takes no revision if no operation does. */
must_check int store_commit(struct store *store, const struct store_op *ops, size_t count, const struct store_audit *audit,
                            uint64_t *ret_revision, struct err *err);

/* Changes of keys that begin with `prefix`, after revision `since` (0: from the oldest that is kept). -ERANGE when
 * changes since then were forgotten (the store keeps at least the last 10,000): list anew and watch from there. */
must_check int store_watch_open(struct store *store, const char *prefix, uint64_t since, struct store_watch **ret_watch,
                                struct err *err);
/* The next change: 1 and *ret_event (clear with store_doc_clear on its doc); 0 after `timeout_ms` without one (-1: waits) or
 * when woken; -ERANGE as above. */
must_check int store_watch_next(struct store_watch *watch, int timeout_ms, struct store_event *ret_event, struct err *err);
/* From any thread: a waiting or the next store_watch_next returns 0. */
void store_watch_wake(struct store_watch *watch);
void store_watch_close(struct store_watch *watch);

must_check int store_lease_grant(struct store *store, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err);
/* -ENOENT when it has ended. */
must_check int store_lease_keep(struct store *store, uint64_t lease, struct err *err);
must_check int store_lease_revoke(struct store *store, uint64_t lease, struct err *err);

/* Newest first: array of {"id", "revision", "time" (RFC 3339, UTC), "actor", "origin", "action", "target", "detail"}; those
 * with ids below `before` (0: all), at most `limit`. The last 100,000 are kept. A commit without operations leaves just a
 * record. */
must_check int store_audit_list(struct store *store, uint64_t before, size_t limit, json_t **ret_records, struct err *err);

/* A consistent copy at `path` (which must not exist) while the store is in use; checked, so that no copy of damage is left:
 * -EBADMSG. */
must_check int store_backup(struct store *store, const char *path, struct err *err);
