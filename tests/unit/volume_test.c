/* Volumes: with the real store, the real polder-img and the real mke2fs, and e2fsck as the judge. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/own.h"
#include "control/volume.h"

#define MIB (1ull << 20)

struct fixture {
    char dir[64];
    struct store *store;
    struct volumes *volumes;
    struct err err;
};

static char *path_of(const struct fixture *f, const char *file)
{
    static char path[4][256];
    static unsigned turn;
    char *at = path[turn++ % 4];
    snprintf(at, sizeof path[0], "%s/volumes/%s", f->dir, file);
    return at;
}

static bool exists(const struct fixture *f, const char *file)
{
    return access(path_of(f, file), F_OK) == 0;
}

#define ok(call)                                                                                             \
    do {                                                                                                     \
        if ((call) < 0)                                                                                      \
            fail_msg("%s: %s", #call, f->err.message);                                                       \
    } while (0)
#define refused(code, word, call)                                                                            \
    do {                                                                                                     \
        assert_int_equal(-(code), call);                                                                     \
        if (!strstr(f->err.message, word))                                                                   \
            fail_msg("no '%s' in: %s", word, f->err.message);                                                \
    } while (0)

static void open_all(struct fixture *f)
{
    char address[128];
    snprintf(address, sizeof address, "sqlite:%s/state.db", f->dir);
    ok(store_open(address, &f->store, &f->err));
    ok(volumes_open(f->store, f->dir, &f->volumes, &f->err));
}

static void close_all(struct fixture *f)
{
    volumes_close(f->volumes);
    store_close(f->store);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/volume-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    open_all(f);
    *state = f;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    close_all(f);
    nftw(f->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

static void run(const struct fixture *f, const char *const *argv)
{
    struct err err = {0};
    struct child child = {CHILD_INIT, .argv = argv};
    if (child_run(&child, NULL, &err) < 0)
        fail_msg("in %s: %s", f->dir, err.message);
}
#define RUN(f, ...) run(f, (const char *const[]){__VA_ARGS__, NULL})

static json_t *get(struct fixture *f, const char *name)
{
    json_t *value = NULL;
    ok(volume_get(f->volumes, name, &value, &f->err));
    return value;
}

static json_int_t size_of(struct fixture *f, const char *name)
{
    json_t *value = get(f, name);
    json_int_t size = json_integer_value(json_object_get(value, "size_bytes"));
    json_decref(value);
    return size;
}

static size_t length_of(struct fixture *f, const char *name, const char *list)
{
    json_t *value = get(f, name);
    size_t length = json_array_size(json_object_get(value, list));
    json_decref(value);
    return length;
}

/* Puts bytes into the disk at 1 MiB, as a guest would. */
static void scribble(const struct fixture *f, const char *name, const char *text)
{
    char *raw = path_of(f, "scribble"), file[80];
    snprintf(file, sizeof file, "%s.qcow2", name);
    char *image = path_of(f, file);
    RUN(f, "polder-img", "convert", "-f", "qcow2", "-O", "raw", image, raw);
    int fd = open(raw, O_WRONLY);
    assert_int_equal(strlen(text), pwrite(fd, text, strlen(text), MIB));
    close(fd);
    unlink(image);
    RUN(f, "polder-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
    unlink(raw);
}

static void export_to(struct fixture *f, const char *name, const char *format, const char *path)
{
    own_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ok(volume_export(f->volumes, name, format, fd, NULL, &f->err));
}

static void assert_holds(struct fixture *f, const char *name, const char *text)
{
    char *raw = path_of(f, "holds"), got[64] = "";
    export_to(f, name, "raw", raw);
    own_fd int fd = open(raw, O_RDONLY);
    assert_int_equal(strlen(text), pread(fd, got, strlen(text), MIB));
    assert_string_equal(text, got);
    unlink(raw);
}

static void creates_and_removes(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "data", 64 * MIB + 1, "ext4", NULL, &f->err));
    assert_int_equal(65 * MIB, size_of(f, "data"));
    char *raw = path_of(f, "out");
    export_to(f, "data", "raw", raw);
    RUN(f, "e2fsck", "-fn", raw);
    unlink(raw);
    json_t *list = NULL;
    ok(volumes_list(f->volumes, &list, &f->err));
    assert_int_equal(1, json_array_size(list));
    json_int_t used = json_integer_value(json_object_get(json_array_get(list, 0), "used_bytes"));
    assert_in_range(used, 4096, 8 * MIB);
    json_decref(list);
    refused(EEXIST, "already", volume_create(f->volumes, "data", MIB, "", NULL, &f->err));
    refused(EINVAL, "1 MiB", volume_create(f->volumes, "tiny", 1, "", NULL, &f->err));
    refused(EINVAL, "ext4", volume_create(f->volumes, "x", MIB, "xfs", NULL, &f->err));
    refused(EINVAL, "a-z", volume_create(f->volumes, "../x", MIB, "", NULL, &f->err));
    refused(EINVAL, "a-z", volume_create(f->volumes, "-c", MIB, "", NULL, &f->err));
    ok(volume_remove(f->volumes, "data", NULL, &f->err));
    assert_false(exists(f, "data.qcow2") || exists(f, "data.gone"));
    refused(ENOENT, "data", volume_remove(f->volumes, "data", NULL, &f->err));
}

