/* What the files of volumes share: names on disk, the lock of a name, documents, the program polder-img.
 *
 * Names in the pool's folder:
 *     NAME.qcow2   the volume            NAME.new    made, and not yet in the store
 *     NAME.raw     work of mke2fs        NAME.gone   to be removed with its document
 *     .root-BYTES  a formatted root disk that new ones are copied from
 *     .work-*      a folder for one import, export or clone */
#pragma once

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "control/volume.h"

#define VOLUME_KEY_PREFIX "volumes/"
#define VOLUME_FILE_SIZE (VOLUME_NAME_MAX + 8)

struct volume_lock;

struct volumes {
    struct store *store;
    char *dir, *img; /* the folder; the program polder-img */
    int dir_fd;
    pthread_mutex_t mutex; /* guards `busy` */
    pthread_cond_t idle;
    struct volume_lock *busy;
};

/* ---- names ---- */

bool volume_name_valid(const char *name);
must_check int volume_name_check(const char *what, const char *name, struct err *err);

struct volume_file {
    char name[VOLUME_FILE_SIZE];
};
static inline struct volume_file volume_file(const char *name, const char *suffix)
{
    struct volume_file file;
    snprintf(file.name, sizeof file.name, "%.*s.%s", VOLUME_NAME_MAX, name, suffix);
    return file;
}

static inline bool volume_has_file(const struct volumes *volumes, const char *file)
{
    return faccessat(volumes->dir_fd, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ---- the lock of one or two names: held while files and document of a volume change ---- */

struct volume_lock {
    struct volumes *volumes;
    const char *names[2]; /* the second may be NULL */
    struct volume_lock *next;
};
/* Waits until nobody has one of the names. `lock` is the caller's; `volume_unlock` as its cleanup. */
void volume_lock(struct volumes *volumes, struct volume_lock *lock, const char *name, const char *second);
void volume_unlock(struct volume_lock *lock);
#define own_volume_lock __attribute__((cleanup(volume_unlock))) struct volume_lock

/* ---- documents ---- */

must_check int volume_load(struct volumes *volumes, const char *name, struct store_doc *ret_doc, struct err *err);
/* -EEXIST when there is one. */
must_check int volume_check_new(struct volumes *volumes, const char *name, struct err *err);
/* Takes `value` over in any case. `revision`: that it replaces, 0: none. */
must_check int volume_save(struct volumes *volumes, const char *name, json_t *value, uint64_t revision,
                           const struct store_audit *audit, struct err *err);
must_check int volume_forget(struct volumes *volumes, const char *name, uint64_t revision, const struct store_audit *audit,
                             struct err *err);
/* NULL when memory is out. */
json_t *volume_document(const char *name, uint64_t size_bytes, const char *fs);
/* RFC 3339 in UTC of a time since the epoch. */
void volume_time(int64_t seconds, char ret_text[static 24]);

static inline void own_store_doc_cleanup(struct store_doc *doc)
{
    store_doc_clear(doc);
}
#define own_store_doc __attribute__((cleanup(own_store_doc_cleanup))) struct store_doc

struct volume_user {
    char name[64];
};
/* Of an entry of "used_by", for messages: the instance's name; its ID if there is no such instance. */
struct volume_user volume_user(const struct volumes *volumes, const json_t *user);
/* -EBUSY when an instance uses the volume; readers do not count if `readers_allowed`. */
must_check int volume_check_idle(const struct volumes *volumes, const struct store_doc *doc, bool readers_allowed, struct err *err);

/* ---- files ---- */

/* Runs polder-img in the pool's folder, or in `dir_fd` as nobody (-1: the pool's, as the caller). The arguments end with
 * NULL. `ret_output` may be NULL. */
must_check int volume_img(const struct volumes *volumes, int dir_fd, const struct image_progress *progress,
                          const char *const *args, char **ret_output, struct err *err);
#define VOLUME_IMG(volumes, ret_output, err, ...)                                                            \
    volume_img(volumes, -1, NULL, (const char *const[]){__VA_ARGS__, NULL}, ret_output, err)

/* {"virtual-size", "snapshots", ...} as polder-img says it of a qcow2 file in the pool's folder. -EBADMSG when the file has a
 * backing file: no volume has, and what is another volume's would be read through it. */
must_check int volume_info(const struct volumes *volumes, const char *file, json_t **ret_info, struct err *err);
/* That a volume may be read: volume_info() has nothing against it. */
must_check int volume_check_alone(const struct volumes *volumes, const char *name, struct err *err);
/* -EINVAL when no volume has such a size; rounds it up to 1 MiB. */
must_check int volume_round_size(uint64_t *size_bytes, struct err *err);
/* Removes templates of root disks but `keep` of them. */
void volume_trim_templates(const struct volumes *volumes, unsigned keep);
/* Makes a thin qcow2 `file`; `scratch` is the name of a file for mke2fs. */
must_check int volume_make_disk(const struct volumes *volumes, const char *file, const char *scratch, uint64_t size_bytes,
                                const char *fs, struct err *err);
/* Puts the document of NAME.new into the store and gives the file its name. Removes the file when that fails. Takes
 * `document` over in any case. */
must_check int volume_publish(struct volumes *volumes, const char *name, json_t *document, const struct store_audit *audit,
                              struct err *err);
/* Makes what was done in the folder survive the host. */
must_check int volume_sync_dir(const struct volumes *volumes, struct err *err);

/* ---- folders for work that takes a while ---- */

struct volume_work {
    const struct volumes *volumes;
    int fd;        /* of the folder */
    char name[16]; /* .work-XXXXXX; empty: none */
};
must_check int volume_work_begin(const struct volumes *volumes, struct volume_work *ret_work, struct err *err);
/* Removes the folder. */
void volume_work_end(struct volume_work *work);
#define own_volume_work __attribute__((cleanup(volume_work_end))) struct volume_work
/* Removes a folder of files in the pool's. */
void volume_work_remove(const struct volumes *volumes, const char *name);

/* What the file says of size and snapshots, into the document. */
must_check int volume_refresh(struct volumes *volumes, const char *name, json_t *value, struct err *err);
