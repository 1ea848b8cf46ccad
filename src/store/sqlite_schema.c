/* The tables of the sqlite driver, and how older files become today's. */
#include "store/sqlite_impl.h"

#include <errno.h>

#define SQLITE_APPLICATION_ID 0x504c4452 /* "PLDR" */

const char *const sqlite_schema_steps[] = {
    "CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "INSERT INTO state VALUES ('revision', 0);"
    "CREATE TABLE docs (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL)"
    " WITHOUT ROWID;"
    "CREATE TABLE changes (revision INTEGER, seq INTEGER, kind INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,"
    " created INTEGER NOT NULL, PRIMARY KEY (revision, seq)) WITHOUT ROWID;"
    "CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, time TEXT NOT NULL, actor TEXT,"
    " origin TEXT, action TEXT NOT NULL, target TEXT, detail TEXT);",

    "CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);"
    "ALTER TABLE docs ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE changes ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;"
    "CREATE INDEX docs_by_lease ON docs (lease) WHERE lease != 0;",
};
const unsigned sqlite_schema_version = sizeof sqlite_schema_steps / sizeof *sqlite_schema_steps;

static int read_pragma(sqlite3 *db, const char *sql, unsigned *ret_value)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK || sqlite3_step(statement) != SQLITE_ROW) {
        sqlite3_finalize(statement);
        return -EIO;
    }
    *ret_value = (unsigned)sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    return 0;
}

/* Within the transaction that the caller began. */
static int run_steps(sqlite3 *db, unsigned from, struct err *err)
{
    char pragma[64];
    for (unsigned i = from; i < sqlite_schema_version; i++)
        if (sqlite3_exec(db, sqlite_schema_steps[i], NULL, NULL, NULL) != SQLITE_OK)
            return err_say(err, EIO, "migration to schema %u: %s", i + 1, sqlite3_errmsg(db));
    snprintf(pragma, sizeof pragma, "PRAGMA user_version=%u; PRAGMA application_id=%d", sqlite_schema_version,
             SQLITE_APPLICATION_ID);
    if (sqlite3_exec(db, pragma, NULL, NULL, NULL) != SQLITE_OK)
        return err_say(err, EIO, "%s", sqlite3_errmsg(db));
    return 0;
}

int sqlite_schema_migrate(sqlite3 *db, struct err *err)
{
    unsigned version, application, tables;
    if (read_pragma(db, "PRAGMA user_version", &version) < 0 || read_pragma(db, "PRAGMA application_id", &application) < 0 ||
        read_pragma(db, "SELECT count(*) FROM sqlite_schema", &tables) < 0)
        return err_say(err, EIO, "%s", sqlite3_errmsg(db));
    if (tables > 0 && application != SQLITE_APPLICATION_ID)
        return err_say(err, EINVAL, "is a database of another program; give another path");
    if (version > sqlite_schema_version)
        return err_say(err, EPROTONOSUPPORT, "has schema %u, this version knows up to %u; install the newer version that wrote it",
                       version, sqlite_schema_version);
    return version == sqlite_schema_version ? 0 : run_steps(db, version, err);
}
