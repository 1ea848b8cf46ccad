/* Driver `sqlite`: opening and closing, documents and commits.
 *
 * Write-ahead log, every commit synced before it is acknowledged. The connection locks the file for itself, so that a
 * second process is refused and no shared memory file is needed. Numbers are stored as 64-bit signed. */
#include "store/sqlite_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "base/own.h"

#define KEY_END "\x7f" /* behind every key that begins with a prefix */

static const char *const sql[SQL_COUNT] = {
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_GET] = "SELECT key, value, revision, created, lease FROM docs WHERE key = ?1",
    [SQL_LIST] = "SELECT key, value, revision, created, lease FROM docs WHERE key >= ?1 AND key < ?1 || '" KEY_END "'"
                 " ORDER BY key",
    [SQL_PUT] = "INSERT INTO docs (key, value, revision, created, lease) VALUES (?1, ?2, ?3, ?4, ?5)"
                " ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, lease = ?5",
    [SQL_DELETE] = "DELETE FROM docs WHERE key = ?1",
    [SQL_SET_REVISION] = "UPDATE state SET value = ?1 WHERE name = 'revision'",
    [SQL_ADD_CHANGE] = "INSERT INTO changes (revision, seq, kind, key, value, created, lease)"
                       " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    [SQL_NEXT_CHANGE] = "SELECT kind, seq, key, value, revision, created, lease FROM changes"
                        " WHERE (revision, seq) > (?1, ?2) AND key >= ?3 AND key < ?3 || '" KEY_END "'"
                        " ORDER BY revision, seq LIMIT 1",
    [SQL_TRIM_CHANGES] = "DELETE FROM changes WHERE revision <= ?1",
    [SQL_ADD_AUDIT] = "INSERT INTO audit (revision, time, actor, origin, action, target, detail)"
                      " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    [SQL_TRIM_AUDIT] = "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
    [SQL_LIST_AUDIT] = "SELECT id, revision, time, actor, origin, action, target, detail FROM audit"
                       " WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
    [SQL_ADD_LEASE] = "INSERT INTO leases (ttl_ms) VALUES (?1)",
    [SQL_LIST_LEASES] = "SELECT id, ttl_ms FROM leases",
    [SQL_DELETE_LEASE] = "DELETE FROM leases WHERE id = ?1",
    [SQL_LEASE_DOCS] = "SELECT key FROM docs WHERE lease = ?1 ORDER BY key",
};

static int errno_of(int code)
{
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return EBUSY;
    case SQLITE_FULL: return ENOSPC;
    case SQLITE_NOMEM: return ENOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return EBADMSG;
    case SQLITE_READONLY: return EROFS;
    case SQLITE_PERM:
    case SQLITE_AUTH: return EACCES;
    default: return EIO;
    }
}

static int say_failure(sqlite3 *db, int code, const char *what, struct err *err)
{
    switch (errno_of(code)) {
    case EBUSY: return err_say(err, EBUSY, "%s: another process has it open", what);
    case ENOSPC: return err_say(err, ENOSPC, "%s: the disk is full, nothing was changed; free space for the state folder", what);
    case EBADMSG: return err_say(err, EBADMSG, "%s: the file is damaged (%s); restore a backup", what, sqlite3_errmsg(db));
    default: return err_say(err, errno_of(code), "%s: %s", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
    }
}

int sqlite_failed(struct sqlite_store *s, int code, const char *what, struct err *err)
{
    return say_failure(s->db, code, what, err);
}

sqlite3_stmt *sqlite_statement(struct sqlite_store *s, enum sqlite_sql which, struct err *err)
{
    sqlite3_stmt **slot = &s->statements[which];
    if (!*slot) {
        int code = sqlite3_prepare_v3(s->db, sql[which], -1, SQLITE_PREPARE_PERSISTENT, slot, NULL);
        if (code != SQLITE_OK)
            sqlite_failed(s, code, "prepare", err);
    }
    return *slot;
}

int sqlite_run(struct sqlite_store *s, sqlite3_stmt *statement, const char *what, struct err *err)
{
    int code = sqlite3_step(statement);
    int ret = code == SQLITE_DONE || code == SQLITE_ROW ? 0 : sqlite_failed(s, code, what, err);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ret;
}

static int run_plain(struct sqlite_store *s, enum sqlite_sql which, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, which, err);
    return statement ? sqlite_run(s, statement, sql[which], err) : -EIO;
}

