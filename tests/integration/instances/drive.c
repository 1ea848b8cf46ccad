/* Drives the controller of instances without the daemon: each call opens it, does one thing and closes it, so that machines
 * are taken over from one call to the next.
 *
 *     drive STATE_DIR GUEST_DIR image REF TAR | create SPEC | run SPEC | start NAME | stop NAME SECONDS | kill NAME |
 *           pause NAME | resume NAME | wait NAME | get NAME | list | rm NAME | rename NAME NEW | clone NAME NEW |
 *           exec NAME ARG... | logs NAME | stats NAME | snapshot create|restore|rm|ls NAME [SNAPSHOT] | settle
 *           start-all NAME...
 * Prints JSON or output; exits with the instance's code, or 125 and a line on standard error. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include "base/log.h"
#include "base/own.h"
#include "control/instance_impl.h"
#include "control/network.h"
#include "control/volume.h"
#include "image/image.h"

struct drive {
    struct store *store;
    struct image_store *images;
    struct volumes *volumes;
    struct instances *instances;
    char **args;
    int arg_count, code;
};

static const char *arg(const struct drive *drive, int index)
{
    return index < drive->arg_count ? drive->args[index] : "";
}

static int print(json_t *value, int ret)
{
    if (ret < 0)
        return ret;
    json_dumpf(value, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(value);
    return 0;
}

static int do_image(struct drive *drive, struct err *err)
{
    char digest[IMAGE_DIGEST_SIZE];
    own_fd int fd = open(arg(drive, 1), O_RDONLY | O_CLOEXEC);
    struct image_layer_source layer = {.fd = fd};
    own_json json_t *config = json_pack("{s:{s:[s], s:[s]}}", "config", "Cmd", "/bin/sh", "Env", "FROM_IMAGE=1");
    return fd < 0 ? -errno : image_add(drive->images, arg(drive, 0), &layer, 1, config, NULL, NULL, digest, err);
}

static int do_create(struct drive *drive, struct err *err)
{
    json_t *doc = NULL;
    own_json json_t *spec = json_loads(arg(drive, 0), 0, NULL);
    int ret = instance_create(drive->instances, spec, false, NULL, &doc, err);
    return print(doc, ret);
}

static int copy_output(struct agent_session *session, int *ret_code, struct err *err)
{
    struct agent_frame frame;
    int ret;
    while ((ret = agent_receive(session, &frame, 60000, err)) > 0) {
        if (frame.type == AGENT_DATA_OUT || frame.type == AGENT_DATA_ERR)
            fwrite(frame.data, 1, frame.len_bytes, stdout);
        if (frame.type == AGENT_EXIT)
            return agent_exit_code(&frame, ret_code, err);
    }
    return ret < 0 ? ret : err_say(err, EPIPE, "the session broke");
}

static void *start_it(void *context)
{
    struct err err = {0};
    struct drive *drive = context;
    if (instance_start(drive->instances, arg(drive, 1), NULL, &err) < 0)
        fprintf(stderr, "%s\n", err.message);
    return NULL;
}

/* As `polder run`: attached before it starts. The second argument is its name. */
static int do_run(struct drive *drive, struct err *err)
{
    json_t *doc = NULL;
    struct agent_session *session = NULL;
    pthread_t thread;
    own_json json_t *spec = json_loads(arg(drive, 0), 0, NULL);
    int ret = instance_create(drive->instances, spec, false, NULL, &doc, err);
    if (ret < 0)
        return ret;
    json_decref(doc);
    pthread_create(&thread, NULL, start_it, drive);
    ret = instance_attach(drive->instances, arg(drive, 1), false, true, &session, err);
    if (!ret)
        ret = copy_output(session, &drive->code, err);
    agent_close(session);
    pthread_join(thread, NULL);
    return ret;
}

static int do_exec(struct drive *drive, struct err *err)
{
    struct agent_session *session = NULL;
    own_json json_t *args = json_array();
    for (int i = 1; i < drive->arg_count; i++)
        json_array_append_new(args, json_string(drive->args[i]));
    own_json json_t *request = json_pack("{s:O}", "args", args);
    int ret = instance_exec(drive->instances, arg(drive, 0), request, &session, err);
    if (!ret)
        ret = copy_output(session, &drive->code, err);
    agent_close(session);
    return ret;
}

static int do_start(struct drive *drive, struct err *err)
{
    return instance_start(drive->instances, arg(drive, 0), NULL, err);
}

struct one_start {
    struct drive *drive;
    const char *name;
    pthread_t thread;
    int ret;
};

static void *start_one(void *context)
{
    struct err err = {0};
    struct one_start *one = context;
    one->ret = instance_start(one->drive->instances, one->name, NULL, &err);
    if (one->ret < 0)
        fprintf(stderr, "%s\n", err.message);
    return NULL;
}

static int do_start_all(struct drive *drive, struct err *err)
{
    struct one_start starts[32];
    int failed = 0;
    for (int i = 0; i < drive->arg_count && i < 32; i++) {
        starts[i] = (struct one_start){.drive = drive, .name = drive->args[i]};
        pthread_create(&starts[i].thread, NULL, start_one, &starts[i]);
    }
    for (int i = 0; i < drive->arg_count && i < 32; i++) {
        pthread_join(starts[i].thread, NULL);
        failed += starts[i].ret < 0;
    }
    return failed ? err_say(err, EIO, "%d did not start", failed) : 0;
}

static int do_stop(struct drive *drive, struct err *err)
{
    return instance_stop(drive->instances, arg(drive, 0), atoi(arg(drive, 1)), NULL, err);
}

static int do_kill(struct drive *drive, struct err *err)
{
    return instance_kill(drive->instances, arg(drive, 0), NULL, NULL, err);
}

