/* Archives, read once from front to back: what is wanted of them is known only when all has gone by. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "image/stage.h"

#define LINKS_MAX 4 /* that lead to one another */

/* ---- names ---- */

/* Appends the parts of `path`, "." and ".." taken as they are meant; false if that leads out, or is too long. */
static bool append_path(char clean[static STAGE_PATH_MAX], const char *path)
{
    size_t end = strlen(clean);
    for (size_t part; *path; path += part) {
        path += strspn(path, "/");
        part = strcspn(path, "/");
        if (part == 0 || (part == 1 && path[0] == '.'))
            continue;
        if (part == 2 && !memcmp(path, "..", 2)) {
            if (!end)
                return false;
            while (end && clean[--end] != '/')
                continue;
        } else if (end + part + 2 > STAGE_PATH_MAX) {
            return false;
        } else {
            if (end)
                clean[end++] = '/';
            memcpy(clean + end, path, part);
            end += part;
        }
        clean[end] = '\0';
    }
    return true;
}

static char *clean_path(const char *path)
{
    char clean[STAGE_PATH_MAX] = "";
    return path && append_path(clean, path) && *clean ? strdup(clean) : NULL;
}

/* Of a symbolic link beside `path`. */
static char *clean_target(const char *path, const char *target)
{
    char clean[STAGE_PATH_MAX] = "";
    const char *slash = strrchr(path, '/');
    if (slash)
        memcpy(clean, path, (size_t)(slash - path));
    return target && append_path(clean, target) ? strdup(clean) : NULL;
}

static struct staged *find_path(struct stage *stage, const char *path)
{
    for (size_t i = stage->count; i-- > 0;) /* of two with one name the later counts */
        if (!strcmp(stage->files[i].path, path))
            return &stage->files[i];
    return NULL;
}

struct staged *stage_by_path(struct stage *stage, const char *path)
{
    own_free char *clean = clean_path(path);
    struct staged *file = clean ? find_path(stage, clean) : NULL;
    for (unsigned links = 0; file && file->link && links < LINKS_MAX; links++)
        file = find_path(stage, file->link);
    return file && !file->link ? file : NULL;
}

struct staged *stage_by_digest(struct stage *stage, const char *digest)
{
    for (size_t i = 0; i < stage->count; i++)
        if (!stage->files[i].link && !strcmp(stage->files[i].digest, digest))
            return &stage->files[i];
    return NULL;
}

/* ---- reading ---- */

static int copy_data(struct archive *archive, struct blob_writer *writer, struct image_meter *meter, struct err *err)
{
    const void *data;
    size_t length;
    la_int64_t offset;
    int status;
    while ((status = archive_read_data_block(archive, &data, &length, &offset)) == ARCHIVE_OK) {
        if (offset < 0 || (uint64_t)offset != writer->size_bytes)
            return err_say(err, EINVAL, "archive: sparse files are not taken");
        int ret = meter_check(meter, err);
        if (ret == 0)
            ret = blob_writer_add(writer, data, length, err);
        if (ret < 0)
            return ret;
        meter_add(meter, (int64_t)length);
    }
    return status == ARCHIVE_EOF ? 0 : err_say(err, EINVAL, "archive: %.150s", archive_error_string(archive));
}

static int stage_file(struct stage *stage, struct staged *file, struct archive *archive, struct image_meter *meter, struct err *err)
{
    int ret = blob_writer_open(stage->store, &file->writer, err);
    if (ret < 0)
        return ret;
    ret = copy_data(archive, &file->writer, meter, err);
    if (ret == 0)
        ret = blob_writer_finish(&file->writer, file->digest, err);
    blob_writer_park(&file->writer);
    return ret;
}

