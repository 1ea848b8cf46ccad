/* The contract of store.h, for every driver: each test opens the store at an address of the driver. */
#include "cmocka_all.h"

#include <errno.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/sqlite_impl.h"
#include "store/store.h"

struct place {
    char dir[64], path[96], address[112];
    struct store *store;
};

static void open_again(struct place *p)
{
    struct err err = {0};
    store_close(p->store);
    p->store = NULL;
    if (store_open(p->address, &p->store, &err) < 0)
        fail_msg("%s", err.message);
}

static int set_up(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    strcpy(p->dir, "/tmp/polder-store-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->path, sizeof p->path, "%s/state.db", p->dir);
    snprintf(p->address, sizeof p->address, "sqlite:%s", p->path);
    open_again(p);
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    char command[128];
    store_close(p->store);
    snprintf(command, sizeof command, "rm -r %s", p->dir);
    int ret = system(command);
    free(p);
    return ret;
}

static int put(struct store *store, const char *key, const char *text, uint64_t expected, uint64_t *ret_revision)
{
    json_t *value = json_loads(text, 0, NULL);
    assert_non_null(value);
    struct store_op op = {.kind = STORE_PUT, .key = key, .value = value, .expected = expected};
    int ret = store_commit(store, &op, 1, NULL, ret_revision, NULL);
    json_decref(value);
    return ret;
}

static int drop(struct store *store, const char *key, uint64_t expected)
{
    struct store_op op = {.kind = STORE_DELETE, .key = key, .expected = expected};
    return store_commit(store, &op, 1, NULL, NULL, NULL);
}

static void assert_value(struct store *store, const char *key, const char *text)
{
    struct store_doc doc = {0};
    assert_int_equal(store_get(store, key, &doc, NULL), 0);
    char *found = json_dumps(doc.value, JSON_COMPACT);
    assert_string_equal(found, text);
    free(found);
    store_doc_clear(&doc);
}

static void test_compare_and_swap(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    uint64_t first, second, same;
    assert_int_equal(put(s, "instances/web", "{\"a\":1}", 0, &first), 0);
    assert_int_equal(put(s, "instances/web", "{\"a\":2}", 0, NULL), -EAGAIN);
    assert_int_equal(put(s, "instances/web", "{\"a\":2}", first + 1, NULL), -EAGAIN);
    assert_value(s, "instances/web", "{\"a\":1}");
    assert_int_equal(put(s, "instances/web", "{\"a\":2}", first, &second), 0);
    assert_int_equal(second, first + 1);
    assert_int_equal(put(s, "instances/web", "{\"a\":2}", STORE_ANY, &same), 0);
    assert_int_equal(same, second); /* equal: no change */
    assert_int_equal(drop(s, "instances/web", first), -EAGAIN);
    assert_int_equal(drop(s, "instances/web", second), 0);
    assert_int_equal(drop(s, "instances/web", second), -EAGAIN);
    assert_int_equal(drop(s, "instances/web", STORE_ANY), 0);
    struct store_doc doc;
    assert_int_equal(store_get(s, "instances/web", &doc, NULL), -ENOENT);
}

static void test_commits_are_whole(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    json_t *value = json_object();
    struct store_op ops[] = {
        {.kind = STORE_PUT, .key = "a/1", .value = value, .expected = 0},
        {.kind = STORE_PUT, .key = "a/2", .value = value, .expected = 0},
        {.kind = STORE_CHECK, .key = "a/3", .expected = 7},
    };
    assert_int_equal(store_commit(s, ops, 3, NULL, NULL, NULL), -EAGAIN);
    struct store_list list = {0};
    assert_int_equal(store_list_prefix(s, "", &list, NULL), 0);
    assert_int_equal(list.count, 0);
    assert_int_equal(list.revision, 0);
    store_list_clear(&list);
    ops[2].expected = 0;
    uint64_t revision;
    assert_int_equal(store_commit(s, ops, 3, NULL, &revision, NULL), 0);
    assert_int_equal(revision, 1);
    assert_int_equal(store_list_prefix(s, "a/", &list, NULL), 0);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.docs[1].key, "a/2");
    assert_int_equal(list.docs[0].revision, 1);
    store_list_clear(&list);
    json_decref(value);
}

