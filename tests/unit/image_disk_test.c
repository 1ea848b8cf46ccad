/* Images of disks: partition tables, boot files found by the real debugfs, and builds of Debian that are refused or cancelled. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/child.h"
#include "image/disk_table.h"
#include "image/rootfs.h"

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
    strcpy(p->dir, "/tmp/disk-test-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    ok(image_store_open(path_in(p, "images"), &p->store, &p->err));
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct place *p = *state;
    image_store_close(p->store);
    assert_int_equal(0, rootfs_remove(AT_FDCWD, path_in(p, "images/lock")));
    assert_int_equal(0, rmdir(path_in(p, "images/tmp"))); /* nothing was left in it */
    assert_int_equal(0, rootfs_remove(AT_FDCWD, p->dir));
    free(p);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* An entry of an MBR at sector `sector` of the file. */
static void set_entry(int fd, unsigned sector, unsigned index, uint8_t kind, uint32_t first, uint32_t count)
{
    uint8_t entry[16] = {0}, mark[2] = {0x55, 0xaa};
    entry[4] = kind;
    store_le32(entry + 8, first);
    store_le32(entry + 12, count);
    assert_int_equal(16, pwrite(fd, entry, 16, sector * 512 + 446 + 16 * index));
    assert_int_equal(2, pwrite(fd, mark, 2, sector * 512 + 510));
}

/* 40 MiB; from 1 MiB on an ext4 with the folders' contents. */
static int make_disk(struct place *p, bool with_kernel)
{
    assert_int_equal(0, mkdir(path_in(p, "tree"), 0755) | mkdir(path_in(p, "tree/boot"), 0755) | mkdir(path_in(p, "tree/etc"), 0755));
    write_file(path_in(p, "tree/etc/passwd"), "root");
    if (with_kernel) {
        write_file(path_in(p, "tree/boot/vmlinuz-6.1.0-9-amd64"), "old kernel");
        write_file(path_in(p, "tree/boot/vmlinuz-6.1.0-10-amd64"), "new kernel");
        write_file(path_in(p, "tree/boot/initrd.img-6.1.0-10-amd64"), "new initrd");
        assert_int_equal(0, symlink("/etc/passwd", path_in(p, "tree/boot/vmlinuz-9 -R x")));
    }
    int fd = open(path_in(p, "disk"), O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_int_equal(0, ftruncate(fd, 40 << 20));
    uint8_t id[4] = {0xcd, 0xab, 0x34, 0x12};
    assert_int_equal(4, pwrite(fd, id, 4, 440));
    set_entry(fd, 0, 0, 0x83, 2048, 39 * 2048);
    const char *argv[] = {"mke2fs", "-q", "-F", "-t", "ext4", "-E", "offset=1048576", "-d",
                          path_in(p, "tree"), path_in(p, "disk"), "39M", NULL};
    struct child child = {CHILD_INIT, .argv = argv};
    ok(child_run(&child, NULL, &p->err));
    return fd;
}

static void assert_blob(struct place *p, const char *digest, const char *text)
{
    char got[64] = "";
    int fd = image_blob_open(p->store, digest, &p->err);
    ok(fd);
    assert_true(read(fd, got, sizeof got - 1) >= 0);
    close(fd);
    assert_string_equal(text, got);
}

static void takes_the_newest_kernel(void **state)
{
    struct place *p = *state;
    char digest[IMAGE_DIGEST_SIZE];
    struct image_disk_parts parts;
    int fd = make_disk(p, true);
    struct image_disk disk = {.fd = fd, .format = "raw", .kernel_fd = -1, .initrd_fd = -1};
    ok(image_import_disk(p->store, "disk/one", &disk, NULL, digest, &p->err));
    close(fd);
    ok(image_disk_parts(p->store, "disk/one", &parts, &p->err));
    assert_blob(p, parts.kernel, "new kernel");
    assert_blob(p, parts.initrd, "new initrd");
    assert_string_equal("root=PARTUUID=1234abcd-01 ro console=ttyS0", parts.cmdline);
    char *path = NULL;
    assert_int_equal(-EINVAL, image_root(p->store, "disk/one", NULL, &path, digest, &p->err));
    assert_non_null(strstr(p->err.message, "vm"));
}

static void kernels_can_be_given(void **state)
{
    struct place *p = *state;
    char digest[IMAGE_DIGEST_SIZE];
    struct image_disk_parts parts;
    int fd = make_disk(p, false);
    struct image_disk disk = {.fd = fd, .format = "raw", .kernel_fd = -1, .initrd_fd = -1};
    assert_int_equal(-ENOENT, image_import_disk(p->store, "disk/one", &disk, NULL, digest, &p->err));
    assert_non_null(strstr(p->err.message, "/boot/vmlinuz"));
    write_file(path_in(p, "kernel"), "given");
    disk.kernel_fd = open(path_in(p, "kernel"), O_RDONLY);
    disk.cmdline = "root=/dev/vda1 quiet";
    lseek(fd, 0, SEEK_SET);
    ok(image_import_disk(p->store, "disk/one", &disk, NULL, digest, &p->err));
    ok(image_disk_parts(p->store, "disk/one", &parts, &p->err));
    assert_blob(p, parts.kernel, "given");
    assert_string_equal("", parts.initrd);
    assert_string_equal(disk.cmdline, parts.cmdline);
    close(disk.kernel_fd);
    lseek(fd, 0, SEEK_SET);
    disk.format = "vhdx";
    assert_int_equal(-EIO, image_import_disk(p->store, "disk/two", &disk, NULL, digest, &p->err));
    disk.format = NULL;
    assert_int_equal(-EINVAL, image_import_disk(p->store, "disk/two", &disk, NULL, digest, &p->err));
    close(fd);
}

static void make_qcow2(struct place *p, const char *option, const char *value, const char *path)
{
    const char *argv[] = {"qemu-img", "create", "-q", "-u", "-f", "qcow2", option, value, "-F", "raw", path, "8M", NULL};
    if (strcmp(option, "-o") == 0) {
        argv[8] = path;
        argv[9] = "8M";
        argv[10] = NULL;
    }
    struct child child = {CHILD_INIT, .argv = argv};
    ok(child_run(&child, NULL, &p->err));
}

/* A file beside the image store that everybody may read is named in all ways, and nobody opens it. */
static void what_an_image_names_is_not_opened(void **state)
{
    struct place *p = *state;
    char secret[128], json[256], data[256], digest[IMAGE_DIGEST_SIZE], events[512];
    snprintf(secret, sizeof secret, "%s/secret", p->dir);
    snprintf(json, sizeof json, "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}", secret);
    snprintf(data, sizeof data, "data_file=%s", secret);
    const struct {
        const char *option, *value, *says;
    } images[] = {{"-b", secret, "outside of its folder"},       {"-b", "../../../secret", "it names"},
                  {"-b", json, "only files are supported"},      {"-b", "nbd://127.0.0.1/x", "only files are supported"},
                  {"-b", "/dev/zero", "neither a regular file"}, {"-o", data, "outside of its folder"}};
    assert_int_equal(0, chmod(p->dir, 0755) | chmod(path_in(p, "images"), 0755) | chmod(path_in(p, "images/tmp"), 0755));
    for (unsigned i = 0; i < sizeof images / sizeof *images; i++) {
        make_qcow2(p, images[i].option, images[i].value, path_in(p, "evil"));
        write_file(secret, "secret");
        int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), fd = open(path_in(p, "evil"), O_RDONLY | O_CLOEXEC);
        assert_true(inotify_add_watch(watch, secret, IN_OPEN | IN_ACCESS) >= 0);
        struct image_disk disk = {.fd = fd, .format = "qcow2", .kernel_fd = fd, .initrd_fd = -1};
        assert_int_equal(-EIO, image_import_disk(p->store, "disk/evil", &disk, NULL, digest, &p->err));
        if (!strstr(p->err.message, images[i].says) || strchr(p->err.message, '\n'))
            fail_msg("%s: %s", images[i].value, p->err.message);
        ssize_t opened = read(watch, events, sizeof events);
        assert_true(opened < 0 && errno == EAGAIN);
        close(open(secret, O_RDONLY | O_CLOEXEC)); /* it would have been seen */
        assert_true(read(watch, events, sizeof events) > 0);
        assert_int_equal(-ENOENT, image_get(p->store, "disk/evil", &(struct image){0}, &p->err));
        close(watch);
        close(fd);
    }
}