static void snapshots_come_back(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "v", 8 * MIB, "", NULL, &f->err));
    scribble(f, "v", "before");
    ok(volume_snapshot_create(f->volumes, "v", "one", NULL, &f->err));
    refused(EEXIST, "one", volume_snapshot_create(f->volumes, "v", "one", NULL, &f->err));
    assert_int_equal(1, length_of(f, "v", "snapshots"));
    ok(volume_clone(f->volumes, "v", "w", NULL, NULL, &f->err));
    assert_int_equal(0, length_of(f, "w", "snapshots"));
    scribble(f, "w", "after!");
    assert_holds(f, "w", "after!");
    assert_holds(f, "v", "before");
    refused(ENOENT, "two", volume_snapshot_restore(f->volumes, "v", "two", NULL, &f->err));
    ok(volume_snapshot_restore(f->volumes, "v", "one", NULL, &f->err));
    assert_holds(f, "v", "before");
    ok(volume_snapshot_remove(f->volumes, "v", "one", NULL, &f->err));
    assert_int_equal(0, length_of(f, "v", "snapshots"));
    RUN(f, "polder-img", "check", "-f", "qcow2", path_of(f, "v.qcow2"));
}

static void grows_only(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "v", 8 * MIB, "ext4", NULL, &f->err));
    ok(volume_resize(f->volumes, "v", 16 * MIB, NULL, &f->err));
    assert_int_equal(16 * MIB, size_of(f, "v"));
    refused(EINVAL, "larger", volume_resize(f->volumes, "v", 8 * MIB, NULL, &f->err));
}

static void goes_out_and_in(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "v", 8 * MIB, "", NULL, &f->err));
    scribble(f, "v", "precious");
    static const char *const formats[] = {"raw", "qcow2"};
    for (unsigned i = 0; i < 2; i++) {
        char *out = path_of(f, "out");
        export_to(f, "v", formats[i], out);
        own_fd int fd = open(out, O_RDONLY);
        unlink(out);
        ok(volume_import(f->volumes, formats[i], formats[i], fd, NULL, NULL, &f->err));
        assert_holds(f, formats[i], "precious");
        assert_int_equal(8 * MIB, size_of(f, formats[i]));
        lseek(fd, 0, SEEK_SET);
        refused(EEXIST, "already", volume_import(f->volumes, "v", formats[i], fd, NULL, NULL, &f->err));
    }
    own_fd int null = open("/dev/null", O_RDWR);
    refused(EINVAL, "format", volume_import(f->volumes, "y", "iso", null, NULL, NULL, &f->err));
    refused(EIO, "polder-img", volume_import(f->volumes, "y", "vmdk", null, NULL, NULL, &f->err));
    refused(EINVAL, "raw", volume_export(f->volumes, "v", "vmdk", null, NULL, &f->err));
    assert_false(exists(f, "y.new") || exists(f, "y.qcow2"));
}

/* An image that names another volume as its backing file gets nothing of it. */
static void import_reaches_no_other_volume(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "secret", 8 * MIB, "", NULL, &f->err));
    scribble(f, "secret", "secret");
    char *evil = path_of(f, "evil");
    static const char *const names[] = {"secret.qcow2", "../secret.qcow2"};
    for (unsigned i = 0; i < 3; i++) {
        const char *backing = i < 2 ? names[i] : path_of(f, "secret.qcow2");
        RUN(f, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", evil, "8M");
        own_fd int fd = open(evil, O_RDONLY);
        refused(EIO, "secret", volume_import(f->volumes, "mine", "qcow2", fd, NULL, NULL, &f->err));
    }
    unlink(evil);
}

