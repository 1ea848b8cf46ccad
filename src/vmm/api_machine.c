/* A struct machine behind the API's vtable.
 *
 * A request becomes a job: the HTTP thread queues it on the loop and sleeps until it is done, or until the
 * program ends. Jobs live on the waiter's stack: the loop runs a job before it is closed, or never. `machine`
 * is set once, in the loop's thread, and freed after the API is gone. */
#include "vmm/api_machine.h"
#include "vmm/jail.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"
#include "block/block.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/net.h"

#define STATS_MAX ((size_t)16 << 10)

struct api_machine {
    struct machine_host host;
    const struct vm_config *config; /* since the start */
    struct machine *_Atomic machine;
    atomic_bool paused; /* as requests last left it */
    struct disk_copy copies[VM_MAX_DISKS];
    pthread_mutex_t lock; /* covers `closed` and every job's `done` */
    pthread_cond_t done;
    bool closed;
};

/* What a job works on; each operation uses what it needs. */
struct job_args {
    const struct vm_config *config;
    const char *id, *path;
    const struct vm_rate_limit *limit, *limit2;
    const struct disk_copy_request *copy;
    uint64_t number;
    void *ret;
};

typedef int job_fn(struct api_machine *binding, const struct job_args *args, struct err *err);

struct job {
    struct api_machine *binding;
    job_fn *fn;
    const struct job_args *args;
    struct err *err;
    int ret;
    bool done;
};

int api_machine_create(struct machine_host host, struct api_machine **ret_binding, struct err *err)
{
    struct api_machine *binding = calloc(1, sizeof *binding);
    if (!binding)
        return err_set(err, ENOMEM, "API");
    binding->host = host;
    pthread_mutex_init(&binding->lock, NULL);
    pthread_cond_init(&binding->done, NULL);
    for (unsigned i = 0; i < VM_MAX_DISKS; i++) {
        binding->copies[i].loop = host.loop;
        pthread_mutex_init(&binding->copies[i].lock, NULL);
    }
    *ret_binding = binding;
    return 0;
}

struct machine *api_machine_get(struct api_machine *binding)
{
    return atomic_load(&binding->machine);
}

void api_machine_close(struct api_machine *binding)
{
    pthread_mutex_lock(&binding->lock);
    binding->closed = true;
    pthread_cond_broadcast(&binding->done);
    pthread_mutex_unlock(&binding->lock);
}

void api_machine_free(struct api_machine *binding)
{
    if (!binding)
        return;
    for (unsigned i = 0; i < VM_MAX_DISKS; i++)
        disk_copy_clear(&binding->copies[i]);
    machine_free(atomic_load(&binding->machine));
    pthread_cond_destroy(&binding->done);
    pthread_mutex_destroy(&binding->lock);
    free(binding);
}

/* What would be a way to more than was given. */
static int check_may_open(const struct api_machine *binding, struct err *err)
{
    return binding->config->sandbox ? err_say(err, EPERM, "in a sandbox no file can be opened: give it at the start") : 0;
}

int api_machine_start(struct api_machine *binding, const struct vm_config *config, struct err *err)
{
    struct machine *machine;
    int ret = machine_create(config, binding->host, &machine, err);
    if (ret < 0)
        return ret;
    if (machine_console_path(machine))
        fprintf(stderr, "polder-vmm: console on %s\n", machine_console_path(machine));
    ret = jail_close(config, machine, err);
    if (ret < 0) {
        machine_free(machine);
        return ret;
    }
    binding->config = config;
    atomic_store(&binding->machine, machine);
    machine_resume(machine);
    return 0;
}

/* ---- jobs ---- */

static void job_run(void *arg)
{
    struct job *job = arg;
    struct api_machine *binding = job->binding;
    int ret = job->fn(binding, job->args, job->err);
    pthread_mutex_lock(&binding->lock);
    job->ret = ret;
    job->done = true;
    pthread_cond_broadcast(&binding->done);
    pthread_mutex_unlock(&binding->lock);
}

