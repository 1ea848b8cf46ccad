/* Images of whole disks. A foreign disk is read by programs that run as nobody in a folder of its own:
 *     disk (as it came) -- polder-img convert --> raw -- debugfs --> kernel, initrd
 *                                                raw -- polder-img convert --> new (qcow2) */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/child.h"
#include "base/log.h"
#include "base/program_find.h"
#include "image/disk_table.h"
#include "image/image_impl.h"
#include "image/rootfs.h"

#define CHUNK (1u << 20)
#define BOOT_FILE_MAX (512u << 20)
#define VERSION_MAX 128

struct stage {
    struct image_store *store;
    const struct image_progress *progress;
    int fd;
    char name[32];
    char *img;
};

static bool is_cancelled(void *context)
{
    const struct image_progress *progress = context;
    return progress && progress->cancelled && progress->cancelled(progress->context);
}

static int run(const struct stage *stage, const char *const *argv, char **ret_output, struct err *err)
{
    struct child child = {CHILD_INIT, .argv = argv, .confined = true, .nobody = true, .cancelled = is_cancelled};
    child.dir_fd = stage->fd;
    child.context = (void *)(uintptr_t)stage->progress;
    return child_run(&child, ret_output, err);
}
#define RUN(stage, ret_output, err, ...) run(stage, (const char *const[]){__VA_ARGS__, NULL}, ret_output, err)

/* ---- the folder ---- */

static int begin(struct stage *stage, struct err *err)
{
    int r = program_find("polder-img", NULL, &stage->img, err);
    if (r < 0)
        return r;
    char name[sizeof stage->name];
    snprintf(name, sizeof name, "disk-%u", atomic_fetch_add(&stage->store->tmp_next, 1));
    if (mkdirat(stage->store->tmp_fd, name, 0700) < 0)
        return err_set(err, errno, "make a folder in '%s'", image_store_dir(stage->store));
    memcpy(stage->name, name, sizeof name);
    stage->fd = openat(stage->store->tmp_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (stage->fd < 0 || (geteuid() == 0 && fchown(stage->fd, CHILD_NOBODY, CHILD_NOBODY) < 0))
        return err_set(err, errno, "make a folder in '%s'", image_store_dir(stage->store));
    return 0;
}

static int copy(const struct stage *stage, int from, int to, struct err *err)
{
    own_free char *buffer = malloc(CHUNK);
    ssize_t n = buffer ? 1 : -1;
    for (uint64_t done = 0; n > 0 || (n < 0 && errno == EINTR);) {
        if (is_cancelled((void *)(uintptr_t)stage->progress))
            return err_say(err, ECANCELED, "cancelled");
        n = read(from, buffer, CHUNK);
        for (ssize_t at = 0, w; at < n; at += w)
            if ((w = write(to, buffer + at, (size_t)(n - at))) < 0)
                return err_set(err, errno, "import the disk");
        done += n > 0 ? (uint64_t)n : 0;
        if (stage->progress && stage->progress->report)
            stage->progress->report(stage->progress->context, "import", done, 0);
    }
    return n < 0 ? err_set(err, errno, "import the disk") : 0;
}

static int receive(const struct stage *stage, int from, struct err *err)
{
    own_fd int fd = openat(stage->fd, "disk", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || (geteuid() == 0 && fchown(fd, CHILD_NOBODY, CHILD_NOBODY) < 0))
        return err_set(err, errno, "import the disk");
    return copy(stage, from, fd, err);
}

/* A file that a program made there: a plain one, and no link. */
static int open_made(const struct stage *stage, const char *name, struct err *err)
{
    struct stat st;
    own_fd int fd = openat(stage->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "import the disk: '%s'", name);
    return S_ISREG(st.st_mode) ? TAKE_FD(fd) : err_say(err, EIO, "import the disk: '%s' is not a file", name);
}

/* ---- boot files ---- */

struct boot {
    char version[VERSION_MAX], folder[8]; /* "/boot" or "" */
    bool has_initrd;
    const struct disk_partition *partition;
    const struct disk_partition *root; /* with /etc */
};

static bool is_version(const char *text)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("._+~-", text[i]))
            return false;
    return len > 0 && len < VERSION_MAX;
}