static void test_keys_and_values(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    static const char *const bad[] = {"", "/a", "a/", "a//b", "A", "a b", "a\x7f", "\xc3\xa9", "a%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(put(s, bad[i], "{}", STORE_ANY, NULL), -EINVAL);
    char key[STORE_KEY_MAX + 2];
    memset(key, 'k', sizeof key);
    key[STORE_KEY_MAX + 1] = 0;
    assert_int_equal(put(s, key, "{}", STORE_ANY, NULL), -EINVAL);
    key[STORE_KEY_MAX] = 0;
    assert_int_equal(put(s, key, "{}", STORE_ANY, NULL), 0);
    assert_int_equal(put(s, "a.b_c-d/e", "{\"text\":\"\\u0001 \xe2\x82\xac ' \\\"\"}", STORE_ANY, NULL), 0);
    assert_value(s, "a.b_c-d/e", "{\"text\":\"\\u0001 \xe2\x82\xac ' \\\"\"}");
    char *large = malloc(STORE_VALUE_MAX + 3);
    memset(large, 'x', STORE_VALUE_MAX);
    strcpy(large + STORE_VALUE_MAX - 2, "\"]");
    memcpy(large, "[\"", 2);
    assert_int_equal(put(s, "large", large, STORE_ANY, NULL), 0); /* just fits */
    strcpy(large + STORE_VALUE_MAX - 2, "x\"]");
    assert_int_equal(put(s, "large", large, STORE_ANY, NULL), -E2BIG);
    free(large);
}

static void test_prefixes(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    static const char *const keys[] = {"a", "a-b", "a/b", "a/c", "aa", "b/a"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_int_equal(put(s, keys[i], "{}", 0, NULL), 0);
    static const struct { const char *prefix; size_t count; } cases[] = {{"", 6}, {"a", 5}, {"a/", 2}, {"b/a", 1}, {"c", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct store_list list = {0};
        assert_int_equal(store_list_prefix(s, cases[i].prefix, &list, NULL), 0);
        assert_int_equal(list.count, cases[i].count);
        store_list_clear(&list);
    }
    char *text = NULL;
    assert_int_equal(put(s, "a/b", "{\"n\": [1, \"\\n\"]}", STORE_ANY, NULL), 0);
    assert_int_equal(store_list_text(s, "a/", &text, NULL), 0);
    assert_string_equal(text, "[{\"n\":[1,\"\\n\"]},{}]");
    free(text);
    assert_int_equal(store_list_text(s, "c", &text, NULL), 0);
    assert_string_equal(text, "[]");
    free(text);
    assert_int_equal(store_list_text(s, "/", &text, NULL), -EINVAL);
}

static void test_all_is_kept(void **state)
{
    struct place *p = *state;
    struct store_audit audit = {.actor = "uid:0", .origin = "unix", .action = "instance.create", .target = "instances/web"};
    json_t *value = json_pack("{s:i}", "cpus", 2);
    struct store_op op = {.kind = STORE_PUT, .key = "instances/web", .value = value};
    assert_int_equal(store_commit(p->store, &op, 1, &audit, NULL, NULL), 0);
    json_decref(value);
    open_again(p);
    assert_value(p->store, "instances/web", "{\"cpus\":2}");
    json_t *records;
    assert_int_equal(store_audit_list(p->store, 0, 10, &records, NULL), 0);
    assert_int_equal(json_array_size(records), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(records, 0), "actor")), "uid:0");
    json_decref(records);
    uint64_t revision;
    assert_int_equal(put(p->store, "b", "{}", 0, &revision), 0);
    assert_int_equal(revision, 2);
    struct stat st;
    assert_int_equal(stat(p->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_audit(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    struct store_audit audit = {.action = "instance.exec", .detail = "ls"};
    for (int i = 0; i < 5; i++)
        assert_int_equal(store_commit(s, NULL, 0, &audit, NULL, NULL), 0);
    struct store_op failing = {.kind = STORE_CHECK, .key = "none", .expected = 3};
    assert_int_equal(store_commit(s, &failing, 1, &audit, NULL, NULL), -EAGAIN);
    json_t *records;
    assert_int_equal(store_audit_list(s, 4, 2, &records, NULL), 0);
    assert_int_equal(json_array_size(records), 2);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(records, 0), "id")), 3);
    assert_true(json_is_null(json_object_get(json_array_get(records, 0), "actor")));
    json_decref(records);
    assert_int_equal(store_audit_list(s, 0, 100, &records, NULL), 0);
    assert_int_equal(json_array_size(records), 5);
    json_decref(records);
}

static void assert_next(struct store_watch *watch, enum store_event_kind kind, const char *key, uint64_t revision)
{
    struct store_event event;
    assert_int_equal(store_watch_next(watch, 10000, &event, NULL), 1);
    assert_int_equal(event.kind, kind);
    assert_string_equal(event.doc.key, key);
    assert_int_equal(event.doc.revision, revision);
    store_doc_clear(&event.doc);
}

/* Also where nothing but records is made: an exec, say, changes no document. */
static void test_old_records_go(void **state)
{
    struct place *p = *state;
    struct store_audit audit = {.action = "instance.exec"};
    sqlite3 *db;
    json_t *records;
    store_close(p->store);
    p->store = NULL;
    assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100499)"
                                      " INSERT INTO audit (revision, time, action) SELECT 0, '', 'x' FROM n", NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(db);
    open_again(p);
    for (int i = 0; i < 501; i++)
        assert_int_equal(store_commit(p->store, NULL, 0, &audit, NULL, NULL), 0);
    assert_int_equal(store_audit_list(p->store, 1002, 10, &records, NULL), 0);
    assert_int_equal(json_array_size(records), 1); /* 101,000 were made, of which the last 100,000 are there */
    json_decref(records);
}

