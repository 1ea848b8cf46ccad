/* The controller as a whole, and calls that make, show and change documents. */
#include "control/instance.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "base/log.h"
#include "base/own.h"
#include "control/fault.h"
#include "control/instance_impl.h"
#include "control/network.h"
#include "control/volume.h"
#include "image/image.h"
#include "image/rootfs.h"

/* ---- open and close ---- */

static int copy_text(const char *text, const char **ret_copy, struct err *err)
{
    *ret_copy = text ? strdup(text) : NULL;
    return text && !*ret_copy ? err_set(err, ENOMEM, "instances") : 0;
}

static int copy_config(const struct instances_config *config, struct instances *instances, struct err *err)
{
    struct instances_config *copy = &instances->config;
    *copy = *config;
    copy->state_dir = copy->run_dir = copy->guest_dir = copy->engine = NULL;
    int ret = copy_text(config->state_dir, &copy->state_dir, err);
    if (!ret)
        ret = copy_text(config->run_dir, &copy->run_dir, err);
    if (!ret)
        ret = copy_text(config->guest_dir, &copy->guest_dir, err);
    if (!ret)
        ret = copy_text(config->engine ? config->engine : "auto", &copy->engine, err);
    if (!ret)
        ret = admission_host_read(config->host_reserve_bytes, config->memory_overcommit, config->cpu_overcommit,
                                  &instances->host, err);
    return ret;
}

/* Finds the process of each document and lets a first step look at both. */
static int take_over(struct instances *instances, struct err *err)
{
    struct store_list list = {0};
    int ret = store_list_prefix(instances->config.store, "instances/", &list, err);
    for (size_t i = 0; !ret && i < list.count; i++) {
        own_instance struct instance *instance = instance_add(instances, list.docs[i].value);
        if (!instance)
            ret = err_set(err, ENOMEM, "instances");
        else if (instance_pid_read(instances, instance->id, &instance->pid, &instance->pidfd, NULL) < 0)
            instance->pidfd = -1;
        else
            instance->taken_over = true;
    }
    store_list_clear(&list);
    return ret;
}

static void enqueue_all(struct instances *instances)
{
    for (unsigned i = 0; i < INSTANCE_BUCKETS; i++) {
        for (struct instance *instance = instances->buckets[i]; instance; instance = instance->next)
            instance_enqueue(instance);
    }
}