/* A line of debugfs' "ls -p": /INODE/MODE/UID/GID/NAME/SIZE/ . Yields NAME, or NULL; of files too large none. */
static char *name_of_line(char *line)
{
    char *fields[8] = {NULL};
    for (unsigned i = 0; i < 8 && line; i++)
        fields[i] = strsep(&line, "/");
    if (!fields[6] || !fields[5][0])
        return NULL;
    return strtoull(fields[6], NULL, 10) <= BOOT_FILE_MAX ? fields[5] : NULL;
}

/* "/dev/null" as commands' input is what child_run gives; the partition is named as e2fsprogs do. */
static int debugfs(const struct stage *stage, const struct disk_partition *partition, const char *request, char **ret_output,
                   struct err *err)
{
    char device[48];
    snprintf(device, sizeof device, "raw?offset=%llu", (unsigned long long)partition->offset_bytes);
    return RUN(stage, ret_output, err, "debugfs", "-R", request, device);
}

/* The newest kernel of a folder, and whether it has an initrd. */
static void find_kernel(char *listing, struct boot *found)
{
    own_free char *again = strdup(listing);
    char initrd[VERSION_MAX + 16];
    for (char *line, *name; (line = strsep(&listing, "\n")) != NULL;)
        if ((name = name_of_line(line)) != NULL && strncmp(name, "vmlinuz-", 8) == 0 && is_version(name + 8) &&
            (!found->version[0] || strverscmp(name + 8, found->version) > 0))
            snprintf(found->version, sizeof found->version, "%s", name + 8);
    snprintf(initrd, sizeof initrd, "initrd.img-%s", found->version);
    char *rest = again;
    for (char *line, *name; rest && (line = strsep(&rest, "\n")) != NULL;)
        if ((name = name_of_line(line)) != NULL && strcmp(name, initrd) == 0)
            found->has_initrd = true;
}

static void look_into(const struct stage *stage, const struct disk_partition *partition, struct boot *boot)
{
    static const char *const folders[] = {"/boot", ""};
    for (unsigned i = 0; i < 2 && !boot->version[0]; i++) {
        own_free char *listing = NULL;
        char request[32];
        snprintf(request, sizeof request, "ls -p %s", *folders[i] ? folders[i] : "/");
        if (debugfs(stage, partition, request, &listing, NULL) < 0)
            return; /* no file system of the ext family */
        find_kernel(listing, boot);
        if (boot->version[0]) {
            boot->partition = partition;
            snprintf(boot->folder, sizeof boot->folder, "%s", folders[i]);
        }
    }
    own_free char *etc = NULL;
    if (!boot->root && debugfs(stage, partition, "ls -p /etc", &etc, NULL) == 0 && strstr(etc, "/passwd/"))
        boot->root = partition;
}

static int take_boot_file(const struct stage *stage, const struct boot *boot, const char *prefix, const char *to,
                          struct err *err)
{
    own_free char *output = NULL;
    char request[VERSION_MAX + 64];
    snprintf(request, sizeof request, "dump %s/%s%s %s", boot->folder, prefix, boot->version, to);
    return debugfs(stage, boot->partition, request, &output, err);
}

static int take_boot_files(const struct stage *stage, const struct disk_table *table, struct boot *boot, struct err *err)
{
    for (unsigned i = 0; i < table->count && !(boot->version[0] && boot->root); i++)
        look_into(stage, &table->partitions[i], boot);
    if (!boot->version[0])
        return err_say(err, ENOENT, "found no /boot/vmlinuz-* on an ext2, ext3 or ext4 partition of the disk: a kernel must be "
                                    "installed in it");
    int r = take_boot_file(stage, boot, "vmlinuz-", "kernel", err);
    return r == 0 && boot->has_initrd ? take_boot_file(stage, boot, "initrd.img-", "initrd", err) : r;
}