static void test_watch_sees_all_in_order(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    struct store_event event;
    struct store_watch *all, *some;
    assert_int_equal(put(s, "a/1", "{}", 0, NULL), 0);
    assert_int_equal(store_watch_open(s, "", 0, &all, NULL), 0);
    assert_int_equal(store_watch_open(s, "a/", 1, &some, NULL), 0);
    assert_int_equal(store_watch_next(some, 0, &event, NULL), 0);
    assert_int_equal(put(s, "b", "{}", 0, NULL), 0);
    assert_int_equal(put(s, "a/2", "{}", 0, NULL), 0);
    assert_int_equal(drop(s, "a/1", STORE_ANY), 0);
    assert_next(some, STORE_EVENT_PUT, "a/2", 3);
    assert_next(some, STORE_EVENT_DELETE, "a/1", 4);
    assert_next(all, STORE_EVENT_PUT, "a/1", 1);
    assert_next(all, STORE_EVENT_PUT, "b", 2);
    store_watch_wake(all);
    assert_int_equal(store_watch_next(all, -1, &event, NULL), 0);
    assert_next(all, STORE_EVENT_PUT, "a/2", 3);
    assert_int_equal(store_watch_next(some, 1, &event, NULL), 0);
    store_watch_close(all);
    store_watch_close(some);
}

struct writer {
    struct store *store;
    unsigned number, lost; /* lost: compare-and-swaps that another thread won */
};

#define WRITERS 4
#define STEPS 50

static void *count_up(void *arg)
{
    struct writer *w = arg;
    for (unsigned done = 0; done < STEPS;) {
        struct store_doc doc;
        if (store_get(w->store, "counter", &doc, NULL) < 0)
            return (void *)1;
        json_t *value = json_pack("{s:I}", "n", json_integer_value(json_object_get(doc.value, "n")) + 1);
        struct store_op op = {.kind = STORE_PUT, .key = "counter", .value = value, .expected = doc.revision};
        int ret = store_commit(w->store, &op, 1, NULL, NULL, NULL);
        done += ret == 0;
        w->lost += ret == -EAGAIN;
        json_decref(value);
        store_doc_clear(&doc);
        if (ret < 0 && ret != -EAGAIN)
            return (void *)1;
    }
    return NULL;
}

static void test_threads_lose_nothing(void **state)
{
    struct store *s = ((struct place *)*state)->store;
    struct store_watch *watch;
    pthread_t threads[WRITERS];
    struct writer writers[WRITERS];
    assert_int_equal(put(s, "counter", "{\"n\":0}", 0, NULL), 0);
    assert_int_equal(store_watch_open(s, "counter", 1, &watch, NULL), 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){.store = s, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, &writers[i]), 0);
    }
    for (unsigned i = 0; i < WRITERS * STEPS; i++) { /* each commit is seen once, in order */
        struct store_event event;
        assert_int_equal(store_watch_next(watch, 60000, &event, NULL), 1);
        assert_int_equal(json_integer_value(json_object_get(event.doc.value, "n")), i + 1);
        store_doc_clear(&event.doc);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        void *bad;
        assert_int_equal(pthread_join(threads[i], &bad), 0);
        assert_null(bad);
    }
    store_watch_close(watch);
}

static int put_leased(struct store *s, const char *key, uint64_t lease)
{
    json_t *value = json_object();
    struct store_op op = {.kind = STORE_PUT, .key = key, .value = value, .expected = STORE_ANY, .lease = lease};
    int ret = store_commit(s, &op, 1, NULL, NULL, NULL);
    json_decref(value);
    return ret;
}

