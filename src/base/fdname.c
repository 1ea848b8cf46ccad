#include "base/fdname.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/own.h"

int fdname_parse(const char *name)
{
    char *end;
    if (strncmp(name, "fd:", 3) != 0 || name[3] < '0' || name[3] > '9')
        return -1;
    long number = strtol(name + 3, &end, 10);
    return *end || number > INT_MAX ? -1 : (int)number;
}

/* True when what was opened with `have` can do what `flags` ask for. */
static bool can_do(int have, int flags)
{
    int has = have & O_ACCMODE, wants = flags & O_ACCMODE;
    return !(have & O_PATH) && (has == O_RDWR || has == wants);
}

static int check_mode(int fd, int flags)
{
    int have = fcntl(fd, F_GETFL);
    if (have >= 0 && can_do(have, flags))
        return have;
    errno = have < 0 ? errno : EACCES;
    return -1;
}

int fdname_open(const char *name, int flags, mode_t mode)
{
    const int settable = O_APPEND | O_DIRECT | O_NONBLOCK;
    int number = fdname_parse(name);
    if (number < 0)
        return open(name, flags | O_CLOEXEC, mode);
    int have = check_mode(number, flags);
    own_fd int fd = have < 0 ? -1 : fcntl(number, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || ((flags & settable & ~have) && fcntl(fd, F_SETFL, have | (flags & settable)) < 0))
        return -1;
    return TAKE_FD(fd);
}

int fdname_stat(const char *name, bool writable, struct stat *ret_stat)
{
    int number = fdname_parse(name);
    if (number < 0)
        return stat(name, ret_stat) < 0 || access(name, writable ? R_OK | W_OK : R_OK) < 0 ? -1 : 0;
    return fstat(number, ret_stat) < 0 || check_mode(number, writable ? O_RDWR : O_RDONLY) < 0 ? -1 : 0;
}

static int adopt(const char *name, const char *what, int *ret_fd, struct err *err)
{
    int listens = 0, domain = 0;
    socklen_t len = sizeof listens;
    own_fd int fd = fdname_open(name, O_RDWR | O_NONBLOCK, 0);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0)
        return err_set(err, errno, "%s socket '%s'", what, name);
    if (!listens || domain != AF_UNIX)
        return err_say(err, EINVAL, "%s socket '%s' is not a listening unix socket", what, name);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* The mode comes from the umask, so that there is no moment without it; should another thread make a file right then, that
 * file is private too. */
static int bind_privately(int fd, const struct sockaddr_un *address)
{
    mode_t before = umask(0177);
    int r = bind(fd, (const struct sockaddr *)address, sizeof *address) < 0 ? -errno : 0;
    umask(before);
    return r;
}

int fdname_listen(const char *name, const char *what, int backlog, int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (fdname_parse(name) >= 0)
        return adopt(name, what, ret_fd, err);
    if (strlen(name) >= sizeof address.sun_path)
        return err_say(err, ENAMETOOLONG, "%s socket '%.120s': a socket's path has at most %zu bytes", what, name,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, name, strlen(name) + 1);
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, errno, "%s socket", what);
    int r = bind_privately(fd, &address);
    if (r == -EADDRINUSE)
        return err_say(err, EADDRINUSE, "%s socket '%s' exists already: remove it if nothing uses it", what, name);
    if (r < 0)
        return err_set(err, -r, "%s socket '%s'", what, name);
    if (listen(fd, backlog) < 0) {
        r = err_set(err, errno, "%s socket '%s'", what, name);
        unlink(name);
        return r;
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}