/* Whoever broke out of a machine can write any header into its own volume. */
static void a_volume_shows_no_other(void **state)
{
    struct fixture *f = *state;
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    ok(volume_create(f->volumes, "victim", MIB, "", NULL, &f->err));
    ok(volume_create(f->volumes, "evil", MIB, "", NULL, &f->err));
    RUN(f, "polder-img", "create", "-f", "qcow2", "-b", "victim.qcow2", "-F", "qcow2", path_of(f, "evil.qcow2"));
    refused(EBADMSG, "names another file", volume_export(f->volumes, "evil", "raw", fd, NULL, &f->err));
    refused(EBADMSG, "names another file", volume_clone(f->volumes, "evil", "copy", NULL, NULL, &f->err));
    ok(volume_export(f->volumes, "victim", "raw", fd, NULL, &f->err));
    close(fd);
}

static void one_writes_or_many_read(void **state)
{
    struct fixture *f = *state;
    own_free char *path = NULL, *second = NULL, *third = NULL, *none = NULL;
    ok(volume_create(f->volumes, "v", 8 * MIB, "", NULL, &f->err));
    ok(volume_attach(f->volumes, "v", "aaaa", false, &path, &f->err));
    assert_string_equal(path_of(f, "v.qcow2"), path);
    ok(volume_attach(f->volumes, "v", "aaaa", false, &second, &f->err));
    assert_int_equal(1, length_of(f, "v", "used_by"));
    refused(EBUSY, "aaaa", volume_attach(f->volumes, "v", "bbbb", true, &none, &f->err));
    refused(EBUSY, "aaaa", volume_remove(f->volumes, "v", NULL, &f->err));
    refused(EBUSY, "aaaa", volume_resize(f->volumes, "v", 16 * MIB, NULL, &f->err));
    refused(EBUSY, "aaaa", volume_clone(f->volumes, "v", "w", NULL, NULL, &f->err));
    refused(EBUSY, "aaaa", volume_snapshot_create(f->volumes, "v", "s", NULL, &f->err));
    ok(volume_detach(f->volumes, "v", "aaaa", &f->err));
    ok(volume_detach(f->volumes, "v", "aaaa", &f->err));
    ok(volume_attach(f->volumes, "v", "bbbb", true, &third, &f->err));
    free(TAKE(second));
    ok(volume_attach(f->volumes, "v", "cccc", true, &second, &f->err));
    refused(EBUSY, "read-only", volume_attach(f->volumes, "v", "dddd", false, &none, &f->err));
    ok(volume_clone(f->volumes, "v", "w", NULL, NULL, &f->err));
    ok(volume_detach(f->volumes, "v", "bbbb", &f->err));
    ok(volume_detach(f->volumes, "v", "cccc", &f->err));
    ok(volume_detach(f->volumes, "nosuch", "cccc", &f->err));
    ok(volume_remove(f->volumes, "v", NULL, &f->err));
}

/* ---- what an end at any instant leaves, set up by hand ---- */

static void reconcile(struct fixture *f, const char *word)
{
    json_t *actions = NULL;
    close_all(f);
    open_all(f);
    ok(volumes_reconcile(f->volumes, &actions, &f->err));
    own_free char *text = json_dumps(actions, 0);
    if (word ? !strstr(text, word) : json_array_size(actions) != 0)
        fail_msg("'%s' was expected of: %s", word ? word : "nothing", text);
    json_decref(actions);
    actions = NULL;
    ok(volumes_reconcile(f->volumes, &actions, &f->err));
    assert_int_equal(0, json_array_size(actions)); /* once is enough */
    json_decref(actions);
}

static void put(struct fixture *f, const char *name, json_t *value)
{
    char key[80];
    snprintf(key, sizeof key, "volumes/%s", name);
    struct store_op op = {.kind = value ? STORE_PUT : STORE_DELETE, .key = key, .value = value, .expected = STORE_ANY};
    ok(store_commit(f->store, &op, 1, NULL, NULL, &f->err));
    json_decref(value);
}

static void move(const struct fixture *f, const char *from, const char *to)
{
    assert_int_equal(0, rename(path_of(f, from), path_of(f, to)));
}