static void test_leases(void **state)
{
    struct place *p = *state;
    uint64_t brief, lasting;
    struct store_watch *watch;
    assert_int_equal(store_lease_grant(p->store, 50, &brief, NULL), 0);
    assert_int_equal(store_lease_grant(p->store, 3600000, &lasting, NULL), 0);
    assert_int_equal(put_leased(p->store, "nodes/b", lasting), 0);
    assert_int_equal(store_watch_open(p->store, "nodes/", 1, &watch, NULL), 0);
    if (put_leased(p->store, "nodes/a", brief) == 0) { /* unless this machine is slower than the lease */
        assert_next(watch, STORE_EVENT_PUT, "nodes/a", 2);
        assert_next(watch, STORE_EVENT_DELETE, "nodes/a", 3);
    }
    assert_int_equal(store_lease_keep(p->store, brief, NULL), -ENOENT);
    assert_int_equal(put_leased(p->store, "nodes/a", brief), -ENOENT);
    store_watch_close(watch);
    open_again(p);
    assert_value(p->store, "nodes/b", "{}");
    assert_int_equal(store_lease_keep(p->store, lasting, NULL), 0);
    assert_int_equal(store_lease_revoke(p->store, lasting, NULL), 0);
    struct store_doc doc;
    assert_int_equal(store_get(p->store, "nodes/b", &doc, NULL), -ENOENT);
}

static void test_backup(void **state)
{
    struct place *p = *state;
    char copy[128], address[160];
    struct store *restored;
    snprintf(copy, sizeof copy, "%s/copy.db", p->dir);
    snprintf(address, sizeof address, "sqlite:%s", copy);
    assert_int_equal(put(p->store, "a", "{\"n\":1}", 0, NULL), 0);
    assert_int_equal(store_backup(p->store, copy, NULL), 0);
    assert_int_equal(store_backup(p->store, copy, NULL), -EEXIST);
    assert_int_equal(put(p->store, "a", "{\"n\":2}", STORE_ANY, NULL), 0);
    assert_int_equal(store_open(address, &restored, NULL), 0);
    assert_value(restored, "a", "{\"n\":1}");
    store_close(restored);
}