static int run_in_loop(struct api_machine *binding, job_fn *fn, const struct job_args *args, struct err *err)
{
    struct job job = {.binding = binding, .fn = fn, .args = args, .err = err};
    pthread_mutex_lock(&binding->lock);
    if (!binding->closed)
        loop_call(binding->host.loop, job_run, &job);
    while (!job.done && !binding->closed)
        pthread_cond_wait(&binding->done, &binding->lock);
    bool done = job.done;
    pthread_mutex_unlock(&binding->lock);
    return done ? job.ret : err_say(err, ESHUTDOWN, "the machine is ending");
}

/* ---- life ---- */

static enum api_vm_state op_state(void *arg)
{
    struct api_machine *binding = arg;
    struct machine *machine = api_machine_get(binding);
    if (!machine)
        return API_VM_NOT_STARTED;
    jail_close_api_thread(binding->config);
    return atomic_load(&binding->paused) ? API_VM_PAUSED : API_VM_RUNNING;
}

static int job_start(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    return api_machine_start(binding, args->config, err);
}

static int op_start(void *arg, const struct vm_config *config, struct err *err)
{
    return run_in_loop(arg, job_start, &(struct job_args){.config = config}, err);
}

static int job_pause(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    (void)args;
    (void)err;
    machine_pause(binding->machine);
    atomic_store(&binding->paused, true);
    return 0;
}

static int op_pause(void *arg, struct err *err)
{
    return run_in_loop(arg, job_pause, &(struct job_args){0}, err);
}

static int job_resume(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    (void)args;
    (void)err;
    machine_resume(binding->machine);
    atomic_store(&binding->paused, false);
    return 0;
}

static int op_resume(void *arg, struct err *err)
{
    return run_in_loop(arg, job_resume, &(struct job_args){0}, err);
}

static int job_power_button(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    (void)args;
    (void)err;
    machine_power_button(binding->machine);
    return 0;
}

static int op_power_button(void *arg, struct err *err)
{
    return run_in_loop(arg, job_power_button, &(struct job_args){0}, err);
}

/* ---- disks and network interfaces ---- */

struct found_disk {
    const struct vm_disk *config;
    struct virtio_device *dev;
    struct disk_copy *copy;
};

/* The machine's devices stay from its start to its end: any thread. */
static int find_disk(struct api_machine *binding, const char *id, struct found_disk *ret_disk, struct err *err)
{
    const struct vm_config *config = binding->config;
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (strcmp(config->disks[i].id, id) != 0)
            continue;
        *ret_disk = (struct found_disk){&config->disks[i], machine_disk(api_machine_get(binding), i), &binding->copies[i]};
        return 0;
    }
    return err_say(err, ENOENT, "there is no disk '%s'", id);
}

static int op_disk_path(void *arg, const char *id, const char *path, struct err *err)
{
    struct api_machine *binding = arg;
    struct found_disk disk;
    struct block_node *node = NULL;
    int ret = find_disk(binding, id, &disk, err);
    if (ret == 0)
        ret = check_may_open(binding, err);
    if (ret == 0)
        ret = machine_open_disk(binding->config, disk.config, path, &node, err);
    if (ret < 0)
        return ret;
    ret = virtio_blk_set_node(disk.dev, node, err);
    if (ret < 0)
        block_close(node);
    return ret;
}

static int op_disk_limit(void *arg, const char *id, const struct vm_rate_limit *limit, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret < 0)
        return ret;
    struct limiter_config config = machine_limiter(limit);
    virtio_blk_set_limiter(disk.dev, &config);
    return 0;
}

static int op_disk_share(void *arg, const char *id, const struct throttle_share *share, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret == 0)
        virtio_blk_set_share(disk.dev, share);
    return ret;
}

static int op_throttle(void *arg, const char *id, const struct throttle_limits *limits, struct err *err)
{
    struct throttle_group *group = machine_throttle(api_machine_get(arg), id);
    if (!group)
        return err_say(err, ENOENT, "there is no group '%s'", id);
    throttle_group_set(group, limits, limiter_now());
    return 0;
}

static int op_disk_size(void *arg, const char *id, uint64_t bytes, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    return ret < 0 ? ret : disk_resize(disk.dev, bytes, err);
}

static int op_disk_snapshot(void *arg, const char *id, const char *path, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret == 0)
        ret = check_may_open(arg, err);
    return ret < 0 ? ret : disk_snapshot(disk.dev, disk.config, path, err);
}

