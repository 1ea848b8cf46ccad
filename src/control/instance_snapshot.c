/* Snapshots of an instance's root disk, inside of its qcow2 image, and copies of instances. A machine that runs has its image
 * open and is asked; otherwise polder-img works on the file. */
#include "control/instance_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/child.h"
#include "base/own.h"
#include "control/vmm_client.h"

#define SNAPSHOTS_MAX 256
#define CLONE_SNAPSHOT "polder-clone"

/* The instance, claimed, so that it does not start or end meanwhile. */
struct work {
    struct instance *instance;
    json_t *doc;
    bool runs;
    const char *disk; /* the machine's name of the root disk */
    char *api, *path; /* the machine's socket, the image */
};

static void work_end(struct work *work)
{
    if (!work->instance)
        return;
    instance_give_back(work->instance);
    instance_unref(work->instance);
    json_decref(work->doc);
    free(work->api);
    free(work->path);
}
#define own_work __attribute__((cleanup(work_end)))

static int work_begin(struct instances *instances, const char *name, struct work *work, struct err *err)
{
    struct instance *instance = NULL;
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (ret < 0)
        return ret;
    instance_claim(instance);
    work->instance = instance;
    ret = instance_doc_get(instances, name, &work->doc, err);
    if (ret < 0)
        return ret;
    work->runs = instance->pidfd >= 0;
    work->disk = strcmp(json_text(json_object_get(work->doc, "spec"), "kind"), "vm") ? "drive1" : "drive0";
    work->api = instance_path(instances->config.run_dir, instance->id, "api.sock");
    work->path = instance_path(instances->config.state_dir, instance->id, "root.qcow2");
    return work->api && work->path ? 0 : err_set(err, ENOMEM, "instance '%s'", name);
}

/* polder-img with these arguments; its output is JSON if it is wanted. */
static int run_img(const struct instances *instances, const char *const *args, json_t **ret_json, struct err *err)
{
    const char *argv[16] = {instances->runtime->img};
    own_free char *output = NULL;
    for (size_t i = 0; args[i]; i++)
        argv[i + 1] = args[i];
    struct child child = {CHILD_INIT, .argv = argv, .confined = true};
    int ret = child_run(&child, ret_json ? &output : NULL, err);
    if (ret < 0 || !ret_json)
        return ret;
    *ret_json = json_loads(output, 0, NULL);
    return *ret_json ? 0 : err_say(err, EPROTO, "polder-img: its output is no JSON");
}
#define IMG(instances, ret_json, err, ...)                                                                   \
    run_img(instances, (const char *const[]){__VA_ARGS__, NULL}, ret_json, err)

static int need_disk(const struct work *work, struct err *err)
{
    if (access(work->path, F_OK) < 0)
        return err_say(err, EBUSY, "instance '%s' has no disk yet: start it first", work->instance->name);
    return 0;
}

/* ---- list ---- */

/* Both sources name the members differently. */
static json_t *snapshot_of(const json_t *entry)
{
    char time_text[32];
    struct tm tm;
    const json_t *seconds = json_object_get(entry, "date_s");
    time_t date = (time_t)json_integer_value(seconds ? seconds : json_object_get(entry, "date-sec"));
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&date, &tm));
    return json_pack("{s:s, s:s}", "name", json_text(entry, "name"), "created_at", time_text);
}

static int list(const struct work *work, json_t **ret_list, struct err *err)
{
    own_json json_t *answer = NULL;
    size_t i;
    json_t *entry;
    int ret = work->runs ? vmm_snapshot_list(work->api, work->disk, &answer, err)
                         : IMG(work->instance->owner, &answer, err, "info", "--output", "json", "-f", "qcow2", work->path);
    if (ret < 0)
        return ret;
    *ret_list = json_array();
    json_array_foreach (work->runs ? answer : json_object_get(answer, "snapshots"), i, entry)
        json_array_append_new(*ret_list, snapshot_of(entry));
    return 0;
}

int instance_snapshot_list(struct instances *instances, const char *name, json_t **ret_snapshots, struct err *err)
{
    own_work struct work work = {0};
    int ret = work_begin(instances, name, &work, err);
    if (!ret && access(work.path, F_OK) < 0) {
        *ret_snapshots = json_array();
        return 0;
    }
    return ret < 0 ? ret : list(&work, ret_snapshots, err);
}

