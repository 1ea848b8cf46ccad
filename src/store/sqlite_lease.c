/* Driver `sqlite`: leases. Their ends are reckoned in memory on the monotonic clock; one thread sleeps until the next. */
#include "store/sqlite_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/own.h"

static struct sqlite_lease *find(const struct sqlite_store *s, uint64_t id)
{
    for (size_t i = 0; i < s->lease_count; i++)
        if (s->leases[i].id == id)
            return &s->leases[i];
    return NULL;
}

bool sqlite_lease_lives(const struct sqlite_store *s, uint64_t lease)
{
    return find(s, lease) != NULL;
}

static int no_lease(uint64_t lease, struct err *err)
{
    return err_say(err, ENOENT, "lease %llu has ended", (unsigned long long)lease);
}

/* The documents of a lease as deletions. */
static int collect(struct sqlite_store *s, uint64_t lease, struct store_op **ret_ops, size_t *ret_count, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_LEASE_DOCS, err);
    if (!statement)
        return -EIO;
    struct store_op *ops = NULL;
    size_t count = 0;
    int ret = 0;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)lease);
    while (ret == 0 && sqlite3_step(statement) == SQLITE_ROW) {
        struct store_op *more = reallocarray(ops, count + 1, sizeof *ops);
        if (more)
            ops = more;
        char *key = more ? strdup((const char *)sqlite3_column_text(statement, 0)) : NULL;
        if (key)
            ops[count++] = (struct store_op){.kind = STORE_DELETE, .key = key, .expected = STORE_ANY};
        else
            ret = err_set(err, ENOMEM, "lease");
    }
    sqlite3_reset(statement);
    *ret_ops = ops;
    *ret_count = count;
    return ret;
}

static int delete_row(struct sqlite_store *s, uint64_t id, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_DELETE_LEASE, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)id);
    return sqlite_run(s, statement, "lease", err);
}

/* Documents first: a crash in between leaves a lease that ends again. */
static int end_lease(struct sqlite_store *s, struct sqlite_lease *lease, struct err *err)
{
    const uint64_t id = lease->id;
    struct store_op *ops = NULL;
    size_t count = 0;
    int ret = collect(s, id, &ops, &count, err);
    own_free char **texts = calloc(count + 1, sizeof *texts);
    const struct store_audit audit = {.actor = "store", .action = "lease.end"};
    if (ret == 0)
        ret = texts ? 0 : err_set(err, ENOMEM, "lease");
    if (ret == 0 && count > 0)
        ret = sqlite_commit_locked(s, ops, texts, count, &audit, NULL, err);
    if (ret == 0)
        ret = delete_row(s, id, err);
    if (ret == 0)
        *lease = s->leases[--s->lease_count];
    for (size_t i = 0; i < count; i++)
        free((char *)(uintptr_t)ops[i].key);
    free(ops);
    return ret;
}

/* The one that ends next; NULL when there is none. */
static struct sqlite_lease *next_lease(const struct sqlite_store *s)
{
    struct sqlite_lease *next = NULL;
    for (size_t i = 0; i < s->lease_count; i++)
        if (!next || s->leases[i].ends_ms < next->ends_ms)
            next = &s->leases[i];
    return next;
}

static void wait_until(struct sqlite_store *s, uint64_t ms)
{
    const struct timespec t = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    if (ms)
        pthread_cond_timedwait(&s->news, &s->lock, &t);
    else
        pthread_cond_wait(&s->news, &s->lock);
}

static void *run_leases(void *arg)
{
    struct sqlite_store *s = arg;
    pthread_mutex_lock(&s->lock);
    while (!s->closing) {
        struct sqlite_lease *next = next_lease(s);
        uint64_t now = sqlite_now_ms();
        if (!next || next->ends_ms > now)
            wait_until(s, next ? next->ends_ms : 0);
        else if (end_lease(s, next, NULL) < 0) /* a full disk, say: tried again in a second */
            next->ends_ms = now + 1000;
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int add(struct sqlite_store *s, uint64_t id, uint64_t ttl_ms, struct err *err)
{
    struct sqlite_lease *leases = reallocarray(s->leases, s->lease_count + 1, sizeof *leases);
    if (!leases)
        return err_set(err, ENOMEM, "lease");
    s->leases = leases;
    if (!s->lease_thread_runs) {
        int code = pthread_create(&s->lease_thread, NULL, run_leases, s);
        if (code)
            return err_set(err, code, "start the thread of leases");
        s->lease_thread_runs = true;
    }
    leases[s->lease_count++] = (struct sqlite_lease){.id = id, .ttl_ms = ttl_ms, .ends_ms = sqlite_now_ms() + ttl_ms};
    pthread_cond_broadcast(&s->news);
    return 0;
}

int sqlite_leases_load(struct sqlite_store *s, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    sqlite3_stmt *statement = sqlite_statement(s, SQL_LIST_LEASES, err);
    int ret = statement ? 0 : -EIO;
    while (ret == 0 && sqlite3_step(statement) == SQLITE_ROW)
        ret = add(s, (uint64_t)sqlite3_column_int64(statement, 0), (uint64_t)sqlite3_column_int64(statement, 1), err);
    if (statement)
        sqlite3_reset(statement);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

static int grant_locked(struct sqlite_store *s, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_ADD_LEASE, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)ttl_ms);
    int ret = sqlite_run(s, statement, "lease", err);
    if (ret < 0)
        return ret;
    uint64_t id = (uint64_t)sqlite3_last_insert_rowid(s->db);
    ret = add(s, id, ttl_ms, err);
    if (ret == 0)
        *ret_lease = id;
    return ret;
}

int sqlite_lease_grant(struct store *store, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    pthread_mutex_lock(&s->lock);
    int ret = grant_locked(s, ttl_ms, ret_lease, err);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

int sqlite_lease_keep(struct store *store, uint64_t lease, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    pthread_mutex_lock(&s->lock);
    struct sqlite_lease *found = find(s, lease);
    if (found)
        found->ends_ms = sqlite_now_ms() + found->ttl_ms;
    pthread_mutex_unlock(&s->lock);
    return found ? 0 : no_lease(lease, err);
}

int sqlite_lease_revoke(struct store *store, uint64_t lease, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    pthread_mutex_lock(&s->lock);
    struct sqlite_lease *found = find(s, lease);
    int ret = found ? end_lease(s, found, err) : no_lease(lease, err);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

void sqlite_leases_stop(struct sqlite_store *s)
{
    if (!s->lease_thread_runs)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->lease_thread, NULL);
}
