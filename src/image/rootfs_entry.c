/* What an entry of a layer is, made below the root: always new, never through what was there. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>

#include "image/rootfs_impl.h"

/* The largest id that is one: (uid_t)-1 means "leave it". */
#define ID_MAX (UINT32_MAX - 1)

static int check_ids(struct archive_entry *entry, struct err *err)
{
    int64_t uid = archive_entry_uid(entry), gid = archive_entry_gid(entry);
    if (uid < 0 || gid < 0 || uid > ID_MAX || gid > ID_MAX)
        return err_say(err, EINVAL, "its owner is no user and group: %lld:%lld", (long long)uid, (long long)gid);
    return 0;
}

static bool is_kept_xattr(const char *name)
{
    return strcmp(name, "security.capability") == 0 ||
           (strncmp(name, "user.", 5) == 0 && strncmp(name, "user.overlay.", 13) != 0);
}

static int set_xattrs(int fd, struct archive_entry *entry, struct err *err)
{
    const char *name;
    const void *value;
    size_t size;
    if (archive_entry_xattr_reset(entry) > (int)ROOTFS_XATTRS_MAX)
        return err_say(err, EINVAL, "it has more than %u extended attributes", ROOTFS_XATTRS_MAX);
    while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
        if (!name || !is_kept_xattr(name))
            continue;
        if (size > ROOTFS_XATTR_BYTES_MAX)
            return err_say(err, EINVAL, "its attribute %.64s has more than %u bytes", name, ROOTFS_XATTR_BYTES_MAX);
        if (fsetxattr(fd, name, value, size, 0) < 0)
            return err_set(err, errno, "its attribute %.64s", name);
    }
    return 0;
}

static void entry_times(struct archive_entry *entry, struct timespec ret_times[static 2])
{
    struct timespec time = {archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)};
    if (time.tv_nsec < 0 || time.tv_nsec > 999999999 || !archive_entry_mtime_is_set(entry))
        time = (struct timespec){0};
    ret_times[0] = ret_times[1] = time;
}

/* Without root there is one owner: in the user namespace of that user no other id means anything, which is -EINVAL, and the
 * file stays root's. */
static bool has_owner(int r)
{
    return r == 0 || errno == EINVAL;
}

/* Of a file or folder that is open. The owner first: a new owner takes set-id bits and capabilities away. */
static int set_attributes(int fd, struct archive_entry *entry, struct err *err)
{
    struct timespec times[2];
    entry_times(entry, times);
    if (!has_owner(fchown(fd, (uid_t)archive_entry_uid(entry), (gid_t)archive_entry_gid(entry))))
        return err_set(err, errno, "set its owner");
    if (fchmod(fd, archive_entry_perm(entry) & 07777) < 0)
        return err_set(err, errno, "set its mode");
    int r = set_xattrs(fd, entry, err);
    if (r == 0 && futimens(fd, times) < 0)
        r = err_set(err, errno, "set its time");
    return r;
}

static int clear_place(struct unpack *unpack, const char *name, struct err *err)
{
    int r = unpack_replace(unpack, name);
    return r < 0 ? err_set(err, -r, "remove what was there before") : 0;
}

static int touch(struct unpack *unpack, const struct stat *st, struct err *err)
{
    return inode_set_add(&unpack->touched, st->st_ino) < 0 ? err_set(err, ENOMEM, "unpack") : 0;
}

/* ---- kinds ---- */