static void test_one_process_at_a_time(void **state)
{
    struct place *p = *state;
    pid_t pid = fork();
    if (pid == 0) {
        struct store *second;
        struct err err = {0};
        _exit(store_open(p->address, &second, &err) == -EBUSY ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(put(p->store, "a", "{}", 0, NULL), 0);
}

/* ---- of the sqlite driver ---- */

static void test_forgotten_changes(void **state)
{
    struct place *p = *state;
    struct store_watch *watch, *open_watch;
    struct store_event event;
    char text[32];
    store_close(p->store);
    p->store = NULL;
    sqlite3 *db; /* as if so much had happened */
    assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "WITH RECURSIVE n(v) AS (VALUES (1) UNION ALL SELECT v + 1 FROM n WHERE v < 20998) "
                                      "INSERT INTO changes SELECT v, 0, 0, 'old', '{}', 1, 0 FROM n;"
                                      "UPDATE state SET value = 20998", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    open_again(p);
    assert_int_equal(store_watch_open(p->store, "", 500, &open_watch, NULL), 0);
    for (int i = 0; i < 4; i++) {
        snprintf(text, sizeof text, "{\"n\":%d}", i);
        assert_int_equal(put(p->store, "a", text, STORE_ANY, NULL), 0);
    }
    assert_int_equal(store_watch_open(p->store, "", 500, &watch, NULL), -ERANGE);
    assert_int_equal(store_watch_next(open_watch, 0, &event, NULL), -ERANGE);
    store_watch_close(open_watch);
    assert_int_equal(store_watch_open(p->store, "a", 20998, &watch, NULL), 0);
    assert_next(watch, STORE_EVENT_PUT, "a", 20999);
    store_watch_close(watch);
    open_again(p);
    assert_int_equal(store_watch_open(p->store, "", 500, &watch, NULL), -ERANGE);
}

/* A file of each older schema, with a document, opens and works. */
static void test_migrations(void **state)
{
    struct place *p = *state;
    for (unsigned version = 1; version < sqlite_schema_version; version++) {
        char pragma[80];
        store_close(p->store);
        p->store = NULL;
        unlink(p->path);
        sqlite3 *db;
        assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
        for (unsigned i = 0; i < version; i++)
            assert_int_equal(sqlite3_exec(db, sqlite_schema_steps[i], NULL, NULL, NULL), SQLITE_OK);
        snprintf(pragma, sizeof pragma, "PRAGMA user_version=%u; PRAGMA application_id=1347175506", version);
        assert_int_equal(sqlite3_exec(db, pragma, NULL, NULL, NULL), SQLITE_OK);
        assert_int_equal(sqlite3_exec(db, "INSERT INTO docs (key, value, revision, created) VALUES ('a', '{\"n\":1}', 1, 1);"
                                          "INSERT INTO changes (revision, seq, kind, key, value, created) "
                                          "VALUES (1, 0, 0, 'a', '{\"n\":1}', 1);"
                                          "UPDATE state SET value = 1", NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(db);
        open_again(p);
        assert_value(p->store, "a", "{\"n\":1}");
        assert_int_equal(put(p->store, "a", "{\"n\":2}", 1, NULL), 0);
    }
}

static void test_files_that_are_refused(void **state)
{
    struct place *p = *state;
    struct store *store;
    struct err err = {0};
    char newer[64];
    store_close(p->store);
    p->store = NULL;
    sqlite3 *db;
    assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
    snprintf(newer, sizeof newer, "PRAGMA user_version=%u", sqlite_schema_version + 1);
    assert_int_equal(sqlite3_exec(db, newer, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(store_open(p->address, &store, &err), -EPROTONOSUPPORT);
    assert_non_null(strstr(err.message, "newer version"));
    FILE *f = fopen(p->path, "w");
    for (int i = 0; i < 1000; i++)
        fprintf(f, "this is no database\n");
    fclose(f);
    assert_int_equal(store_open(p->address, &store, &err), -EBADMSG);
    unlink(p->path);
    assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE cars (n)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(store_open(p->address, &store, &err), -EINVAL);
    assert_int_equal(store_open("etcd:nowhere", &store, &err), -EINVAL);
    assert_int_equal(store_open("sqlite:/nowhere/at/all", &store, &err), -ENOENT);
}

/* Killed at random moments: what was acknowledged is there, commits are whole. */
static void test_kills(void **state)
{
    struct place *p = *state;
    store_close(p->store);
    p->store = NULL;
    for (unsigned round = 0; round < 5; round++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        pid_t pid = fork();
        if (pid == 0) {
            struct store *s;
            if (store_open(p->address, &s, NULL) < 0)
                _exit(1);
            for (int i = 1;; i++) {
                json_t *value = json_pack("{s:i}", "n", i);
                struct store_op ops[] = {{.kind = STORE_PUT, .key = "a", .value = value, .expected = STORE_ANY},
                                         {.kind = STORE_PUT, .key = "b", .value = value, .expected = STORE_ANY}};
                if (store_commit(s, ops, 2, NULL, NULL, NULL) < 0 || write(ends[1], &i, sizeof i) != sizeof i)
                    _exit(1);
                json_decref(value);
            }
        }
        close(ends[1]);
        int acknowledged = 0, next;
        while (acknowledged < 20 && read(ends[0], &next, sizeof next) == sizeof next)
            acknowledged = next;
        usleep(round * 700);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        while (read(ends[0], &next, sizeof next) == sizeof next)
            acknowledged = next;
        close(ends[0]);
        assert_true(acknowledged >= 20);
        open_again(p);
        struct store_doc a, b;
        assert_int_equal(store_get(p->store, "a", &a, NULL), 0);
        assert_int_equal(store_get(p->store, "b", &b, NULL), 0);
        assert_true(json_equal(a.value, b.value));
        assert_true(json_integer_value(json_object_get(a.value, "n")) >= acknowledged);
        store_doc_clear(&a);
        store_doc_clear(&b);
        store_close(p->store);
        p->store = NULL;
    }
}

#define STORE_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_compare_and_swap),
        STORE_TEST(test_commits_are_whole),
        STORE_TEST(test_keys_and_values),
        STORE_TEST(test_prefixes),
        STORE_TEST(test_all_is_kept),
        STORE_TEST(test_audit),
        STORE_TEST(test_old_records_go),
        STORE_TEST(test_watch_sees_all_in_order),
        STORE_TEST(test_threads_lose_nothing),
        STORE_TEST(test_leases),
        STORE_TEST(test_backup),
        STORE_TEST(test_one_process_at_a_time),
        STORE_TEST(test_forgotten_changes),
        STORE_TEST(test_migrations),
        STORE_TEST(test_files_that_are_refused),
        STORE_TEST(test_kills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
