/* Documents of instances in the store: read, changed by compare-and-swap together with the host's promises. */
#include "control/instance_impl.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include "base/own.h"
#include "control/fault.h"

static const char *const state_names[] = {"created", "starting", "running", "paused", "stopping", "stopped", "failed"};
static const char *const desired_names[] = {"stopped", "running", "paused"};

const char *instance_state_name(enum instance_state state)
{
    return state_names[state];
}

json_t *instance_status(const json_t *doc)
{
    return json_object_get(doc, "status");
}

enum instance_state instance_doc_state(const json_t *doc)
{
    const char *name = json_text(instance_status(doc), "state");
    for (unsigned i = 0; i < sizeof state_names / sizeof state_names[0]; i++) {
        if (!strcmp(name, state_names[i]))
            return (enum instance_state)i;
    }
    return INSTANCE_CREATED;
}

const char *instance_doc_image(const json_t *doc)
{
    const char *digest = json_text(doc, "image_digest");
    return *digest ? digest : json_text(json_object_get(doc, "spec"), "image");
}

bool instance_doc_is_vm(const json_t *doc)
{
    return !strcmp(json_text(json_object_get(doc, "spec"), "kind"), "vm");
}

enum instance_desired instance_doc_desired(const json_t *doc)
{
    const char *name = json_text(doc, "desired");
    for (unsigned i = 0; i < sizeof desired_names / sizeof desired_names[0]; i++) {
        if (!strcmp(name, desired_names[i]))
            return (enum instance_desired)i;
    }
    return INSTANCE_WANT_STOPPED;
}

void instance_doc_set_state(json_t *doc, enum instance_state state)
{
    json_object_set_new(instance_status(doc), "state", json_string(state_names[state]));
}

void instance_doc_set_desired(json_t *doc, enum instance_desired desired)
{
    json_object_set_new(doc, "desired", json_string(desired_names[desired]));
}

void instance_doc_set_time(json_t *object, const char *member)
{
    char text[32];
    struct tm tm;
    time_t now = time(NULL);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    json_object_set_new(object, member, json_string(text));
}

/* ---- reading ---- */

static void key_of(const char *name, char key[STORE_KEY_MAX + 1])
{
    snprintf(key, STORE_KEY_MAX + 1, "instances/%s", name);
}

/* Holds the uid of the instance's machine for it alone. */
static void uid_key_of(const char *id, char key[STORE_KEY_MAX + 1])
{
    snprintf(key, STORE_KEY_MAX + 1, "uids/%u", instance_uid(id));
}

static int get_named(struct instances *instances, const char *name, struct store_doc *ret_doc, struct err *err)
{
    char key[STORE_KEY_MAX + 1];
    key_of(name, key);
    int ret = instance_name_valid(name) ? store_get(instances->config.store, key, ret_doc, err) : -ENOENT;
    if (ret == -ENOENT)
        return err_say(err, ENOENT, "there is no instance '%.80s'", name);
    return ret;
}

int instance_doc_get(struct instances *instances, const char *name, json_t **ret_doc, struct err *err)
{
    struct store_doc doc = {0};
    int ret = get_named(instances, name, &doc, err);
    if (ret < 0)
        return ret;
    *ret_doc = json_incref(doc.value);
    store_doc_clear(&doc);
    return 0;
}

/* ---- changing ---- */

struct commit {
    struct store_op ops[4];
    size_t count;
    char key[STORE_KEY_MAX + 1], new_key[STORE_KEY_MAX + 1], uid_key[STORE_KEY_MAX + 1];
    json_t *promises;
};

static void add_op(struct commit *commit, struct store_op op)
{
    commit->ops[commit->count++] = op;
}

static int add_promise(struct instances *instances, const struct instance_change *change, struct commit *commit,
                       struct err *err)
{
    struct store_doc old = {0};
    const json_t *spec = json_object_get(change->doc, "spec");
    struct admission_share need =
        admission_need((uint64_t)json_number(spec, "memory_bytes"), (unsigned)json_number(spec, "cpus"));
    int ret = store_get(instances->config.store, ADMISSION_KEY, &old, err);
    if (ret < 0 && ret != -ENOENT)
        return ret;
    if (change->promise == INSTANCE_PROMISE_TAKE) {
        ret = admission_promise(&instances->host, old.value, json_text(change->doc, "id"), &need, &commit->promises, err);
    } else {
        commit->promises = admission_release(old.value, json_text(change->doc, "id"));
        ret = 0;
    }
    if (!ret && commit->promises)
        add_op(commit, (struct store_op){.kind = STORE_PUT, .key = ADMISSION_KEY, .value = commit->promises,
                                         .expected = old.revision});
    store_doc_clear(&old);
    return ret;
}