static int make_folder(struct unpack *unpack, struct archive_entry *entry, const char *name, struct err *err)
{
    struct stat st;
    const char *at = *name ? name : ".";
    bool there = fstatat(unpack->dir_fd, at, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int r = there && !S_ISDIR(st.st_mode) ? clear_place(unpack, at, err) : 0;
    if (r < 0)
        return r;
    if ((!there || !S_ISDIR(st.st_mode)) && mkdirat(unpack->dir_fd, at, 0700) < 0)
        return err_set(err, errno, "make the folder");
    own_fd int fd = openat(unpack->dir_fd, at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "open the folder");
    r = touch(unpack, &st, err);
    if (r == 0)
        r = set_attributes(fd, entry, err);
    if (!*name)
        entry_times(entry, unpack->dir_times);
    return r;
}

static int add_bytes(struct unpack *unpack, int64_t bytes, struct err *err)
{
    if (bytes < 0 || (uint64_t)bytes > ROOTFS_BYTES_MAX - unpack->counts->bytes)
        return err_say(err, EINVAL, "the image's files are larger than %llu GiB together",
                       (unsigned long long)(ROOTFS_BYTES_MAX >> 30));
    unpack->counts->bytes += (uint64_t)bytes;
    return 0;
}

static int write_at(int fd, const char *bytes, size_t len, int64_t offset)
{
    while (len) {
        ssize_t n = pwrite(fd, bytes, len, offset);
        if (n < 0 && errno != EINTR)
            return -errno;
        n = n < 0 ? 0 : n;
        bytes += n;
        offset += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Blocks come with their place: what is between them is a hole. */
static int write_contents(int fd, struct archive *archive, int64_t size, struct err *err)
{
    const void *block;
    size_t len;
    int64_t offset;
    int got;
    while ((got = archive_read_data_block(archive, &block, &len, &offset)) == ARCHIVE_OK) {
        if (offset < 0 || offset > size || len > (uint64_t)(size - offset))
            return err_say(err, EINVAL, "it has more bytes than its size says");
        int r = write_at(fd, block, len, offset);
        if (r < 0)
            return err_set(err, -r, "write it");
    }
    if (got != ARCHIVE_EOF)
        return err_say(err, EINVAL, "%.120s", archive_error_string(archive));
    return ftruncate(fd, size) < 0 ? err_set(err, errno, "write it") : 0;
}

static int make_file(struct unpack *unpack, struct archive *archive, struct archive_entry *entry, const char *name,
                     struct err *err)
{
    struct stat st;
    int r = add_bytes(unpack, archive_entry_size(entry), err);
    if (r == 0)
        r = clear_place(unpack, name, err);
    if (r < 0)
        return r;
    own_fd int fd = openat(unpack->dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "make the file");
    r = touch(unpack, &st, err);
    if (r == 0)
        r = write_contents(fd, archive, archive_entry_size(entry), err);
    return r == 0 ? set_attributes(fd, entry, err) : r;
}

/* Of what has no descriptor of its own. */
static int finish_node(struct unpack *unpack, struct archive_entry *entry, const char *name, struct err *err)
{
    struct stat st;
    struct timespec times[2];
    entry_times(entry, times);
    int owned = fchownat(unpack->dir_fd, name, (uid_t)archive_entry_uid(entry), (gid_t)archive_entry_gid(entry), AT_SYMLINK_NOFOLLOW);
    if (!has_owner(owned) ||
        utimensat(unpack->dir_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0 ||
        fstatat(unpack->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return err_set(err, errno, "set its owner and time");
    return touch(unpack, &st, err);
}

static int make_symlink(struct unpack *unpack, struct archive_entry *entry, const char *name, struct err *err)
{
    const char *target = archive_entry_symlink(entry);
    if (!target || !*target || strlen(target) > ROOTFS_PATH_MAX)
        return err_say(err, EINVAL, "the link leads to no name, or to one that is too long");
    int r = clear_place(unpack, name, err);
    if (r == 0 && symlinkat(target, unpack->dir_fd, name) < 0)
        r = err_set(err, errno, "make the link");
    return r == 0 ? finish_node(unpack, entry, name, err) : r;
}

static int make_fifo(struct unpack *unpack, struct archive_entry *entry, const char *name, struct err *err)
{
    int r = clear_place(unpack, name, err);
    if (r == 0 && mkfifoat(unpack->dir_fd, name, 0600) < 0)
        r = err_set(err, errno, "make the fifo");
    if (r == 0 && fchmodat(unpack->dir_fd, name, archive_entry_perm(entry) & 0777, 0) < 0)
        r = err_set(err, errno, "set its mode");
    return r == 0 ? finish_node(unpack, entry, name, err) : r;
}

/* The target's folder is resolved below the root like any other; its last part is linked as it is. */
static int make_hard_link(struct unpack *unpack, struct archive_entry *entry, const char *name, struct err *err)
{
    char target[ROOTFS_PATH_MAX + 1], dir[ROOTFS_PATH_MAX + 1];
    const char *raw = archive_entry_hardlink(entry);
    int r = raw ? rootfs_path_clean(raw, target, err) : err_say(err, EINVAL, "the link leads to no name");
    if (r < 0)
        return err_ctx(err, "the target of its link");
    const char *base = rootfs_path_split(target, dir);
    own_fd int fd = rootfs_open(unpack->root_fd, dir, O_RDONLY | O_DIRECTORY);
    struct stat from, to;
    if (fd < 0 || !*base || fstatat(fd, base, &from, AT_SYMLINK_NOFOLLOW) < 0 || S_ISDIR(from.st_mode))
        return err_say(err, EINVAL, "it is a link to '%.150s', which is no file of the image", target);
    if (fstatat(unpack->dir_fd, name, &to, AT_SYMLINK_NOFOLLOW) == 0 && to.st_ino == from.st_ino)
        return touch(unpack, &from, err);
    r = clear_place(unpack, name, err);
    if (r == 0 && linkat(fd, base, unpack->dir_fd, name, 0) < 0)
        r = err_set(err, errno, "make the link");
    return r == 0 ? touch(unpack, &from, err) : r;
}

int unpack_entry(struct unpack *unpack, struct archive *archive, struct archive_entry *entry, const char *name,
                 struct err *err)
{
    int r = check_ids(entry, err);
    if (r < 0)
        return r;
    mode_t kind = archive_entry_filetype(entry);
    if (kind == AE_IFDIR)
        return make_folder(unpack, entry, name, err);
    if (!*name)
        return err_say(err, EINVAL, "the root of an image is a folder");
    if (archive_entry_hardlink(entry))
        return make_hard_link(unpack, entry, name, err);
    switch (kind) {
    case AE_IFREG: return make_file(unpack, archive, entry, name, err);
    case AE_IFLNK: return make_symlink(unpack, entry, name, err);
    case AE_IFIFO: return make_fifo(unpack, entry, name, err);
    case AE_IFCHR:
    case AE_IFBLK: return clear_place(unpack, name, err); /* the guest's kernel makes its own */
    default: return err_say(err, EINVAL, "it is neither file, folder, link nor device");
    }
}
