/* Layers unpacked: every way out of the root is tried, and what whiteouts leave is compared with what they should.
 * Beside the root lies a folder with something precious, which must be as it was. */
#include "cmocka_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "image/rootfs.h"
#include "image_tar.h"

struct place {
    char dir[64], outside[96];
    int root_fd;
    struct rootfs_counts counts;
    struct err err;
};

static const char *path_in(const struct place *p, const char *name)
{
    static char path[5000];
    snprintf(path, sizeof path, "%s/%s", p->dir, name);
    return path;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
}

static const char *read_file(const char *path)
{
    static char text[256];
    FILE *file = fopen(path, "r");
    text[file ? fread(text, 1, sizeof text - 1, file) : 0] = '\0';
    if (file)
        fclose(file);
    return file ? text : "(none)";
}

static int set_up(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    strcpy(p->dir, "/tmp/unpack-test-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->outside, sizeof p->outside, "%s/outside", p->dir);
    assert_int_equal(0, mkdir(p->outside, 0750) | mkdir(path_in(p, "root"), 0755));
    write_file(path_in(p, "outside/precious"), "precious");
    p->root_fd = open(path_in(p, "root"), O_RDONLY | O_DIRECTORY);
    *state = p;
    return 0;
}

static int entries_of(const char *path)
{
    int count = 0;
    DIR *dir = opendir(path);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    struct stat st;
    assert_string_equal("precious", read_file(path_in(p, "outside/precious")));
    assert_int_equal(0, stat(path_in(p, "outside/precious"), &st));
    assert_int_equal(1, st.st_nlink);
    assert_int_equal(0, stat(p->outside, &st));
    assert_int_equal(0750, st.st_mode & 07777);
    assert_int_equal(1, entries_of(p->outside));
    assert_int_equal(2, entries_of(p->dir));
    close(p->root_fd);
    assert_int_equal(0, rootfs_remove(AT_FDCWD, p->dir));
    free(p);
    return 0;
}

/* ---- layers ---- */

static int unpack_bytes(struct place *p, const void *bytes, size_t len)
{
    int fd = memfd_create("layer", MFD_CLOEXEC);
    assert_int_equal(len, write(fd, bytes, len));
    lseek(fd, 0, SEEK_SET);
    p->err.message[0] = '\0';
    int r = rootfs_unpack(p->root_fd, fd, &p->counts, &p->err);
    close(fd);
    return r;
}

static int unpack_tar(struct place *p, struct tar *tar)
{
    tar_end(tar);
    int r = unpack_bytes(p, tar->bytes, tar->len);
    free(tar->bytes);
    *tar = (struct tar){0};
    return r;
}

static int unpack(struct place *p, const struct tar_entry *entries, size_t count)
{
    struct tar tar = {0};
    for (size_t i = 0; i < count; i++)
        tar_add(&tar, entries[i]);
    return unpack_tar(p, &tar);
}
#define LAYER(...) (const struct tar_entry[]){__VA_ARGS__}, sizeof((const struct tar_entry[]){__VA_ARGS__}) / sizeof(struct tar_entry)
#define DIRECTORY(n) {.name = n, .type = '5'}
#define TEXT(n, c) {.name = n, .content = c}
#define SYMLINK(n, to) {.name = n, .type = '2', .link = to}
#define HARDLINK(n, to) {.name = n, .type = '1', .link = to}
#define WHITEOUT(n) {.name = n}

#define accepted(p, ...)                                                                                     \
    do {                                                                                                     \
        if (unpack(p, LAYER(__VA_ARGS__)) < 0)                                                               \
            fail_msg("%s", (p)->err.message);                                                                \
    } while (0)
/* The message has both words; one is the entry's name. */
#define refused(p, name, word, ...)                                                                          \
    do {                                                                                                     \
        assert_true(unpack(p, LAYER(__VA_ARGS__)) < 0);                                                      \
        if (!strstr((p)->err.message, "entry '" name "'") || !strstr((p)->err.message, word))                \
            fail_msg("no '%s', '%s' in: %s", name, word, (p)->err.message);                                  \
    } while (0)

/* ---- the tree as one text: "a/ a/b=text a/c->target" in order of names ---- */

static char tree_text[4096];
static size_t tree_root;

static int show_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)kind;
    if (ftw->level == 0)
        return 0;
    char line[512], target[128] = "";
    const char *name = path + tree_root + 1;
    if (S_ISDIR(st->st_mode))
        snprintf(line, sizeof line, "%.200s/ ", name);
    else if (S_ISLNK(st->st_mode))
        snprintf(line, sizeof line, "%.200s->%.*s ", name, (int)readlink(path, target, sizeof target), target);
    else
        snprintf(line, sizeof line, "%.200s=%.100s ", name, S_ISREG(st->st_mode) ? read_file(path) : "?");
    strncat(tree_text, line, sizeof tree_text - strlen(tree_text) - 1);
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static const char *tree(const struct place *p)
{
    static char sorted[4096];
    char *words[128], *rest = tree_text;
    size_t count = 0;
    tree_text[0] = sorted[0] = '\0';
    char copy[128];
    snprintf(copy, sizeof copy, "%s/root", p->dir);
    tree_root = strlen(copy);
    nftw(copy, show_one, 16, FTW_PHYS);
    for (char *word; (word = strsep(&rest, " ")) != NULL && count < 128;)
        if (*word)
            words[count++] = word;
    qsort(words, count, sizeof *words, by_text);
    for (size_t i = 0; i < count; i++) {
        strcat(sorted, i ? " " : "");
        strcat(sorted, words[i]);
    }
    return sorted;
}

