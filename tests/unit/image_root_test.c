/* Root file systems: an image made here, its erofs made once by several at a time, and read back by fsck.erofs. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/child.h"
#include "image/rootfs.h"
#include "image/rootfs_child.h"
#include "image_tar.h"
#include "sandbox/sandbox.h"

struct place {
    char dir[64];
    struct image_store *store;
    struct err err;
};

#define ok(call)                                                                                             \
    do {                                                                                                     \
        if ((call) < 0)                                                                                      \
            fail_msg("%s: %s", #call, p->err.message);                                                       \
    } while (0)

static const char *path_in(const struct place *p, const char *name)
{
    static char path[2][256];
    static unsigned turn;
    char *at = path[turn++ % 2];
    snprintf(at, sizeof path[0], "%s/%s", p->dir, name);
    return at;
}

static int set_up(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    strcpy(p->dir, "/tmp/root-test-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    ok(image_store_open(path_in(p, "images"), &p->store, &p->err));
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    image_store_close(p->store);
    assert_int_equal(0, rootfs_remove(AT_FDCWD, p->dir));
    free(p);
    return 0;
}

static int layer_fd(struct tar *tar)
{
    tar_end(tar);
    int fd = memfd_create("layer", MFD_CLOEXEC);
    assert_int_equal(tar->len, write(fd, tar->bytes, tar->len));
    lseek(fd, 0, SEEK_SET);
    free(tar->bytes);
    return fd;
}

static void add_image(struct place *p, const char *ref, bool hostile)
{
    struct tar lower = {0}, upper = {0};
    char digest[IMAGE_DIGEST_SIZE];
    tar_add(&lower, (struct tar_entry){.name = "etc", .type = '5'});
    tar_add(&lower, (struct tar_entry){.name = "etc/hostname", .content = "lower", .uid = 4242});
    tar_add(&lower, (struct tar_entry){.name = "etc/gone", .content = "lower"});
    tar_add(&lower, (struct tar_entry){.name = "link", .type = '2', .link = "/etc/hostname"});
    tar_add(&upper, (struct tar_entry){.name = "etc/hostname", .content = "upper", .uid = 4243, .mode = 04755});
    tar_add(&upper, (struct tar_entry){.name = "etc/.wh.gone"});
    if (hostile)
        tar_add(&upper, (struct tar_entry){.name = "../evil", .content = "x"});
    struct image_layer_source layers[] = {{.fd = layer_fd(&lower)}, {.fd = layer_fd(&upper)}};
    json_t *config = json_object();
    ok(image_add(p->store, ref, layers, 2, config, NULL, NULL, digest, &p->err));
    json_decref(config);
    close(layers[0].fd);
    close(layers[1].fd);
}

struct asked {
    struct place *p;
    char *path;
    int result;
};

static void *ask(void *arg)
{
    struct asked *asked = arg;
    struct err err = {0};
    char digest[IMAGE_DIGEST_SIZE];
    asked->result = image_root(asked->p->store, "test/one", NULL, &asked->path, digest, &err);
    return NULL;
}

static bool needs_root(void)
{
    if (geteuid() == 0)
        return false;
    print_message("SKIP: unpacking images takes root\n");
    return true;
}

static void made_once_and_shared(void **state)
{
    struct place *p = *state;
    struct asked asked[3];
    pthread_t threads[3];
    struct stat first, st;
    if (needs_root())
        skip();
    add_image(p, "test/one", false);
    for (int i = 0; i < 3; i++) {
        asked[i] = (struct asked){p, NULL, -1};
        assert_int_equal(0, pthread_create(&threads[i], NULL, ask, &asked[i]));
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(0, asked[i].result);
        assert_int_equal(0, stat(asked[i].path, i ? &st : &first));
        assert_true(i == 0 || st.st_ino == first.st_ino);
    }
    const char *out = path_in(p, "out");
    char extract[300], text[16] = "";
    snprintf(extract, sizeof extract, "--extract=%s", out);
    struct child fsck = {CHILD_INIT, .argv = (const char *const[]){"fsck.erofs", extract, asked[0].path, NULL}};
    ok(child_run(&fsck, NULL, &p->err));
    assert_int_equal(0, stat(path_in(p, "out/etc/hostname"), &st));
    assert_int_equal(0755, st.st_mode & 0777); /* fsck.erofs sets owners last, which takes set-id bits away */
    assert_int_equal(4243, st.st_uid);
    int fd = open(path_in(p, "out/etc/hostname"), O_RDONLY);
    assert_int_equal(5, read(fd, text, sizeof text));
    close(fd);
    assert_string_equal("upper", text);
    assert_int_not_equal(0, access(path_in(p, "out/etc/gone"), F_OK));
    for (int i = 0; i < 3; i++)
        free(asked[i].path);
}