static void make_cmdline(const struct boot *boot, char *text, size_t size)
{
    const struct disk_partition *root = boot->root ? boot->root : boot->partition;
    if (!root || !root->number)
        snprintf(text, size, "root=/dev/vda ro console=ttyS0");
    else
        snprintf(text, size, "root=PARTUUID=%s ro console=ttyS0", root->uuid);
}

/* ---- the whole ---- */

struct found {
    int disk, kernel, initrd;
    char cmdline[2048];
    uint64_t disk_bytes;
};

static int find_boot(const struct stage *stage, const struct image_disk *disk, struct found *found, struct err *err)
{
    struct boot boot = {0};
    own_free struct disk_table *table = calloc(1, sizeof *table);
    own_fd int raw = open_made(stage, "raw", err);
    if (raw < 0 || !table)
        return raw < 0 ? raw : err_set(err, ENOMEM, "import the disk");
    struct stat st;
    int r = fstat(raw, &st) < 0 ? err_set(err, errno, "import the disk") : disk_table_read(raw, table, err);
    if (r == 0)
        found->disk_bytes = (uint64_t)st.st_size;
    if (r == 0 && disk->kernel_fd < 0)
        r = take_boot_files(stage, table, &boot, err);
    for (unsigned i = 0; r == 0 && disk->kernel_fd >= 0 && !disk->cmdline && i < table->count && !boot.root; i++)
        look_into(stage, &table->partitions[i], &boot);
    if (r < 0)
        return r;
    if (disk->cmdline)
        snprintf(found->cmdline, sizeof found->cmdline, "%s", disk->cmdline);
    else
        make_cmdline(&boot, found->cmdline, sizeof found->cmdline);
    if (disk->kernel_fd >= 0)
        return 0;
    found->kernel = open_made(stage, "kernel", err);
    found->initrd = found->kernel >= 0 && boot.has_initrd ? open_made(stage, "initrd", err) : -1;
    return found->kernel < 0 ? found->kernel : found->initrd < 0 && boot.has_initrd ? found->initrd : 0;
}

static int convert(const struct stage *stage, const struct image_disk *disk, struct found *found, struct err *err)
{
    int r = receive(stage, disk->fd, err);
    if (r == 0)
        r = RUN(stage, NULL, err, stage->img, "convert", "-f", disk->format, "-O", "raw", "disk", "raw");
    unlinkat(stage->fd, "disk", 0);
    if (r == 0)
        r = find_boot(stage, disk, found, err);
    if (r == 0)
        r = RUN(stage, NULL, err, stage->img, "convert", "-f", "raw", "-O", "qcow2", "raw", "new");
    if (r < 0)
        return r;
    found->disk = open_made(stage, "new", err);
    return found->disk < 0 ? found->disk : 0;
}

static int store_disk(const struct stage *stage, const char *ref, const struct image_disk *disk, const struct found *found,
                      char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    int kernel = disk->kernel_fd >= 0 ? disk->kernel_fd : found->kernel;
    int initrd = disk->kernel_fd >= 0 ? disk->initrd_fd : found->initrd;
    const struct image_layer_source layers[] = {
        {found->disk, IMAGE_DISK_LAYER_TYPE}, {kernel, IMAGE_DISK_KERNEL_TYPE}, {initrd, IMAGE_DISK_INITRD_TYPE}};
    json_t *config = json_pack("{s:s, s:I, s:s, s:s}", "cmdline", found->cmdline, "disk_bytes", (json_int_t)found->disk_bytes,
                               "architecture", "amd64", "os", "linux");
    int r = config ? image_add(stage->store, ref, layers, initrd >= 0 ? 3 : 2, config, IMAGE_DISK_CONFIG_TYPE, stage->progress,
                               ret_digest, err)
                   : err_say(err, EINVAL, "the kernel's command line is not UTF-8");
    json_decref(config);
    return r;
}