/* ---- escapes ---- */

static void names_with_dots(void **state)
{
    struct place *p = *state;
    refused(p, "../outside/evil", "'..'", TEXT("../outside/evil", "x"));
    refused(p, "a/../../outside/evil", "'..'", DIRECTORY("a"), TEXT("a/../../outside/evil", "x"));
    refused(p, "..", "'..'", DIRECTORY(".."));
    refused(p, "a/..", "'..'", DIRECTORY("a/.."));
    refused(p, "../outside/.wh.precious", "'..'", WHITEOUT("../outside/.wh.precious"));
    refused(p, "../outside", "'..'", {.name = "../outside", .type = '5', .mode = 0777});
    assert_string_equal("a/", tree(p));
}

static void absolute_names_are_below_the_root(void **state)
{
    struct place *p = *state;
    char name[100];
    snprintf(name, sizeof name, "%.60s/evil", p->outside);
    struct tar tar = {0};
    tar_add(&tar, (struct tar_entry){.name = "/abs", .content = "in"});
    tar_add(&tar, (struct tar_entry){.name = name, .content = "in"});
    assert_int_equal(0, unpack_tar(p, &tar));
    assert_string_equal("in", read_file(path_in(p, "root/abs")));
}

static void symbolic_links_lead_nowhere_else(void **state)
{
    struct place *p = *state;
    refused(p, "s/evil", "folder", SYMLINK("s", "../outside"), TEXT("s/evil", "x"));
    refused(p, "t/evil", "folder", SYMLINK("t", p->outside), TEXT("t/evil", "x"));
    refused(p, "t/sub/evil", "folder", TEXT("t/sub/evil", "x"));
    refused(p, "t/.wh.precious", "folder", WHITEOUT("t/.wh.precious"));
    refused(p, "t/.wh..wh..opq", "folder", WHITEOUT("t/.wh..wh..opq"));
    refused(p, "m/fd", "folder", SYMLINK("m", "/proc/self/root/tmp"), TEXT("m/fd", "x"));
    refused(p, "l/x", "folder", SYMLINK("l", "l"), TEXT("l/x", "x"));
    accepted(p, DIRECTORY("usr"), DIRECTORY("usr/lib"), SYMLINK("lib", "/usr/lib"), TEXT("lib/good", "x"));
    assert_string_equal("x", read_file(path_in(p, "root/usr/lib/good")));
    accepted(p, SYMLINK("up", "../../../usr"), TEXT("up/too", "y"));
    assert_string_equal("y", read_file(path_in(p, "root/usr/too")));
}

