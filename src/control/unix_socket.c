/* Unix stream sockets by path, of any length. */
#include "control/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include "base/own.h"

/* The address of `path` by way of its folder's descriptor, which must stay open while it is used. */
static int address_of(const char *path, int *ret_folder, struct sockaddr_un *ret_address, struct err *err)
{
    own_free char *folder = NULL;
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (asprintf(&folder, "%.*s/", slash ? (int)(slash - path) : 1, slash ? path : ".") < 0)
        return err_set(err, ENOMEM, "socket '%s'", path);
    own_fd int fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "socket '%s'", path);
    ret_address->sun_family = AF_UNIX;
    if (snprintf(ret_address->sun_path, sizeof ret_address->sun_path, "/proc/self/fd/%d/%s", fd, name) >=
        (int)sizeof ret_address->sun_path)
        return err_set(err, ENAMETOOLONG, "socket '%s'", path);
    *ret_folder = TAKE_FD(fd);
    return 0;
}

int unix_connect(const char *path, unsigned timeout_ms, int *ret_fd, struct err *err)
{
    own_fd int folder = -1;
    struct sockaddr_un address = {0};
    int ret = address_of(path, &folder, &address, err);
    if (ret < 0)
        return ret;
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, errno, "socket");
    struct timeval time = {.tv_sec = timeout_ms / 1000, .tv_usec = (timeout_ms % 1000) * 1000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return err_set(err, errno, "connect to '%s'", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int unix_listen(const char *path, int *ret_fd, struct err *err)
{
    own_fd int folder = -1;
    struct sockaddr_un address = {0};
    int ret = address_of(path, &folder, &address, err);
    if (ret < 0)
        return ret;
    if (unlink(path) < 0 && errno != ENOENT)
        return err_set(err, errno, "remove '%s'", path);
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, errno, "socket");
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 64) < 0)
        return err_set(err, errno, "listen at '%s'", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}
