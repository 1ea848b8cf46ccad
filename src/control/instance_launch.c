/* Starts a machine: gathers what it is given, puts it into its jail, notes the process. */
#include "control/instance_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/log.h"
#include "base/own.h"
#include "base/program_find.h"
#include "control/fault.h"
#include "control/network.h"
#include "control/unix_socket.h"
#include "control/volume.h"

#define MEMORY_SLACK (UINT64_C(128) << 20) /* the limit ends who runs away; admission counts what is usual */
#define UID_BASE 2000000u
#define UID_MASK 0xffffffu /* low bits of the id; uids/N keeps them unique */

/* ---- the runtime ---- */

int instance_runtime_open(struct instances *instances, struct err *err)
{
    struct instance_runtime *runtime = calloc(1, sizeof *runtime);
    if (!runtime)
        return err_set(err, ENOMEM, "instances");
    instances->runtime = runtime;
    cgroup_host_init("polder", &runtime->cgroups);
    int ret = program_find("polder-vmm", NULL, &runtime->vmm, err);
    return ret < 0 ? ret : program_find("polder-img", NULL, &runtime->img, err);
}

void instance_runtime_close(struct instances *instances)
{
    struct instance_runtime *runtime = instances->runtime;
    if (!runtime)
        return;
    cgroup_host_free(&runtime->cgroups);
    free(runtime->vmm);
    free(runtime->img);
    free(runtime);
}

unsigned instance_uid(const char *id)
{
    return UID_BASE + ((unsigned)strtoull(id, NULL, 16) & UID_MASK);
}

bool instances_keep_limits(const struct instances *instances, const char **ret_why, const char **ret_cure)
{
    const struct cgroup_host *host = &instances->runtime->cgroups;
    *ret_why = host->message;
    *ret_cure = host->cure;
    return !*host->message;
}

char *instance_cgroup(const struct instance *instance)
{
    char *path = NULL;
    const char *parent = instance->owner->runtime->cgroups.parent;
    return parent && asprintf(&path, "%s/%s", parent, instance->id) > 0 ? path : NULL;
}

/* ---- arguments and descriptors ---- */

int launch_arg(struct launch *launch, struct err *err, const char *format, ...)
{
    va_list args;
    if (launch->argc == LAUNCH_ARGS_MAX)
        return err_say(err, E2BIG, "the machine has too many devices");
    va_start(args, format);
    int len = vasprintf(&launch->argv[launch->argc], format, args);
    va_end(args);
    if (len < 0) {
        launch->argv[launch->argc] = NULL;
        return err_set(err, ENOMEM, "arguments");
    }
    launch->argc++;
    return 0;
}

int launch_pass(struct launch *launch, int fd, unsigned *ret_number, struct err *err)
{
    if (launch->fd_count == SANDBOX_MAX_FDS) {
        close(fd);
        return err_say(err, E2BIG, "the machine has too many devices");
    }
    launch->fds[launch->fd_count] = fd;
    *ret_number = 3 + launch->fd_count++;
    return 0;
}

int launch_open(struct launch *launch, const char *path, int flags, unsigned *ret_number, struct err *err)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, errno, "open '%s'", path);
    return launch_pass(launch, fd, ret_number, err);
}

int launch_open_own(struct launch *launch, const char *name, int flags, unsigned *ret_number, struct err *err)
{
    own_free char *path = instance_path(launch->instance->owner->config.state_dir, launch->instance->id, name);
    return path ? launch_open(launch, path, flags, ret_number, err) : err_set(err, ENOMEM, "machine");
}

static int pass_listening(struct launch *launch, const char *name, unsigned *ret_number, struct err *err)
{
    int fd;
    own_free char *path = instance_path(launch->instance->owner->config.run_dir, launch->instance->id, name);
    int ret = path ? unix_listen(path, &fd, err) : err_set(err, ENOMEM, "machine");
    return ret < 0 ? ret : launch_pass(launch, fd, ret_number, err);
}