static void links_are_replaced_not_followed(void **state)
{
    struct place *p = *state;
    char precious[128];
    snprintf(precious, sizeof precious, "%.90s/precious", p->outside);
    accepted(p, SYMLINK("s", precious), TEXT("s", "mine"));
    accepted(p, SYMLINK("d", p->outside), {.name = "d", .type = '5', .mode = 0777});
    accepted(p, SYMLINK("f", precious), HARDLINK("h", "f"), TEXT("h", "mine"));
    accepted(p, SYMLINK("k", precious), {.name = "k", .type = '6', .mode = 0777});
    accepted(p, SYMLINK("n", precious), {.name = "n", .type = '3', .mode = 0777});
    assert_string_equal("mine", read_file(path_in(p, "root/s")));
    assert_string_equal("mine", read_file(path_in(p, "root/h")));
}

static void hard_links_stay_inside(void **state)
{
    struct place *p = *state;
    refused(p, "h", "'..'", HARDLINK("h", "../outside/precious"));
    refused(p, "h", "no file", SYMLINK("s", p->outside), HARDLINK("h", "s/precious"));
    refused(p, "h", "no file", HARDLINK("h", "/etc/passwd"));
    refused(p, "h", "no file", DIRECTORY("d"), HARDLINK("h", "d"));
    refused(p, "h", "no file", HARDLINK("h", "/"));
    accepted(p, TEXT("a", "text"), HARDLINK("b", "./a"), HARDLINK("a", "b"));
    assert_string_equal("text", read_file(path_in(p, "root/b")));
}

static void odd_entries(void **state)
{
    struct place *p = *state;
    accepted(p, {.name = "null", .type = '3'}, {.name = "disk", .type = '4'}, {.name = "fifo", .type = '6'});
    assert_string_equal("fifo=?", tree(p));
    refused(p, ".wh.", "nothing", WHITEOUT(".wh."));
    refused(p, ".wh..", "nothing", WHITEOUT(".wh.."));
    refused(p, "a/.wh...", "nothing", WHITEOUT("a/.wh..."));
    accepted(p, WHITEOUT(".wh..wh.plnk"), WHITEOUT(".wh.nosuch"));
    refused(p, "f/x", "folder", TEXT("f", "x"), TEXT("f/x", "y"));
    refused(p, ".", "root", TEXT(".", "x"));
    refused(p, "u", "owner", {.name = "u", .uid = -1});
    refused(p, "big", "GiB", {.name = "big", .size = INT64_C(1) << 50});
    refused(p, "../bad?name", "'..'", TEXT("../bad\nname", "x"));
}

static void depth_and_length_are_bounded(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    static char deep[2 * 300], longest[5000];
    for (int i = 0; i < 260; i++)
        memcpy(deep + 2 * i, "d/", 3);
    tar_pax(&tar, "path", deep);
    tar_add(&tar, (struct tar_entry){.name = "x", .type = '5'});
    assert_true(unpack_tar(p, &tar) < 0);
    assert_non_null(strstr(p->err.message, "folders deep"));
    memset(longest, 'a', sizeof longest - 1);
    tar_pax(&tar, "path", longest);
    tar_add(&tar, (struct tar_entry){.name = "x", .content = "y"});
    assert_true(unpack_tar(p, &tar) < 0);
    assert_non_null(strstr(p->err.message, "too long"));
    /* Links make a tree deeper than any name in it. */
    deep[2 * 200] = '\0';
    tar_pax(&tar, "path", deep);
    tar_add(&tar, (struct tar_entry){.name = "x", .type = '5'});
    tar_pax(&tar, "linkpath", deep);
    tar_add(&tar, (struct tar_entry){.name = "s", .type = '2', .link = "x"});
    memcpy(deep, "s/", 2);
    tar_pax(&tar, "path", deep);
    tar_add(&tar, (struct tar_entry){.name = "x", .type = '5'});
    assert_true(unpack_tar(p, &tar) < 0);
    assert_non_null(strstr(p->err.message, "folder"));
}

static void names_of_all_scripts(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    tar_pax(&tar, "path", "d/\xc3\xa4\xe6\x97\xa5");
    tar_add(&tar, (struct tar_entry){.name = "x", .content = "utf-8"});
    tar_add(&tar, (struct tar_entry){.name = "latin\xe4", .content = "bytes"});
    if (unpack_tar(p, &tar) < 0)
        fail_msg("%s", p->err.message);
    assert_string_equal("utf-8", read_file(path_in(p, "root/d/\xc3\xa4\xe6\x97\xa5")));
    assert_string_equal("bytes", read_file(path_in(p, "root/latin\xe4")));
}

