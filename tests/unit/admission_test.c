/* Admission: no byte is promised twice, however many ask at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "control/admission.h"
#include "control/json.h"
#include "store/store.h"

#define MIB (UINT64_C(1) << 20)

static const struct admission_host small = {
    .memory_bytes = 4096 * MIB, .reserve_bytes = 1024 * MIB, .cpus = 4, .memory_overcommit = 1.0, .cpu_overcommit = 2.0};

static void capacity_is_what_is_left(void **state)
{
    (void)state;
    struct admission_share capacity = admission_capacity(&small);
    assert_int_equal(capacity.memory_bytes, 3072 * MIB);
    assert_int_equal(capacity.cpus, 8);
    struct admission_host none = {.memory_bytes = MIB, .reserve_bytes = 2 * MIB, .memory_overcommit = 1};
    assert_int_equal(admission_capacity(&none).memory_bytes, 0);
}

static void promises_up_to_the_last_byte(void **state)
{
    (void)state;
    own_json json_t *one = NULL;
    own_json json_t *two = NULL;
    own_json json_t *three = NULL;
    struct err err = {0};
    struct admission_share half = {1536 * MIB, 1}, byte = {1, 0}, cpu = {0, 7};
    assert_int_equal(admission_promise(&small, NULL, "a", &half, &one, &err), 0);
    assert_int_equal(admission_promise(&small, one, "b", &half, &two, &err), 0);
    assert_int_equal(admission_promise(&small, two, "c", &byte, &three, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "not enough memory"));
    assert_int_equal(admission_promise(&small, two, "c", &cpu, &three, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "not enough CPUs"));
    /* the same instance again is no second promise */
    assert_int_equal(admission_promise(&small, two, "b", &half, &three, &err), 0);
    assert_int_equal(admission_promised(three).memory_bytes, 3072 * MIB);
    own_json json_t *released = admission_release(three, "a");
    assert_int_equal(admission_promised(released).memory_bytes, 1536 * MIB);
    assert_null(admission_release(released, "a"));
}

static void huge_needs_do_not_wrap(void **state)
{
    (void)state;
    own_json json_t *document = NULL;
    struct err err = {0};
    struct admission_share huge = {UINT64_MAX, 1}, many = {1, UINT64_MAX};
    assert_int_equal(admission_promise(&small, NULL, "a", &huge, &document, &err), -ENOSPC);
    assert_int_equal(admission_promise(&small, NULL, "a", &many, &document, &err), -ENOSPC);
}

/* ---- many at once ---- */

static struct store *store;
static atomic_bool exceeded;
static atomic_int granted;

static int change_once(const char *id, bool take, unsigned *seed)
{
    struct store_doc old = {0};
    own_json json_t *document = NULL;
    struct admission_share share = {(1 + (uint64_t)rand_r(seed) % 1024) * MIB, 1 + (uint64_t)rand_r(seed) % 3};
    int ret = store_get(store, ADMISSION_KEY, &old, NULL);
    if (ret < 0 && ret != -ENOENT)
        return ret;
    ret = take ? admission_promise(&small, old.value, id, &share, &document, NULL) : 0;
    if (!take)
        document = admission_release(old.value, id);
    struct store_op op = {.kind = STORE_PUT, .key = ADMISSION_KEY, .value = document, .expected = old.revision};
    if (!ret && document)
        ret = store_commit(store, &op, 1, NULL, NULL, NULL);
    store_doc_clear(&old);
    return ret;
}

static void check_now(void)
{
    struct store_doc doc = {0};
    if (store_get(store, ADMISSION_KEY, &doc, NULL) < 0)
        return;
    struct admission_share used = admission_promised(doc.value), capacity = admission_capacity(&small);
    if (used.memory_bytes > capacity.memory_bytes || used.cpus > capacity.cpus)
        exceeded = true;
    store_doc_clear(&doc);
}

static void *ask(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    char id[32];
    for (int i = 0; i < 60; i++) {
        int ret;
        snprintf(id, sizeof id, "%u-%d", (unsigned)(uintptr_t)arg, i % 3);
        bool take = rand_r(&seed) % 3 > 0;
        do
            ret = change_once(id, take, &seed);
        while (ret == -EAGAIN);
        granted += take && !ret;
        check_now();
    }
    return NULL;
}

static void never_twice_under_threads(void **state)
{
    (void)state;
    char path[] = "/tmp/admission_test.XXXXXX", address[64], file[64];
    pthread_t threads[8];
    struct err err = {0};
    assert_non_null(mkdtemp(path));
    snprintf(address, sizeof address, "sqlite:%s/db", path);
    assert_int_equal(store_open(address, &store, &err), 0);
    for (uintptr_t i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask, (void *)(i + 1)), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    assert_false(exceeded);
    assert_true(granted > 8);
    store_close(store);
    static const char *const names[] = {"db", "db-wal", "db-shm", "db.lock"};
    for (int i = 0; i < 4; i++) {
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        unlink(file);
    }
    rmdir(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capacity_is_what_is_left),
        cmocka_unit_test(promises_up_to_the_last_byte),
        cmocka_unit_test(huge_needs_do_not_wrap),
        cmocka_unit_test(never_twice_under_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
