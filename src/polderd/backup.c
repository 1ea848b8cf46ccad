#include "polderd/backup.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/own.h"
#include "store/store.h"

#define GAP_S 60

struct backup {
    struct store *store;
    char *path, *part;
    uint64_t copied; /* the revision of the copy */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ends;
    bool ending;
};

static int join(char **ret, const char *folder, const char *name, struct err *err)
{
    return asprintf(ret, "%s/%s", folder, name) < 0 ? err_set(err, ENOMEM, "path") : 0;
}

/* ---- copies ---- */

/* A change that comes while the copy is made may be in it, but is copied again. */
static int copy(struct backup *backup, struct err *err)
{
    struct store_list none = {0};
    int r = store_list_prefix(backup->store, "backup/", &none, err); /* for its revision */
    if (r < 0 || none.revision == backup->copied)
        return r;
    unlink(backup->part);
    r = store_backup(backup->store, backup->part, err);
    if (r == 0 && rename(backup->part, backup->path) < 0)
        r = err_set(err, errno, "name '%s'", backup->path);
    if (r == 0)
        backup->copied = none.revision;
    return r;
}

static void copy_or_say(struct backup *backup)
{
    struct err err = {0};
    if (copy(backup, &err) < 0)
        log_error("the store's copy stays the last one: %s", err.message);
}

static void *keep(void *arg)
{
    struct backup *backup = arg;
    pthread_mutex_lock(&backup->lock);
    while (!backup->ending) {
        struct timespec until;
        pthread_mutex_unlock(&backup->lock);
        copy_or_say(backup);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += GAP_S;
        pthread_mutex_lock(&backup->lock);
        while (!backup->ending && pthread_cond_timedwait(&backup->ends, &backup->lock, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&backup->lock);
    return NULL;
}

static void backup_free(struct backup *backup)
{
    pthread_cond_destroy(&backup->ends);
    pthread_mutex_destroy(&backup->lock);
    free(backup->path);
    free(backup->part);
    free(backup);
}

int backup_start(struct store *store, const char *state_dir, struct backup **ret_backup, struct err *err)
{
    struct backup *backup = calloc(1, sizeof *backup);
    if (!backup)
        return err_set(err, ENOMEM, "backup");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&backup->ends, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&backup->lock, NULL);
    backup->store = store;
    int r = join(&backup->path, state_dir, "backup.db", err);
    if (r == 0)
        r = join(&backup->part, state_dir, "backup.db.part", err);
    int code = r == 0 ? pthread_create(&backup->thread, NULL, keep, backup) : 0;
    if (code)
        r = err_set(err, code, "thread");
    if (r < 0)
        backup_free(backup);
    else
        *ret_backup = backup;
    return r;
}

void backup_stop(struct backup *backup)
{
    if (!backup)
        return;
    pthread_mutex_lock(&backup->lock);
    backup->ending = true;
    pthread_cond_signal(&backup->ends);
    pthread_mutex_unlock(&backup->lock);
    pthread_join(backup->thread, NULL);
    copy_or_say(backup);
    backup_free(backup);
}

/* ---- the way back ---- */

static int put_aside(const char *path, struct err *err)
{
    static const char *const parts[] = {"", "-wal", "-shm"};
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        own_free char *from = NULL;
        own_free char *to = NULL;
        if (asprintf(&from, "%s%s", path, parts[i]) < 0 || asprintf(&to, "%s.damaged%s", path, parts[i]) < 0)
            return err_set(err, ENOMEM, "path");
        if (rename(from, to) < 0 && errno != ENOENT)
            return err_set(err, errno, "put '%s' aside", from);
    }
    return 0;
}

/* The copy stays: what is taken is a copy of it, checked on the way. */
static int take_copy(const char *from, const char *to, struct err *err)
{
    struct store *store = NULL;
    own_free char *address = NULL;
    if (asprintf(&address, "sqlite:%s", from) < 0)
        return err_set(err, ENOMEM, "path");
    int r = store_open(address, &store, err);
    if (r < 0)
        return r;
    unlink(to);
    r = store_backup(store, to, err);
    store_close(store);
    return r;
}

int backup_restore(const char *state_dir, struct err *err)
{
    own_free char *store = NULL;
    own_free char *copy = NULL;
    own_free char *part = NULL;
    int r = join(&store, state_dir, "state.db", err);
    if (r == 0)
        r = join(&copy, state_dir, "backup.db", err);
    if (r == 0)
        r = join(&part, state_dir, "backup.db.part", err);
    if (r == 0 && access(copy, F_OK) < 0)
        r = err_set(err, errno, "there is no copy '%s' to restore", copy);
    if (r == 0)
        r = take_copy(copy, part, err);
    if (r == 0)
        r = put_aside(store, err);
    if (r == 0 && rename(part, store) < 0)
        r = err_set(err, errno, "name '%s'", store);
    return r < 0 ? err_ctx(err, "restore") : 0;
}

int backup_explain(const char *state_dir, struct err *err)
{
    own_free char *path = NULL;
    struct stat st;
    struct tm tm;
    char when[32];
    if (join(&path, state_dir, "backup.db", NULL) < 0 || stat(path, &st) < 0)
        return err_say(err, EBADMSG, "the store '%s/state.db' is damaged, and there is no backup.db beside it", state_dir);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&st.st_mtime, &tm));
    return err_say(err, EBADMSG, "the store '%.100s/state.db' is damaged: start polderd with --restore to go back to its copy of %s",
                   state_dir, when);
}