/* ---- documents ---- */

int sqlite_read_doc(sqlite3_stmt *row, int first, struct store_doc *ret_doc, struct err *err)
{
    const char *key = (const char *)sqlite3_column_text(row, first);
    const char *text = (const char *)sqlite3_column_text(row, first + 1);
    if (!key || !text)
        return err_set(err, ENOMEM, "read a document");
    json_t *value = json_loads(text, 0, NULL);
    if (!value)
        return err_say(err, EBADMSG, "%s: the stored value is no JSON; restore a backup", key);
    char *copy = strdup(key);
    if (!copy) {
        json_decref(value);
        return err_set(err, ENOMEM, "read a document");
    }
    *ret_doc = (struct store_doc){.key = copy,
                                  .value = value,
                                  .revision = (uint64_t)sqlite3_column_int64(row, first + 2),
                                  .created = (uint64_t)sqlite3_column_int64(row, first + 3),
                                  .lease = (uint64_t)sqlite3_column_int64(row, first + 4)};
    return 0;
}

/* -ENOENT without a message when there is none. */
static int get_locked(struct sqlite_store *s, const char *key, struct store_doc *ret_doc, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_GET, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
    int code = sqlite3_step(statement);
    int ret = code == SQLITE_ROW    ? sqlite_read_doc(statement, 0, ret_doc, err)
              : code == SQLITE_DONE ? -ENOENT
                                    : sqlite_failed(s, code, key, err);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ret;
}

static int sqlite_get(struct store *store, const char *key, struct store_doc *ret_doc, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    pthread_mutex_lock(&s->lock);
    int ret = get_locked(s, key, ret_doc, err);
    pthread_mutex_unlock(&s->lock);
    return ret == -ENOENT ? err_say(err, ENOENT, "there is no %s", key) : ret;
}

/* What is done with each row of a list. */
typedef int row_fn(void *arg, sqlite3_stmt *row, struct err *err);

static int append_doc(void *arg, sqlite3_stmt *row, struct err *err)
{
    struct store_list *list = arg;
    if ((list->count & (list->count - 1)) == 0) {
        size_t room = list->count ? list->count * 2 : 1;
        struct store_doc *docs = reallocarray(list->docs, room, sizeof *docs);
        if (!docs)
            return err_set(err, ENOMEM, "list documents");
        list->docs = docs;
    }
    int ret = sqlite_read_doc(row, 0, &list->docs[list->count], err);
    list->count += ret == 0;
    return ret;
}

static int append_text(void *arg, sqlite3_stmt *row, struct err *err)
{
    FILE *text = arg;
    const char *value = (const char *)sqlite3_column_text(row, 1);
    bool first = ftell(text) == 1;
    if (!value || (!first && fputc(',', text) < 0) || fputs(value, text) < 0)
        return err_set(err, ENOMEM, "list documents");
    return 0;
}

static int list_locked(struct sqlite_store *s, const char *prefix, row_fn *append, void *arg, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, SQL_LIST, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_text(statement, 1, prefix, -1, SQLITE_STATIC);
    int ret = 0, code = SQLITE_DONE;
    while (ret == 0 && (code = sqlite3_step(statement)) == SQLITE_ROW)
        ret = append(arg, statement, err);
    if (ret == 0 && code != SQLITE_DONE)
        ret = sqlite_failed(s, code, prefix, err);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ret;
}

static int sqlite_list(struct store *store, const char *prefix, struct store_list *ret_list, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    struct store_list list = {0};
    pthread_mutex_lock(&s->lock);
    int ret = list_locked(s, prefix, append_doc, &list, err);
    list.revision = s->revision;
    pthread_mutex_unlock(&s->lock);
    if (ret < 0)
        store_list_clear(&list);
    else
        *ret_list = list;
    return ret;
}

