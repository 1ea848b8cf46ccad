/* One layer: its entries in order, whiteouts among them.
 *
 * A whiteout takes away what lower layers have and nothing of its own layer, wherever in the layer it stands; so what the
 * layer has made or touched is remembered by inode. */
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <string.h>

#include "image/rootfs_impl.h"

#define BLOCK_BYTES (64u << 10)
#define WHITEOUT ".wh."
#define WHITEOUT_LEN (sizeof WHITEOUT - 1)
#define OPAQUE ".wh..wh..opq"
#define WHITEOUT_META ".wh..wh." /* other notes of the file system that the layer came from */

static int apply_whiteout(struct unpack *unpack, const char *name, struct err *err)
{
    const char *gone = name + WHITEOUT_LEN;
    int r;
    if (strcmp(name, OPAQUE) == 0)
        r = unpack_opaque(unpack);
    else if (strncmp(name, WHITEOUT_META, sizeof WHITEOUT_META - 1) == 0)
        return 0;
    else if (!*gone || strcmp(gone, ".") == 0 || strcmp(gone, "..") == 0)
        return err_say(err, EINVAL, "it takes away nothing that can be named");
    else
        r = unpack_whiteout(unpack, gone);
    return r < 0 ? err_set(err, -r, "take away what is below") : 0;
}

static int unpack_path(struct unpack *unpack, struct archive *archive, struct archive_entry *entry, const char *path,
                       struct err *err)
{
    char dir[ROOTFS_PATH_MAX + 1];
    const char *name = rootfs_path_split(path, dir);
    int r = unpack_enter(unpack, dir, err);
    if (r < 0)
        return r;
    if (strncmp(name, WHITEOUT, WHITEOUT_LEN) == 0)
        return apply_whiteout(unpack, name, err);
    return unpack_entry(unpack, archive, entry, name, err);
}

/* For messages: what is not printable is not printed. */
static void show_name(const char *raw, char ret_shown[static 101])
{
    size_t len = 0;
    for (; len < 100 && raw[len]; len++)
        ret_shown[len] = (char)((unsigned char)raw[len] < ' ' || raw[len] == 127 ? '?' : raw[len]);
    ret_shown[len] = '\0';
}

static int take_entry(struct unpack *unpack, struct archive *archive, struct archive_entry *entry, struct err *err)
{
    char path[ROOTFS_PATH_MAX + 1], shown[101];
    const char *raw = archive_entry_pathname(entry);
    if (!raw || !*raw)
        return err_say(err, EINVAL, "entry %llu of the image's layers has no name", (unsigned long long)unpack->counts->entries);
    int r = rootfs_path_clean(raw, path, err);
    if (r == 0)
        r = unpack_path(unpack, archive, entry, path, err);
    if (r == 0)
        return 0;
    show_name(raw, shown);
    return err_ctx(err, "entry '%s'", shown);
}

static int take_entries(struct unpack *unpack, struct archive *archive, struct err *err)
{
    struct archive_entry *entry;
    for (;;) {
        int got = archive_read_next_header(archive, &entry);
        if (got == ARCHIVE_EOF)
            return 0;
        if (got != ARCHIVE_OK && got != ARCHIVE_WARN)
            return err_say(err, EINVAL, "behind entry %llu: %.150s", (unsigned long long)unpack->counts->entries,
                           archive_error_string(archive));
        if (++unpack->counts->entries > ROOTFS_ENTRIES_MAX)
            return err_say(err, EINVAL, "the image has more than %u entries", ROOTFS_ENTRIES_MAX);
        int r = take_entry(unpack, archive, entry, err);
        if (r < 0)
            return r;
    }
}

static int open_layer(int fd, struct archive **ret_archive, struct err *err)
{
    struct archive *archive = archive_read_new();
    if (!archive)
        return err_set(err, ENOMEM, "unpack");
    archive_read_support_filter_gzip(archive);
    archive_read_support_filter_zstd(archive);
    archive_read_support_format_tar(archive);
    archive_read_support_format_empty(archive);
    if (archive_read_open_fd(archive, fd, BLOCK_BYTES) == ARCHIVE_OK) {
        *ret_archive = archive;
        return 0;
    }
    int r = err_say(err, EINVAL, "a layer is not a tar, plain or by gzip or zstd: %.120s", archive_error_string(archive));
    archive_read_free(archive);
    return r;
}

static int unpack_layer(struct unpack *unpack, int fd, struct err *err)
{
    struct archive *archive = NULL;
    int r = open_layer(fd, &archive, err);
    if (r < 0)
        return r;
    r = take_entries(unpack, archive, err);
    archive_read_free(archive);
    unpack_leave(unpack);
    return r;
}

/* Gives the thread a locale of UTF-8 unless it has one: libarchive turns the names of pax headers into the locale's characters.
 * `ret_set` is NULL when nothing was changed. */
static int set_locale(locale_t *ret_before, locale_t *ret_set, struct err *err)
{
    bool have = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    locale_t utf8 = have ? NULL : newlocale(LC_CTYPE_MASK, "C.UTF-8", NULL);
    if (!have && !utf8)
        return err_set(err, errno, "the locale C.UTF-8 is missing");
    *ret_set = utf8;
    *ret_before = utf8 ? uselocale(utf8) : NULL;
    return 0;
}

static void reset_locale(locale_t before, locale_t set)
{
    if (!set)
        return;
    uselocale(before);
    freelocale(set);
}

int rootfs_unpack(int root_fd, int fd, struct rootfs_counts *counts, struct err *err)
{
    struct stat st;
    locale_t before = NULL, set = NULL;
    own_free struct unpack *unpack = calloc(1, sizeof *unpack);
    if (!unpack || fstat(root_fd, &st) < 0)
        return err_set(err, errno, "unpack");
    int r = set_locale(&before, &set, err);
    if (r < 0)
        return r;
    unpack->root_fd = root_fd;
    unpack->root_inode = st.st_ino;
    unpack->counts = counts;
    unpack->dir_fd = -1;
    r = unpack_layer(unpack, fd, err);
    free(unpack->touched.slots);
    reset_locale(before, set);
    return r;
}
