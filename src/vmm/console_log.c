#include "vmm/console_log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"

#define PIECE 65536

int console_log_open(struct console_log *log, const char *path, uint64_t max, struct err *err)
{
    struct stat st;
    own_fd int fd = fdname_open(path, O_RDWR | O_CREAT | O_NOCTTY | O_NONBLOCK, 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set(err, errno, "console log '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_say(err, EINVAL, "console log '%s' is not a regular file", path);
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_APPEND) < 0) /* or no offset would count */
        return err_set(err, errno, "console log '%s'", path);
    *log = (struct console_log){.fd = TAKE_FD(fd), .size = (uint64_t)st.st_size, .max = max};
    return 0;
}

void console_log_close(struct console_log *log)
{
    if (log->fd >= 0)
        close(log->fd);
    log->fd = -1;
}

/* Keeps the last half of `max`, from the first line that begins in it. */
static void cut(struct console_log *log)
{
    char piece[PIECE];
    uint64_t from = log->size - log->max / 2, to = 0;
    ssize_t n = pread(log->fd, piece, sizeof piece, (off_t)from);
    const char *end = n > 0 ? memchr(piece, '\n', (size_t)n) : NULL;
    from += end ? (uint64_t)(end + 1 - piece) : 0;
    while ((n = pread(log->fd, piece, sizeof piece, (off_t)from)) > 0) {
        if (pwrite(log->fd, piece, (size_t)n, (off_t)to) != n)
            break;
        from += (uint64_t)n;
        to += (uint64_t)n;
    }
    if (ftruncate(log->fd, (off_t)to) == 0)
        log->size = to;
}

void console_log_write(struct console_log *log, const void *data, size_t len)
{
    if (log->fd < 0)
        return;
    if (log->size + len > log->max)
        cut(log);
    ssize_t n = pwrite(log->fd, data, len, (off_t)log->size);
    if (n > 0)
        log->size += (uint64_t)n;
    if (n != (ssize_t)len)
        log_guest("console log", "console log: output is lost: %s", n < 0 ? strerror(errno) : "no space left");
}