static void mends_what_was_cut_off(void **state)
{
    struct fixture *f = *state;
    ok(volume_create(f->volumes, "v", 8 * MIB, "ext4", NULL, &f->err));
    reconcile(f, NULL);
    move(f, "v.qcow2", "v.new"); /* in the store, and not yet named */
    reconcile(f, "finished");
    move(f, "v.qcow2", "v.gone"); /* to be removed, and still in the store */
    reconcile(f, "took back");
    RUN(f, "polder-img", "snapshot", "-f", "qcow2", "-c", "s", path_of(f, "v.qcow2"));
    RUN(f, "polder-img", "resize", "-f", "qcow2", path_of(f, "v.qcow2"), "16M");
    json_t *value = get(f, "v");
    json_object_set_new(value, "working", json_string("resize"));
    put(f, "v", value);
    reconcile(f, "looked into");
    assert_int_equal(16 * MIB, size_of(f, "v"));
    assert_int_equal(1, length_of(f, "v", "snapshots"));
    put(f, "v", NULL); /* the store is older than the file */
    reconcile(f, "adopted");
    assert_int_equal(16 * MIB, size_of(f, "v"));
    put(f, "v", NULL);
    move(f, "v.qcow2", "v.gone"); /* gone from the store */
    reconcile(f, "removed");
    assert_false(exists(f, "v.gone"));
}

static void tells_of_a_file_that_is_gone(void **state)
{
    struct fixture *f = *state;
    own_free char *path = NULL;
    ok(volume_create(f->volumes, "v", 8 * MIB, "", NULL, &f->err));
    move(f, "v.qcow2", "elsewhere");
    reconcile(f, "gone");
    refused(EIO, "bring back", volume_attach(f->volumes, "v", "aaaa", false, &path, &f->err));
    move(f, "elsewhere", "v.qcow2");
    reconcile(f, "looked into");
    json_t *value = get(f, "v");
    assert_null(json_object_get(value, "error"));
    json_decref(value);
    assert_int_equal(0, close(creat(path_of(f, "junk.qcow2"), 0600)));
    json_t *actions = NULL;
    ok(volumes_reconcile(f->volumes, &actions, &f->err));
    assert_true(exists(f, "junk.qcow2")); /* whatever it is, it is not ours to remove */
    json_decref(actions);
    assert_int_equal(0, mkdir(path_of(f, ".work-abcdef"), 0700));
    assert_int_equal(0, close(creat(path_of(f, ".work-abcdef/disk"), 0600)));
    ok(volumes_reconcile(f->volumes, &actions, &f->err));
    assert_false(exists(f, ".work-abcdef"));
    json_decref(actions);
    ok(volume_remove(f->volumes, "v", NULL, &f->err));
}

static void root_disks_are_copies(void **state)
{
    struct fixture *f = *state;
    char *one = path_of(f, "one"), *two = path_of(f, "two"), *raw = path_of(f, "raw");
    ok(volume_root_create(f->volumes, one, 1024 * MIB, &f->err));
    ok(volume_root_create(f->volumes, two, 1024 * MIB, &f->err));
    refused(EEXIST, "two", volume_root_create(f->volumes, two, 1024 * MIB, &f->err));
    RUN(f, "cmp", one, two);
    RUN(f, "polder-img", "convert", "-f", "qcow2", "-O", "raw", one, raw);
    RUN(f, "e2fsck", "-fn", raw);
    struct stat st;
    assert_int_equal(0, stat(one, &st));
    assert_true(st.st_blocks * 512 < 8 * (off_t)MIB);
}

static void *create_many(void *arg)
{
    struct fixture *f = arg;
    intptr_t made = 0;
    for (int i = 0; i < 4; i++) {
        struct err err = {0};
        char name[8];
        snprintf(name, sizeof name, "v%d", i);
        made += volume_create(f->volumes, name, MIB, "", NULL, &err) == 0;
    }
    return (void *)made; // NOLINT
}

static void one_of_two_wins(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[2];
    intptr_t made = 0;
    for (int i = 0; i < 2; i++)
        assert_int_equal(0, pthread_create(&threads[i], NULL, create_many, f));
    for (int i = 0; i < 2; i++) {
        void *count;
        pthread_join(threads[i], &count);
        made += (intptr_t)count;
    }
    assert_int_equal(4, made);
    reconcile(f, NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(creates_and_removes),     TEST(snapshots_come_back),          TEST(grows_only),
        TEST(goes_out_and_in),         TEST(import_reaches_no_other_volume), TEST(a_volume_shows_no_other),
        TEST(one_writes_or_many_read),
        TEST(mends_what_was_cut_off),  TEST(tells_of_a_file_that_is_gone), TEST(root_disks_are_copies),
        TEST(one_of_two_wins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
