/* Trees removed, whole or what a layer did not touch. Depth is bounded by what could be made: ROOTFS_DEPTH_MAX. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "image/rootfs_impl.h"

static size_t slot_of(const struct inode_set *set, uint64_t inode)
{
    size_t at = (size_t)((inode * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (set->capacity - 1);
    while (set->slots[at] && set->slots[at] != inode)
        at = (at + 1) & (set->capacity - 1);
    return at;
}

bool inode_set_has(const struct inode_set *set, uint64_t inode)
{
    return set->capacity && set->slots[slot_of(set, inode)] == inode;
}

static int grow(struct inode_set *set)
{
    struct inode_set more = {.capacity = set->capacity ? set->capacity * 2 : 1024, .count = set->count};
    more.slots = calloc(more.capacity, sizeof *more.slots);
    if (!more.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++)
        if (set->slots[i])
            more.slots[slot_of(&more, set->slots[i])] = set->slots[i];
    free(set->slots);
    *set = more;
    return 0;
}

int inode_set_add(struct inode_set *set, uint64_t inode)
{
    int r = set->count * 2 >= set->capacity ? grow(set) : 0;
    if (r < 0)
        return r;
    size_t at = slot_of(set, inode);
    set->count += set->slots[at] == 0;
    set->slots[at] = inode;
    return 0;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int remove_below(int dir_fd, const struct inode_set *kept);

/* `kept`: NULL, or what stays. */
static int remove_tree(int dir_fd, const char *name, const struct inode_set *kept)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno;
    bool keep = kept && inode_set_has(kept, st.st_ino);
    if (S_ISDIR(st.st_mode)) {
        if (!keep && geteuid() != 0) /* who is not root may not even empty folders of its own that are read-only */
            (void)!fchmodat(dir_fd, name, 0700, 0);
        own_fd int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int r = fd < 0 ? -errno : remove_below(fd, keep ? kept : NULL);
        if (r < 0)
            return r;
    }
    if (!keep && unlinkat(dir_fd, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) < 0)
        return -errno;
    return 0;
}

static int remove_below(int dir_fd, const struct inode_set *kept)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int r = 0;
    if (!dir) {
        r = -errno;
        if (fd >= 0)
            close(fd);
        return r;
    }
    for (const struct dirent *entry; r == 0 && (entry = readdir(dir)) != NULL;)
        if (!is_dots(entry->d_name))
            r = remove_tree(dir_fd, entry->d_name, kept);
    closedir(dir);
    return r;
}

int rootfs_remove(int dir_fd, const char *name)
{
    return remove_tree(dir_fd, name, NULL);
}

/* A name that is gone may have been a link on the way to the folder that is open: its path is resolved anew next time. */
static void forget_path(struct unpack *unpack)
{
    static const char none[] = "/"; /* no clean path */
    memcpy(unpack->dir_path, none, sizeof none);
}

int unpack_replace(struct unpack *unpack, const char *name)
{
    struct stat st;
    if (fstatat(unpack->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno;
    forget_path(unpack);
    return rootfs_remove(unpack->dir_fd, name);
}

int unpack_whiteout(struct unpack *unpack, const char *name)
{
    forget_path(unpack);
    return remove_tree(unpack->dir_fd, name, &unpack->touched);
}

int unpack_opaque(struct unpack *unpack)
{
    forget_path(unpack);
    return remove_below(unpack->dir_fd, &unpack->touched);
}