/* Whether the snapshot is there, -ENOENT or -EEXIST when that is not as `wanted`. */
static int check_there(const struct work *work, const char *snapshot, bool wanted, struct err *err)
{
    own_json json_t *all = NULL;
    size_t i;
    json_t *entry;
    int ret = list(work, &all, err);
    if (ret < 0)
        return ret;
    if (!wanted && json_array_size(all) >= SNAPSHOTS_MAX)
        return err_say(err, EBUSY, "there are %d snapshots: remove one first", SNAPSHOTS_MAX);
    bool there = false;
    json_array_foreach (all, i, entry)
        there = there || !strcmp(json_text(entry, "name"), snapshot);
    if (there == wanted)
        return 0;
    return wanted ? err_say(err, ENOENT, "instance '%s' has no snapshot '%.63s'", work->instance->name, snapshot)
                  : err_say(err, EEXIST, "instance '%s' has a snapshot '%.63s' already", work->instance->name, snapshot);
}

/* ---- create, restore, remove ---- */

enum action { CREATE, RESTORE, REMOVE };

static int act(const struct work *work, enum action action, const char *snapshot, struct err *err)
{
    static const char *const options[] = {"--create", "--apply", "--delete"};
    if (work->runs && action == RESTORE)
        return err_say(err, EBUSY, "instance '%s' runs: stop it to restore a snapshot", work->instance->name);
    if (!work->runs)
        return IMG(work->instance->owner, NULL, err, "snapshot", "-f", "qcow2", options[action], snapshot, work->path);
    return action == CREATE ? vmm_snapshot_create(work->api, work->disk, snapshot, err)
                            : vmm_snapshot_remove(work->api, work->disk, snapshot, err);
}

static int note_snapshot(struct instance_change *change, struct err *err)
{
    (void)err;
    json_object_set_new(instance_status(change->doc), "snapshot", json_string(change->arg));
    return 0;
}

/* In the document, so that who watches sees it. */
static int audit(const struct work *work, const char *action, const char *snapshot, const struct instance_call *call,
                 struct err *err)
{
    return instance_change(work->instance->owner, work->instance->name, note_snapshot, snapshot, action, call, NULL, err);
}

static int snapshot_call(struct instances *instances, const char *name, enum action action, const char *snapshot,
                         const struct instance_call *call, struct err *err)
{
    static const char *const names[] = {"instance.snapshot.create", "instance.snapshot.restore", "instance.snapshot.remove"};
    own_work struct work work = {0};
    if (!instance_name_valid(snapshot))
        return err_say(err, EINVAL, "'%.80s' is no name: up to 63 of a-z, 0-9 and '-', not at either end", snapshot);
    int ret = work_begin(instances, name, &work, err);
    if (!ret)
        ret = need_disk(&work, err);
    if (!ret)
        ret = check_there(&work, snapshot, action != CREATE, err);
    if (!ret)
        ret = act(&work, action, snapshot, err);
    return ret < 0 ? ret : audit(&work, names[action], snapshot, call, err);
}

int instance_snapshot_create(struct instances *instances, const char *name, const char *snapshot,
                             const struct instance_call *call, struct err *err)
{
    return snapshot_call(instances, name, CREATE, snapshot, call, err);
}

int instance_snapshot_restore(struct instances *instances, const char *name, const char *snapshot,
                              const struct instance_call *call, struct err *err)
{
    return snapshot_call(instances, name, RESTORE, snapshot, call, err);
}

int instance_snapshot_remove(struct instances *instances, const char *name, const char *snapshot,
                             const struct instance_call *call, struct err *err)
{
    return snapshot_call(instances, name, REMOVE, snapshot, call, err);
}

/* ---- clone ---- */

/* Only what is written, or shared with the original where the file system can (ioctl_ficlonerange(2)). */
static int copy_file(const char *from, const char *to, struct err *err)
{
    own_fd int in = open(from, O_RDONLY | O_CLOEXEC);
    own_fd int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct stat st;
    if (in < 0 || out < 0 || fstat(in, &st) < 0 || ftruncate(out, st.st_size) < 0)
        return err_set(err, errno, "copy '%s'", from);
    if (!ioctl(out, FICLONE, in))
        return fdatasync(out) < 0 ? err_set(err, errno, "copy '%s'", from) : 0;
    for (off_t data = 0; (data = lseek(in, data, SEEK_DATA)) >= 0;) {
        off_t end = lseek(in, data, SEEK_HOLE), at = data;
        while (data < end) {
            ssize_t len = copy_file_range(in, &data, out, &at, (size_t)(end - data), 0);
            if (len <= 0)
                return err_set(err, len ? errno : EIO, "copy '%s'", from);
        }
    }
    return errno == ENXIO && fdatasync(out) == 0 ? 0 : err_set(err, errno, "copy '%s'", from);
}

static int sync_folder(const char *path, struct err *err)
{
    own_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_set(err, errno, "sync '%s'", path) : 0;
}

