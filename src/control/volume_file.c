/* Volumes: files in the pool's folder, made and changed by programs. */
#include "control/volume_impl.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/own.h"

#define ARGS_MAX 16

static bool is_cancelled(void *context)
{
    const struct image_progress *progress = context;
    return progress->cancelled(progress->context);
}

int volume_img(const struct volumes *volumes, int dir_fd, const struct image_progress *progress, const char *const *args,
               char **ret_output, struct err *err)
{
    const char *argv[ARGS_MAX + 2] = {volumes->img};
    for (unsigned i = 0; i < ARGS_MAX && args[i]; i++)
        argv[i + 1] = args[i];
    struct child child = {CHILD_INIT, .argv = argv, .confined = true};
    child.nobody = dir_fd >= 0;
    child.dir_fd = dir_fd >= 0 ? dir_fd : volumes->dir_fd;
    if (progress && progress->cancelled) {
        child.cancelled = is_cancelled;
        child.context = (void *)(uintptr_t)progress;
    }
    return child_run(&child, ret_output, err);
}

int volume_info(const struct volumes *volumes, const char *file, json_t **ret_info, struct err *err)
{
    own_free char *output = NULL;
    int r = VOLUME_IMG(volumes, &output, err, "info", "-f", "qcow2", "--output", "json", file);
    if (r < 0)
        return r;
    json_error_t error;
    json_t *info = json_loads(output, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_integer(json_object_get(info, "virtual-size"))) {
        json_decref(info);
        return err_say(err, EIO, "polder-img info said nothing of the size of '%s'", file);
    }
    const json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");
    if (json_object_get(info, "backing-filename") || json_object_get(data, "data-file")) {
        json_decref(info); /* none was made so: what broke out of its machine may have written it */
        return err_say(err, EBADMSG, "'%s/%s' names another file that its contents are in, which no volume does: bring back a copy",
                       volumes->dir, file);
    }
    *ret_info = info;
    return 0;
}

int volume_check_alone(const struct volumes *volumes, const char *name, struct err *err)
{
    json_t *info = NULL;
    int r = volume_info(volumes, volume_file(name, "qcow2").name, &info, err);
    json_decref(info);
    return r;
}

static int make_sparse(const struct volumes *volumes, const char *file, uint64_t size_bytes, struct err *err)
{
    own_fd int fd = openat(volumes->dir_fd, file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
        return err_set(err, errno, "make '%s/%s'", volumes->dir, file);
    return 0;
}

/* The file is new and all holes: nothing needs to be zeroed, neither now nor by the guest's kernel later. */
static int format_ext4(const struct volumes *volumes, const char *file, struct err *err)
{
    static const char *const args[] = {
        "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "assume_storage_prezeroed=1,nodiscard", NULL};
    const char *argv[ARGS_MAX] = {0};
    memcpy(argv, args, sizeof args);
    argv[sizeof args / sizeof *args - 1] = file;
    struct child child = {CHILD_INIT, .argv = argv, .confined = true};
    child.dir_fd = volumes->dir_fd;
    return child_run(&child, NULL, err);
}

static int make_formatted(const struct volumes *volumes, const char *file, const char *scratch, uint64_t size_bytes,
                          struct err *err)
{
    int r = make_sparse(volumes, scratch, size_bytes, err);
    if (r == 0)
        r = format_ext4(volumes, scratch, err);
    if (r == 0)
        r = VOLUME_IMG(volumes, NULL, err, "convert", "-f", "raw", "-O", "qcow2", scratch, file);
    unlinkat(volumes->dir_fd, scratch, 0);
    return r;
}

int volume_make_disk(const struct volumes *volumes, const char *file, const char *scratch, uint64_t size_bytes,
                     const char *fs, struct err *err)
{
    char size[24];
    snprintf(size, sizeof size, "%llu", (unsigned long long)size_bytes);
    unlinkat(volumes->dir_fd, file, 0);
    int r = fs && *fs ? make_formatted(volumes, file, scratch, size_bytes, err)
                      : VOLUME_IMG(volumes, NULL, err, "create", "-f", "qcow2", file, size);
    if (r < 0)
        unlinkat(volumes->dir_fd, file, 0);
    return r;
}

int volume_sync_dir(const struct volumes *volumes, struct err *err)
{
    return fsync(volumes->dir_fd) < 0 ? err_set(err, errno, "sync '%s'", volumes->dir) : 0;
}

static int sync_file(const struct volumes *volumes, const char *file, struct err *err)
{
    own_fd int fd = openat(volumes->dir_fd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fsync(fd) < 0)
        return err_set(err, errno, "sync '%s/%s'", volumes->dir, file);
    return volume_sync_dir(volumes, err);
}

int volume_publish(struct volumes *volumes, const char *name, json_t *document, const struct store_audit *audit,
                   struct err *err)
{
    struct volume_file made = volume_file(name, "new"), final = volume_file(name, "qcow2");
    int r = sync_file(volumes, made.name, err);
    if (r < 0)
        json_decref(document);
    else
        r = volume_save(volumes, name, document, 0, audit, err);
    if (r < 0) {
        unlinkat(volumes->dir_fd, made.name, 0);
        return r;
    }
    if (renameat(volumes->dir_fd, made.name, volumes->dir_fd, final.name) < 0)
        return err_set(err, errno, "name '%s/%s'", volumes->dir, final.name);
    return volume_sync_dir(volumes, err);
}

/* ---- folders for work ---- */

int volume_work_begin(const struct volumes *volumes, struct volume_work *ret_work, struct err *err)
{
    own_free char *path = NULL;
    if (asprintf(&path, "%s/.work-XXXXXX", volumes->dir) < 0) {
        path = NULL;
        return err_set(err, ENOMEM, "make a folder");
    }
    if (!mkdtemp(path))
        return err_set(err, errno, "make a folder in '%s'", volumes->dir);
    own_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const char *name = strrchr(path, '/') + 1;
    if (fd < 0 || (geteuid() == 0 && fchown(fd, CHILD_NOBODY, CHILD_NOBODY) < 0)) {
        int code = errno;
        unlinkat(volumes->dir_fd, name, AT_REMOVEDIR);
        return err_set(err, code, "make a folder in '%s'", volumes->dir);
    }
    *ret_work = (struct volume_work){.volumes = volumes, .fd = TAKE_FD(fd)};
    snprintf(ret_work->name, sizeof ret_work->name, "%s", name);
    return 0;
}

void volume_work_remove(const struct volumes *volumes, const char *name)
{
    int fd = openat(volumes->dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir && fd >= 0)
        close(fd);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    unlinkat(volumes->dir_fd, name, AT_REMOVEDIR);
}

void volume_work_end(struct volume_work *work)
{
    if (!work->name[0])
        return;
    close(work->fd);
    volume_work_remove(work->volumes, work->name);
    work->name[0] = '\0';
}
