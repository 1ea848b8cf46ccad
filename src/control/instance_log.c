/* Logs of an instance. polder-vmm keeps them bounded: when one is full, its younger half is moved to the file's beginning. So a
 * reader remembers the last bytes that it gave out, and looks for them when they are not where they were. */
#include "control/instance_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include "base/own.h"

#define CHUNK 65536
#define MARK 256
#define MOVED_MAX (16u << 20) /* a log is at most half as large */

struct instance_log {
    struct instance *instance;
    int fd;
    int notify_fd; /* -1: does not follow */
    off_t offset;
    char mark[MARK]; /* the last bytes before `offset` */
    size_t mark_len;
};

static bool is_active(struct instance *instance)
{
    pthread_mutex_lock(&instance->owner->lock);
    bool settled = instance->state == INSTANCE_STOPPED || instance->state == INSTANCE_FAILED;
    bool active = !instance->removed && !instance->owner->closing &&
                  !(settled && instance->desired == INSTANCE_WANT_STOPPED);
    pthread_mutex_unlock(&instance->owner->lock);
    return active;
}

/* Where the last `lines` lines begin. */
static off_t find_tail(int fd, off_t size, int64_t lines)
{
    char chunk[CHUNK];
    off_t end = size;
    int64_t seen = 0;
    while (end > 0) {
        size_t want = end < CHUNK ? (size_t)end : CHUNK;
        ssize_t len = pread(fd, chunk, want, end - (off_t)want);
        if (len != (ssize_t)want)
            return end;
        for (size_t i = want; i-- > 0;) {
            off_t at = end - (off_t)want + (off_t)i;
            /* the newline that ends the last line begins none */
            if (chunk[i] == '\n' && at != size - 1 && ++seen == lines)
                return at + 1;
        }
        end -= (off_t)want;
    }
    return 0;
}

static int open_file(struct instance *instance, enum instance_log_source source, struct instance_log *log, struct err *err)
{
    static const char *const names[] = {"console.log", "boot.log", "vmm.log"};
    own_free char *path = instance_path(instance->owner->config.state_dir, instance->id, names[source]);
    log->fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    /* not started yet: its folder and log are made then, and so are they here */
    if (log->fd < 0 && path && errno == ENOENT) {
        own_free char *folder = instance_path(instance->owner->config.state_dir, instance->id, NULL);
        if (folder)
            mkdir(folder, 0700);
        log->fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    }
    if (log->fd < 0)
        return err_set(err, errno, "log of '%s'", instance->name);
    if (log->notify_fd >= 0 && inotify_add_watch(log->notify_fd, path, IN_MODIFY) < 0)
        return err_set(err, errno, "follow the log of '%s'", instance->name);
    return 0;
}

static void set_mark(struct instance_log *log)
{
    size_t want = log->offset < MARK ? (size_t)log->offset : MARK;
    ssize_t len = pread(log->fd, log->mark, want, log->offset - (off_t)want);
    log->mark_len = len == (ssize_t)want ? want : 0;
}

int instance_log_open(struct instances *instances, const char *name, enum instance_log_source source, int64_t tail_lines,
                      bool follow, struct instance_log **ret_log, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *doc = NULL;
    struct stat st;
    int ret = instance_find_name(instances, name, &instance, &doc, err);
    if (ret < 0)
        return ret;
    if (source == INSTANCE_LOG_MAIN && instance_doc_is_vm(doc))
        source = INSTANCE_LOG_BOOT; /* it has no main process; its system writes to the serial port */
    struct instance_log *log = calloc(1, sizeof *log);
    if (!log)
        return err_set(err, ENOMEM, "log");
    log->fd = -1;
    log->notify_fd = follow ? inotify_init1(IN_CLOEXEC | IN_NONBLOCK) : -1;
    log->instance = TAKE(instance);
    ret = open_file(log->instance, source, log, err);
    if (ret < 0) {
        instance_log_close(log);
        return ret;
    }
    if (tail_lines >= 0 && !fstat(log->fd, &st))
        log->offset = tail_lines ? find_tail(log->fd, st.st_size, tail_lines) : st.st_size;
    set_mark(log);
    *ret_log = log;
    return 0;
}

static bool mark_is_there(const struct instance_log *log)
{
    char bytes[MARK];
    ssize_t len = pread(log->fd, bytes, log->mark_len, log->offset - (off_t)log->mark_len);
    return len == (ssize_t)log->mark_len && !memcmp(bytes, log->mark, log->mark_len);
}

/* Behind the mark; the beginning when it is gone, for then all that is here is newer. */
static off_t find_mark(const struct instance_log *log)
{
    struct stat st;
    if (fstat(log->fd, &st) < 0 || st.st_size <= 0 || st.st_size > MOVED_MAX)
        return 0;
    own_free char *bytes = malloc((size_t)st.st_size);
    ssize_t len = bytes ? pread(log->fd, bytes, (size_t)st.st_size, 0) : 0;
    const char *found = len > 0 ? memmem(bytes, (size_t)len, log->mark, log->mark_len) : NULL;
    return found ? found - bytes + (off_t)log->mark_len : 0;
}

/* What is there now. */
static ssize_t read_some(struct instance_log *log, char *buffer, size_t size)
{
    if (!mark_is_there(log))
        log->offset = find_mark(log);
    ssize_t len = pread(log->fd, buffer, size, log->offset);
    if (len < 0)
        return -errno;
    log->offset += len;
    if (len > 0)
        set_mark(log);
    return len;
}

ssize_t instance_log_read(struct instance_log *log, char *buffer, size_t size, int timeout_ms)
{
    char events[4096];
    struct pollfd wait = {.fd = log->notify_fd, .events = POLLIN};
    int64_t end = clock_now_ms() + timeout_ms;
    for (;;) {
        /* asked first: what was written before the end is read after it */
        bool active = log->notify_fd >= 0 && is_active(log->instance);
        ssize_t len = read_some(log, buffer, size);
        if (len != 0 || !active)
            return len;
        int64_t left = end - clock_now_ms();
        if (left <= 0)
            return -EAGAIN;
        poll(&wait, 1, left < 250 ? (int)left : 250);
        while (read(log->notify_fd, events, sizeof events) > 0) {
        }
    }
}

void instance_log_close(struct instance_log *log)
{
    if (!log)
        return;
    if (log->fd >= 0)
        close(log->fd);
    if (log->notify_fd >= 0)
        close(log->notify_fd);
    instance_unref(log->instance);
    free(log);
}