static int sqlite_list_text(struct store *store, const char *prefix, char **ret_text, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    own_free char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return err_set(err, ENOMEM, "list documents");
    fputc('[', out);
    pthread_mutex_lock(&s->lock);
    int ret = list_locked(s, prefix, append_text, out, err);
    pthread_mutex_unlock(&s->lock);
    fputc(']', out);
    if (fclose(out) != 0 && !ret)
        ret = err_set(err, ENOMEM, "list documents");
    if (!ret)
        *ret_text = TAKE(text);
    return ret;
}

/* ---- commits ---- */

/* A commit under way: its revision is the next one, used only if something changes. */
struct commit {
    struct sqlite_store *s;
    uint64_t revision, forgotten;
    unsigned changes;
};

static int add_change(struct commit *c, enum store_event_kind kind, const char *key, const char *value, uint64_t created,
                      uint64_t lease, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(c->s, SQL_ADD_CHANGE, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)c->revision);
    sqlite3_bind_int64(statement, 2, c->changes++);
    sqlite3_bind_int64(statement, 3, kind);
    sqlite3_bind_text(statement, 4, key, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 5, value, -1, SQLITE_STATIC);
    sqlite3_bind_int64(statement, 6, (sqlite3_int64)created);
    sqlite3_bind_int64(statement, 7, (sqlite3_int64)lease);
    return sqlite_run(c->s, statement, key, err);
}

static int put(struct commit *c, const struct store_op *op, const char *text, const struct store_doc *old, struct err *err)
{
    if (op->lease && !sqlite_lease_lives(c->s, op->lease))
        return err_say(err, ENOENT, "%s: lease %llu has ended", op->key, (unsigned long long)op->lease);
    if (old->key && old->lease == op->lease && json_equal(old->value, op->value))
        return 0;
    uint64_t created = old->key ? old->created : c->revision;
    sqlite3_stmt *statement = sqlite_statement(c->s, SQL_PUT, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_text(statement, 1, op->key, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 2, text, -1, SQLITE_STATIC);
    sqlite3_bind_int64(statement, 3, (sqlite3_int64)c->revision);
    sqlite3_bind_int64(statement, 4, (sqlite3_int64)created);
    sqlite3_bind_int64(statement, 5, (sqlite3_int64)op->lease);
    int ret = sqlite_run(c->s, statement, op->key, err);
    return ret < 0 ? ret : add_change(c, STORE_EVENT_PUT, op->key, text, created, op->lease, err);
}

static int remove_doc(struct commit *c, const struct store_op *op, const struct store_doc *old, struct err *err)
{
    if (!old->key)
        return op->expected == STORE_ANY ? 0 : err_say(err, EAGAIN, "there is no %s any more", op->key);
    sqlite3_stmt *statement = sqlite_statement(c->s, SQL_DELETE, err);
    own_free char *text = json_dumps(old->value, JSON_COMPACT);
    if (!statement || !text)
        return err_set(err, ENOMEM, "delete %s", op->key);
    sqlite3_bind_text(statement, 1, op->key, -1, SQLITE_STATIC);
    int ret = sqlite_run(c->s, statement, op->key, err);
    return ret < 0 ? ret : add_change(c, STORE_EVENT_DELETE, op->key, text, old->created, old->lease, err);
}

static int check_expected(const struct store_op *op, const struct store_doc *old, struct err *err)
{
    if (op->expected == STORE_ANY || op->expected == old->revision)
        return 0;
    if (op->expected == 0)
        return err_say(err, EAGAIN, "%s is there already", op->key);
    return err_say(err, EAGAIN, "%s was changed or removed meanwhile; read it again", op->key);
}

static int apply(struct commit *c, const struct store_op *op, const char *text, struct err *err)
{
    struct store_doc old = {0};
    int ret = get_locked(c->s, op->key, &old, err);
    if (ret == -ENOENT)
        ret = 0;
    if (ret == 0)
        ret = check_expected(op, &old, err);
    if (ret == 0 && op->kind == STORE_PUT)
        ret = put(c, op, text, &old, err);
    else if (ret == 0 && op->kind == STORE_DELETE)
        ret = remove_doc(c, op, &old, err);
    store_doc_clear(&old);
    return ret;
}

static int set_number(struct sqlite_store *s, enum sqlite_sql which, uint64_t number, struct err *err)
{
    sqlite3_stmt *statement = sqlite_statement(s, which, err);
    if (!statement)
        return -EIO;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)number);
    return sqlite_run(s, statement, sql[which], err);
}

