/* Files that an image names. An image may come from anywhere, so what it names must lie where images of its kind are kept. */
#include "block/names.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fdname.h"
#include "base/own.h"

/* True for the folder itself and what is below it; both are canonical. */
static bool lies_below(const char *path, const char *folder)
{
    size_t len = strlen(folder);
    if (strcmp(folder, "/") == 0)
        return true;
    return strncmp(path, folder, len) == 0 && path[len] == '/';
}

static bool allowed(const char *path, const char *own_folder, const char *const *allow_dirs)
{
    own_free char *own = realpath(own_folder, NULL);
    if (own && lies_below(path, own))
        return true;
    for (unsigned i = 0; allow_dirs && allow_dirs[i]; i++) {
        own_free char *folder = realpath(allow_dirs[i], NULL);
        if (folder && lies_below(path, folder))
            return true;
    }
    return false;
}

/* "name" is relative to the folder of the image. */
static int full_path(const char *image, const char *name, char **ret_folder, char **ret_path)
{
    const char *slash = strrchr(image, '/');
    char *folder = slash ? strndup(image, slash == image ? 1 : (size_t)(slash - image)) : strdup("."), *path = NULL;
    if (!folder || (name[0] == '/' ? (path = strdup(name)) == NULL : asprintf(&path, "%s/%s", folder, name) < 0)) {
        free(folder);
        return -ENOMEM;
    }
    *ret_folder = folder;
    *ret_path = path;
    return 0;
}

/* Has a protocol in front, like "nbd://host" or "json:{...}". */
static bool has_protocol(const char *name)
{
    size_t len = strcspn(name, ":/");
    return len && name[len] == ':';
}

/* By a descriptor that is only a place: what is checked is what is opened, and devices and pipes feel nothing. */
int names_open(const struct block_options *image, const char *name, bool read_only, int *ret_fd, char **ret_path,
               struct err *err)
{
    own_free char *folder = NULL, *path = NULL;
    char link[64], real[PATH_MAX];
    struct stat st;
    if (!image->path)
        return err_say(err, EACCES, "an image without a path cannot name the file '%.80s'", name);
    if (fdname_parse(image->path) >= 0)
        return err_say(err, EACCES, "an image given as '%s' cannot name the file '%.80s'; give that, too: backing=fd:N", image->path, name);
    if (has_protocol(name))
        return err_say(err, ENOTSUP, "it names '%.80s', and only files are supported", name);
    if (full_path(image->path, name, &folder, &path) < 0)
        return err_set(err, ENOMEM, "disk");
    own_fd int place = open(path, O_PATH | O_CLOEXEC);
    if (place < 0 || fstat(place, &st) < 0)
        return err_set(err, errno, "it names '%.100s'", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_say(err, EINVAL, "it names '%.100s', which is neither a regular file nor a block device", path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    ssize_t len = readlink(link, real, sizeof real - 1);
    if (len < 0)
        return err_set(err, errno, "it names '%.100s'", path);
    real[len] = '\0';
    if (!allowed(real, folder, image->allow_dirs))
        return err_say(err, EACCES, "it names '%.100s', outside of its folder; allow that by --allow-backing DIR", real);
    int fd = open(link, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | (image->direct ? O_DIRECT : 0));
    if (fd < 0)
        return err_set(err, errno, "it names '%.100s'", path);
    *ret_fd = fd;
    *ret_path = TAKE(path);
    return 0;
}