static void goes_with_its_image(void **state)
{
    struct place *p = *state;
    char *path = NULL, digest[IMAGE_DIGEST_SIZE];
    uint64_t bytes = 0;
    struct image_gc_result gone;
    if (needs_root())
        skip();
    add_image(p, "test/one", false);
    ok(image_root(p->store, "test/one", NULL, &path, digest, &p->err));
    char left[128];
    snprintf(left, sizeof left, "images/roots/%064d.work", 0);
    assert_int_equal(0, mkdir(path_in(p, left), 0700));
    ok(image_roots_prune(p->store, &bytes, &p->err));
    assert_int_equal(0, access(path, F_OK));
    assert_int_not_equal(0, access(path_in(p, left), F_OK));
    ok(image_remove(p->store, "test/one", &p->err));
    ok(image_gc(p->store, NULL, 0, &gone, &p->err));
    ok(image_roots_prune(p->store, &bytes, &p->err));
    assert_true(bytes > 0);
    assert_int_not_equal(0, access(path, F_OK));
    free(path);
}

static bool always(void *context)
{
    (void)context;
    return true;
}

static void what_fails_leaves_nothing(void **state)
{
    struct place *p = *state;
    char *path = NULL, digest[IMAGE_DIGEST_SIZE];
    if (needs_root())
        skip();
    add_image(p, "test/evil", true);
    assert_int_equal(-EINVAL, image_root(p->store, "test/evil", NULL, &path, digest, &p->err));
    assert_non_null(strstr(p->err.message, "layer 2 of 2: entry '../evil'"));
    add_image(p, "test/one", false);
    const struct image_progress stop = {.cancelled = always};
    assert_int_equal(-ECANCELED, image_root(p->store, "test/one", &stop, &path, digest, &p->err));
    assert_int_equal(-ENOENT, image_root(p->store, "test/none", NULL, &path, digest, &p->err));
    assert_null(path);
    int removed = rmdir(path_in(p, "images/roots")); /* the lock is in it, and nothing else */
    assert_true(removed < 0 && errno == ENOTEMPTY);
    assert_int_equal(0, unlink(path_in(p, "images/roots/lock")));
    assert_int_equal(0, rmdir(path_in(p, "images/roots")));
}

/* A layer that comes by a pipe, whose writing end is closed once the child is there. */
struct pipe_layer {
    int write_fd;
    unsigned looks;
};

static void close_writer(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct pipe_layer *layer = context;
    (void)what, (void)done, (void)total;
    if (layer->write_fd >= 0)
        close(layer->write_fd);
    layer->write_fd = -1;
}

static bool in_vain(void *context)
{
    return ++((struct pipe_layer *)context)->looks > 100; /* ten seconds */
}

