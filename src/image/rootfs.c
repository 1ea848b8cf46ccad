/* One erofs image for each image, made once: under DIR/roots,
 *     HEX.erofs   of the manifest with that digest; appears under this name when it is whole and stable
 *     HEX.work    the folder in which it is being made
 *     lock        whose byte N is locked by who works on the image with number N (the digest's first bits) */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/child.h"
#include "image/rootfs_child.h"
#include "image/rootfs_impl.h"

#define HEX_LEN 64
#define LOCK_POLL_MS 50

struct roots {
    struct image_store *store;
    int dir_fd;
};

struct root_name {
    char text[HEX_LEN + 8];
};

static struct root_name name_of(const char *digest, const char *suffix)
{
    struct root_name name;
    snprintf(name.text, sizeof name.text, "%.*s.%s", HEX_LEN, digest + strlen("sha256:"), suffix);
    return name;
}

static int open_roots(struct image_store *store, int *ret_fd, struct err *err)
{
    if (mkdirat(image_store_dir_fd(store), "roots", 0700) < 0 && errno != EEXIST)
        return err_set(err, errno, "make '%s/roots'", image_store_dir(store));
    int fd = openat(image_store_dir_fd(store), "roots", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "open '%s/roots'", image_store_dir(store));
    *ret_fd = fd;
    return 0;
}