static int job_restart(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    (void)args;
    (void)err;
    machine_restart(binding->machine);
    return 0;
}

static int op_disk_internal_snapshot(void *arg, const char *id, enum disk_snapshot_action action, const char *name,
                                     struct qcow2_snapshots *ret_list, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret == 0)
        ret = disk_internal_snapshot(disk.dev, action, name, ret_list, err);
    return ret < 0 || action != DISK_SNAPSHOT_APPLY ? ret : run_in_loop(arg, job_restart, &(struct job_args){0}, err);
}

static int op_disk_chain(void *arg, const char *id, char *ret_names[VM_MAX_BACKING + 1], struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    return ret < 0 ? ret : disk_chain(disk.dev, ret_names, err);
}

static int job_copy_start(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(binding, args->id, &disk, err);
    return ret < 0 ? ret : disk_copy_start(disk.copy, disk.dev, disk.config, args->copy, err);
}

/* A descriptor brings its locks along: they do not tell that a disk of this machine is written through it. */
static int check_given_base(const struct vm_config *config, const char *name, struct err *err)
{
    struct stat base, disk;
    if (fdname_stat(name, false, &base) < 0)
        return err_set(err, errno, "'%s'", name);
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disks[i].read_only && fdname_stat(config->disks[i].path, false, &disk) == 0 &&
            disk.st_dev == base.st_dev && disk.st_ino == base.st_ino)
            return err_say(err, EBUSY, "'%s' is what disk '%s' is written to", name, config->disks[i].id);
    return 0;
}

/* In a sandbox the API's thread touches no image: what was given is opened in the loop. */
static int op_disk_copy_start(void *arg, const char *id, const struct disk_copy_request *request, struct err *err)
{
    struct api_machine *binding = arg;
    struct disk_copy_request allowed = *request;
    bool given = request->base && fdname_parse(request->base) >= 0;
    int ret = request->path || (request->base && !given) ? check_may_open(binding, err) : 0;
    if (ret == 0 && given)
        ret = check_given_base(binding->config, request->base, err);
    if (ret < 0)
        return ret;
    allowed.allow_dirs = (const char *const *)binding->config->allow_backing;
    struct job_args args = {.id = id, .copy = &allowed};
    return given && binding->config->sandbox ? run_in_loop(binding, job_copy_start, &args, err) : job_copy_start(binding, &args, err);
}

static int op_disk_copy_status(void *arg, const char *id, struct disk_copy_status *ret_status, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret == 0)
        disk_copy_status(disk.copy, ret_status);
    return ret;
}

static int op_disk_copy_end(void *arg, const char *id, bool complete, struct err *err)
{
    struct found_disk disk;
    int ret = find_disk(arg, id, &disk, err);
    if (ret < 0)
        return ret;
    return complete ? disk_copy_complete(disk.copy, err) : disk_copy_cancel(disk.copy, err);
}

static int job_net_limits(struct api_machine *binding, const struct job_args *args, struct err *err)
{
    const struct vm_config *config = binding->config;
    struct virtio_device *dev = NULL;
    for (unsigned i = 0; i < config->net_count; i++) {
        if (!strcmp(config->nets[i].id, args->id))
            dev = machine_net(binding->machine, i);
    }
    if (!dev)
        return err_say(err, ENOENT, "there is no interface '%s'", args->id);
    struct limiter_config rx = {0}, tx = {0};
    if (args->limit)
        rx = machine_limiter(args->limit);
    if (args->limit2)
        tx = machine_limiter(args->limit2);
    virtio_net_set_limiters(dev, args->limit ? &rx : NULL, args->limit2 ? &tx : NULL);
    return 0;
}

static int op_net_limits(void *arg, const char *id, const struct vm_rate_limit *rx,
                         const struct vm_rate_limit *tx, struct err *err)
{
    return run_in_loop(arg, job_net_limits, &(struct job_args){.id = id, .limit = rx, .limit2 = tx}, err);
}

/* ---- balloon: its functions are for any thread ---- */

static int balloon_of(void *arg, struct virtio_device **ret_dev, struct err *err)
{
    struct machine *machine = api_machine_get(arg);
    struct virtio_device *dev = machine ? machine_balloon(machine) : NULL;
    if (!dev)
        return err_say(err, ENOENT, "there is no balloon");
    *ret_dev = dev;
    return 0;
}

