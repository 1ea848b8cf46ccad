#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent/files.h"
#include "agent/tar.h"
#include "base/own.h"

#define DEPTH_MAX 200 /* directories within each other: each holds a descriptor */

static int write_tree(int dir_fd, const char *base, struct tar_entry *e, unsigned depth, struct err *err);

static char type_of(mode_t mode)
{
    static const struct {
        mode_t kind;
        char type;
    } types[] = {{S_IFREG, '0'}, {S_IFLNK, '2'}, {S_IFCHR, '3'}, {S_IFBLK, '4'}, {S_IFDIR, '5'}, {S_IFIFO, '6'}};
    for (unsigned i = 0; i < sizeof types / sizeof types[0]; i++)
        if ((mode & S_IFMT) == types[i].kind)
            return types[i].type;
    return 0;
}

/* Exactly as much as the header says: a file that shrinks meanwhile is filled with zeroes. */
static int write_data(int fd, uint64_t size, struct err *err)
{
    static char buffer[65536];
    for (uint64_t left = size; left;) {
        size_t part = left < sizeof buffer ? (size_t)left : sizeof buffer;
        ssize_t n = read(fd, buffer, part);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno, "read");
        if (n == 0)
            memset(buffer, 0, part);
        part = n ? (size_t)n : part;
        int r = tar_write_all(STDOUT_FILENO, buffer, part, err);
        if (r < 0)
            return r;
        left -= part;
    }
    return tar_write_padding(STDOUT_FILENO, size, err);
}

static int write_file(int dir_fd, const char *base, struct tar_entry *e, struct err *err)
{
    own_fd int fd = openat(dir_fd, base, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "open '%.120s'", e->name);
    int r = tar_write_header(STDOUT_FILENO, e, err);
    return r < 0 ? r : write_data(fd, e->size_bytes, err);
}

static int write_dir(int dir_fd, const char *base, struct tar_entry *e, unsigned depth, struct err *err)
{
    int fd = openat(dir_fd, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return err_set(err, code, "open '%.120s'", e->name);
    }
    size_t len = strlen(e->name);
    int r = 0;
    for (struct dirent *d; r == 0 && (d = readdir(dir));) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
            continue;
        if (len + strlen(d->d_name) + 2 > sizeof e->name)
            r = err_say(err, ENAMETOOLONG, "the names below '%.120s' are too long", e->name);
        else
            snprintf(e->name + len, sizeof e->name - len, "/%s", d->d_name);
        if (r == 0)
            r = write_tree(fd, d->d_name, e, depth + 1, err);
        e->name[len] = 0;
    }
    closedir(dir);
    return r;
}

/* `e` holds the name only, and is used for all below it. */
static int write_tree(int dir_fd, const char *base, struct tar_entry *e, unsigned depth, struct err *err)
{
    struct stat st;
    if (fstatat(dir_fd, base, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return depth && errno == ENOENT ? 0 : err_set(err, errno, "'%.120s'", e->name);
    if (depth > DEPTH_MAX)
        return err_say(err, ELOOP, "'%.100s': directories are nested more than %d deep", e->name, DEPTH_MAX);
    e->type = type_of(st.st_mode);
    e->mode = st.st_mode & 07777;
    e->uid = st.st_uid;
    e->gid = st.st_gid;
    e->size_bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
    e->mtime = st.st_mtim.tv_sec;
    bool is_device = S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode);
    e->major = is_device ? major(st.st_rdev) : 0;
    e->minor = is_device ? minor(st.st_rdev) : 0;
    memset(e->link, 0, sizeof e->link);
    if (!e->type)
        return 0;
    if (S_ISLNK(st.st_mode) && readlinkat(dir_fd, base, e->link, sizeof e->link - 1) < 0)
        return err_set(err, errno, "read the link '%.120s'", e->name);
    if (S_ISREG(st.st_mode))
        return write_file(dir_fd, base, e, err);
    int r = tar_write_header(STDOUT_FILENO, e, err);
    return r == 0 && S_ISDIR(st.st_mode) ? write_dir(dir_fd, base, e, depth, err) : r;
}

int files_get(const char *path)
{
    static struct tar_entry entry;
    struct err err = {0};
    char clean[PATH_MAX];
    snprintf(clean, sizeof clean, "%s", path);
    for (size_t len = strlen(clean); len > 1 && clean[len - 1] == '/';)
        clean[--len] = 0;
    const char *base = strrchr(clean, '/') ? strrchr(clean, '/') + 1 : clean;
    snprintf(entry.name, sizeof entry.name, "%s", base[0] ? base : ".");
    int r = write_tree(AT_FDCWD, clean, &entry, 0, &err);
    if (r == 0)
        r = tar_write_end(STDOUT_FILENO, &err);
    if (r < 0)
        dprintf(STDERR_FILENO, "%s\n", err.message);
    return r < 0;
}
