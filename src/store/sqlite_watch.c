/* Driver `sqlite`: watches. Each reads the table of changes from where it is; commits wake those that wait. */
#include "store/sqlite_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct sqlite_watch {
    struct store_watch watch;
    uint64_t revision, seq; /* of the last change given; seq UINT32_MAX: all of that revision */
    bool woken;
    char prefix[STORE_KEY_MAX + 1];
};

static struct sqlite_watch *watch_of(struct store_watch *watch)
{
    return (struct sqlite_watch *)watch;
}

static int check_since(const struct sqlite_store *s, uint64_t since, struct err *err)
{
    if (since >= s->forgotten)
        return 0;
    return err_say(err, ERANGE, "changes up to revision %llu were forgotten; list anew and watch from there",
                   (unsigned long long)s->forgotten);
}

int sqlite_watch_open(struct store *store, const char *prefix, uint64_t since, struct store_watch **ret_watch, struct err *err)
{
    struct sqlite_store *s = sqlite_of(store);
    struct sqlite_watch *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(err, ENOMEM, "watch");
    *w = (struct sqlite_watch){.watch.store = store, .seq = UINT32_MAX};
    snprintf(w->prefix, sizeof w->prefix, "%s", prefix);
    pthread_mutex_lock(&s->lock);
    w->revision = since ? since : s->forgotten;
    int ret = check_since(s, w->revision, err);
    pthread_mutex_unlock(&s->lock);
    if (ret < 0)
        free(w);
    else
        *ret_watch = &w->watch;
    return ret;
}

/* 1 and the next change, 0 when there is none yet. */
static int read_next(struct sqlite_store *s, struct sqlite_watch *w, struct store_event *ret_event, struct err *err)
{
    int ret = check_since(s, w->revision, err);
    sqlite3_stmt *statement = ret == 0 ? sqlite_statement(s, SQL_NEXT_CHANGE, err) : NULL;
    if (!statement)
        return ret < 0 ? ret : -EIO;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)w->revision);
    sqlite3_bind_int64(statement, 2, (sqlite3_int64)w->seq);
    sqlite3_bind_text(statement, 3, w->prefix, -1, SQLITE_STATIC);
    int code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
        struct store_event event = {.kind = sqlite3_column_int(statement, 0) ? STORE_EVENT_DELETE : STORE_EVENT_PUT};
        ret = sqlite_read_doc(statement, 2, &event.doc, err);
        if (ret == 0) {
            w->revision = event.doc.revision;
            w->seq = (uint64_t)sqlite3_column_int64(statement, 1);
            *ret_event = event;
            ret = 1;
        }
    } else if (code == SQLITE_DONE) {
        if (w->revision < s->revision) /* nothing for us up to here */
            w->revision = s->revision, w->seq = UINT32_MAX;
    } else {
        ret = sqlite_failed(s, code, "watch", err);
    }
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return ret;
}

/* False when the time is over. */
static bool wait_for_news(struct sqlite_store *s, int timeout_ms, uint64_t deadline_ms)
{
    if (timeout_ms < 0)
        return pthread_cond_wait(&s->news, &s->lock) == 0;
    const struct timespec t = {.tv_sec = (time_t)(deadline_ms / 1000), .tv_nsec = (long)(deadline_ms % 1000) * 1000000};
    return pthread_cond_timedwait(&s->news, &s->lock, &t) == 0;
}

int sqlite_watch_next(struct store_watch *watch, int timeout_ms, struct store_event *ret_event, struct err *err)
{
    struct sqlite_watch *w = watch_of(watch);
    struct sqlite_store *s = sqlite_of(watch->store);
    uint64_t deadline_ms = sqlite_now_ms() + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0);
    pthread_mutex_lock(&s->lock);
    int ret = 0;
    for (bool in_time = true;; in_time = wait_for_news(s, timeout_ms, deadline_ms)) {
        if (w->woken || (ret = read_next(s, w, ret_event, err)) != 0 || !in_time)
            break;
    }
    w->woken = false;
    pthread_mutex_unlock(&s->lock);
    return ret;
}

void sqlite_watch_wake(struct store_watch *watch)
{
    struct sqlite_store *s = sqlite_of(watch->store);
    pthread_mutex_lock(&s->lock);
    watch_of(watch)->woken = true;
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
}

void sqlite_watch_close(struct store_watch *watch)
{
    free(watch_of(watch));
}
