/* Volumes: files and documents brought together after whatever happened. For each name one rule:
 *
 *     document  NAME.qcow2  besides       what was cut off            what is done
 *     yes       no          NAME.new      the last step of making it  the file gets its name
 *     yes       no          NAME.gone     a removal                   the file gets its name back
 *     yes       no                        (somebody took the file)    the document says "error"
 *     yes       yes         "working"     a change of the image       the document learns from the image
 *     no        yes                       (an older store came back)  a document is made
 *     any                   what is left  work                        is removed */
#include "control/volume_impl.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/own.h"

static __attribute__((format(printf, 2, 3))) void note(json_t *actions, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    json_array_append_new(actions, json_vsprintf(format, args));
    va_end(args);
}

/* The names of the folder, or those that begin with `prefix`; the caller closes it. NULL: cannot be read. */
static DIR *open_pool(const struct volumes *volumes)
{
    int fd = openat(volumes->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir && fd >= 0)
        close(fd);
    return dir;
}

void volume_trim_templates(const struct volumes *volumes, unsigned keep)
{
    DIR *dir = open_pool(volumes);
    unsigned count = 0;
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;)
        if (strncmp(entry->d_name, ".root-", 6) == 0 && ++count > keep)
            unlinkat(volumes->dir_fd, entry->d_name, 0);
    if (dir)
        closedir(dir);
}

static bool file_rename(const struct volumes *volumes, const char *name, const char *from, const char *to)
{
    return renameat(volumes->dir_fd, volume_file(name, from).name, volumes->dir_fd, volume_file(name, to).name) == 0;
}

static void remove_left(const struct volumes *volumes, const char *name, json_t *actions)
{
    static const char *const suffixes[] = {"new", "gone", "raw"};
    for (unsigned i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (unlinkat(volumes->dir_fd, volume_file(name, suffixes[i]).name, 0) == 0)
            note(actions, "removed '%s.%s', work that was not finished", name, suffixes[i]);
}

/* One volume's document, changed as its file says. */
static int mend(struct volumes *volumes, const struct store_doc *doc, const char *name, json_t *actions, struct err *err)
{
    bool there = volume_has_file(volumes, volume_file(name, "qcow2").name);
    if (!there && (there = file_rename(volumes, name, "new", "qcow2")))
        note(actions, "finished volume '%s'", name);
    if (!there && (there = file_rename(volumes, name, "gone", "qcow2")))
        note(actions, "took back the removal of volume '%s'", name);
    json_t *value = doc->value;
    bool had_error = json_object_get(value, "error") != NULL, working = json_object_get(value, "working") != NULL;
    if (there && !working && !had_error)
        return 0;
    if (!there && had_error)
        return 0;
    json_object_del(value, "error");
    if (there && volume_refresh(volumes, name, value, err) == 0) {
        json_object_del(value, "working");
        note(actions, "looked into volume '%s' for its size and snapshots", name);
    } else {
        const char *why = there ? err->message : "its file is gone: bring it back, or remove the volume";
        json_object_set_new(value, "error", json_string(why));
        note(actions, there ? "volume '%s' cannot be read" : "the file of volume '%s' is gone", name);
    }
    return volume_save(volumes, name, json_incref(value), doc->revision, NULL, err);
}

static int adopt(struct volumes *volumes, const char *name, json_t *actions, struct err *err)
{
    json_t *value = volume_document(name, 0, "");
    int r = value ? volume_refresh(volumes, name, value, err) : err_set(err, ENOMEM, "volume '%s'", name);
    if (r < 0) {
        json_decref(value);
        note(actions, "left '%s.qcow2' alone, which is no volume: %s", name, err ? err->message : "");
        return r == -ENOMEM ? r : 0;
    }
    note(actions, "adopted volume '%s', which the store did not know", name);
    return volume_save(volumes, name, value, 0, NULL, err);
}

static int reconcile_one(struct volumes *volumes, const char *name, json_t *actions, struct err *err)
{
    own_store_doc doc = {0};
    struct err none = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, &none);
    if (r == 0)
        r = mend(volumes, &doc, name, actions, err);
    else if (r == -ENOENT)
        r = volume_has_file(volumes, volume_file(name, "qcow2").name) ? adopt(volumes, name, actions, err) : 0;
    else if (err)
        *err = none;
    if (r == 0)
        remove_left(volumes, name, actions);
    return r;
}

/* NAME of NAME.SUFFIX where that is a file of a volume. */
static bool name_of_file(const char *file, char ret_name[static VOLUME_NAME_MAX + 1])
{
    static const char *const suffixes[] = {".qcow2", ".new", ".gone", ".raw"};
    const char *dot = strchr(file, '.');
    size_t len = dot ? (size_t)(dot - file) : 0;
    if (len == 0 || len > VOLUME_NAME_MAX)
        return false;
    memcpy(ret_name, file, len);
    ret_name[len] = '\0';
    for (unsigned i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (strcmp(dot, suffixes[i]) == 0)
            return volume_name_valid(ret_name);
    return false;
}

static int reconcile_files(struct volumes *volumes, json_t *actions, struct err *err)
{
    DIR *dir = open_pool(volumes);
    int r = dir ? 0 : err_set(err, errno, "read '%s'", volumes->dir);
    for (const struct dirent *entry; r == 0 && (entry = readdir(dir)) != NULL;) {
        char name[VOLUME_NAME_MAX + 1];
        if (strncmp(entry->d_name, ".work-", 6) == 0)
            volume_work_remove(volumes, entry->d_name);
        else if (strncmp(entry->d_name, ".root.", 6) == 0)
            unlinkat(volumes->dir_fd, entry->d_name, 0);
        else if (name_of_file(entry->d_name, name))
            r = reconcile_one(volumes, name, actions, err);
    }
    if (dir)
        closedir(dir);
    return r;
}

int volumes_reconcile(struct volumes *volumes, json_t **ret_actions, struct err *err)
{
    json_t *actions = json_array();
    struct err local = {0};
    err = err ? err : &local;
    int r = reconcile_files(volumes, actions, err);
    struct store_list list = {0};
    if (r == 0)
        r = store_list_prefix(volumes->store, VOLUME_KEY_PREFIX, &list, err);
    for (size_t i = 0; r == 0 && i < list.count; i++)
        r = reconcile_one(volumes, list.docs[i].key + strlen(VOLUME_KEY_PREFIX), actions, err);
    store_list_clear(&list);
    if (r < 0) {
        json_decref(actions);
        return r;
    }
    *ret_actions = actions;
    return 0;
}
