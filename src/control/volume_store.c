/* Volumes: names, the lock of a name, documents in the store. */
#include "control/volume_impl.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/own.h"

#define INSTANCES "instances/"

bool volume_name_valid(const char *name)
{
    size_t len = strlen(name);
    return len > 0 && len <= VOLUME_NAME_MAX && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len &&
           name[0] != '-' && name[len - 1] != '-';
}

int volume_name_check(const char *what, const char *name, struct err *err)
{
    if (name && volume_name_valid(name))
        return 0;
    return err_say(err, EINVAL, "'%.80s' cannot be the name of a %s: use 1 to 63 of a-z, 0-9 and -, the - not at an end",
                   name ? name : "", what);
}

/* ---- locks ---- */

static bool shares_name(const struct volume_lock *a, const struct volume_lock *b)
{
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            if (a->names[i] && b->names[j] && strcmp(a->names[i], b->names[j]) == 0)
                return true;
    return false;
}

static bool must_wait(const struct volumes *volumes, const struct volume_lock *lock)
{
    for (const struct volume_lock *other = volumes->busy; other; other = other->next)
        if (shares_name(lock, other))
            return true;
    return false;
}

void volume_lock(struct volumes *volumes, struct volume_lock *lock, const char *name, const char *second)
{
    *lock = (struct volume_lock){.volumes = volumes, .names = {name, second}};
    pthread_mutex_lock(&volumes->mutex);
    while (must_wait(volumes, lock))
        pthread_cond_wait(&volumes->idle, &volumes->mutex);
    lock->next = volumes->busy;
    volumes->busy = lock;
    pthread_mutex_unlock(&volumes->mutex);
}

void volume_unlock(struct volume_lock *lock)
{
    struct volumes *volumes = lock->volumes;
    if (!volumes)
        return;
    pthread_mutex_lock(&volumes->mutex);
    for (struct volume_lock **at = &volumes->busy; *at; at = &(*at)->next)
        if (*at == lock) {
            *at = lock->next;
            break;
        }
    pthread_cond_broadcast(&volumes->idle);
    pthread_mutex_unlock(&volumes->mutex);
    lock->volumes = NULL;
}

/* ---- documents ---- */

struct volume_key {
    char text[sizeof VOLUME_KEY_PREFIX + VOLUME_NAME_MAX];
};

static struct volume_key key_of(const char *name)
{
    struct volume_key key;
    snprintf(key.text, sizeof key.text, VOLUME_KEY_PREFIX "%.*s", VOLUME_NAME_MAX, name);
    return key;
}

int volume_load(struct volumes *volumes, const char *name, struct store_doc *ret_doc, struct err *err)
{
    int r = volume_name_check("volume", name, err);
    if (r < 0)
        return r;
    r = store_get(volumes->store, key_of(name).text, ret_doc, err);
    return r == -ENOENT ? err_say(err, ENOENT, "there is no volume '%s': polder volume create makes one", name) : r;
}

int volume_check_new(struct volumes *volumes, const char *name, struct err *err)
{
    own_store_doc doc = {0};
    struct err none = {0};
    int r = volume_load(volumes, name, &doc, &none);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        return err_say(err, EEXIST, "there is a volume '%s' already", name);
    if (err)
        *err = none;
    return r;
}

static int commit(struct volumes *volumes, const struct store_op *op, const char *name, const struct store_audit *audit,
                  struct err *err)
{
    int r = store_commit(volumes->store, op, 1, audit, NULL, err);
    return r == -EAGAIN ? err_say(err, EAGAIN, "volume '%s' was changed meanwhile: try again", name) : r;
}

int volume_save(struct volumes *volumes, const char *name, json_t *value, uint64_t revision,
                const struct store_audit *audit, struct err *err)
{
    struct volume_key key = key_of(name);
    struct store_op op = {.kind = STORE_PUT, .key = key.text, .value = value, .expected = revision};
    int r = value ? commit(volumes, &op, name, audit, err) : err_set(err, ENOMEM, "volume '%s'", name);
    json_decref(value);
    return r;
}

int volume_forget(struct volumes *volumes, const char *name, uint64_t revision, const struct store_audit *audit,
                  struct err *err)
{
    struct volume_key key = key_of(name);
    struct store_op op = {.kind = STORE_DELETE, .key = key.text, .expected = revision};
    return commit(volumes, &op, name, audit, err);
}

void volume_time(int64_t seconds, char ret_text[static 24])
{
    time_t when = (time_t)seconds;
    struct tm tm = {0};
    gmtime_r(&when, &tm);
    strftime(ret_text, 24, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

json_t *volume_document(const char *name, uint64_t size_bytes, const char *fs)
{
    char now[24];
    volume_time(time(NULL), now);
    return json_pack("{s:s, s:I, s:s, s:s, s:s, s:[], s:[]}", "name", name, "size_bytes", (json_int_t)size_bytes, "format",
                     "qcow2", "fs", fs, "created_at", now, "snapshots", "used_by");
}

struct volume_user volume_user(const struct volumes *volumes, const json_t *user)
{
    struct volume_user found = {""};
    struct store_list list = {0};
    const char *id = json_string_value(json_object_get(user, "instance"));
    snprintf(found.name, sizeof found.name, "%s", id ? id : "");
    if (store_list_prefix(volumes->store, INSTANCES, &list, NULL) < 0)
        return found;
    for (size_t i = 0; id && i < list.count; i++) {
        const char *its = json_string_value(json_object_get(list.docs[i].value, "id"));
        if (its && !strcmp(its, id))
            snprintf(found.name, sizeof found.name, "%s", list.docs[i].key + strlen(INSTANCES));
    }
    store_list_clear(&list);
    return found;
}

int volume_check_idle(const struct volumes *volumes, const struct store_doc *doc, bool readers_allowed, struct err *err)
{
    const json_t *users = json_object_get(doc->value, "used_by"), *user;
    size_t i;
    json_array_foreach(users, i, user)
        if (!readers_allowed || !json_is_true(json_object_get(user, "read_only")))
            return err_say(err, EBUSY, "volume '%s' is in use by instance '%s': stop it first", doc->key + strlen(VOLUME_KEY_PREFIX),
                           volume_user(volumes, user).name);
    return 0;
}