static int op_balloon_target(void *arg, uint64_t target_mib, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_set_target(dev, (uint32_t)target_mib, err);
}

static int op_balloon_interval(void *arg, unsigned interval_s, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_set_stats_interval(dev, interval_s, err);
}

static int op_balloon_stats(void *arg, struct virtio_balloon_stats *ret_stats, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_stats(dev, ret_stats, err);
}

static int op_hinting_start(void *arg, bool acknowledge_on_stop, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_hinting_start(dev, acknowledge_on_stop, err);
}

static int op_hinting_stop(void *arg, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_hinting_stop(dev, err);
}

static int op_hinting_status(void *arg, struct virtio_balloon_hinting *ret_status, struct err *err)
{
    struct virtio_device *dev = NULL;
    int ret = balloon_of(arg, &dev, err);
    return ret < 0 ? ret : virtio_balloon_hinting_status(dev, ret_status, err);
}

/* ---- metrics, from the metrics' thread ---- */

static void emit_device(struct virtio_device *dev, const char *kind, metrics_emit_fn *emit, void *emit_arg)
{
    char group[96];
    if (!dev || !dev->class->stats)
        return;
    snprintf(group, sizeof group, "%s_%s", kind, dev->id);
    for (const struct virtio_stat *stat = dev->class->stats; stat->name; stat++)
        emit(emit_arg, METRICS_COUNTER, group, stat->name, virtio_stat_value(dev, stat));
}

/* The engine writes its counters as text, a name and a number a line. */
static void emit_engine(struct engine *engine, metrics_emit_fn *emit, void *emit_arg)
{
    own_fd int fd = engine->class->print_stats ? memfd_create("engine-stats", MFD_CLOEXEC) : -1;
    own_free char *text = malloc(STATS_MAX + 1);
    if (fd < 0 || !text)
        return;
    engine->class->print_stats(engine, fd);
    ssize_t len = pread(fd, text, STATS_MAX, 0);
    text[len > 0 ? len : 0] = '\0';
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char name[64];
        unsigned long long value;
        if (sscanf(line, "%63s %llu", name, &value) == 2)
            emit(emit_arg, METRICS_COUNTER, "engine", name, value);
    }
}

static void op_metrics(void *arg, metrics_emit_fn *emit, void *emit_arg)
{
    struct machine *machine = api_machine_get(arg);
    if (!machine)
        return;
    jail_close_api_thread(((struct api_machine *)arg)->config);
    for (unsigned i = 0; i < VM_MAX_DISKS; i++)
        emit_device(machine_disk(machine, i), "block", emit, emit_arg);
    for (unsigned i = 0; i < VM_MAX_NETS; i++)
        emit_device(machine_net(machine, i), "net", emit, emit_arg);
    emit_device(machine_vsock(machine), "vsock", emit, emit_arg);
    emit_device(machine_balloon(machine), "balloon", emit, emit_arg);
    emit_device(machine_entropy(machine), "entropy", emit, emit_arg);
    emit_engine(machine_engine(machine), emit, emit_arg);
}

const struct api_vm_ops api_machine_ops = {
    .state = op_state,
    .start = op_start,
    .pause = op_pause,
    .resume = op_resume,
    .power_button = op_power_button,
    .disk_set_path = op_disk_path,
    .disk_set_limit = op_disk_limit,
    .disk_set_share = op_disk_share,
    .throttle_set = op_throttle,
    .disk_set_size = op_disk_size,
    .disk_snapshot = op_disk_snapshot,
    .disk_internal_snapshot = op_disk_internal_snapshot,
    .disk_chain = op_disk_chain,
    .disk_copy_start = op_disk_copy_start,
    .disk_copy_status = op_disk_copy_status,
    .disk_copy_end = op_disk_copy_end,
    .net_set_limits = op_net_limits,
    .balloon_set_target = op_balloon_target,
    .balloon_set_stats_interval = op_balloon_interval,
    .balloon_stats = op_balloon_stats,
    .balloon_hinting_start = op_hinting_start,
    .balloon_hinting_stop = op_hinting_stop,
    .balloon_hinting_status = op_hinting_status,
    .metrics = op_metrics,
};
