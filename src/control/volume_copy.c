/* Volumes: copies of what they hold: clones, imports, exports, root disks.
 * A foreign image is read by polder-img as nobody, in a folder that holds that image alone: what it names as its backing
 * file is not there. */
#include "control/volume_impl.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/own.h"

#define CHUNK (1u << 20)
#define TEMPLATES_MAX 8

static bool cancelled(const struct image_progress *progress)
{
    return progress && progress->cancelled && progress->cancelled(progress->context);
}

static void report(const struct image_progress *progress, const char *what, uint64_t done, uint64_t total)
{
    if (progress && progress->report)
        progress->report(progress->context, what, done, total);
}

static int write_all(int fd, const char *bytes, size_t len)
{
    while (len) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno != EINTR)
            return -errno;
        bytes += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* Up to the end of `in`. */
static int copy_stream(int in, int out, const char *what, uint64_t total, const struct image_progress *progress,
                       struct err *err)
{
    own_free char *buffer = malloc(CHUNK);
    if (!buffer)
        return err_set(err, ENOMEM, "%s", what);
    for (uint64_t done = 0;;) {
        ssize_t n = cancelled(progress) ? -1 : read(in, buffer, CHUNK);
        if (n < 0 && cancelled(progress))
            return err_say(err, ECANCELED, "%s: cancelled", what);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            return 0;
        int r = n < 0 ? -errno : write_all(out, buffer, (size_t)n);
        if (r < 0)
            return err_set(err, -r, "%s", what);
        done += (uint64_t)n;
        report(progress, what, done, total);
    }
}

/* ---- clone ---- */

int volume_clone(struct volumes *volumes, const char *source, const char *name, const struct image_progress *progress,
                 const struct store_audit *audit, struct err *err)
{
    own_store_doc doc = {0};
    int r = volume_name_check("volume", name, err);
    if (r < 0)
        return r;
    own_volume_lock lock;
    volume_lock(volumes, &lock, source, name);
    r = volume_load(volumes, source, &doc, err);
    if (r == 0)
        r = volume_check_idle(volumes, &doc, true, err);
    if (r == 0)
        r = volume_check_alone(volumes, source, err);
    if (r == 0)
        r = volume_check_new(volumes, name, err);
    if (r < 0)
        return r;
    struct volume_file from = volume_file(source, "qcow2"), to = volume_file(name, "new");
    const char *const args[] = {"convert", "-f", "qcow2", "-O", "qcow2", from.name, to.name, NULL};
    unlinkat(volumes->dir_fd, to.name, 0);
    report(progress, "clone", 0, 0);
    r = volume_img(volumes, -1, progress, args, NULL, err);
    if (r < 0)
        unlinkat(volumes->dir_fd, to.name, 0);
    uint64_t size = (uint64_t)json_integer_value(json_object_get(doc.value, "size_bytes"));
    const char *fs = json_string_value(json_object_get(doc.value, "fs"));
    if (r == 0)
        r = volume_publish(volumes, name, volume_document(name, size, fs ? fs : ""), audit, err);
    return r < 0 ? err_ctx(err, "clone volume '%s'", source) : 0;
}

/* ---- export ---- */

static int convert_out(struct volumes *volumes, const char *name, const char *format, const struct volume_work *work,
                       const struct image_progress *progress, struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, err);
    if (r == 0)
        r = volume_check_idle(volumes, &doc, true, err);
    if (r == 0)
        r = volume_check_alone(volumes, name, err);
    if (r < 0)
        return r;
    struct volume_file from = volume_file(name, "qcow2");
    char to[32];
    snprintf(to, sizeof to, "%s/disk", work->name);
    const char *const args[] = {"convert", "-f", "qcow2", "-O", format, from.name, to, NULL};
    return volume_img(volumes, -1, progress, args, NULL, err);
}

int volume_export(struct volumes *volumes, const char *name, const char *format, int fd,
                  const struct image_progress *progress, struct err *err)
{
    if (strcmp(format, "raw") != 0 && strcmp(format, "qcow2") != 0)
        return err_say(err, EINVAL, "a volume is exported as raw or as qcow2, not as '%.40s'", format);
    own_volume_work work = {0};
    int r = volume_work_begin(volumes, &work, err);
    if (r == 0)
        r = convert_out(volumes, name, format, &work, progress, err);
    if (r < 0)
        return r;
    own_fd int made = openat(work.fd, "disk", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (made < 0 || fstat(made, &st) < 0)
        return err_set(err, errno, "export volume '%s'", name);
    return copy_stream(made, fd, "export", (uint64_t)st.st_size, progress, err);
}

/* ---- import ---- */

static bool is_format(const char *format)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"};
    for (unsigned i = 0; format && i < sizeof formats / sizeof *formats; i++)
        if (strcmp(format, formats[i]) == 0)
            return true;
    return false;
}