/* The machine stands still while its file is copied; a snapshot before makes it write what it holds back. */
static int copy_running(const struct work *work, const char *to, struct err *err)
{
    bool paused = instance_doc_state(work->doc) == INSTANCE_PAUSED;
    int ret = vmm_set_paused(work->api, true, err);
    if (!ret && !check_there(work, CLONE_SNAPSHOT, true, NULL)) /* the daemon before us died while it copied */
        ret = vmm_snapshot_remove(work->api, work->disk, CLONE_SNAPSHOT, err);
    if (!ret)
        ret = vmm_snapshot_create(work->api, work->disk, CLONE_SNAPSHOT, err);
    if (!ret) {
        ret = copy_file(work->path, to, err);
        int removed = vmm_snapshot_remove(work->api, work->disk, CLONE_SNAPSHOT, ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : removed;
    }
    if (!ret)
        ret = IMG(work->instance->owner, NULL, err, "snapshot", "-f", "qcow2", "--delete", CLONE_SNAPSHOT, to);
    int resumed = paused ? 0 : work->instance->owner->ops->set_paused(work->instance, false, ret < 0 ? NULL : err);
    return ret < 0 ? ret : resumed;
}

/* The disk of an image below it is shared. */
static int link_base(const struct work *work, const char *id, struct err *err)
{
    const char *state_dir = work->instance->owner->config.state_dir;
    own_free char *from = instance_path(state_dir, work->instance->id, INSTANCE_BASE);
    own_free char *to = instance_path(state_dir, id, INSTANCE_BASE);
    if (!from || !to)
        return err_set(err, ENOMEM, "clone");
    return link(from, to) < 0 && errno != ENOENT ? err_set(err, errno, "link '%s'", to) : 0;
}

/* The copy's disk, in its folder, before its document is there: without one the next start-up removes it. */
static int copy_disk(const struct work *work, const char *id, struct err *err)
{
    const char *state_dir = work->instance->owner->config.state_dir;
    own_free char *folder = instance_path(state_dir, id, NULL);
    own_free char *to = instance_path(state_dir, id, "root.qcow2");
    if (!folder || !to)
        return err_set(err, ENOMEM, "clone");
    if (access(work->path, F_OK) < 0)
        return 0;
    if (mkdir(folder, 0700) < 0)
        return err_set(err, errno, "make the folder '%s'", folder);
    int ret = link_base(work, id, err);
    if (ret < 0)
        return ret;
    ret = work->runs ? copy_running(work, to, err) : copy_file(work->path, to, err);
    if (!ret) /* the document will be stable, so its disk must be */
        ret = sync_folder(folder, err);
    own_free char *parent = strndup(folder, (size_t)(strrchr(folder, '/') - folder));
    return ret < 0 ? ret : parent ? sync_folder(parent, err) : err_set(err, ENOMEM, "clone");
}

static int clone_doc(const struct work *work, const char *name, json_t **ret_doc, struct err *err)
{
    own_json json_t *spec = json_deep_copy(json_object_get(work->doc, "spec"));
    size_t i;
    json_t *network;
    /* what only one can have stays with the original */
    json_array_foreach (json_object_get(spec, "networks"), i, network) {
        json_object_del(network, "address");
        json_object_del(network, "mac");
    }
    json_object_set_new(spec, "ports", json_array());
    json_object_del(spec, "hostname");
    return instance_new_doc(spec, name, json_text(work->doc, "image_digest"), ret_doc, err);
}

int instance_clone(struct instances *instances, const char *name, const char *new_name, const struct instance_call *call,
                   json_t **ret_doc, struct err *err)
{
    own_work struct work work = {0};
    own_json json_t *doc = NULL;
    own_json json_t *taken = NULL;
    if (!instance_name_valid(new_name))
        return err_say(err, EINVAL, "'%.80s' is no name: up to 63 of a-z, 0-9 and '-', not at either end", new_name);
    if (!instance_doc_get(instances, new_name, &taken, NULL))
        return err_say(err, EEXIST, "there is an instance '%s' already", new_name);
    int ret = work_begin(instances, name, &work, err);
    if (!ret)
        ret = clone_doc(&work, new_name, &doc, err);
    if (!ret)
        ret = copy_disk(&work, json_text(doc, "id"), err);
    if (!ret)
        ret = instance_doc_add(instances, new_name, doc, "instance.clone", call, err);
    if (ret == -EAGAIN) /* one in 16 million for each instance */
        ret = err_say(err, EAGAIN, "the clone's id is taken: try again");
    if (ret < 0 && doc) {
        instance_remove_folders(instances, json_text(doc, "id"));
        return ret;
    }
    own_instance struct instance *instance = ret < 0 ? NULL : instance_add(instances, doc);
    if (!instance)
        return ret < 0 ? ret : err_set(err, ENOMEM, "clone");
    *ret_doc = TAKE(doc);
    return 0;
}
