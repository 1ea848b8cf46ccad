/* The sqlite driver's own: one connection, which holds the file alone, under one mutex. */
#pragma once

#include <pthread.h>
#include <sqlite3.h>
#include "base/clock.h"
#include "store/store_impl.h"

#define SQLITE_CHANGES_KEPT 20000 /* revisions; twice what the contract promises, trimmed now and then */
#define SQLITE_AUDIT_KEPT 100000
#define SQLITE_TRIM_EVERY 1000

/* Statements, prepared at their first use. */
enum sqlite_sql {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_GET,
    SQL_LIST,
    SQL_PUT,
    SQL_DELETE,
    SQL_SET_REVISION,
    SQL_ADD_CHANGE,
    SQL_NEXT_CHANGE,
    SQL_TRIM_CHANGES,
    SQL_ADD_AUDIT,
    SQL_TRIM_AUDIT,
    SQL_LIST_AUDIT,
    SQL_ADD_LEASE,
    SQL_LIST_LEASES,
    SQL_DELETE_LEASE,
    SQL_LEASE_DOCS,
    SQL_COUNT,
};

struct sqlite_lease {
    uint64_t id, ttl_ms, ends_ms; /* CLOCK_MONOTONIC */
};

struct sqlite_store {
    struct store store;
    sqlite3 *db;
    pthread_mutex_t lock; /* guards all below and the connection */
    pthread_cond_t news;  /* a commit, a lease or a wake; CLOCK_MONOTONIC */
    uint64_t revision;
    uint64_t forgotten; /* changes up to this revision */
    sqlite3_stmt *statements[SQL_COUNT];
    struct sqlite_lease *leases;
    size_t lease_count;
    pthread_t lease_thread; /* ends leases; runs once there is one */
    bool lease_thread_runs, closing;
};

static inline struct sqlite_store *sqlite_of(struct store *store)
{
    return (struct sqlite_store *)store;
}

/* ---- sqlite_schema.c ---- */

/* What each version adds; PRAGMA user_version counts those that are done. */
extern const char *const sqlite_schema_steps[];
extern const unsigned sqlite_schema_version;
must_check int sqlite_schema_migrate(sqlite3 *db, struct err *err);

/* ---- sqlite.c: all below with the lock held ---- */

/* -errno for the last failure of the connection. */
int sqlite_failed(struct sqlite_store *s, int code, const char *what, struct err *err);
/* Ready to bind and step; reset by the caller's sqlite3_reset when done. NULL with `err` set. */
sqlite3_stmt *sqlite_statement(struct sqlite_store *s, enum sqlite_sql which, struct err *err);
/* Steps once and resets: 0 for a statement that gives no row. */
must_check int sqlite_run(struct sqlite_store *s, sqlite3_stmt *statement, const char *what, struct err *err);
/* Columns key, value, revision, created, lease from `first` on. */
must_check int sqlite_read_doc(sqlite3_stmt *row, int first, struct store_doc *ret_doc, struct err *err);
static inline uint64_t sqlite_now_ms(void)
{
    return (uint64_t)clock_now_ms();
}
must_check int sqlite_commit_locked(struct sqlite_store *s, const struct store_op *ops, char *const *texts, size_t count,
                                    const struct store_audit *audit, uint64_t *ret_revision, struct err *err);

/* ---- sqlite_audit.c ---- */

must_check int sqlite_audit_add(struct sqlite_store *s, const struct store_audit *audit, uint64_t revision, struct err *err);
int sqlite_audit_list(struct store *store, uint64_t before, size_t limit, json_t **ret_records, struct err *err);

/* ---- sqlite_lease.c ---- */

must_check int sqlite_leases_load(struct sqlite_store *s, struct err *err);
bool sqlite_lease_lives(const struct sqlite_store *s, uint64_t lease);
int sqlite_lease_grant(struct store *store, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err);
int sqlite_lease_keep(struct store *store, uint64_t lease, struct err *err);
int sqlite_lease_revoke(struct store *store, uint64_t lease, struct err *err);
/* Without the lock: stops the thread. */
void sqlite_leases_stop(struct sqlite_store *s);

/* ---- sqlite_watch.c ---- */

int sqlite_watch_open(struct store *store, const char *prefix, uint64_t since, struct store_watch **ret_watch,
                      struct err *err);
int sqlite_watch_next(struct store_watch *watch, int timeout_ms, struct store_event *ret_event, struct err *err);
void sqlite_watch_wake(struct store_watch *watch);
void sqlite_watch_close(struct store_watch *watch);
