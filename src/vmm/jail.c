#include "vmm/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "block/crypt/key.h"
#include "sandbox/sandbox.h"
#include "virtio/blk.h"
#include "vmm/api.h"

static bool has_keys(const struct vm_config *config)
{
    bool found = false;
    for (unsigned i = 0; i < config->disk_count; i++)
        found = found || config->disks[i].key_path;
    return found;
}

/* What would fail later without saying why. */
static int check(const struct vm_config *config, struct err *err)
{
    const char *const names[] = {config->kernel, config->initrd, config->api_sock, config->log_path, config->metrics_path,
                                 config->config_file, config->vsock.uds_path, config->console.path, config->hvc.path};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i] && fdname_parse(names[i]) < 0)
            return err_say(err, EINVAL, "in a sandbox files are given as descriptors, fd:N, not as '%s'", names[i]);
    for (unsigned i = 0; i < config->disk_count; i++)
        if (fdname_parse(config->disks[i].path) < 0)
            return err_say(err, EINVAL, "in a sandbox disks are given as descriptors, fd:N, not as '%s'", config->disks[i].path);
    for (unsigned i = 0; i < config->net_count; i++)
        if (config->nets[i].backend == VM_NET_USER && !config->nets[i].socket)
            return err_say(err, EINVAL, "in a sandbox no passt can be started: start it outside and give its socket, user=fd:N");
    return 0;
}

/* The one file of the host that a machine may need by name. Without it there is still the engine jit. */
static int keep_kvm(struct vm_config *config, struct err *err)
{
    char name[16];
    if (strcmp(config->engine, "jit") == 0 || (config->kvm_device && fdname_parse(config->kvm_device) >= 0))
        return 0;
    if (strcmp(config->engine, "kvm") == 0 && engine_kvm.probe(config->kvm_device, err) < 0)
        return -err->code;
    int fd = fdname_open(config->kvm_device ? config->kvm_device : "/dev/kvm", O_RDWR, 0);
    if (fd < 0)
        return 0;
    snprintf(name, sizeof name, "fd:%d", fd);
    return vm_config_set(&config->kvm_device, name, err);
}

/* Libraries are loaded while there are files. */
int jail_enter(struct vm_config *config, struct err *err)
{
    int abi = 0;
    if (!config->sandbox)
        return 0;
    int r = check(config, err);
    if (r == 0 && has_keys(config))
        r = crypt_library_prepare(err);
    if (r == 0 && config->api_sock)
        r = api_library_load(err);
    if (r == 0)
        r = keep_kvm(config, err);
    tzset();             /* the first use of a time zone, even of UTC, reads a file */
    json_object_seed(0); /* the first JSON object reads /dev/urandom */
    if (r == 0)
        r = sandbox_empty_root(has_keys(config), err);
    if (r == 0)
        r = sandbox_landlock(-1, &abi, err);
    if (r == 0)
        log_info("sandbox: root is empty, Landlock ABI %d", abi);
    return r;
}

void jail_close_thread(const struct vm_config *config, enum sandbox_filter kind)
{
    struct err err = {0};
    if (!config->sandbox || sandbox_filter(kind, false, &err) == 0)
        return;
    log_error("%s", err.message);
    exit(EXIT_FAILURE);
}

static int close_disk_thread(struct block_node **node, void *arg)
{
    (void)node;
    jail_close_thread(arg, SANDBOX_FILTER_DISK);
    return 0;
}

/* Those of the vCPUs do it themselves when they begin. A disk's starts its workers behind this: they have its filter. */
static int close_threads(const struct vm_config *config, struct machine *machine, struct err *err)
{
    for (unsigned i = 0; i < config->disk_count; i++) {
        int r = virtio_blk_run(machine_disk(machine, i), false, close_disk_thread, (void *)(uintptr_t)config);
        if (r < 0)
            return err_set(err, -r, "sandbox: disk '%s'", config->disks[i].id);
    }
    jail_close_thread(config, SANDBOX_FILTER_LOOP);
    return 0;
}

int jail_close(const struct vm_config *config, struct machine *machine, struct err *err)
{
    bool kvm = machine_engine(machine)->class == &engine_kvm;
    int r = config->sandbox ? sandbox_filter(kvm ? SANDBOX_FILTER_KVM : SANDBOX_FILTER_JIT, true, err) : 0;
    return r == 0 && config->sandbox ? close_threads(config, machine, err) : r;
}

void jail_close_api_thread(const struct vm_config *config)
{
    static _Thread_local bool closed;
    if (closed || gettid() == getpid())
        return;
    jail_close_thread(config, SANDBOX_FILTER_API);
    closed = true;
}