static int do_pause(struct drive *drive, struct err *err)
{
    return instance_pause(drive->instances, arg(drive, 0), NULL, err);
}

static int do_resume(struct drive *drive, struct err *err)
{
    return instance_resume(drive->instances, arg(drive, 0), NULL, err);
}

static int do_wait(struct drive *drive, struct err *err)
{
    return instance_wait(drive->instances, arg(drive, 0), NULL, &drive->code, err);
}

static int do_get(struct drive *drive, struct err *err)
{
    json_t *doc = NULL;
    int ret = instance_get(drive->instances, arg(drive, 0), &doc, err);
    return print(doc, ret);
}

static int do_list(struct drive *drive, struct err *err)
{
    char *docs = NULL;
    int ret = instance_list(drive->instances, &docs, err);
    if (!ret)
        puts(docs);
    free(docs);
    return ret;
}

static int do_rm(struct drive *drive, struct err *err)
{
    return instance_remove(drive->instances, arg(drive, 0), true, NULL, err);
}

static int do_rename(struct drive *drive, struct err *err)
{
    json_t *doc = NULL;
    int ret = instance_rename(drive->instances, arg(drive, 0), arg(drive, 1), NULL, &doc, err);
    return print(doc, ret);
}

static int do_clone(struct drive *drive, struct err *err)
{
    json_t *doc = NULL;
    int ret = instance_clone(drive->instances, arg(drive, 0), arg(drive, 1), NULL, &doc, err);
    return print(doc, ret);
}

static int do_logs(struct drive *drive, struct err *err)
{
    char buffer[4096];
    ssize_t len;
    struct instance_log *log = NULL;
    int ret = instance_log_open(drive->instances, arg(drive, 0), INSTANCE_LOG_MAIN, -1, false, &log, err);
    while (!ret && (len = instance_log_read(log, buffer, sizeof buffer, 0)) > 0)
        fwrite(buffer, 1, (size_t)len, stdout);
    instance_log_close(log);
    return ret;
}

static int do_stats(struct drive *drive, struct err *err)
{
    json_t *stats = NULL;
    int ret = instance_stats(drive->instances, arg(drive, 0), true, &stats, err);
    return print(stats, ret);
}

static int do_snapshot(struct drive *drive, struct err *err)
{
    json_t *list = NULL;
    const char *what = arg(drive, 0), *name = arg(drive, 1), *snapshot = arg(drive, 2);
    if (!strcmp(what, "create"))
        return instance_snapshot_create(drive->instances, name, snapshot, NULL, err);
    if (!strcmp(what, "restore"))
        return instance_snapshot_restore(drive->instances, name, snapshot, NULL, err);
    if (!strcmp(what, "rm"))
        return instance_snapshot_remove(drive->instances, name, snapshot, NULL, err);
    int ret = instance_snapshot_list(drive->instances, name, &list, err);
    return print(list, ret);
}

/* Nothing but being there for a while, as a daemon is. */
static int do_settle(struct drive *drive, struct err *err)
{
    (void)err;
    usleep((useconds_t)atoi(arg(drive, 0)) * 1000);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(struct drive *drive, struct err *err);
} commands[] = {
    {"image", do_image},   {"create", do_create}, {"run", do_run},       {"exec", do_exec},   {"start", do_start},
    {"start-all", do_start_all},
    {"stop", do_stop},     {"kill", do_kill},     {"pause", do_pause},   {"resume", do_resume}, {"wait", do_wait},
    {"get", do_get},       {"list", do_list},     {"rm", do_rm},         {"rename", do_rename}, {"clone", do_clone},
    {"logs", do_logs},     {"stats", do_stats},   {"snapshot", do_snapshot}, {"settle", do_settle},
};

static int open_all(struct drive *drive, const char *state_dir, const char *guest_dir, struct err *err)
{
    own_free char *address = NULL;
    own_free char *images = NULL;
    own_free char *run_dir = NULL;
    json_t *actions = NULL;
    if (asprintf(&address, "sqlite:%s/state.db", state_dir) < 0 || asprintf(&images, "%s/images", state_dir) < 0 ||
        asprintf(&run_dir, "%s/run", state_dir) < 0)
        return -ENOMEM;
    mkdir(run_dir, 0700);
    int ret = store_open(address, &drive->store, err);
    if (!ret)
        ret = image_store_open(images, &drive->images, err);
    if (!ret)
        ret = volumes_open(drive->store, state_dir, &drive->volumes, err);
    if (!ret)
        ret = volumes_reconcile(drive->volumes, &actions, err);
    json_decref(actions);
    struct instances_config config = {.store = drive->store, .images = drive->images, .volumes = drive->volumes,
                                      .state_dir = state_dir, .run_dir = run_dir, .guest_dir = guest_dir, .engine = "jit",
                                      .no_sandbox = getenv("NO_SANDBOX") != NULL};
    return ret < 0 ? ret : instances_open(&config, &drive->instances, err);
}

static int run(struct drive *drive, const char *name, struct err *err)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (!strcmp(commands[i].name, name))
            return commands[i].run(drive, err);
    }
    return err_say(err, EINVAL, "unknown command '%s'", name);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    log_threshold = LOG_INFO;
    if (argc < 4)
        return 2;
    struct drive drive = {.args = argv + 4, .arg_count = argc - 4};
    int ret = open_all(&drive, argv[1], argv[2], &err);
    if (!ret)
        ret = run(&drive, argv[3], &err);
    if (ret < 0)
        fprintf(stderr, "%s\n", err.message);
    fflush(stdout);
    instances_close(drive.instances);
    volumes_close(drive.volumes);
    image_store_close(drive.images);
    store_close(drive.store);
    return ret < 0 ? 125 : drive.code;
}