static int stage_entry(struct stage *stage, struct archive *archive, struct archive_entry *entry, struct image_meter *meter,
                       struct err *err)
{
    mode_t type = archive_entry_filetype(entry);
    const char *name = archive_entry_pathname(entry), *hard = archive_entry_hardlink(entry);
    if (type == AE_IFDIR)
        return 0;
    if (stage->count == STAGE_ENTRIES_MAX)
        return err_say(err, EINVAL, "archive: more than %d files", STAGE_ENTRIES_MAX);
    struct staged *file = &stage->files[stage->count];
    *file = (struct staged){.path = clean_path(name), .writer = {.fd = -1}};
    if (!file->path || (type != AE_IFREG && type != AE_IFLNK && !hard)) {
        free(file->path);
        return err_say(err, EINVAL, "archive: '%.100s' is no file of an image archive", name ? name : "");
    }
    stage->count++;
    if (!hard && type == AE_IFREG)
        return stage_file(stage, file, archive, meter, err);
    file->link = hard ? clean_path(hard) : clean_target(file->path, archive_entry_symlink(entry));
    return file->link ? 0 : err_say(err, EINVAL, "archive: link '%.100s' leads out of it", name);
}

static int read_entries(struct stage *stage, struct archive *archive, struct image_meter *meter, struct err *err)
{
    struct archive_entry *entry;
    int status = ARCHIVE_OK, ret = 0;
    while (ret == 0 && ((status = archive_read_next_header(archive, &entry)) == ARCHIVE_OK || status == ARCHIVE_WARN))
        ret = stage_entry(stage, archive, entry, meter, err);
    if (ret < 0 || status == ARCHIVE_EOF)
        return ret;
    return err_say(err, EINVAL, "archive: %.150s", archive_error_string(archive));
}

int stage_read(struct stage *stage, int fd, struct image_meter *meter, struct err *err)
{
    struct archive *archive = archive_read_new();
    stage->files = calloc(STAGE_ENTRIES_MAX, sizeof *stage->files);
    if (!archive || !stage->files) {
        archive_read_free(archive);
        return err_set(err, ENOMEM, "archive");
    }
    archive_read_support_filter_gzip(archive);
    archive_read_support_filter_zstd(archive);
    archive_read_support_filter_xz(archive);
    archive_read_support_filter_bzip2(archive);
    archive_read_support_format_tar(archive);
    int ret = archive_read_open_fd(archive, fd, IMAGE_IO_SIZE) == ARCHIVE_OK
                  ? read_entries(stage, archive, meter, err)
                  : err_say(err, EINVAL, "archive: %.150s", archive_error_string(archive));
    archive_read_free(archive);
    return ret;
}

void stage_clear(struct stage *stage)
{
    for (size_t i = 0; i < stage->count; i++) {
        blob_writer_close(&stage->files[i].writer);
        free(stage->files[i].path);
        free(stage->files[i].link);
    }
    free(stage->files);
    *stage = (struct stage){0};
}

/* ---- using what was read ---- */

int stage_text(struct staged *file, char **ret_text, struct err *err)
{
    size_t length = (size_t)file->writer.size_bytes;
    if (file->writer.size_bytes > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "archive: '%.80s' is too long: at most %u bytes are taken", file->path, IMAGE_JSON_MAX);
    own_free char *text = malloc(length + 1);
    if (!text)
        return err_set(err, ENOMEM, "archive");
    int ret = blob_writer_resume(&file->writer, err);
    if (ret < 0)
        return ret;
    bool whole = pread(file->writer.fd, text, length, 0) == (ssize_t)length;
    blob_writer_park(&file->writer);
    if (!whole)
        return err_set(err, EIO, "read '%.80s' again", file->path);
    text[length] = '\0';
    *ret_text = TAKE(text);
    return 0;
}

int stage_layer_type(struct staged *file, const char **ret_type, struct err *err)
{
    int ret = blob_writer_resume(&file->writer, err);
    if (ret == 0)
        ret = layer_media_type(file->writer.fd, ret_type, err);
    blob_writer_park(&file->writer);
    return ret;
}

int stage_keep(struct staged *file, struct err *err)
{
    if (!file->writer.name[0])
        return 0; /* two layers are the same */
    int ret = blob_writer_resume(&file->writer, err);
    if (ret == 0)
        ret = blob_writer_commit(&file->writer, file->digest, err);
    blob_writer_park(&file->writer);
    return ret;
}