static void attributes_are_kept(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    struct stat st;
    char value[64];
    tar_pax(&tar, "SCHILY.xattr.user.note", "kept");
    tar_add(&tar, (struct tar_entry){.name = "f", .content = "x", .mode = 04711});
    tar_pax(&tar, "SCHILY.xattr.trusted.overlay.opaque", "y");
    tar_add(&tar, (struct tar_entry){.name = "d", .type = '5', .mode = 01777});
    tar_add(&tar, (struct tar_entry){.name = "d/later", .content = "x"});
    assert_int_equal(0, unpack_tar(p, &tar));
    assert_int_equal(4, getxattr(path_in(p, "root/f"), "user.note", value, sizeof value));
    assert_int_equal(0, stat(path_in(p, "root/f"), &st));
    assert_int_equal(04711, st.st_mode & 07777);
    assert_int_equal(1000000000, st.st_mtime);
    assert_true(getxattr(path_in(p, "root/d"), "trusted.overlay.opaque", value, sizeof value) < 0);
    assert_int_equal(0, stat(path_in(p, "root/d"), &st));
    assert_int_equal(01777, st.st_mode & 07777);
    assert_int_equal(1000000000, st.st_mtime);
}

/* A file system's capability to bind low ports (cap_net_bind_service=ep, version 2 of the attribute). */
static void capabilities_and_owners_are_kept(void **state)
{
    struct place *p = *state;
    static const uint8_t capability[20] = {1, 0, 0, 2, 0, 4};
    struct tar tar = {0};
    struct stat st;
    uint8_t got[32];
    if (geteuid() != 0) {
        print_message("SKIP: owners and capabilities take root\n");
        skip();
    }
    static const char head[36] = "57 SCHILY.xattr.security.capability="; // NOLINT: without its end
    uint8_t bytes[sizeof head + sizeof capability + 1];
    memcpy(bytes, head, sizeof head);
    memcpy(bytes + sizeof head, capability, sizeof capability);
    bytes[sizeof bytes - 1] = '\n';
    tar_add(&tar, (struct tar_entry){.name = "pax", .type = 'x', .size = sizeof bytes});
    tar_block(&tar, bytes, sizeof bytes);
    tar_add(&tar, (struct tar_entry){.name = "f", .content = "x", .mode = 0755, .uid = 1234567});
    if (unpack_tar(p, &tar) < 0)
        fail_msg("%s", p->err.message);
    assert_int_equal(sizeof capability, getxattr(path_in(p, "root/f"), "security.capability", got, sizeof got));
    assert_memory_equal(capability, got, sizeof capability);
    assert_int_equal(0, stat(path_in(p, "root/f"), &st));
    assert_int_equal(1234567, st.st_uid);
}

/* GNU's pax form of sparse files: 1 MiB of which 512 bytes at 512 KiB are there. */
static void holes_stay_holes(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    struct stat st;
    char data[513];
    memset(data, 'x', 512);
    data[512] = '\0';
    static const char record[] = "22 GNU.sparse.major=0\n22 GNU.sparse.minor=1\n27 GNU.sparse.size=1048576\n"
                                 "26 GNU.sparse.numblocks=1\n29 GNU.sparse.map=524288,512\n";
    tar_add(&tar, (struct tar_entry){.name = "pax", .type = 'x', .content = record});
    tar_add(&tar, (struct tar_entry){.name = "sparse", .content = data});
    if (unpack_tar(p, &tar) < 0)
        fail_msg("%s", p->err.message);
    assert_int_equal(0, stat(path_in(p, "root/sparse"), &st));
    assert_int_equal(1 << 20, st.st_size);
    assert_true(st.st_blocks * 512 < 1 << 18);
}

static void broken_layers(void **state)
{
    struct place *p = *state;
    struct tar tar = {0};
    char noise[2048];
    memset(noise, 0x5a, sizeof noise);
    assert_int_equal(-EINVAL, unpack_bytes(p, noise, sizeof noise));
    tar_add(&tar, (struct tar_entry){.name = "cut", .content = "something", .size = 100000});
    assert_int_equal(-EINVAL, unpack_bytes(p, tar.bytes, tar.len));
    assert_non_null(strstr(p->err.message, "entry 'cut'"));
    free(tar.bytes);
    assert_int_equal(-EINVAL, unpack_bytes(p, "\x1f\x8b\x08", 3));
    assert_int_equal(0, unpack_bytes(p, "", 0));
}

