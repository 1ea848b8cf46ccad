/* Driver `sqlite`: who did what. */
#include "store/sqlite_impl.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    if (text)
        sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

/* By records, not by revisions: there are commits of a record alone. */
static int trim(struct sqlite_store *s, struct err *err)
{
    if (sqlite3_last_insert_rowid(s->db) % SQLITE_TRIM_EVERY)
        return 0;
    sqlite3_stmt *statement = sqlite_statement(s, SQL_TRIM_AUDIT, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, SQLITE_AUDIT_KEPT);
    return sqlite_run(s, statement, "audit", err);
}

int sqlite_audit_add(struct sqlite_store *s, const struct store_audit *audit, uint64_t revision, struct err *err)
{
    char now[32];
    struct timespec t;
    struct tm tm;
    sqlite3_stmt *statement = sqlite_statement(s, SQL_ADD_AUDIT, err);
    if (!statement)
        return -EIO;
    clock_gettime(CLOCK_REALTIME, &t);
    size_t len = strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &tm));
    snprintf(now + len, sizeof now - len, ".%03ldZ", t.tv_nsec / 1000000);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)revision);
    bind_text(statement, 2, now);
    bind_text(statement, 3, audit->actor);
    bind_text(statement, 4, audit->origin);
    bind_text(statement, 5, audit->action);
    bind_text(statement, 6, audit->target);
    bind_text(statement, 7, audit->detail);
    int ret = sqlite_run(s, statement, "audit", err);
    return ret < 0 ? ret : trim(s, err);
}

static json_t *column_text(sqlite3_stmt *row, int column)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    return text ? json_string(text) : json_null();
}

static int append_record(json_t *records, sqlite3_stmt *row, struct err *err)
{
    json_t *record = json_pack("{s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "id", sqlite3_column_int64(row, 0), "revision",
                               sqlite3_column_int64(row, 1), "time", column_text(row, 2), "actor", column_text(row, 3),
                               "origin", column_text(row, 4), "action", column_text(row, 5), "target", column_text(row, 6),
                               "detail", column_text(row, 7));
    return record && json_array_append_new(records, record) == 0 ? 0 : err_set(err, ENOMEM, "audit");
}

static int list_locked(struct sqlite_store *s, uint64_t before, size_t limit, json_t *records, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_LIST_AUDIT, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, before && before < INT64_MAX ? (sqlite3_int64)before : INT64_MAX);
    sqlite3_bind_int64(statement, 2, limit < INT64_MAX ? (sqlite3_int64)limit : INT64_MAX);
    int ret = 0, code = SQLITE_DONE;
    while (ret == 0 && (code = sqlite3_step(statement)) == SQLITE_ROW)
        ret = append_record(records, statement, err);
    if (ret == 0 && code != SQLITE_DONE)
        ret = sqlite_failed(s, code, "audit", err);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ret;
}

int sqlite_audit_list(struct store *store, uint64_t before, size_t limit, json_t **ret_records, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    json_t *records = json_array();
    if (!records)
        return err_set(err, ENOMEM, "audit");
    pthread_mutex_lock(&s->lock);
    int ret = list_locked(s, before, limit, records, err);
    pthread_mutex_unlock(&s->lock);
    if (ret < 0)
        json_decref(records);
    else
        *ret_records = records;
    return ret;
}
