/* A thread packs or unpacks at one end of a pipe, the transfer is at the other: both libraries want to be the one that calls. */
#include "polder/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "polder/archive_load.h"
#include "polder/cli.h"

#define BLOCK 65536
#define HEAD_MAX 65536 /* bytes of an archive in which its first entry is found */

struct work {
    int fd;           /* the work's end of the pipe, closed by it */
    const char *dir;  /* folder that names are relative to */
    const char *name; /* of the top entry there; "." for all that is in the folder */
    const char *archived; /* what it is called in the archive */
    struct err err;
    int r;
};

/* "/a/b/" -> "/a" and "b"; "b" -> "." and "b"; "/" -> "/" and ".". In place. */
static void split(char *path, const char **ret_dir, const char **ret_name)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        path[--len] = '\0';
    char *slash = strrchr(path, '/');
    *ret_dir = !slash ? "." : slash == path ? "/" : path;
    *ret_name = !slash ? path : slash[1] ? slash + 1 : ".";
    if (slash)
        *slash = '\0';
}

/* What stands behind the top name: "" or "/rest"; NULL when the name does not begin with it. */
static const char *behind_top(const char *path, const char *top)
{
    size_t len = strlen(top);
    path += strncmp(path, "./", 2) == 0 && strcmp(top, ".") != 0 ? 2 : 0;
    return strncmp(path, top, len) == 0 && (!path[len] || path[len] == '/') ? path + len : NULL;
}

static int fail_of(struct archive *archive, const char *what, struct err *err)
{
    int code = la.archive_errno(archive) > 0 && la.archive_errno(archive) != EINVAL ? la.archive_errno(archive) : EIO;
    const char *text = la.archive_error_string(archive);
    return err_say(err, code, "%s: %s", what, text ? text : "failed");
}

/* ---- out of an instance ---- */

/* Gives an entry its name here, and refuses what has no business here. 1: leave it out. */
static int admit(const struct work *work, struct archive_entry *entry, struct err *err)
{
    char name[4096], link[4096];
    const char *path = la.archive_entry_pathname(entry), *target = la.archive_entry_hardlink(entry);
    const char *rest = path ? behind_top(path, work->archived) : NULL;
    const char *link_rest = target ? behind_top(target, work->archived) : NULL;
    mode_t type = la.archive_entry_filetype(entry);
    if (!rest || (target && !link_rest))
        return err_say(err, EPROTO, "the instance sent '%.80s', which was not asked for", path ? path : "no name");
    if (!target && type != AE_IFREG && type != AE_IFDIR && type != AE_IFLNK)
        return 1; /* devices and the like */
    if (snprintf(name, sizeof name, "%s%s", work->name, rest) >= (int)sizeof name)
        return err_say(err, ENAMETOOLONG, "'%.80s...'", name);
    la.archive_entry_set_pathname(entry, name);
    if (target) {
        snprintf(link, sizeof link, "%s%s", work->name, link_rest);
        la.archive_entry_set_hardlink(entry, link);
    }
    la.archive_entry_set_perm(entry, la.archive_entry_perm(entry) & 0777);
    return 0;
}

static int unpack_data(struct archive *in, struct archive *out, struct err *err)
{
    const void *data;
    size_t len;
    la_int64_t offset;
    int r;
    while ((r = la.archive_read_data_block(in, &data, &len, &offset)) == ARCHIVE_OK)
        if (la.archive_write_data_block(out, data, len, offset) < ARCHIVE_OK)
            return fail_of(out, "write", err);
    return r == ARCHIVE_EOF ? 0 : fail_of(in, "the archive is damaged", err);
}

static int unpack_all(const struct work *work, struct archive *in, struct archive *out, struct err *err)
{
    struct archive_entry *entry;
    int r, count = 0;
    while ((r = la.archive_read_next_header(in, &entry)) == ARCHIVE_OK || r == ARCHIVE_WARN) {
        int admitted = admit(work, entry, err);
        if (admitted < 0)
            return admitted;
        if (admitted > 0)
            continue;
        if (la.archive_write_header(out, entry) < ARCHIVE_OK)
            return fail_of(out, la.archive_entry_pathname(entry), err);
        if (la.archive_entry_size(entry) > 0 && (admitted = unpack_data(in, out, err)) < 0)
            return admitted;
        if (la.archive_write_finish_entry(out) < ARCHIVE_OK)
            return fail_of(out, la.archive_entry_pathname(entry), err);
        count++;
    }
    if (r != ARCHIVE_EOF)
        return fail_of(in, "the archive is damaged", err);
    return count ? 0 : err_say(err, ENODATA, "the instance sent nothing");
}

