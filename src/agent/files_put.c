#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent/files.h"
#include "agent/root.h"
#include "agent/tar.h"
#include "base/own.h"

static ssize_t read_input(void *arg, void *to, size_t len)
{
    (void)arg;
    ssize_t n;
    do
        n = read(STDIN_FILENO, to, len);
    while (n < 0 && errno == EINTR);
    return n;
}

/* A directory below `root_fd`: links are followed as if that were the root of all (openat2(2)). */
static int open_below(int root_fd, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root_fd, path, &how, sizeof how);
}

/* Makes a name plain in place: no leading, doubled or trailing slash, no "."; refuses "..". "" is the root itself. */
static bool make_plain(char *name)
{
    char *to = name;
    for (char *rest = name, *part; (part = strsep(&rest, "/"));) {
        size_t len = strlen(part);
        if (!strcmp(part, ".."))
            return false;
        if (!len || !strcmp(part, "."))
            continue;
        if (to != name)
            *to++ = '/';
        memmove(to, part, len);
        to += len;
    }
    *to = 0;
    return true;
}

/* Opens the directory that a plain name lies in, making what is missing; *ret_base is the name's last part. */
static int open_parent(int root_fd, char *name, const char **ret_base, struct err *err)
{
    own_fd int at = open_below(root_fd, ".");
    char *part = name;
    for (char *slash; at >= 0 && (slash = strchr(part, '/')); part = slash + 1) {
        *slash = 0;
        int next = open_below(root_fd, name);
        if (next < 0 && errno == ENOENT && mkdirat(at, part, 0755) == 0)
            next = open_below(root_fd, name);
        *slash = '/';
        close(at);
        at = next;
    }
    if (at < 0)
        return err_set(err, errno, "directory of '%.120s'", name);
    *ret_base = part;
    return TAKE_FD(at);
}

static int copy_data(struct tar_reader *reader, int fd, struct err *err)
{
    static char buffer[65536];
    for (;;) {
        ssize_t n = tar_read_data(reader, buffer, sizeof buffer, err);
        if (n <= 0)
            return (int)n;
        int r = tar_write_all(fd, buffer, (size_t)n, err);
        if (r < 0)
            return r;
    }
}

static int make_link(int root_fd, int dir_fd, const char *base, struct tar_entry *e, struct err *err)
{
    const char *target_base;
    if (!make_plain(e->link))
        return err_say(err, EINVAL, "the link '%.80s' leads out of the directory", e->name);
    own_fd int target_dir = open_parent(root_fd, e->link, &target_base, err);
    if (target_dir < 0)
        return target_dir;
    return linkat(target_dir, target_base, dir_fd, base, 0) < 0 ? -errno : 0;
}

/* Makes the entry as `base` in a directory; -errno without `err` where the caller is to say it. */
static int make_entry(struct tar_reader *reader, int root_fd, int dir_fd, const char *base, struct tar_entry *e,
                      struct err *err)
{
    if (e->type == '5')
        return mkdirat(dir_fd, base, 0700) < 0 && errno != EEXIST ? -errno : 0;
    unlinkat(dir_fd, base, 0);
    if (e->type == '0') {
        own_fd int fd = openat(dir_fd, base, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        return fd < 0 ? -errno : copy_data(reader, fd, err);
    }
    if (e->type == '1')
        return make_link(root_fd, dir_fd, base, e, err);
    if (e->type == '2')
        return symlinkat(e->link, dir_fd, base) < 0 ? -errno : 0;
    mode_t kind = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
    return mknodat(dir_fd, base, kind | 0600, makedev(e->major, e->minor)) < 0 ? -errno : 0;
}

/* Owner before mode: a change of owner drops set-user-id. A directory's time changes while it is filled; it is left. */
static int set_metadata(int dir_fd, const char *base, const struct tar_entry *e)
{
    if (e->type == '1')
        return 0;
    if (geteuid() == 0 && fchownat(dir_fd, base, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (e->type == '2')
        return 0;
    struct stat st; /* not through a link that was there before */
    if (fstatat(dir_fd, base, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISLNK(st.st_mode) &&
        fchmodat(dir_fd, base, e->mode, 0) < 0)
        return -errno;
    struct timespec times[2] = {{.tv_sec = e->mtime}, {.tv_sec = e->mtime}};
    if (e->type != '5')
        utimensat(dir_fd, base, times, AT_SYMLINK_NOFOLLOW);
    return 0;
}

static int unpack_entry(struct tar_reader *reader, int root_fd, struct tar_entry *e, struct err *err)
{
    if (e->type < '0' || e->type > '6')
        return err_say(err, EINVAL, "'%.120s' is of a kind that is not supported", e->name);
    if (!make_plain(e->name))
        return err_say(err, EINVAL, "'%.120s' leads out of the directory", e->name);
    if (!e->name[0])
        return 0;
    const char *base;
    own_fd int dir_fd = open_parent(root_fd, e->name, &base, err);
    if (dir_fd < 0)
        return dir_fd;
    err->code = 0;
    int r = make_entry(reader, root_fd, dir_fd, base, e, err);
    if (r == 0)
        r = set_metadata(dir_fd, base, e);
    return r < 0 && !err->code ? err_set(err, -r, "make '%.120s'", e->name) : r;
}

int files_put(const char *path)
{
    static struct tar_entry entry;
    struct tar_reader reader = {.read = read_input};
    struct err err = {0};
    umask(0);
    root_make_dirs(path);
    own_fd int root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int r = root_fd < 0 ? err_set(&err, errno, "open '%.120s'", path) : 1;
    while (r > 0) {
        r = tar_read_next(&reader, &entry, &err);
        if (r > 0 && unpack_entry(&reader, root_fd, &entry, &err) < 0)
            r = -1;
    }
    static char rest[4096];
    while (r == 0 && read_input(NULL, rest, sizeof rest) > 0)
        ; /* what some writers fill up the last record with */
    if (r < 0)
        dprintf(STDERR_FILENO, "%s\n", err.message);
    return r < 0;
}