/* If it had the writing end too, it would wait for its own end. */
static void the_child_has_no_other_descriptors(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    struct stat st;
    int ends[2];
    if (needs_root())
        skip();
    tar_add(&tar, (struct tar_entry){.name = "file", .content = "x"});
    assert_int_equal(0, pipe2(ends, O_CLOEXEC));
    assert_int_equal(tar.len, write(ends[1], tar.bytes, tar.len));
    free(tar.bytes);
    assert_int_equal(0, mkdir(path_in(p, "root"), 0755));
    int root_fd = open(path_in(p, "root"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct pipe_layer layer = {.write_fd = ends[1]};
    const struct image_progress progress = {.report = close_writer, .cancelled = in_vain, .context = &layer};
    const struct rootfs_work work = {.root_fd = root_fd, .layers = &ends[0], .layer_count = 1, .progress = &progress, .what = "unpack"};
    ok(rootfs_work_run(&work, &p->err));
    assert_int_equal(0, stat(path_in(p, "root/file"), &st));
    close(root_fd);
    close(ends[0]);
}

/* The line of /proc/PID/FILE that begins with `key`, without it. */
static char *proc_line(long pid, const char *name, const char *key)
{
    static char line[512];
    char path[64];
    char *found = NULL;
    snprintf(path, sizeof path, "/proc/%ld/%s", pid, name);
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            found = line + strlen(key) + strspn(line + strlen(key), " \t");
    if (file)
        fclose(file);
    return found;
}

static bool says(long pid, const char *name, const char *key, const char *value)
{
    const char *line = proc_line(pid, name, key);
    return line && strncmp(line, value, strlen(value)) == 0;
}

static bool own_namespace(long pid, const char *kind)
{
    char paths[2][64], links[2][64] = {"", ""};
    snprintf(paths[0], sizeof paths[0], "/proc/%ld/ns/%s", pid, kind);
    snprintf(paths[1], sizeof paths[1], "/proc/self/ns/%s", kind);
    for (int i = 0; i < 2; i++)
        if (readlink(paths[i], links[i], sizeof links[i] - 1) < 0)
            return false;
    return strcmp(links[0], links[1]) != 0;
}

/* Our child of that name, with its filter in place. */
static long find_unpack(void)
{
    char children[64];
    snprintf(children, sizeof children, "/proc/self/task/%d/children", gettid());
    FILE *file = fopen(children, "re");
    long pid = 0;
    while (file && fscanf(file, "%ld", &pid) == 1)
        if (says(pid, "status", "Name:", "polder-unpack\n") && says(pid, "status", "Seccomp:", "2"))
            break;
    if (file)
        fclose(file);
    return pid && says(pid, "status", "Seccomp:", "2") ? pid : 0;
}

static bool is_confined(long pid)
{
    static const char *const namespaces[] = {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"};
    bool confined = says(pid, "status", "NoNewPrivs:", "1") && says(pid, "status", "CapPrm:", "000000008000001b") &&
                    says(pid, "status", "CapEff:", "000000008000001b") && says(pid, "limits", "Max processes", "0 ") &&
                    says(pid, "limits", "Max core file size", "0 ") && says(pid, "limits", "Max file size", "68719476736 ") &&
                    !says(pid, "limits", "Max address space", "unlimited");
    struct sandbox_host host;
    sandbox_host_check(&host); /* root does without where they are refused */
    for (unsigned i = 0; host.namespaces && i < sizeof namespaces / sizeof *namespaces; i++)
        confined = confined && own_namespace(pid, namespaces[i]);
    return confined;
}

struct look {
    int write_fd;
    bool found, confined;
};

static void look_at_unpack(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct look *look = context;
    (void)what, (void)done, (void)total;
    long pid = look->write_fd < 0 ? 0 : find_unpack();
    if (!pid)
        return;
    look->found = true;
    look->confined = is_confined(pid);
    close(look->write_fd);
    look->write_fd = -1;
}

/* A layer that does not end before the one who reads it was looked at. */
static void who_unpacks_is_confined(void **state)
{
    struct place *p = *state;
    int ends[2];
    if (needs_root())
        skip();
    assert_int_equal(0, pipe2(ends, O_CLOEXEC));
    assert_int_equal(0, mkdir(path_in(p, "root"), 0755));
    int root_fd = open(path_in(p, "root"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct look look = {.write_fd = ends[1]};
    const struct image_progress progress = {.report = look_at_unpack, .context = &look};
    const struct rootfs_work work = {.root_fd = root_fd, .layers = &ends[0], .layer_count = 1, .progress = &progress, .what = "unpack"};
    ok(rootfs_work_run(&work, &p->err)); /* nothing at all is an empty layer */
    assert_true(look.found);
    assert_true(look.confined);
    close(root_fd);
    close(ends[0]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {TEST(made_once_and_shared), TEST(goes_with_its_image), TEST(what_fails_leaves_nothing),
                                       TEST(the_child_has_no_other_descriptors), TEST(who_unpacks_is_confined)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
