/* What is the same for every driver: choosing it by the address, checking keys and values, freeing documents. */
#include "store/store_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/own.h"

static const struct store_class *const classes[] = {&store_sqlite, NULL};

int store_open(const char *address, struct store **ret_store, struct err *err)
{
    for (size_t i = 0; classes[i]; i++) {
        size_t len = strlen(classes[i]->name);
        if (strncmp(address, classes[i]->name, len) == 0 && address[len] == ':')
            return classes[i]->open(address + len + 1, ret_store, err);
    }
    return err_say(err, EINVAL, "store '%s': no such kind, give sqlite:PATH", address);
}

void store_close(struct store *store)
{
    if (store)
        store->class->close(store);
}

/* True for a key, and with `as_prefix` for the beginning of one. */
static bool is_key(const char *key, bool as_prefix)
{
    size_t len = strlen(key);
    if (len > STORE_KEY_MAX || strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789._/-") != len)
        return false;
    if (*key == '/' || strstr(key, "//"))
        return false;
    return as_prefix || (len > 0 && key[len - 1] != '/');
}

static int check_key(const char *key, struct err *err)
{
    if (is_key(key, false))
        return 0;
    return err_say(err, EINVAL, "'%.60s' cannot be a key: 1 to %d of a-z 0-9 . _ - with single slashes between", key,
                   STORE_KEY_MAX);
}

int store_get(struct store *store, const char *key, struct store_doc *ret_doc, struct err *err)
{
    int ret = check_key(key, err);
    return ret < 0 ? ret : store->class->get(store, key, ret_doc, err);
}

static int check_prefix(const char *prefix, struct err *err)
{
    return is_key(prefix, true) ? 0 : err_say(err, EINVAL, "'%.60s' cannot begin a key", prefix);
}

int store_list_prefix(struct store *store, const char *prefix, struct store_list *ret_list, struct err *err)
{
    int ret = check_prefix(prefix, err);
    return ret < 0 ? ret : store->class->list(store, prefix, ret_list, err);
}

int store_list_text(struct store *store, const char *prefix, char **ret_text, struct err *err)
{
    int ret = check_prefix(prefix, err);
    return ret < 0 ? ret : store->class->list_text(store, prefix, ret_text, err);
}

void store_doc_clear(struct store_doc *doc)
{
    free(doc->key);
    json_decref(doc->value);
    *doc = (struct store_doc){0};
}

void store_list_clear(struct store_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        store_doc_clear(&list->docs[i]);
    free(list->docs);
    *list = (struct store_list){0};
}

static int check_op(const struct store_op *op, char **ret_text, struct err *err)
{
    int ret = check_key(op->key, err);
    if (ret < 0 || op->kind != STORE_PUT)
        return ret;
    own_free char *text = json_dumps(op->value, JSON_COMPACT);
    if (!text)
        return err_say(err, EINVAL, "%s: the value is neither a JSON object nor an array", op->key);
    if (strlen(text) > STORE_VALUE_MAX)
        return err_say(err, E2BIG, "%s: a value of %zu bytes is above the limit of %u", op->key, strlen(text), STORE_VALUE_MAX);
    *ret_text = TAKE(text);
    return 0;
}

int store_commit(struct store *store, const struct store_op *ops, size_t count, const struct store_audit *audit,
                 uint64_t *ret_revision, struct err *err)
{
    own_free char **texts = calloc(count + 1, sizeof *texts);
    if (!texts)
        return err_set(err, ENOMEM, "commit");
    int ret = 0;
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = check_op(&ops[i], &texts[i], err);
    if (ret == 0)
        ret = store->class->commit(store, ops, texts, count, audit, ret_revision, err);
    for (size_t i = 0; i < count; i++)
        free(texts[i]);
    return ret;
}

int store_watch_open(struct store *store, const char *prefix, uint64_t since, struct store_watch **ret_watch, struct err *err)
{
    int ret = check_prefix(prefix, err);
    return ret < 0 ? ret : store->class->watch_open(store, prefix, since, ret_watch, err);
}

int store_watch_next(struct store_watch *watch, int timeout_ms, struct store_event *ret_event, struct err *err)
{
    return watch->store->class->watch_next(watch, timeout_ms, ret_event, err);
}

void store_watch_wake(struct store_watch *watch)
{
    watch->store->class->watch_wake(watch);
}

void store_watch_close(struct store_watch *watch)
{
    if (watch)
        watch->store->class->watch_close(watch);
}

int store_lease_grant(struct store *store, uint64_t ttl_ms, uint64_t *ret_lease, struct err *err)
{
    if (ttl_ms == 0 || ttl_ms > INT32_MAX)
        return err_say(err, EINVAL, "a lease of %llu ms: give 1 to %d", (unsigned long long)ttl_ms, INT32_MAX);
    return store->class->lease_grant(store, ttl_ms, ret_lease, err);
}

int store_lease_keep(struct store *store, uint64_t lease, struct err *err)
{
    return store->class->lease_keep(store, lease, err);
}

int store_lease_revoke(struct store *store, uint64_t lease, struct err *err)
{
    return store->class->lease_revoke(store, lease, err);
}

int store_audit_list(struct store *store, uint64_t before, size_t limit, json_t **ret_records, struct err *err)
{
    return store->class->audit_list(store, before, limit, ret_records, err);
}

int store_backup(struct store *store, const char *path, struct err *err)
{
    return store->class->backup(store, path, err);
}