static int trim(struct commit *c, struct err *err)
{
    if (c->revision % SQLITE_TRIM_EVERY || c->revision <= SQLITE_CHANGES_KEPT)
        return 0;
    c->forgotten = c->revision - SQLITE_CHANGES_KEPT;
    return set_number(c->s, SQL_TRIM_CHANGES, c->forgotten, err);
}

static int apply_all(struct commit *c, const struct store_op *ops, char *const *texts, size_t count,
                     const struct store_audit *audit, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        int ret = apply(c, &ops[i], texts[i], err);
        if (ret < 0)
            return ret;
    }
    if (c->changes) {
        int ret = set_number(c->s, SQL_SET_REVISION, c->revision, err);
        if (ret == 0)
            ret = trim(c, err);
        if (ret < 0)
            return ret;
    }
    if (!audit || (count > 0 && !c->changes))
        return 0;
    return sqlite_audit_add(c->s, audit, c->changes ? c->revision : c->s->revision, err);
}

int sqlite_commit_locked(struct sqlite_store *s, const struct store_op *ops, char *const *texts, size_t count,
                         const struct store_audit *audit, uint64_t *ret_revision, struct err *err)
{
    struct commit c = {.s = s, .revision = s->revision + 1, .forgotten = s->forgotten};
    int ret = run_plain(s, SQL_BEGIN, err);
    if (ret < 0)
        return ret;
    ret = apply_all(&c, ops, texts, count, audit, err);
    if (ret == 0)
        ret = run_plain(s, SQL_COMMIT, err);
    if (ret < 0) {
        if (!sqlite3_get_autocommit(s->db)) /* some failures have rolled back by themselves */
            (void)run_plain(s, SQL_ROLLBACK, NULL);
        return ret;
    }
    if (c.changes) {
        s->revision = c.revision;
        s->forgotten = c.forgotten;
        pthread_cond_broadcast(&s->news);
    }
    if (ret_revision)
        *ret_revision = s->revision;
    return 0;
}

static int sqlite_commit(struct store *store, const struct store_op *ops, char *const *texts, size_t count,
                         const struct store_audit *audit, uint64_t *ret_revision, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    pthread_mutex_lock(&s->lock);
    int ret = sqlite_commit_locked(s, ops, texts, count, audit, ret_revision, err);
    pthread_mutex_unlock(&s->lock);
    return ret;
}

/* ---- opening, closing, copying ---- */

static int read_revision(struct sqlite_store *s, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(s->db, "SELECT value, (SELECT min(revision) FROM changes) FROM state WHERE name = 'revision'",
                                  -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
        s->revision = (uint64_t)sqlite3_column_int64(statement, 0);
        uint64_t oldest = (uint64_t)sqlite3_column_int64(statement, 1);
        s->forgotten = oldest ? oldest - 1 : s->revision;
    }
    sqlite3_finalize(statement);
    return code == SQLITE_ROW ? 0 : sqlite_failed(s, code, "revision", err);
}

