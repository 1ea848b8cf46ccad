/* The table of instances by id, and the mirror that waiters look at. */
#include "control/instance_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/own.h"

static struct instance **bucket_of(struct instances *instances, const char *id)
{
    unsigned hash = 5381;
    for (; *id; id++)
        hash = hash * 33 + (unsigned char)*id;
    return &instances->buckets[hash % INSTANCE_BUCKETS];
}

static struct instance *find_locked(struct instances *instances, const char *id)
{
    struct instance *instance = *bucket_of(instances, id);
    while (instance && strcmp(instance->id, id) != 0)
        instance = instance->next;
    if (instance)
        instance->references++;
    return instance;
}

struct instance *instance_find(struct instances *instances, const char *id)
{
    pthread_mutex_lock(&instances->lock);
    struct instance *instance = find_locked(instances, id);
    pthread_mutex_unlock(&instances->lock);
    return instance;
}

int instance_find_name(struct instances *instances, const char *name, struct instance **ret_instance, json_t **ret_doc,
                       struct err *err)
{
    own_json json_t *doc = NULL;
    int ret = instance_doc_get(instances, name, &doc, err);
    if (ret < 0)
        return ret;
    *ret_instance = instance_add(instances, doc);
    if (!*ret_instance)
        return err_set(err, ENOMEM, "instance");
    if (ret_doc)
        *ret_doc = TAKE(doc);
    return 0;
}

/* Without memory the old one stays. */
static void set_name(struct instance *instance, const char *text)
{
    if (instance->name && !strcmp(instance->name, text))
        return;
    struct instance_name *name = calloc(1, sizeof *name);
    if (!name)
        return;
    snprintf(name->text, sizeof name->text, "%s", text);
    name->next = instance->names;
    instance->names = name;
    instance->name = name->text;
}

static struct instance *instance_new(struct instances *instances, const json_t *doc)
{
    struct instance *instance = calloc(1, sizeof *instance);
    if (!instance)
        return NULL;
    instance->owner = instances;
    instance->references = 1;
    instance->pidfd = -1;
    snprintf(instance->id, sizeof instance->id, "%s", json_text(doc, "id"));
    set_name(instance, json_text(doc, "name"));
    if (!instance->name) {
        free(instance);
        return NULL;
    }
    instance->state = instance_doc_state(doc);
    instance->desired = instance_doc_desired(doc);
    instance->exit_code = (int)json_number(instance_status(doc), "exit_code");
    return instance;
}

struct instance *instance_add(struct instances *instances, const json_t *doc)
{
    pthread_mutex_lock(&instances->lock);
    struct instance *instance = find_locked(instances, json_text(doc, "id"));
    if (!instance && (instance = instance_new(instances, doc))) {
        struct instance **bucket = bucket_of(instances, instance->id);
        instance->next = *bucket;
        *bucket = instance;
        instance->references++;
    }
    pthread_mutex_unlock(&instances->lock);
    return instance;
}

static void instance_free(struct instance *instance)
{
    agent_close(instance->wait);
    if (instance->pidfd >= 0)
        close(instance->pidfd);
    while (instance->names) {
        struct instance_name *name = instance->names;
        instance->names = name->next;
        free(name);
    }
    free(instance);
}

void instance_unref(struct instance *instance)
{
    if (!instance)
        return;
    struct instances *instances = instance->owner;
    pthread_mutex_lock(&instances->lock);
    bool last = !--instance->references;
    pthread_mutex_unlock(&instances->lock);
    if (last)
        instance_free(instance);
}

void instance_forget(struct instance *instance)
{
    struct instances *instances = instance->owner;
    bool found = false;
    pthread_mutex_lock(&instances->lock);
    struct instance **link = bucket_of(instances, instance->id);
    while (*link && *link != instance)
        link = &(*link)->next;
    if (*link) {
        *link = instance->next;
        found = true;
    }
    instance->removed = true;
    pthread_cond_broadcast(&instances->changed);
    pthread_mutex_unlock(&instances->lock);
    if (found)
        instance_unref(instance);
}

static void mirror_locked(struct instance *instance, const json_t *doc)
{
    const json_t *status = instance_status(doc);
    enum instance_state old = instance->state;
    instance->state = instance_doc_state(doc);
    instance->desired = instance_doc_desired(doc);
    instance->exit_code = (int)json_number(status, "exit_code");
    snprintf(instance->error, sizeof instance->error, "%s", json_text(status, "error"));
    set_name(instance, json_text(doc, "name"));
    if (old == INSTANCE_STARTING && (instance->state == INSTANCE_RUNNING || instance->state == INSTANCE_STOPPED))
        instance->runs++;
    if (old != INSTANCE_FAILED && instance->state == INSTANCE_FAILED)
        instance->failures++;
}

void instance_mirror(struct instance *instance, const json_t *doc, uint64_t revision)
{
    pthread_mutex_lock(&instance->owner->lock);
    if (revision >= instance->revision) {
        instance->revision = revision;
        mirror_locked(instance, doc);
        pthread_cond_broadcast(&instance->owner->changed);
    }
    pthread_mutex_unlock(&instance->owner->lock);
}