static bool is_there(int dir_fd, const char *name)
{
    return faccessat(dir_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ---- the lock of one image: held as long as the descriptor is open ---- */

static int try_lock(int dir_fd, const char *digest, struct err *err)
{
    char first[16];
    snprintf(first, sizeof first, "%.12s", digest + strlen("sha256:"));
    own_fd int fd = openat(dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)strtoull(first, NULL, 16), .l_len = 1};
    if (fd < 0)
        return err_set(err, errno, "open the lock of root file systems");
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
        return errno == EACCES || errno == EAGAIN ? err_say(err, EAGAIN, "another one is at work on it")
                                                  : err_set(err, errno, "lock");
    return TAKE_FD(fd);
}

static bool is_cancelled(const struct image_progress *progress)
{
    return progress && progress->cancelled && progress->cancelled(progress->context);
}

static int wait_lock(int dir_fd, const char *digest, const struct image_progress *progress, struct err *err)
{
    for (;;) {
        int fd = try_lock(dir_fd, digest, err);
        if (fd != -EAGAIN)
            return fd;
        if (is_cancelled(progress))
            return err_say(err, ECANCELED, "cancelled");
        nanosleep(&(struct timespec){.tv_nsec = LOCK_POLL_MS * 1000000L}, NULL);
    }
}

/* ---- making one ---- */

static void close_all(int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

static int open_layers(struct image_store *store, const struct image *image, int *fds, uint64_t *ret_bytes, struct err *err)
{
    for (size_t i = 0; i < image->layer_count; i++) {
        fds[i] = image_blob_open(store, image->layers[i].digest, err);
        if (fds[i] < 0) {
            close_all(fds, i);
            return fds[i];
        }
        *ret_bytes += image->layers[i].size_bytes;
    }
    return 0;
}

static int unpack_into(struct image_store *store, const struct image *image, int work_fd,
                       const struct image_progress *progress, struct err *err)
{
    int fds[IMAGE_LAYERS_MAX];
    struct rootfs_work work = {.layers = fds, .layer_count = image->layer_count, .progress = progress, .what = "unpack"};
    if (image->layer_count > IMAGE_LAYERS_MAX || mkdirat(work_fd, "root", 0755) < 0)
        return err_set(err, image->layer_count > IMAGE_LAYERS_MAX ? EINVAL : errno, "unpack");
    own_fd int root_fd = openat(work_fd, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return err_set(err, errno, "unpack");
    work.root_fd = root_fd;
    int r = open_layers(store, image, fds, &work.total_bytes, err);
    if (r < 0)
        return r;
    r = rootfs_work_run(&work, err);
    close_all(fds, image->layer_count);
    return r;
}

static bool child_cancelled(void *context)
{
    return is_cancelled(context);
}

/* Not compressed: no guest, least of all one on `jit`, spends time on unpacking what the host's page cache could hold as it is. */
static int pack(int work_fd, const struct image_progress *progress, struct err *err)
{
    static const char *const argv[] = {"mkfs.erofs", "--quiet", "image", "root", NULL};
    struct child child = {CHILD_INIT, .argv = argv, .confined = true, .as_root = true, .cancelled = child_cancelled};
    child.dir_fd = work_fd;
    child.context = (void *)(uintptr_t)progress;
    if (progress && progress->report)
        progress->report(progress->context, "pack", 0, 0);
    int r = child_run(&child, NULL, err);
    if (r < 0)
        return r;
    own_fd int fd = openat(work_fd, "image", O_RDONLY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_set(err, errno, "sync the root file system") : 0;
}

/* Names in the work folder are looked up by the programs that run there, so none can be a link. */
static int make_root(const struct roots *roots, const struct image *image, const struct image_progress *progress,
                     struct err *err)
{
    const char *digest = image->manifest.digest;
    struct root_name work = name_of(digest, "work"), final = name_of(digest, "erofs");
    int r = rootfs_remove(roots->dir_fd, work.text); /* of somebody who was killed */
    if (r < 0 || mkdirat(roots->dir_fd, work.text, 0700) < 0)
        return err_set(err, r < 0 ? -r : errno, "make a folder for the root file system");
    own_fd int work_fd = openat(roots->dir_fd, work.text, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    r = work_fd < 0 ? err_set(err, errno, "open a folder for the root file system") : 0;
    if (r == 0)
        r = unpack_into(roots->store, image, work_fd, progress, err);
    if (r == 0)
        r = pack(work_fd, progress, err);
    if (r == 0 && (renameat(work_fd, "image", roots->dir_fd, final.text) < 0 || fsync(roots->dir_fd) < 0))
        r = err_set(err, errno, "name the root file system");
    int removed = rootfs_remove(roots->dir_fd, work.text);
    return r == 0 && removed < 0 ? err_set(err, -removed, "remove the unpacked layers") : r;
}

static int check_possible(const struct image *image, struct err *err)
{
    if (strcmp(image->config.media_type, IMAGE_DISK_CONFIG_TYPE) == 0)
        return err_say(err, EINVAL, "it is the image of a disk, with a system of its own: run it as a vm (--kind vm)");
    return 0;
}

static int need_root(const struct roots *roots, const struct image *image, const struct image_progress *progress,
                     struct err *err)
{
    const char *digest = image->manifest.digest;
    struct root_name final = name_of(digest, "erofs");
    if (is_there(roots->dir_fd, final.text))
        return 0;
    int r = check_possible(image, err);
    if (r < 0)
        return r;
    own_fd int lock = wait_lock(roots->dir_fd, digest, progress, err);
    if (lock < 0)
        return lock;
    return is_there(roots->dir_fd, final.text) ? 0 : make_root(roots, image, progress, err);
}

int image_root(struct image_store *store, const char *ref, const struct image_progress *progress, char **ret_path,
               char ret_digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    struct image image = {0};
    own_fd int dir_fd = -1;
    char *path = NULL;
    int r = image_get(store, ref, &image, err);
    if (r == 0)
        r = open_roots(store, &dir_fd, err);
    if (r < 0) {
        image_clear(&image);
        return r;
    }
    const struct roots roots = {store, dir_fd};
    struct root_name final = name_of(image.manifest.digest, "erofs");
    r = need_root(&roots, &image, progress, err);
    if (r == 0 && asprintf(&path, "%s/roots/%s", image_store_dir(store), final.text) < 0)
        r = err_set(err, ENOMEM, "root file system");
    if (r == 0) {
        *ret_path = path;
        memcpy(ret_digest, image.manifest.digest, IMAGE_DIGEST_SIZE);
    }
    image_clear(&image);
    return r < 0 ? err_ctx(err, "image '%.100s'", ref) : 0;
}

/* ---- removing what is not needed ---- */

static bool is_in_store(struct image_store *store, const char *digest)
{
    struct image image = {0};
    int r = image_get(store, digest, &image, NULL);
    image_clear(&image);
    return r != -ENOENT;
}

static int prune_one(const struct roots *roots, const char *name, uint64_t *bytes, struct err *err)
{
    char digest[IMAGE_DIGEST_SIZE];
    struct stat st;
    snprintf(digest, sizeof digest, "sha256:%.*s", HEX_LEN, name);
    const char *suffix = strchr(name, '.');
    bool work = suffix && strcmp(suffix, ".work") == 0, image = suffix && strcmp(suffix, ".erofs") == 0;
    if (!image_digest_valid(digest) || suffix != name + HEX_LEN || !(work || image))
        return 0;
    if (image && is_in_store(roots->store, digest))
        return 0;
    own_fd int lock = try_lock(roots->dir_fd, digest, err);
    if (lock < 0)
        return lock == -EAGAIN ? 0 : lock;
    uint64_t size = image && fstatat(roots->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
    int r = rootfs_remove(roots->dir_fd, name);
    *bytes += size;
    return r < 0 ? err_set(err, -r, "remove '%s'", name) : 0;
}

int image_roots_prune(struct image_store *store, uint64_t *ret_bytes, struct err *err)
{
    own_fd int dir_fd = -1;
    uint64_t bytes = 0;
    int r = open_roots(store, &dir_fd, err);
    int list_fd = r < 0 ? -1 : openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = list_fd < 0 ? NULL : fdopendir(list_fd);
    if (!dir && list_fd >= 0)
        close(list_fd);
    if (r == 0 && !dir)
        r = err_set(err, errno, "read '%s/roots'", image_store_dir(store));
    const struct roots roots = {store, dir_fd};
    for (const struct dirent *entry; r == 0 && (entry = readdir(dir)) != NULL;)
        r = prune_one(&roots, entry->d_name, &bytes, err);
    if (dir)
        closedir(dir);
    if (r == 0)
        *ret_bytes = bytes;
    return r;
}