int instances_open_with(const struct instances_config *config, const struct instance_ops *ops,
                        struct instances **ret_instances, struct err *err)
{
    struct instances *instances = calloc(1, sizeof *instances);
    if (!instances)
        return err_set(err, ENOMEM, "instances");
    instances->ops = ops;
    instances->last_ready = &instances->first_ready;
    instances->epoll_fd = instances->wake_fd = -1;
    pthread_mutex_init(&instances->lock, NULL);
    pthread_cond_init(&instances->work, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&instances->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int ret = copy_config(config, instances, err);
    if (!ret)
        ret = instance_runtime_open(instances, err);
    if (!ret)
        ret = take_over(instances, err);
    if (!ret) {
        instance_adopt_all(instances);
        enqueue_all(instances);
        ret = instance_queue_start(instances, err);
    }
    if (ret < 0) {
        instances_close(instances);
        return ret;
    }
    *ret_instances = instances;
    return 0;
}

int instances_open(const struct instances_config *config, struct instances **ret_instances, struct err *err)
{
    return instances_open_with(config, &instance_ops_host, ret_instances, err);
}

void instances_close(struct instances *instances)
{
    if (!instances)
        return;
    instance_queue_stop(instances);
    for (unsigned i = 0; i < INSTANCE_BUCKETS; i++) {
        while (instances->buckets[i])
            instance_forget(instances->buckets[i]);
    }
    instance_runtime_close(instances);
    if (instances->epoll_fd >= 0)
        close(instances->epoll_fd);
    if (instances->wake_fd >= 0)
        close(instances->wake_fd);
    pthread_cond_destroy(&instances->changed);
    pthread_cond_destroy(&instances->work);
    pthread_mutex_destroy(&instances->lock);
    struct instances_config *config = &instances->config;
    free((char *)(uintptr_t)config->state_dir);
    free((char *)(uintptr_t)config->run_dir);
    free((char *)(uintptr_t)config->guest_dir);
    free((char *)(uintptr_t)config->engine);
    free(instances);
}

/* ---- create ---- */

static void new_id(char id[static INSTANCE_ID_SIZE])
{
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        abort(); /* cannot fail for so few bytes (getrandom(2)) */
    snprintf(id, INSTANCE_ID_SIZE, "%016llx", (unsigned long long)number);
}

int instance_new_doc(const json_t *spec, const char *name, const char *image_digest, json_t **ret_doc, struct err *err)
{
    char id[INSTANCE_ID_SIZE];
    new_id(id);
    json_t *doc = json_pack("{s:s, s:s, s:O, s:s, s:s, s:{s:s, s:i, s:s, s:i, s:s, s:[], s:i}}", "id", id, "name", name,
                            "spec", spec, "image_digest", image_digest, "desired", "stopped", "status", "state", "created",
                            "pid", 0, "engine", "", "exit_code", 0, "error", "", "addresses", "restarts", 0);
    if (!doc)
        return err_set(err, ENOMEM, "instance");
    json_object_set_new(json_object_get(doc, "spec"), "name", json_string(name));
    instance_doc_set_time(doc, "created_at");
    *ret_doc = doc;
    return 0;
}

/* Sees that the image is here. */
static int fetch_image(struct instances *instances, const char *ref, const struct image_progress *progress,
                       char digest[static IMAGE_DIGEST_SIZE], bool *ret_disk, struct err *err)
{
    struct image image = {0};
    int ret = image_get(instances->config.images, ref, &image, err);
    if (ret == -ENOENT) {
        ret = image_pull(instances->config.images, ref, NULL, progress, digest, err);
        if (!ret)
            ret = image_get(instances->config.images, ref, &image, err);
    }
    if (!ret) {
        *ret_disk = !strcmp(image.config.media_type, IMAGE_DISK_CONFIG_TYPE);
        memcpy(digest, image.manifest.digest, IMAGE_DIGEST_SIZE);
    }
    image_clear(&image);
    return ret;
}

/* The kind, where none was asked for, is the image's: its presets are others. */
static int take_kind(const json_t *body, bool disk, json_t **spec, struct err *err)
{
    const char *kind = json_text(body, "kind");
    if (*kind && !strcmp(kind, "vm") != disk)
        return err_say(err, EINVAL, disk ? "kind: the image is a disk with a system of its own, for kind vm"
                                         : "kind: the image is no disk, as kind vm needs: leave the kind out");
    if (!disk && *json_text(body, "user_data"))
        return err_say(err, EINVAL, "user_data: the image is no disk with a system that would read it");
    if (!disk || *kind)
        return 0;
    own_json json_t *more = json_copy((json_t *)(uintptr_t)body);
    json_object_set_new(more, "kind", json_string("vm"));
    json_decref(*spec);
    *spec = NULL;
    return instance_spec_check(more, spec, err);
}

/* The image is here and its root file system is made, so that starting is quick. */
static int prepare_image(struct instances *instances, const json_t *body, const struct instance_call *call, json_t **spec,
                         char digest[static IMAGE_DIGEST_SIZE], struct err *err)
{
    bool disk = false;
    own_free char *root = NULL;
    struct image_progress progress = {0};
    const char *ref = json_text(body, "image");
    if (!instances->config.images)
        return 0;
    if (call)
        progress = (struct image_progress){.report = call->progress, .cancelled = call->cancelled, .context = call->arg};
    int ret = fetch_image(instances, ref, &progress, digest, &disk, err);
    if (!ret)
        ret = take_kind(body, disk, spec, err);
    if (!ret && !disk)
        ret = image_root(instances->config.images, digest, &progress, &root, digest, err);
    return ret;
}

/* "debian-3f2a": of the image's last part and of chance. */
static void make_up_name(const json_t *spec, char name[static INSTANCE_NAME_SIZE])
{
    char id[INSTANCE_ID_SIZE];
    const char *image = json_text(spec, "image");
    const char *slash = strrchr(image, '/');
    size_t len = 0;
    new_id(id);
    for (const char *c = slash ? slash + 1 : image; *c && *c != ':' && *c != '@' && len < 40; c++) {
        char lower = (char)(*c >= 'A' && *c <= 'Z' ? *c + 32 : *c);
        bool fine = (lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9');
        if (fine || len)
            name[len++] = fine ? lower : '-';
    }
    snprintf(name + len, INSTANCE_NAME_SIZE - len, "%s%.6s", len ? "-" : "i", id);
}

static int add_named(struct instances *instances, json_t *spec, const char *image_digest, const struct instance_call *call,
                     json_t **ret_doc, struct err *err)
{
    char name[INSTANCE_NAME_SIZE];
    bool given = *json_text(spec, "name");
    snprintf(name, sizeof name, "%s", json_text(spec, "name")); /* a try sets the spec's, and frees what was there */
    for (unsigned tries = 0;; tries++) {
        own_json json_t *doc = NULL;
        if (!given)
            make_up_name(spec, name);
        int ret = instance_new_doc(spec, name, image_digest, &doc, err);
        if (!ret)
            ret = instance_doc_add(instances, name, doc, "instance.create", call, err);
        if ((ret == -EAGAIN || (ret == -EEXIST && !given)) && tries < 8)
            continue;
        if (ret < 0)
            return ret;
        *ret_doc = TAKE(doc);
        return 0;
    }
}

/* Networks and volumes that it names are there: known before anything is made. */
static int check_parts(struct instances *instances, const json_t *spec, struct err *err)
{
    size_t i;
    json_t *entry;
    int ret = 0;
    json_array_foreach (json_object_get(spec, "networks"), i, entry) {
        if (!ret && instances->config.networks)
            ret = network_check_there(instances->config.networks, entry, err);
    }
    json_array_foreach (json_object_get(spec, "volumes"), i, entry) {
        own_json json_t *volume = NULL;
        if (!ret && instances->config.volumes)
            ret = volume_get(instances->config.volumes, json_text(entry, "volume"), &volume, err);
    }
    return ret;
}

/* Of a new instance that could not be started: when no process of it has been there, there is nothing to look at either. */
static void take_back(struct instances *instances, const char *name, const struct instance_call *call)
{
    own_json json_t *doc = NULL;
    struct err err = {0};
    if (instance_doc_get(instances, name, &doc, NULL) < 0)
        return;
    bool failed = instance_doc_state(doc) == INSTANCE_FAILED;
    if (instance_doc_state(doc) != INSTANCE_CREATED &&
        !(failed && json_number(instance_status(doc), "exit_code") == INSTANCE_NOT_LAUNCHED))
        return;
    if (instance_remove(instances, name, true, call, &err) < 0)
        log_warn("instance %s: %s", name, err.message);
}

int instance_create(struct instances *instances, const json_t *body, bool start, const struct instance_call *call,
                    json_t **ret_doc, struct err *err)
{
    own_json json_t *spec = NULL;
    own_json json_t *doc = NULL;
    char digest[IMAGE_DIGEST_SIZE] = "";
    int ret = instance_spec_check(body, &spec, err);
    if (!ret)
        ret = check_parts(instances, spec, err);
    if (!ret)
        ret = prepare_image(instances, body, call, &spec, digest, err);
    if (!ret)
        ret = instance_check_process(instances, spec, err);
    fault_here("create.image");
    if (!ret)
        ret = add_named(instances, spec, digest, call, &doc, err);
    if (ret < 0)
        return ret;
    own_instance struct instance *instance = instance_add(instances, doc);
    if (!instance)
        return err_set(err, ENOMEM, "instance");
    if (start) {
        ret = instance_start(instances, json_text(doc, "name"), call, err);
        if (ret < 0 && ret != -ECANCELED)
            take_back(instances, json_text(doc, "name"), call);
        if (ret < 0)
            return ret;
        own_json json_t *now = NULL;
        /* gone again when it was quick and shall not stay */
        if (!instance_doc_get(instances, json_text(doc, "name"), &now, NULL)) {
            *ret_doc = TAKE(now);
            return 0;
        }
    }
    *ret_doc = TAKE(doc);
    return 0;
}

/* ---- show and change ---- */

int instance_get(struct instances *instances, const char *name, json_t **ret_doc, struct err *err)
{
    return instance_doc_get(instances, name, ret_doc, err);
}

int instance_list(struct instances *instances, char **ret_text, struct err *err)
{
    return store_list_text(instances->config.store, "instances/", ret_text, err);
}

static int change_spec(struct instance_change *change, struct err *err)
{
    json_t *spec = NULL;
    int ret = instance_spec_change(json_object_get(change->doc, "spec"), change->arg, &spec, err);
    if (ret < 0)
        return ret;
    json_object_set_new(change->doc, "spec", spec);
    /* what it holds must cover the larger one from now on */
    if (instance_doc_desired(change->doc) != INSTANCE_WANT_STOPPED)
        change->promise = INSTANCE_PROMISE_TAKE;
    return 0;
}

int instance_update(struct instances *instances, const char *name, const json_t *changes, const struct instance_call *call,
                    json_t **ret_doc, struct err *err)
{
    return instance_change(instances, name, change_spec, changes, "instance.update", call, ret_doc, err);
}

static int change_name(struct instance_change *change, struct err *err)
{
    const char *name = change->arg;
    if (!strcmp(json_text(change->doc, "name"), name))
        return -EALREADY;
    if (json_flag(change->doc, "deleting"))
        return err_say(err, EBUSY, "the instance is being removed");
    snprintf(change->new_name, sizeof change->new_name, "%s", name);
    json_object_set_new(change->doc, "name", json_string(name));
    json_object_set_new(json_object_get(change->doc, "spec"), "name", json_string(name));
    return 0;
}

int instance_rename(struct instances *instances, const char *name, const char *new_name, const struct instance_call *call,
                    json_t **ret_doc, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *taken = NULL;
    if (!instance_name_valid(new_name))
        return err_say(err, EINVAL, "'%.80s' is no name: up to 63 of a-z, 0-9 and '-', not at either end", new_name);
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (ret < 0)
        return ret;
    instance_claim(instance);
    if (strcmp(name, new_name) != 0 && !instance_doc_get(instances, new_name, &taken, NULL))
        ret = err_say(err, EEXIST, "there is an instance '%s' already", new_name);
    if (!ret)
        ret = instance_change(instances, name, change_name, new_name, "instance.rename", call, ret_doc, err);
    if (!ret && instances->config.networks)
        ret = network_rename_instance(instances->config.networks, instance->id, new_name, err);
    instance_give_back(instance);
    return ret;
}

int instances_admission(struct instances *instances, json_t **ret_admission, struct err *err)
{
    struct store_doc doc = {0};
    int ret = store_get(instances->config.store, ADMISSION_KEY, &doc, err);
    if (ret < 0 && ret != -ENOENT)
        return ret;
    struct admission_share capacity = admission_capacity(&instances->host), used = admission_promised(doc.value);
    store_doc_clear(&doc);
    *ret_admission = json_pack("{s:{s:I, s:I, s:f}, s:{s:I, s:I, s:f}}", "memory", "capacity_bytes",
                               (json_int_t)capacity.memory_bytes, "reserved_bytes", (json_int_t)used.memory_bytes,
                               "overcommit", instances->host.memory_overcommit, "cpus", "capacity",
                               (json_int_t)capacity.cpus, "reserved", (json_int_t)used.cpus, "overcommit",
                               instances->host.cpu_overcommit);
    return *ret_admission ? 0 : err_set(err, ENOMEM, "admission");
}