static void entries_are_counted(void **state)
{
    struct place *p = *state;
    p->counts.entries = ROOTFS_ENTRIES_MAX - 1;
    assert_true(unpack(p, LAYER(TEXT("a", "x"), TEXT("b", "x"))) < 0);
    assert_non_null(strstr(p->err.message, "entries"));
    p->counts = (struct rootfs_counts){.bytes = ROOTFS_BYTES_MAX - 2};
    refused(p, "b", "GiB", TEXT("a", "xx"), TEXT("b", "x"));
}

/* ---- whiteouts ---- */

#define LOWER DIRECTORY("d"), TEXT("d/a", "1"), TEXT("d/b", "1"), DIRECTORY("d/e"), TEXT("d/e/f", "1"), TEXT("x", "1")

static void whiteouts(void **state)
{
    struct place *p = *state;
    accepted(p, LOWER);
    accepted(p, WHITEOUT("d/.wh.a"), WHITEOUT(".wh.x"));
    assert_string_equal("d/ d/b=1 d/e/ d/e/f=1", tree(p));
    accepted(p, WHITEOUT(".wh.d"));
    assert_string_equal("", tree(p));
}

static void whiteouts_spare_their_own_layer(void **state)
{
    struct place *p = *state;
    accepted(p, LOWER);
    accepted(p, TEXT("x", "2"), WHITEOUT(".wh.x"), WHITEOUT("d/.wh.a"), TEXT("d/a", "2"));
    assert_string_equal("d/ d/a=2 d/b=1 d/e/ d/e/f=1 x=2", tree(p));
    accepted(p, TEXT("d/new", "3"), WHITEOUT(".wh.d"));
    assert_string_equal("d/ d/new=3 x=2", tree(p));
}

static void opaque_before_and_after(void **state)
{
    struct place *p = *state;
    accepted(p, LOWER);
    accepted(p, DIRECTORY("d"), WHITEOUT("d/.wh..wh..opq"), TEXT("d/n", "2"));
    assert_string_equal("d/ d/n=2 x=1", tree(p));
    accepted(p, LOWER);
    accepted(p, TEXT("d/e/g", "3"), TEXT("d/b", "3"), WHITEOUT("d/.wh..wh..opq"));
    assert_string_equal("d/ d/b=3 d/e/ d/e/g=3 x=1", tree(p));
    accepted(p, WHITEOUT(".wh..wh..opq"), TEXT("only", "4"));
    assert_string_equal("only=4", tree(p));
}

static void kinds_change(void **state)
{
    struct place *p = *state;
    accepted(p, LOWER);
    accepted(p, TEXT("d", "2"), DIRECTORY("x"), TEXT("x/y", "2"));
    assert_string_equal("d=2 x/ x/y=2", tree(p));
    accepted(p, SYMLINK("x", "d"), SYMLINK("d", "x"));
    assert_string_equal("d->x x->d", tree(p));
    accepted(p, DIRECTORY("d"), TEXT("d/a", "3"));
    assert_string_equal("d/ d/a=3 x->d", tree(p));
    accepted(p, WHITEOUT("x/.wh.a")); /* by the link, as files are */
    assert_string_equal("d/ x->d", tree(p));
    accepted(p, TEXT("x/z", "4"), DIRECTORY("x"), TEXT("x/z", "5"));
    assert_string_equal("d/ d/z=4 x/ x/z=5", tree(p));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(names_with_dots),
        TEST(absolute_names_are_below_the_root),
        TEST(symbolic_links_lead_nowhere_else),
        TEST(links_are_replaced_not_followed),
        TEST(hard_links_stay_inside),
        TEST(odd_entries),
        TEST(depth_and_length_are_bounded),
        TEST(names_of_all_scripts),
        TEST(attributes_are_kept),
        TEST(capabilities_and_owners_are_kept),
        TEST(holes_stay_holes),
        TEST(broken_layers),
        TEST(entries_are_counted),
        TEST(whiteouts),
        TEST(whiteouts_spare_their_own_layer),
        TEST(opaque_before_and_after),
        TEST(kinds_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