/* A heading stands before what was found. */
static const char *last_line(const char *text)
{
    const char *line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

/* Whether the whole file can be read and its tables are in order: damage is to be known before anything relies on it. */
static int check_file(sqlite3 *db, struct err *err)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(db, "PRAGMA quick_check(1)", -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    const char *found = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    int ret = 0;
    if (!found)
        ret = say_failure(db, code, "check", err);
    else if (strcmp(found, "ok") != 0)
        ret = err_say(err, EBADMSG, "the file is damaged (%.100s); restore a backup", last_line(found));
    sqlite3_finalize(statement);
    return ret;
}

static int set_up(struct sqlite_store *s, struct err *err)
{
    static const char pragmas[] = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                                  "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON";
    int code = sqlite3_exec(s->db, pragmas, NULL, NULL, NULL);
    if (code != SQLITE_OK)
        return sqlite_failed(s, code, "open", err);
    int ret = check_file(s->db, err);
    if (ret < 0)
        return ret;
    code = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        return sqlite_failed(s, code, "open", err);
    ret = sqlite_schema_migrate(s->db, err);
    if (ret < 0)
        return ret;
    code = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        return sqlite_failed(s, code, "commit", err);
    ret = read_revision(s, err);
    return ret < 0 ? ret : sqlite_leases_load(s, err);
}

static void free_store(struct sqlite_store *s)
{
    sqlite_leases_stop(s);
    for (size_t i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(s->statements[i]);
    sqlite3_close_v2(s->db);
    pthread_cond_destroy(&s->news);
    pthread_mutex_destroy(&s->lock);
    free(s->leases);
    free(s);
}

static void init_news(struct sqlite_store *s)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->news, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&s->lock, NULL);
}

/* SQLite would make it readable for others; its log gets the mode of the file. */
static int open_file(const char *path, sqlite3 **ret_db, struct err *err)
{
    own_fd int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EEXIST)
        return err_set(err, errno, "create");
    int code = sqlite3_open_v2(path, ret_db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    return code == SQLITE_OK ? 0 : say_failure(*ret_db, code, "open", err);
}

static int sqlite_open(const char *where, struct store **ret_store, struct err *err)
{
    struct sqlite_store *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ENOMEM, "store '%s'", where);
    s->store.class = &store_sqlite;
    init_news(s);
    int ret = open_file(where, &s->db, err);
    if (ret == 0)
        ret = set_up(s, err);
    if (ret < 0) {
        free_store(s);
        return err_ctx(err, "store '%s'", where);
    }
    *ret_store = &s->store;
    return 0;
}

static void sqlite_close(struct store *store)
{
    free_store(sqlite_of(store));
}

static int copy_to(struct sqlite_store *s, sqlite3 *to, struct err *err)
{
    sqlite3_backup *backup = sqlite3_backup_init(to, "main", s->db, "main");
    if (!backup)
        return say_failure(to, sqlite3_errcode(to), "backup", err);
    sqlite3_backup_step(backup, -1);
    int code = sqlite3_backup_finish(backup);
    return code == SQLITE_OK ? 0 : say_failure(to, code, "backup", err);
}

static int sqlite_backup(struct store *store, const char *path, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    struct stat st;
    if (lstat(path, &st) == 0)
        return err_say(err, EEXIST, "'%s' exists already; a backup needs a new file", path);
    sqlite3 *to = NULL;
    int ret = open_file(path, &to, err);
    if (ret == 0) {
        pthread_mutex_lock(&s->lock);
        ret = copy_to(s, to, err);
        pthread_mutex_unlock(&s->lock);
        if (ret == 0)
            ret = check_file(to, err);
    }
    sqlite3_close(to);
    if (ret < 0) {
        unlink(path);
        return err_ctx(err, "'%s'", path);
    }
    return 0;
}

const struct store_class store_sqlite = {
    .name = "sqlite",
    .open = sqlite_open,
    .close = sqlite_close,
    .get = sqlite_get,
    .list = sqlite_list,
    .list_text = sqlite_list_text,
    .commit = sqlite_commit,
    .watch_open = sqlite_watch_open,
    .watch_next = sqlite_watch_next,
    .watch_wake = sqlite_watch_wake,
    .watch_close = sqlite_watch_close,
    .lease_grant = sqlite_lease_grant,
    .lease_keep = sqlite_lease_keep,
    .lease_revoke = sqlite_lease_revoke,
    .audit_list = sqlite_audit_list,
    .backup = sqlite_backup,
};