static void tables(void **state)
{
    struct place *p = *state;
    static struct disk_table table;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    assert_int_equal(-EINVAL, disk_table_read(fd, &table, &p->err));
    assert_int_equal(0, ftruncate(fd, 1 << 20));
    ok(disk_table_read(fd, &table, &p->err));
    assert_int_equal(1, table.count);
    assert_int_equal(0, table.partitions[0].number);
    set_entry(fd, 0, 0, 0x83, 100, 10);
    set_entry(fd, 0, 1, 0x83, 2000, 100); /* beyond the end */
    set_entry(fd, 0, 3, 0x05, 200, 100);
    set_entry(fd, 200, 0, 0x83, 1, 10);
    set_entry(fd, 200, 1, 0x05, 20, 10);
    set_entry(fd, 220, 0, 0x83, 2, 5);
    set_entry(fd, 220, 1, 0x05, 20, 10); /* to itself */
    ok(disk_table_read(fd, &table, &p->err));
    assert_true(table.count > 3);
    assert_int_equal(100 * 512, table.partitions[0].offset_bytes);
    assert_int_equal(5, table.partitions[1].number);
    assert_int_equal(201 * 512, table.partitions[1].offset_bytes);
    assert_int_equal(222 * 512, table.partitions[2].offset_bytes);
    assert_string_equal("00000000-06", table.partitions[2].uuid);
    close(fd);
}

static bool always(void *context)
{
    (void)context;
    return true;
}

static void debian_is_asked_for_by_name(void **state)
{
    struct place *p = *state;
    char digest[IMAGE_DIGEST_SIZE];
    static const char *const bad[] = {"--hook-dir=/tmp/x", "a b", "$(id)", "a,b", "?essential", "", NULL};
    for (unsigned i = 0; bad[i]; i++) {
        const char *packages[] = {bad[i], NULL};
        struct image_debian debian = {.suite = "bookworm", .packages = packages};
        assert_int_equal(-EINVAL, image_build_debian(p->store, "test/deb", &debian, NULL, digest, &p->err));
        debian = (struct image_debian){.suite = bad[i]};
        assert_int_equal(-EINVAL, image_build_debian(p->store, "test/deb", &debian, NULL, digest, &p->err));
    }
    struct image_debian evil = {.suite = "bookworm", .mirror = "deb [trusted=yes] file:/tmp x"};
    assert_int_equal(-EINVAL, image_build_debian(p->store, "test/deb", &evil, NULL, digest, &p->err));
    struct image_debian debian = {.suite = "bookworm"};
    const struct image_progress stop = {.cancelled = always};
    assert_int_equal(-ECANCELED, image_build_debian(p->store, "test/deb", &debian, &stop, digest, &p->err));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {TEST(takes_the_newest_kernel), TEST(kernels_can_be_given),
                                       TEST(what_an_image_names_is_not_opened), TEST(tables),
                                       TEST(debian_is_asked_for_by_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