static void launch_clear(struct launch *launch)
{
    for (unsigned i = 0; i < launch->argc; i++)
        free(launch->argv[i]);
    for (unsigned i = 0; i < launch->fd_count; i++)
        close(launch->fds[i]);
    if (launch->log_fd >= 0)
        close(launch->log_fd);
    json_decref(launch->start);
}

/* ---- parts of a machine ---- */

static int make_folder(const char *root, const char *id, struct err *err)
{
    own_free char *top = instance_path(root, "", NULL);
    own_free char *path = instance_path(root, id, NULL);
    if (!top || !path)
        return err_set(err, ENOMEM, "folder");
    if ((mkdir(top, 0700) < 0 && errno != EEXIST) || (mkdir(path, 0700) < 0 && errno != EEXIST))
        return err_set(err, errno, "make the folder '%s'", path);
    return 0;
}

static int open_log(struct launch *launch, struct err *err)
{
    own_free char *path = instance_path(launch->instance->owner->config.state_dir, launch->instance->id, "vmm.log");
    launch->log_fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600) : -1;
    return launch->log_fd < 0 ? err_set(err, errno, "open '%s'", path) : 0;
}

/* The machine's own user may not open it. Where it is not there, polder-vmm says what follows from that. */
static int add_kvm(struct launch *launch, const char *engine, struct err *err)
{
    unsigned number;
    int fd = strcmp(engine, "jit") ? open("/dev/kvm", O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    int ret = launch_pass(launch, fd, &number, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--kvm=fd:%u", number);
}

static int add_general(struct launch *launch, struct err *err)
{
    const struct instances *instances = launch->instance->owner;
    const char *engine = json_text(launch->spec, "engine");
    if (!strcmp(engine, "auto"))
        engine = instances->config.engine;
    uint64_t mib = (uint64_t)json_number(launch->spec, "memory_bytes") >> 20;
    int ret = launch_arg(launch, err, "%s", instances->runtime->vmm);
    if (!ret)
        ret = launch_arg(launch, err, "--id");
    if (!ret)
        ret = launch_arg(launch, err, "%s", launch->instance->id);
    if (!ret)
        ret = launch_arg(launch, err, "--cpus=%d", (int)json_number(launch->spec, "cpus"));
    if (!ret)
        ret = launch_arg(launch, err, "--memory=%lluM", (unsigned long long)mib);
    if (!ret)
        ret = launch_arg(launch, err, "--engine=%s", engine);
    if (!ret)
        ret = launch_arg(launch, err, "--sandbox=%s", instances->config.no_sandbox ? "off" : "on");
    if (!ret)
        ret = add_kvm(launch, engine, err);
    if (!ret)
        ret = launch_arg(launch, err, "--balloon=0");
    if (!ret)
        ret = launch_arg(launch, err, "--rng");
    return ret;
}

/* The serial port's log begins anew, so that an exit line in it is of this run. */
static int add_consoles(struct launch *launch, struct err *err)
{
    unsigned api, vsock, console, boot_log, main_log;
    int ret = pass_listening(launch, "api.sock", &api, err);
    if (!ret)
        ret = pass_listening(launch, "vsock.sock", &vsock, err);
    if (!ret)
        ret = pass_listening(launch, "console.sock", &console, err);
    if (!ret)
        ret = launch_open_own(launch, "boot.log", O_RDWR | O_CREAT | O_TRUNC | O_APPEND, &boot_log, err);
    if (!ret)
        ret = launch_open_own(launch, "console.log", O_RDWR | O_CREAT | O_APPEND, &main_log, err);
    if (!ret)
        ret = launch_arg(launch, err, "--api-sock=fd:%u", api);
    if (!ret)
        ret = launch_arg(launch, err, "--vsock=cid=3,path=fd:%u", vsock);
    if (!ret)
        ret = launch_arg(launch, err, "--console=socket=fd:%u,log=fd:%u", console, boot_log);
    if (!ret)
        ret = launch_arg(launch, err, "--virtio-console=log=fd:%u", main_log);
    return ret;
}

/* What the agent is told of an interface. */
static json_t *agent_network(const struct network_attachment *net)
{
    char address[32];
    snprintf(address, sizeof address, "%s/%u", net->address, net->prefix);
    json_t *network = json_pack("{s:s, s:s, s:s, s:[]}", "mac", net->mac, "address", address, "gateway", net->gateway, "dns");
    if (*net->dns)
        json_array_append_new(json_object_get(network, "dns"), json_string(net->dns));
    return network;
}

static int add_network(struct launch *launch, unsigned index, const json_t *entry, struct err *err)
{
    unsigned fd;
    struct network_attachment net = {.fd = -1};
    struct network_request request = {
        .instance_id = launch->instance->id,
        .instance_name = json_text(launch->doc, "name"),
        .index = index,
        .entry = entry,
        .ports = index ? NULL : json_object_get(launch->spec, "ports"),
    };
    int ret = network_attach(launch->instance->owner->config.networks, &request, &net, err);
    if (ret < 0)
        return ret;
    ret = launch_pass(launch, TAKE_FD(net.fd), &fd, err);
    if (!ret)
        ret = launch_arg(launch, err, "--net=%s=fd:%u,mac=%s", net.kind == NETWORK_NAT ? "tap" : "user", fd, net.mac);
    if (!ret && launch->start)
        json_array_append_new(json_object_get(launch->start, "networks"), agent_network(&net));
    network_attachment_clear(&net);
    return ret;
}

static int add_networks(struct launch *launch, struct err *err)
{
    const json_t *networks = json_object_get(launch->spec, "networks");
    size_t count = networks ? json_array_size(networks) : 1;
    if (!launch->instance->owner->config.networks)
        return 0;
    for (size_t i = 0; i < count; i++) {
        int ret = add_network(launch, (unsigned)i, json_array_get(networks, i), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int launch_volumes(struct launch *launch, struct err *err)
{
    size_t i;
    json_t *entry;
    int ret = 0;
    json_array_foreach (json_object_get(launch->spec, "volumes"), i, entry) {
        own_free char *path = NULL;
        unsigned fd;
        bool read_only = json_flag(entry, "read_only");
        char device[] = {'v', 'd', LAUNCH_VOLUME_LETTER(i), '\0'};
        ret = volume_attach(launch->instance->owner->config.volumes, json_text(entry, "volume"), launch->instance->id,
                            read_only, &path, err);
        if (!ret)
            ret = launch_open(launch, path, read_only ? O_RDONLY : O_RDWR, &fd, err);
        if (!ret)
            ret = launch_arg(launch, err, "--disk=fd:%u,format=qcow2%s", fd, read_only ? ",ro" : "");
        if (ret < 0)
            return ret;
        if (launch->start)
            json_array_append_new(json_object_get(launch->start, "mounts"),
                                  json_pack("{s:s, s:s, s:s, s:b}", "device", device, "path", json_text(entry, "path"),
                                            "fs", "ext4", "read_only", read_only));
    }
    return 0;
}

/* ---- the process ---- */

static int write_start(const struct launch *launch, struct err *err)
{
    own_free char *path = instance_path(launch->instance->owner->config.run_dir, launch->instance->id, "start.json");
    own_fd int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || json_dumpfd(launch->start, fd, JSON_COMPACT) < 0)
        return err_set(err, errno ? errno : EIO, "write '%s'", path);
    return 0;
}

static int make_cgroup(const struct launch *launch, char **ret_path, struct err *err)
{
    struct admission_share share = admission_need((uint64_t)json_number(launch->spec, "memory_bytes"),
                                                  (unsigned)json_number(launch->spec, "cpus"));
    struct cgroup_limits limits = {.cpu_weight = (unsigned)json_number(launch->spec, "cpu_weight"),
                                   .cpu_quota_us = 100000 * share.cpus,
                                   .memory_max = share.memory_bytes + MEMORY_SLACK,
                                   .pids_max = 256};
    const struct cgroup_host *host = &launch->instance->owner->runtime->cgroups;
    int ret = cgroup_create(host, launch->instance->id, &limits, ret_path, err);
    return ret < 0 ? err_ctx(err, "limits") : 0;
}

static int spawn(struct launch *launch, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    own_free char *cgroup = NULL;
    const struct instances *instances = launch->instance->owner;
    int ret = make_cgroup(launch, &cgroup, err);
    if (ret < 0)
        return ret;
    unsigned uid = instance_uid(launch->instance->id);
    struct sandbox_spec spec = {
        .program = instances->runtime->vmm,
        .argv = launch->argv,
        .fds = launch->fds,
        .fd_count = launch->fd_count,
        .log_fd = launch->log_fd,
        .own_ids = geteuid() == 0 && !instances->config.no_sandbox,
        .uid = uid,
        .gid = uid,
        .cgroup = cgroup,
        .host_root = instances->config.no_sandbox,
        .may_weaken = instances->config.no_sandbox || geteuid() != 0,
    };
    return sandbox_spawn(&spec, ret_pid, ret_pidfd, err);
}

/* The machine holds this lock from before it is a process of its own until its end, so that no second one is started on the
 * same disks, whatever was not noted when the daemon died. -EAGAIN while another holds it. */
static int take_lock(struct launch *launch, struct err *err)
{
    unsigned number;
    own_free char *path = instance_path(launch->instance->owner->config.run_dir, launch->instance->id, "lock");
    own_fd int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        return err_set(err, errno, "open '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        instance_end_strays(launch->instance->owner, launch->instance->id);
        return err_set(err, EAGAIN, "another machine of the instance is there");
    }
    return launch_pass(launch, TAKE_FD(fd), &number, err);
}

static int gather(struct launch *launch, struct err *err)
{
    const struct instances_config *config = &launch->instance->owner->config;
    int ret = make_folder(config->state_dir, launch->instance->id, err);
    if (!ret)
        ret = make_folder(config->run_dir, launch->instance->id, err);
    if (!ret)
        ret = take_lock(launch, err);
    fault_here("launch.folders");
    if (!ret)
        ret = open_log(launch, err);
    if (!ret)
        ret = add_general(launch, err);
    if (!ret)
        ret = strcmp(json_text(launch->spec, "kind"), "vm") ? launch_microvm(launch, err) : launch_vm(launch, err);
    if (!ret)
        ret = add_networks(launch, err);
    fault_here("launch.network");
    if (!ret)
        ret = add_consoles(launch, err);
    fault_here("launch.consoles");
    if (!ret && launch->start)
        ret = write_start(launch, err);
    return ret;
}

int instance_launch(struct instance *instance, const json_t *doc, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    struct launch launch = {.instance = instance, .doc = doc, .spec = json_object_get(doc, "spec"), .log_fd = -1};
    pid_t pid = -1;
    own_fd int pidfd = -1;
    int ret = gather(&launch, err);
    if (!ret)
        ret = spawn(&launch, &pid, &pidfd, err);
    fault_here("launch.process");
    launch_clear(&launch);
    if (!ret)
        ret = instance_pid_write(instance->owner, instance->id, pid, err);
    fault_here("launch.pid");
    if (ret < 0) {
        siginfo_t ended;
        if (pidfd >= 0 && pidfd_send_signal(pidfd, SIGKILL, NULL, 0) == 0)
            waitid(P_PIDFD, (id_t)pidfd, &ended, WEXITED); /* what it holds is given back only then */
        if (ret != -EAGAIN)
            instance_let_go(instance, doc);
        return ret;
    }
    *ret_pid = pid;
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}

/* What is held only while the machine runs is given back; again is fine. */
void instance_let_go(struct instance *instance, const json_t *doc)
{
    struct err err = {0};
    size_t i;
    json_t *entry;
    const struct instances *instances = instance->owner;
    own_free char *cgroup = instance_cgroup(instance);
    if (instances->config.networks && network_detach(instances->config.networks, instance->id, &err) < 0)
        log_warn("instance %s: networks: %s", instance->name, err.message);
    json_array_foreach (json_object_get(json_object_get(doc, "spec"), "volumes"), i, entry) {
        if (volume_detach(instances->config.volumes, json_text(entry, "volume"), instance->id, &err) < 0)
            log_warn("instance %s: volume: %s", instance->name, err.message);
    }
    if (cgroup && cgroup_remove(cgroup, &err) < 0)
        log_warn("instance %s: %s", instance->name, err.message);
}