static int check(const char *ref, const struct image_disk *disk, struct err *err)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"};
    struct image_ref parsed;
    int r = image_ref_parse(ref, &parsed, err);
    if (r < 0)
        return r;
    if (disk->cmdline && strlen(disk->cmdline) >= sizeof((struct found *)0)->cmdline)
        return err_say(err, EINVAL, "the kernel's command line is too long");
    for (unsigned i = 0; disk->format && i < sizeof formats / sizeof *formats; i++)
        if (strcmp(disk->format, formats[i]) == 0)
            return 0;
    return err_say(err, EINVAL, "say which format the disk has: raw, qcow2, vmdk, vhd, vhdx or vdi");
}

static void end(struct stage *stage, const struct found *found)
{
    const int fds[] = {stage->fd, found->disk, found->kernel, found->initrd};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(stage->img);
    if (stage->name[0] && rootfs_remove(stage->store->tmp_fd, stage->name) < 0)
        log_debug("'%s' of the image store could not be removed", stage->name); /* goes when the store is opened next */
}

int image_import_disk(struct image_store *store, const char *ref, const struct image_disk *disk,
                      const struct image_progress *progress, char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct stage stage = {.store = store, .progress = progress, .fd = -1};
    struct found found = {.disk = -1, .kernel = -1, .initrd = -1};
    int r = check(ref, disk, err);
    if (r == 0)
        r = begin(&stage, err);
    if (r == 0)
        r = convert(&stage, disk, &found, err);
    if (r == 0)
        r = store_disk(&stage, ref, disk, &found, ret_digest, err);
    end(&stage, &found);
    return r < 0 ? err_ctx(err, "import '%.100s'", ref) : 0;
}

/* ---- and back ---- */

static int read_disk_config(struct image_store *store, const struct image *image, struct image_disk_parts *parts, struct err *err)
{
    own_fd int fd = image_blob_open(store, image->config.digest, err);
    if (fd < 0)
        return fd;
    json_error_t error;
    json_t *config = json_loadfd(fd, JSON_REJECT_DUPLICATES, &error);
    const char *cmdline = json_string_value(json_object_get(config, "cmdline"));
    json_int_t bytes = json_integer_value(json_object_get(config, "disk_bytes"));
    bool fits = cmdline && strlen(cmdline) < sizeof parts->cmdline && bytes >= 0;
    parts->disk_bytes = (uint64_t)bytes;
    if (fits)
        snprintf(parts->cmdline, sizeof parts->cmdline, "%s", cmdline);
    json_decref(config);
    return fits ? 0 : err_say(err, EINVAL, "its configuration has no command line for the kernel");
}

static void take_layer(const struct image_blob *layer, struct image_disk_parts *parts)
{
    const struct {
        const char *type;
        char *digest;
    } kinds[] = {{IMAGE_DISK_LAYER_TYPE, parts->disk}, {IMAGE_DISK_KERNEL_TYPE, parts->kernel}, {IMAGE_DISK_INITRD_TYPE, parts->initrd}};
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(layer->media_type, kinds[i].type) == 0)
            memcpy(kinds[i].digest, layer->digest, IMAGE_DIGEST_SIZE);
}

int image_disk_parts(struct image_store *store, const char *ref, struct image_disk_parts *ret_parts, struct err *err)
{
    struct image image = {0};
    struct image_disk_parts parts = {0};
    int r = image_get(store, ref, &image, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < image.layer_count; i++)
        take_layer(&image.layers[i], &parts);
    if (strcmp(image.config.media_type, IMAGE_DISK_CONFIG_TYPE) != 0 || !parts.disk[0] || !parts.kernel[0])
        r = err_say(err, EINVAL, "image '%.100s' is not the image of a disk: run it as a microvm", ref);
    else
        r = read_disk_config(store, &image, &parts, err);
    if (r == 0)
        *ret_parts = parts;
    image_clear(&image);
    return r;
}