static void *unpack(void *arg)
{
    struct work *work = arg;
    struct archive *in = la.archive_read_new(), *out = la.archive_write_disk_new();
    la.archive_read_support_format_tar(in);
    la.archive_write_disk_set_options(out, ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                                            ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
    if (la.archive_read_open_fd(in, work->fd, BLOCK) != ARCHIVE_OK)
        work->r = fail_of(in, "the archive is damaged", &work->err);
    else
        work->r = unpack_all(work, in, out, &work->err);
    if (la.archive_write_close(out) != ARCHIVE_OK && work->r == 0)
        work->r = fail_of(out, "write", &work->err);
    la.archive_read_free(in);
    la.archive_write_free(out);
    close(work->fd);
    return NULL;
}

/* ---- into an instance ---- */

static int pack_data(struct archive *out, la_int64_t left, int fd, struct err *err)
{
    char data[BLOCK];
    while (left > 0) {
        ssize_t n = read(fd, data, left < BLOCK ? (size_t)left : BLOCK);
        if (n <= 0)
            return err_say(err, EIO, "a file became shorter while it was read");
        if (la.archive_write_data(out, data, (size_t)n) != n)
            return fail_of(out, "send", err);
        left -= n;
    }
    return 0;
}

static int pack_entry(const struct work *work, struct archive *out, struct archive_entry *entry, struct err *err)
{
    char name[4096];
    const char *path = la.archive_entry_pathname(entry), *source = la.archive_entry_sourcepath(entry);
    const char *rest = behind_top(path, work->name);
    own_fd int fd = la.archive_entry_filetype(entry) == AE_IFREG ? open(source ? source : path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (la.archive_entry_filetype(entry) == AE_IFREG && fd < 0)
        return err_set(err, errno, "open '%s'", path);
    snprintf(name, sizeof name, "%s%s", work->archived, rest ? rest : "");
    la.archive_entry_set_pathname(entry, name);
    if (la.archive_write_header(out, entry) != ARCHIVE_OK)
        return fail_of(out, "send", err);
    return fd < 0 ? 0 : pack_data(out, la.archive_entry_size(entry), fd, err);
}

static int pack_all(const struct work *work, struct archive *disk, struct archive *out, struct err *err)
{
    struct archive_entry *entry = la.archive_entry_new();
    int r = la.archive_read_disk_open(disk, work->name) == ARCHIVE_OK ? 0 : fail_of(disk, work->name, err);
    while (r == 0) {
        int header = la.archive_read_next_header2(disk, entry);
        if (header == ARCHIVE_EOF)
            break;
        r = header < ARCHIVE_WARN ? fail_of(disk, work->name, err) : pack_entry(work, out, entry, err);
        la.archive_read_disk_descend(disk);
        la.archive_entry_clear(entry);
    }
    la.archive_entry_free(entry);
    return r;
}

static void *pack(void *arg)
{
    struct work *work = arg;
    struct archive *disk = la.archive_read_disk_new(), *out = la.archive_write_new();
    la.archive_read_disk_set_symlink_physical(disk);
    la.archive_read_disk_set_standard_lookup(disk);
    la.archive_write_set_format_pax_restricted(out);
    la.archive_write_set_bytes_per_block(out, 0);
    if (la.archive_write_open_fd(out, work->fd) != ARCHIVE_OK)
        work->r = fail_of(out, "send", &work->err);
    else
        work->r = pack_all(work, disk, out, &work->err);
    la.archive_read_free(disk);
    if (work->r == 0)
        la.archive_write_close(out);
    else
        la.archive_write_fail(out); /* no end: the instance must not take it for whole */
    la.archive_write_free(out);
    close(work->fd);
    return NULL;
}

/* ---- the transfer ---- */

static bool to_fd(void *arg, const char *data, size_t len)
{
    const int *fd = arg;
    while (len) {
        ssize_t n = write(*fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

struct source {
    int fd;
    const struct work *work; /* NULL: standard input */
};

static size_t from_fd(void *arg, char *data, size_t size)
{
    const struct source *source = arg;
    ssize_t n;
    do
        n = read(source->fd, data, size);
    while (n < 0 && errno == EINTR);
    /* the other end is closed only after `r` was set */
    return n < 0 || (n == 0 && source->work && source->work->r < 0) ? CURL_READFUNC_ABORT : (size_t)n;
}

/* Runs `fn` beside the transfer at the other end of a pipe: receiving when `receive`, else sending. */
static int transfer(struct cli *cli, struct work *work, void *(*fn)(void *), bool receive, const char *path, struct err *err)
{
    int ends[2], r = archive_load(err);
    pthread_t thread;
    if (r < 0)
        return r;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_set(err, errno, "pipe");
    int mine = receive ? ends[1] : ends[0];
    work->fd = receive ? ends[0] : ends[1];
    own_fd int here = open(".", O_PATH | O_CLOEXEC);
    if (chdir(work->dir) < 0 || pthread_create(&thread, NULL, fn, work) != 0) {
        close(ends[0]);
        close(ends[1]);
        return err_set(err, errno ? errno : EAGAIN, "'%s'", work->dir);
    }
    struct source source = {mine, work};
    r = receive ? client_stream(cli->client, path, to_fd, &mine, err)
                : client_upload(cli->client, path, from_fd, &source, -1, NULL, err);
    close(mine);
    pthread_join(thread, NULL);
    if (here >= 0 && fchdir(here) < 0)
        return err_set(err, errno, "chdir");
    bool ours = work->r < 0 && (r == 0 || !receive) && work->err.code != EPIPE;
    if (ours)
        *err = work->err;
    return ours ? work->r : r;
}

int copy_from(struct cli *cli, const char *instance, const char *path, const char *target, struct err *err)
{
    char request[CLIENT_URL_MAX], there[4096], here[4096];
    struct stat st;
    const char *parent;
    struct work work = {0};
    int r = client_path(request, err, "/v1/instances/%s/files?path=%s", instance, path);
    int out = STDOUT_FILENO;
    if (r == 0 && strcmp(target, "-") == 0)
        return client_stream(cli->client, request, to_fd, &out, err);
    snprintf(there, sizeof there, "%s", path);
    snprintf(here, sizeof here, "%s", target);
    split(there, &parent, &work.archived);
    if (stat(target, &st) == 0 && S_ISDIR(st.st_mode)) {
        work.dir = target;
        work.name = work.archived;
    } else {
        split(here, &work.dir, &work.name);
    }
    return r < 0 ? r : transfer(cli, &work, unpack, true, request, err);
}

struct head {
    char data[HEAD_MAX];
    size_t len;
};

static bool take_head(void *arg, const char *data, size_t len)
{
    struct head *head = arg;
    len = len < HEAD_MAX - head->len ? len : HEAD_MAX - head->len;
    memcpy(head->data + head->len, data, len);
    head->len += len;
    return head->len < HEAD_MAX / 2;
}

/* Whether `path` is a folder there: by the first entry of its archive. */
static int is_folder(struct cli *cli, const char *instance, const char *path, bool *ret_folder, struct err *err)
{
    char request[CLIENT_URL_MAX];
    struct head head = {.len = 0};
    struct archive_entry *entry;
    struct err ignored;
    int r = archive_load(err);
    if (r < 0)
        return r;
    struct archive *in = la.archive_read_new();
    r = client_path(request, err, "/v1/instances/%s/files?path=%s", instance, path);
    la.archive_read_support_format_tar(in);
    *ret_folder = r == 0 && client_stream(cli->client, request, take_head, &head, &ignored) == 0 &&
                  la.archive_read_open_memory(in, head.data, head.len) == ARCHIVE_OK &&
                  la.archive_read_next_header(in, &entry) == ARCHIVE_OK && la.archive_entry_filetype(entry) == AE_IFDIR;
    la.archive_read_free(in);
    return r;
}

int copy_to(struct cli *cli, const char *source, const char *instance, const char *path, struct err *err)
{
    char request[CLIENT_URL_MAX], here[4096], there[4096];
    const char *folder = path;
    struct work work = {0};
    struct source input = {STDIN_FILENO, NULL};
    bool is_dir = path[strlen(path) - 1] == '/';
    struct stat st;
    bool archive = strcmp(source, "-") == 0;
    if (!archive && lstat(source, &st) < 0)
        return err_set(err, errno, "'%s'", source);
    snprintf(here, sizeof here, "%s", source);
    snprintf(there, sizeof there, "%s", path);
    split(here, &work.dir, &work.name);
    int r = archive || is_dir ? 0 : is_folder(cli, instance, path, &is_dir, err);
    if (archive || is_dir)
        work.archived = work.name;
    else
        split(there, &folder, &work.archived);
    if (r == 0)
        r = client_path(request, err, "/v1/instances/%s/files?path=%s", instance, folder);
    if (r < 0)
        return r;
    if (archive)
        return client_upload(cli->client, request, from_fd, &input, -1, NULL, err);
    return transfer(cli, &work, pack, false, request, err);
}