static int receive(const struct volume_work *work, int fd, const struct image_progress *progress, struct err *err)
{
    own_fd int spool = openat(work->fd, "disk", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (spool < 0 || (geteuid() == 0 && fchown(spool, CHILD_NOBODY, CHILD_NOBODY) < 0))
        return err_set(err, errno, "import");
    return copy_stream(fd, spool, "import", 0, progress, err);
}

/* From the folder of the work to NAME.new; it is the caller's again. */
static int take_over(struct volumes *volumes, const struct volume_work *work, const char *name, struct err *err)
{
    own_fd int fd = openat(work->fd, "new", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "import");
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return err_say(err, EIO, "import: polder-img made something that is not a file");
    if (fchown(fd, geteuid(), getegid()) < 0 || fchmod(fd, 0600) < 0 ||
        renameat(work->fd, "new", volumes->dir_fd, volume_file(name, "new").name) < 0)
        return err_set(err, errno, "import");
    return 0;
}

static int convert_in(struct volumes *volumes, const struct volume_work *work, const char *name, const char *format,
                      const struct image_progress *progress, uint64_t *ret_size, struct err *err)
{
    const char *const args[] = {"convert", "-f", format, "-O", "qcow2", "disk", "new", NULL};
    int r = volume_img(volumes, work->fd, progress, args, NULL, err);
    if (r == 0)
        r = take_over(volumes, work, name, err);
    json_t *info = NULL;
    if (r == 0)
        r = volume_info(volumes, volume_file(name, "new").name, &info, err);
    if (r == 0)
        *ret_size = (uint64_t)json_integer_value(json_object_get(info, "virtual-size"));
    json_decref(info);
    return r;
}

int volume_import(struct volumes *volumes, const char *name, const char *format, int fd,
                  const struct image_progress *progress, const struct store_audit *audit, struct err *err)
{
    if (!is_format(format))
        return err_say(err, EINVAL, "say which format the image has: raw, qcow2, vmdk, vhd, vhdx or vdi");
    own_volume_work work = {0};
    int r = volume_name_check("volume", name, err);
    if (r == 0)
        r = volume_check_new(volumes, name, err); /* before all of it was sent */
    if (r == 0)
        r = volume_work_begin(volumes, &work, err);
    if (r == 0)
        r = receive(&work, fd, progress, err);
    if (r < 0)
        return r;
    uint64_t size = 0;
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    r = volume_check_new(volumes, name, err);
    if (r == 0)
        r = convert_in(volumes, &work, name, format, progress, &size, err);
    if (r == 0 && (size < BUFSIZ || size > VOLUME_SIZE_MAX))
        r = err_say(err, EINVAL, "the image holds a disk of %llu bytes, which is no size for a volume", (unsigned long long)size);
    if (r == 0)
        return volume_publish(volumes, name, volume_document(name, size, ""), audit, err);
    unlinkat(volumes->dir_fd, volume_file(name, "new").name, 0);
    return err_ctx(err, "import volume '%s'", name);
}

/* ---- root disks ---- */

/* Some MiB; shares them where the file system can. */
static int copy_file(int from, int to)
{
    if (ioctl(to, FICLONE, from) == 0)
        return 0;
    struct stat st;
    if (fstat(from, &st) < 0 || ftruncate(to, st.st_size) < 0)
        return -errno;
    for (off_t at = 0, end; at < st.st_size; at = end) {
        at = lseek(from, at, SEEK_DATA);
        end = at < 0 ? st.st_size : lseek(from, at, SEEK_HOLE);
        if (at < 0)
            return errno == ENXIO ? 0 : -errno;
        if (lseek(to, at, SEEK_SET) < 0)
            return -errno;
        for (off_t from_at = at; from_at < end;) {
            ssize_t n = sendfile(to, from, &from_at, (size_t)(end - from_at));
            if (n <= 0)
                return n < 0 ? -errno : -EIO;
        }
    }
    return 0;
}

static int copy_template(const struct volumes *volumes, const char *template, const char *path, struct err *err)
{
    own_fd int from = openat(volumes->dir_fd, template, O_RDONLY | O_CLOEXEC);
    own_fd int to = from < 0 ? -1 : open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_set(err, errno, "make root disk '%s'", path);
    int r = copy_file(from, to);
    if (r == 0 && fdatasync(to) < 0)
        r = -errno;
    if (r == 0)
        return 0;
    unlink(path);
    return err_set(err, -r, "make root disk '%s'", path);
}

static int make_template(struct volumes *volumes, const char *template, uint64_t size_bytes, struct err *err)
{
    static const char made[] = ".root.new";
    int r = volume_make_disk(volumes, made, ".root.raw", size_bytes, "ext4", err);
    if (r == 0 && renameat(volumes->dir_fd, made, volumes->dir_fd, template) < 0)
        r = err_set(err, errno, "name '%s/%s'", volumes->dir, template);
    return r;
}

int volume_root_create(struct volumes *volumes, const char *path, uint64_t size_bytes, struct err *err)
{
    char template[32];
    int r = volume_round_size(&size_bytes, err);
    if (r < 0)
        return r;
    snprintf(template, sizeof template, ".root-%llu", (unsigned long long)size_bytes);
    own_volume_lock lock;
    volume_lock(volumes, &lock, ".root", NULL);
    if (!volume_has_file(volumes, template)) {
        volume_trim_templates(volumes, TEMPLATES_MAX - 1);
        r = make_template(volumes, template, size_bytes, err);
    }
    return r == 0 ? copy_template(volumes, template, path, err) : err_ctx(err, "root disk");
}
