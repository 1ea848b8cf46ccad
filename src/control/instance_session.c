/* Ways into an instance, and what it uses. */
#include "control/instance_launch.h"

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include "base/own.h"
#include "control/unix_socket.h"
#include "control/vmm_client.h"

#define OPEN_MS 10000u
#define STATS_MS 1000u
#define ATTACH_WAIT_MS 60000 /* an attach may come before the start */

/* The running instance's socket `name`. -EBUSY when it does not run. */
static int find_running(struct instances *instances, const char *name, const char *socket,
                        struct instance **ret_instance, json_t **ret_doc, char **ret_path, struct err *err)
{
    int ret = instance_find_name(instances, name, ret_instance, ret_doc, err);
    if (ret < 0)
        return ret;
    enum instance_state state = instance_doc_state(*ret_doc);
    if (state == INSTANCE_PAUSED)
        return err_say(err, EBUSY, "instance '%s' is paused: resume it first", name);
    if (state != INSTANCE_RUNNING && state != INSTANCE_STOPPING && state != INSTANCE_STARTING)
        return err_say(err, EBUSY, "instance '%s' does not run: start it first", name);
    *ret_path = instance_path(instances->config.run_dir, (*ret_instance)->id, socket);
    return *ret_path ? 0 : err_set(err, ENOMEM, "instance");
}

static int open_session(struct instances *instances, const char *name, const char *op, const json_t *request,
                        struct agent_session **ret_session, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *doc = NULL;
    own_free char *vsock = NULL;
    int ret = find_running(instances, name, "vsock.sock", &instance, &doc, &vsock, err);
    return ret < 0 ? ret : agent_open(vsock, op, request, OPEN_MS, ret_session, NULL, err);
}

/* ---- exec, files ---- */

/* What the request leaves out is as the main process has it, which start.json tells. */
static json_t *like_main(struct instances *instances, const char *id, const json_t *request)
{
    static const char *const inherited[] = {"user", "cwd"};
    own_free char *path = instance_path(instances->config.run_dir, id, "start.json");
    own_json json_t *start = path ? json_load_file(path, 0, NULL) : NULL;
    const json_t *main_process = json_object_get(start, "process");
    json_t *process = json_deep_copy(request);
    for (size_t i = 0; i < sizeof inherited / sizeof inherited[0]; i++) {
        if (!*json_text(process, inherited[i]))
            json_object_set(process, inherited[i], json_object_get(main_process, inherited[i]));
    }
    /* the later of two entries of one name counts */
    own_json json_t *env = json_deep_copy(json_object_get(main_process, "env"));
    if (!env)
        return process;
    json_array_extend(env, json_object_get(request, "env"));
    json_object_set(process, "env", env);
    return process;
}

int instance_exec(struct instances *instances, const char *name, const json_t *request, struct agent_session **ret_session,
                  struct err *err)
{
    own_json json_t *doc = NULL;
    if (!json_array_size(json_object_get(request, "args")))
        return err_say(err, EINVAL, "args: the command to run is missing");
    int ret = instance_doc_get(instances, name, &doc, err);
    if (ret < 0)
        return ret;
    own_json json_t *process = like_main(instances, json_text(doc, "id"), request);
    return open_session(instances, name, "exec", process, ret_session, err);
}

static int open_files(struct instances *instances, const char *name, const char *op, const char *path,
                      struct agent_session **ret_session, struct err *err)
{
    own_json json_t *request = json_pack("{s:s}", "path", path);
    if (path[0] != '/' || !request)
        return err_say(err, EINVAL, "'%.80s' is no absolute path in the instance", path);
    return open_session(instances, name, op, request, ret_session, err);
}

int instance_files_get(struct instances *instances, const char *name, const char *path, struct agent_session **ret_session,
                       struct err *err)
{
    return open_files(instances, name, "get", path, ret_session, err);
}

int instance_files_put(struct instances *instances, const char *name, const char *path, struct agent_session **ret_session,
                       struct err *err)
{
    return open_files(instances, name, "put", path, ret_session, err);
}

int instance_console(struct instances *instances, const char *name, int *ret_fd, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *doc = NULL;
    own_free char *path = NULL;
    int ret = find_running(instances, name, "console.sock", &instance, &doc, &path, err);
    return ret < 0 ? ret : unix_connect(path, 0, ret_fd, err);
}

/* ---- attach ---- */

/* Under the lock: until the main process is there, if it is to come. */
static int wait_for_main(struct instance *instance, struct err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ATTACH_WAIT_MS / 1000;
    unsigned runs = instance->runs, failures = instance->failures;
    while (instance->state != INSTANCE_RUNNING && instance->runs == runs) {
        if (instance->removed || instance->owner->closing || instance->failures != failures)
            return err_say(err, EBUSY, "instance '%s' did not start", instance->name);
        if (instance->state == INSTANCE_PAUSED || instance->state == INSTANCE_STOPPING)
            return err_say(err, EBUSY, "instance '%s' is %s", instance->name, instance_state_name(instance->state));
        if (pthread_cond_timedwait(&instance->owner->changed, &instance->owner->lock, &until))
            return err_say(err, ETIMEDOUT, "instance '%s' does not run: start it first", instance->name);
    }
    return 0;
}