static void add_doc(const struct instance_change *change, uint64_t revision, struct commit *commit)
{
    if (change->remove) {
        uid_key_of(json_text(change->doc, "id"), commit->uid_key);
        add_op(commit, (struct store_op){.kind = STORE_DELETE, .key = commit->key, .expected = revision});
        add_op(commit, (struct store_op){.kind = STORE_DELETE, .key = commit->uid_key, .expected = STORE_ANY});
        return;
    }
    if (*change->new_name) {
        key_of(change->new_name, commit->new_key);
        add_op(commit, (struct store_op){.kind = STORE_DELETE, .key = commit->key, .expected = revision});
        add_op(commit, (struct store_op){.kind = STORE_PUT, .key = commit->new_key, .value = change->doc, .expected = 0});
        return;
    }
    add_op(commit, (struct store_op){.kind = STORE_PUT, .key = commit->key, .value = change->doc, .expected = revision});
}

static int commit_change(struct instances *instances, const char *name, const struct instance_change *change,
                         uint64_t *revision, const char *action, const struct instance_call *call, struct err *err)
{
    struct commit commit = {0};
    key_of(name, commit.key);
    add_doc(change, *revision, &commit);
    int ret = change->promise ? add_promise(instances, change, &commit, err) : 0;
    if (!ret) {
        struct store_audit audit = {.actor = call && call->actor ? call->actor : "controller",
                                    .origin = call ? call->origin : NULL, .action = action, .target = commit.key};
        ret = store_commit(instances->config.store, commit.ops, commit.count, &audit, revision, err);
        fault_here(action);
    }
    json_decref(commit.promises);
    return ret;
}

static int change_once(struct instances *instances, const char *name, instance_change_fn *fn, const void *arg,
                       const char *action, const struct instance_call *call, json_t **ret_doc, uint64_t *ret_revision,
                       struct err *err)
{
    struct store_doc old = {0};
    int ret = get_named(instances, name, &old, err);
    if (ret < 0)
        return ret;
    struct instance_change change = {.doc = json_deep_copy(old.value), .arg = arg};
    ret = change.doc ? fn(&change, err) : err_set(err, ENOMEM, "instance '%s'", name);
    bool same = ret == -EALREADY;
    if (!ret)
        ret = commit_change(instances, name, &change, &old.revision, action, call, err);
    else if (same)
        ret = 0;
    own_json json_t *taken = NULL;
    if (ret == -EAGAIN && *change.new_name && !instance_doc_get(instances, change.new_name, &taken, NULL))
        ret = err_say(err, EEXIST, "there is an instance '%s' already", change.new_name); /* it came between */
    *ret_revision = old.revision;
    if (!ret)
        *ret_doc = json_incref(same ? old.value : change.doc);
    json_decref(change.doc);
    store_doc_clear(&old);
    return ret;
}

int instance_change(struct instances *instances, const char *name, instance_change_fn *fn, const void *arg,
                    const char *action, const struct instance_call *call, json_t **ret_doc, struct err *err)
{
    own_json json_t *doc = NULL;
    uint64_t revision = 0;
    int ret;
    /* Another's commit came between: theirs counts, so this ends as long as anybody's does. */
    do
        ret = change_once(instances, name, fn, arg, action, call, &doc, &revision, err);
    while (ret == -EAGAIN);
    if (ret < 0)
        return ret;
    own_instance struct instance *instance = instance_find(instances, json_text(doc, "id"));
    if (instance)
        instance_mirror(instance, doc, revision);
    if (ret_doc)
        *ret_doc = TAKE(doc);
    return 0;
}

int instance_doc_add(struct instances *instances, const char *name, const json_t *doc, const char *action,
                     const struct instance_call *call, struct err *err)
{
    char key[STORE_KEY_MAX + 1], uid_key[STORE_KEY_MAX + 1];
    own_json json_t *there = NULL;
    own_json json_t *holder = json_pack("{s:s}", "instance", json_text(doc, "id"));
    key_of(name, key);
    uid_key_of(json_text(doc, "id"), uid_key);
    struct store_op ops[] = {{.kind = STORE_PUT, .key = key, .value = doc, .expected = 0},
                             {.kind = STORE_PUT, .key = uid_key, .value = holder, .expected = 0}};
    struct store_audit audit = {.actor = call && call->actor ? call->actor : "controller",
                                .origin = call ? call->origin : NULL, .action = action, .target = key};
    int ret = store_commit(instances->config.store, ops, 2, &audit, NULL, err);
    fault_here(action);
    if (ret == -EAGAIN && !instance_doc_get(instances, name, &there, NULL))
        return err_say(err, EEXIST, "there is an instance '%s' already: choose another name or remove it", name);
    return ret;
}
