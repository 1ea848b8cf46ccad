/* Names in layers: cleaned, bounded, resolved below the root by the kernel. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>

#include "image/rootfs_impl.h"

#define TRIES 128 /* the kernel asks for another one when a rename elsewhere came between */

int rootfs_path_clean(const char *raw, char ret_path[static ROOTFS_PATH_MAX + 1], struct err *err)
{
    size_t len = 0;
    unsigned depth = 0;
    for (const char *at = raw; *at;) {
        size_t part = strcspn(at, "/");
        bool up = part == 2 && at[0] == '.' && at[1] == '.';
        if (up)
            return err_say(err, EINVAL, "its name has a '..'");
        if (part > 0 && !(part == 1 && at[0] == '.')) {
            if (len + part + 1 > ROOTFS_PATH_MAX || part > 255)
                return err_say(err, EINVAL, "its name is too long");
            if (++depth > ROOTFS_DEPTH_MAX)
                return err_say(err, EINVAL, "it is more than %u folders deep", ROOTFS_DEPTH_MAX);
            if (len)
                ret_path[len++] = '/';
            memcpy(ret_path + len, at, part);
            len += part;
        }
        at += part + (at[part] == '/');
    }
    ret_path[len] = '\0';
    return 0;
}

const char *rootfs_path_split(const char *path, char ret_dir[static ROOTFS_PATH_MAX + 1])
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    memcpy(ret_dir, path, len);
    ret_dir[len] = '\0';
    return slash ? slash + 1 : path;
}

int rootfs_open(int root_fd, const char *path, int flags)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    for (int i = 0; i < TRIES; i++) {
        long fd = syscall(SYS_openat2, root_fd, *path ? path : ".", &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno != EAGAIN && errno != EINTR)
            break;
    }
    return -errno;
}

void unpack_leave(struct unpack *unpack)
{
    if (unpack->dir_fd < 0)
        return;
    futimens(unpack->dir_fd, unpack->dir_times);
    close(unpack->dir_fd);
    unpack->dir_fd = -1;
}

/* Each folder that is missing, from the top. */
static int make_folders(const struct unpack *unpack, const char *path)
{
    char part[ROOTFS_PATH_MAX + 1], dir[ROOTFS_PATH_MAX + 1];
    for (const char *end = path; *end;) {
        end += strcspn(end, "/");
        memcpy(part, path, (size_t)(end - path));
        part[end - path] = '\0';
        const char *name = rootfs_path_split(part, dir);
        own_fd int fd = rootfs_open(unpack->root_fd, dir, O_RDONLY | O_DIRECTORY);
        if (fd < 0)
            return fd;
        if (mkdirat(fd, name, 0755) < 0 && errno != EEXIST)
            return -errno;
        end += *end == '/';
    }
    return 0;
}

/* Marks the open folder and those above it: a whiteout of them leaves what this layer has in them. Counts how deep it really
 * is, for links lead deeper than names say. */
static int touch_up(struct unpack *unpack, struct err *err)
{
    struct stat st;
    own_fd int above = -1;
    int fd = unpack->dir_fd;
    for (unsigned depth = 0; depth <= ROOTFS_DEPTH_MAX; depth++) {
        if (fstat(fd, &st) < 0 || inode_set_add(&unpack->touched, st.st_ino) < 0)
            return err_set(err, errno ? errno : ENOMEM, "its folder");
        if (st.st_ino == unpack->root_inode)
            return 0;
        int next = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (next < 0)
            return err_set(err, errno, "its folder");
        if (above >= 0)
            close(above);
        fd = above = next;
    }
    return err_say(err, EINVAL, "it is more than %u folders deep", ROOTFS_DEPTH_MAX);
}

int unpack_enter(struct unpack *unpack, const char *path, struct err *err)
{
    if (unpack->dir_fd >= 0 && strcmp(unpack->dir_path, path) == 0)
        return 0;
    unpack_leave(unpack);
    int fd = rootfs_open(unpack->root_fd, path, O_RDONLY | O_DIRECTORY);
    int r = fd == -ENOENT ? make_folders(unpack, path) : 0;
    if (r == 0 && fd == -ENOENT)
        fd = rootfs_open(unpack->root_fd, path, O_RDONLY | O_DIRECTORY);
    struct stat st;
    if (r < 0 || fd < 0)
        return err_set(err, r < 0 ? -r : -fd, "its folder");
    unpack->dir_fd = fd;
    if (fstat(fd, &st) < 0)
        return err_set(err, errno, "its folder");
    unpack->dir_times[0] = st.st_atim;
    unpack->dir_times[1] = st.st_mtim;
    memcpy(unpack->dir_path, path, strlen(path) + 1);
    r = touch_up(unpack, err);
    if (r < 0)
        unpack_leave(unpack);
    return r;
}