int instance_attach(struct instances *instances, const char *name, bool use_stdin, bool from_start,
                    struct agent_session **ret_session, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *request = json_pack("{s:b, s:b}", "stdin", use_stdin, "history", from_start);
    int ret = instance_find_name(instances, name, &instance, NULL, err);
    if (ret < 0)
        return ret;
    own_free char *vsock = instance_path(instances->config.run_dir, instance->id, "vsock.sock");
    if (!vsock)
        return err_set(err, ENOMEM, "instance");
    pthread_mutex_lock(&instances->lock);
    instance->attaching++;
    ret = wait_for_main(instance, err);
    pthread_mutex_unlock(&instances->lock);
    if (!ret)
        ret = agent_open(vsock, "attach", request, OPEN_MS, ret_session, NULL, err);
    pthread_mutex_lock(&instances->lock);
    instance->attaching--;
    pthread_mutex_unlock(&instances->lock);
    instance_enqueue(instance);
    return ret;
}

/* ---- stats ---- */

/* Clock ticks and resident bytes of the machine's process: where there is no cgroup (proc(5)). */
static void add_process(json_t *stats, pid_t pid)
{
    char path[64], text[1024] = "";
    unsigned long long user = 0, kernel = 0;
    long long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    size_t len = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[len] = '\0';
    const char *rest = strrchr(text, ')');
    if (!rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %*u %*u %lld",
                        &user, &kernel, &pages) != 3)
        return;
    long ticks = sysconf(_SC_CLK_TCK), page = sysconf(_SC_PAGESIZE);
    json_object_set_new(stats, "cpu_usage_ns", json_integer((json_int_t)((user + kernel) * (1000000000ull / (unsigned long long)ticks))));
    json_object_set_new(stats, "memory_bytes", json_integer(pages * page));
}

static void add_cgroup(const struct instance *instance, json_t *stats)
{
    own_free char *path = instance_cgroup(instance);
    struct cgroup_usage usage = {0};
    const struct cgroup_host *host = &instance->owner->runtime->cgroups;
    if (!path || cgroup_read(path, &usage, NULL) < 0)
        return;
    if (host->available & CGROUP_CPU)
        json_object_set_new(stats, "cpu_usage_ns", json_integer((json_int_t)usage.cpu_us * 1000));
    if (host->available & CGROUP_MEMORY)
        json_object_set_new(stats, "memory_bytes", json_integer((json_int_t)usage.memory_bytes));
}

static void set_counter(json_t *stats, const char *name, uint64_t value)
{
    json_object_set_new(stats, name, json_integer((json_int_t)(value & INT64_MAX)));
}

static void add_traffic(const struct instance *instance, json_t *stats)
{
    own_free char *api = instance_path(instance->owner->config.run_dir, instance->id, "api.sock");
    struct vmm_traffic traffic;
    if (!api || vmm_get_traffic(api, STATS_MS, &traffic, NULL) < 0)
        return;
    set_counter(stats, "net_rx_bytes", traffic.net_rx);
    set_counter(stats, "net_tx_bytes", traffic.net_tx);
    set_counter(stats, "disk_read_bytes", traffic.disk_read);
    set_counter(stats, "disk_write_bytes", traffic.disk_written);
}

/* What the guest says of itself: believed by nobody, only shown. */
static void add_guest(const struct instance *instance, json_t *stats)
{
    own_free char *vsock = instance_path(instance->owner->config.run_dir, instance->id, "vsock.sock");
    json_t *guest = NULL;
    if (vsock && !agent_call(vsock, "stats", NULL, STATS_MS, &guest, NULL))
        json_object_set_new(stats, "guest", guest);
}

int instance_stats(struct instances *instances, const char *name, bool ask_guest, json_t **ret_stats, struct err *err)
{
    own_instance struct instance *instance = NULL;
    own_json json_t *doc = NULL;
    int ret = instance_find_name(instances, name, &instance, &doc, err);
    if (ret < 0)
        return ret;
    json_t *stats = json_pack("{s:s, s:I}", "state", instance_state_name(instance_doc_state(doc)), "memory_limit_bytes",
                              (json_int_t)json_number(json_object_get(doc, "spec"), "memory_bytes"));
    if (!stats)
        return err_set(err, ENOMEM, "stats");
    pid_t pid = (pid_t)json_number(instance_status(doc), "pid");
    if (pid > 0) {
        add_process(stats, pid);
        add_traffic(instance, stats);
    }
    add_cgroup(instance, stats);
    if (ask_guest && instance_doc_state(doc) == INSTANCE_RUNNING)
        add_guest(instance, stats);
    *ret_stats = stats;
    return 0;
}
