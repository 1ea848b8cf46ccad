/* The store's folder: made, opened, locked.
 *
 * Locks are flock's, on files that stay: "lock" is shared by whoever adds or reads blobs and taken alone by the garbage
 * collector; "index.lock" guards index.json and the making of tmp folders; a tmp folder itself is locked by its handle, so
 * that what a dead process left can be told from what a living one uses. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include "base/log.h"
#include "image/image_impl.h"
#include "image/rootfs.h"

static int make_dir(int at_fd, const char *name, struct err *err)
{
    if (mkdirat(at_fd, name, 0700) < 0 && errno != EEXIST)
        return err_set(err, errno, "make folder '%s'", name);
    int fd = openat(at_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? err_set(err, errno, "open folder '%s'", name) : fd;
}

static int make_path(const char *dir, struct err *err)
{
    own_free char *path = strdup(dir);
    if (!path)
        return err_set(err, ENOMEM, "image store");
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            return err_set(err, errno, "make folder '%s'", path);
        *slash = '/';
    }
    return make_dir(AT_FDCWD, dir, err);
}

static int lock_file(struct image_store *store, const char *name, int operation, struct err *err)
{
    own_fd int fd = openat(store->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, errno, "open '%s/%s'", store->dir, name);
    while (flock(fd, operation) < 0)
        if (errno != EINTR)
            return err_set(err, errno == EWOULDBLOCK ? EBUSY : errno, "lock '%s/%s'", store->dir, name);
    return TAKE_FD(fd);
}

int image_store_use(struct image_store *store, struct err *err)
{
    return lock_file(store, "lock", LOCK_SH, err);
}

int image_store_use_alone(struct image_store *store, struct err *err)
{
    int fd = lock_file(store, "lock", LOCK_EX | LOCK_NB, err);
    if (fd == -EBUSY)
        return err_say(err, EBUSY, "an image is being pulled, pushed, imported or exported: try again when that has ended");
    return fd;
}

/* Removes tmp/NAME and what is in it, unless a living handle has it. */
static void remove_tmp(int parent_fd, const char *name)
{
    own_fd int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && rootfs_remove(parent_fd, name) < 0)
        log_debug("'%s' of the image store could not be removed", name);
}

static int clean_tmp(int parent_fd, struct err *err)
{
    int fd = fcntl(parent_fd, F_DUPFD_CLOEXEC, 3);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return err_set(err, code, "read folder 'tmp'");
    }
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            remove_tmp(parent_fd, entry->d_name);
    closedir(dir);
    return 0;
}

/* A folder of this handle's own for temporary files. */
static int make_tmp(struct image_store *store, struct err *err)
{
    own_fd int lock_fd = lock_file(store, "index.lock", LOCK_EX, err);
    if (lock_fd < 0)
        return lock_fd;
    own_fd int parent_fd = make_dir(store->dir_fd, "tmp", err);
    if (parent_fd < 0)
        return parent_fd;
    int ret = clean_tmp(parent_fd, err);
    if (ret < 0)
        return ret;
    char name[16];
    for (unsigned i = 0;; i++) {
        snprintf(name, sizeof name, "%u", i);
        if (mkdirat(parent_fd, name, 0700) == 0)
            break;
        if (errno != EEXIST)
            return err_set(err, errno, "make folder '%s/tmp/%s'", store->dir, name);
    }
    snprintf(store->tmp_name, sizeof store->tmp_name, "tmp/%s", name);
    store->tmp_fd = make_dir(parent_fd, name, err);
    if (store->tmp_fd < 0)
        return store->tmp_fd;
    return flock(store->tmp_fd, LOCK_EX | LOCK_NB) < 0 ? err_set(err, errno, "lock '%s/%s'", store->dir, store->tmp_name) : 0;
}

/* Writes the file that makes the folder an OCI layout, if it is not there. */
static int write_marker(struct image_store *store, struct err *err)
{
    static const char text[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
    own_fd int fd = openat(store->dir_fd, "oci-layout", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || pwrite(fd, text, sizeof text - 1, 0) != (ssize_t)sizeof text - 1)
        return err_set(err, errno, "write '%s/oci-layout'", store->dir);
    return 0;
}

static int open_folders(struct image_store *store, struct err *err)
{
    store->dir_fd = make_path(store->dir, err);
    if (store->dir_fd < 0)
        return store->dir_fd;
    own_fd int blobs = make_dir(store->dir_fd, "blobs", err);
    if (blobs < 0)
        return blobs;
    store->blobs_fd = make_dir(blobs, "sha256", err);
    if (store->blobs_fd < 0)
        return store->blobs_fd;
    int ret = write_marker(store, err);
    return ret < 0 ? ret : make_tmp(store, err);
}

int image_store_open(const char *dir, struct image_store **ret_store, struct err *err)
{
    struct image_store *store = calloc(1, sizeof *store);
    if (!store)
        return err_set(err, ENOMEM, "image store");
    store->dir_fd = store->blobs_fd = store->tmp_fd = -1;
    pthread_mutex_init(&store->claims_lock, NULL);
    pthread_cond_init(&store->claims_changed, NULL);
    store->dir = strdup(dir);
    int ret = store->dir ? open_folders(store, err) : err_set(err, ENOMEM, "image store");
    if (ret < 0) {
        image_store_close(store);
        return ret;
    }
    *ret_store = store;
    return 0;
}

void image_store_close(struct image_store *store)
{
    if (!store)
        return;
    if (store->tmp_fd >= 0) {
        unlinkat(store->dir_fd, store->tmp_name, AT_REMOVEDIR);
        close(store->tmp_fd);
    }
    if (store->blobs_fd >= 0)
        close(store->blobs_fd);
    if (store->dir_fd >= 0)
        close(store->dir_fd);
    pthread_cond_destroy(&store->claims_changed);
    pthread_mutex_destroy(&store->claims_lock);
    free(store->dir);
    free(store);
}

int image_store_dir_fd(const struct image_store *store)
{
    return store->dir_fd;
}

const char *image_store_dir(const struct image_store *store)
{
    return store->dir;
}
