/* Defaults, ownership and checks of struct vm_config. */
#include "vmm/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"

#define MEMORY_MIN (UINT64_C(8) << 20)

struct vm_config *vm_config_new(void)
{
    struct vm_config *config = calloc(1, sizeof *config);
    if (!config)
        return NULL;
    config->cpus = 1;
    config->memory_bytes = UINT64_C(128) << 20;
    config->log_level = LOG_WARN;
    config->engine = strdup("auto");
    config->cpu_model = strdup("host");
    config->id = strdup("anonymous-instance");
    if (!config->engine || !config->cpu_model || !config->id) {
        vm_config_free(config);
        return NULL;
    }
    return config;
}

void vm_disk_clear_backing(struct vm_disk *disk)
{
    for (unsigned i = 0; disk->backing[i]; i++) {
        free(disk->backing[i]);
        disk->backing[i] = NULL;
    }
}

void vm_disk_clear(struct vm_disk *disk)
{
    free(disk->id);
    free(disk->path);
    free(disk->format);
    vm_disk_clear_backing(disk);
    free(disk->key_path);
    free(disk->partuuid);
    free(disk->throttle);
    *disk = (struct vm_disk){.writeback = true};
}

void vm_net_clear(struct vm_net *net)
{
    free(net->id);
    free(net->tap);
    free(net->socket);
    free(net->forward);
    *net = (struct vm_net){0};
}

void vm_config_free(struct vm_config *config)
{
    if (!config)
        return;
    for (unsigned i = 0; i < config->disk_count; i++)
        vm_disk_clear(&config->disks[i]);
    for (unsigned i = 0; i < config->throttle_count; i++)
        free(config->throttles[i].name);
    for (unsigned i = 0; config->allow_backing[i]; i++)
        free(config->allow_backing[i]);
    for (unsigned i = 0; i < config->net_count; i++)
        vm_net_clear(&config->nets[i]);
    char *const strings[] = {config->id, config->kernel, config->initrd, config->cmdline, config->cpu_model,
                             config->engine, config->engine_options, config->kvm_device, config->jit_opt, config->vsock.uds_path,
                             config->console.path, config->console.log_path, config->hvc.path, config->hvc.log_path,
                             config->api_sock, config->config_file, config->metrics_path, config->log_path,
                             config->pid_path};
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
        free(strings[i]);
    free(config);
}

int vm_config_set(char **field, const char *value, struct err *err)
{
    char *copy = NULL;
    if (value && !(copy = strdup(value)))
        return err_set(err, ENOMEM, "configuration");
    free(*field);
    *field = copy;
    return 0;
}

static int set_id(char **field, const char *id, const char *stem, unsigned index, struct err *err)
{
    char name[32];
    snprintf(name, sizeof name, "%s%u", stem, index);
    return vm_config_set(field, id ? id : name, err);
}

int vm_config_add_disk(struct vm_config *config, const char *id, struct vm_disk **ret_disk, struct err *err)
{
    if (config->disk_count == VM_MAX_DISKS)
        return err_say(err, ENOSPC, "too many disks, at most %d", VM_MAX_DISKS);
    struct vm_disk *disk = &config->disks[config->disk_count];
    *disk = (struct vm_disk){.writeback = true};
    int r = set_id(&disk->id, id, "drive", config->disk_count, err);
    if (r < 0)
        return r;
    config->disk_count++;
    *ret_disk = disk;
    return 0;
}

int vm_config_add_net(struct vm_config *config, const char *id, struct vm_net **ret_net, struct err *err)
{
    if (config->net_count == VM_MAX_NETS)
        return err_say(err, ENOSPC, "too many network interfaces, at most %d", VM_MAX_NETS);
    struct vm_net *net = &config->nets[config->net_count];
    *net = (struct vm_net){0};
    int r = set_id(&net->id, id, "net", config->net_count, err);
    if (r < 0)
        return r;
    config->net_count++;
    *ret_net = net;
    return 0;
}

int vm_config_find_throttle(const struct vm_config *config, const char *name)
{
    for (unsigned i = 0; i < config->throttle_count; i++)
        if (!strcmp(config->throttles[i].name, name))
            return (int)i;
    return -1;
}

int vm_config_add_throttle(struct vm_config *config, const char *name, struct vm_throttle **ret_throttle, struct err *err)
{
    if (vm_config_find_throttle(config, name) >= 0)
        return err_say(err, EEXIST, "'%s' is there twice", name);
    if (config->throttle_count == VM_MAX_THROTTLES)
        return err_say(err, ENOSPC, "more than %d groups", VM_MAX_THROTTLES);
    struct vm_throttle *throttle = &config->throttles[config->throttle_count];
    int r = vm_config_set(&throttle->name, name, err);
    if (r < 0)
        return r;
    config->throttle_count++;
    *ret_throttle = throttle;
    return 0;
}

/* Before anything is opened: opening a named pipe waits for its other end. */
static int check_file(const char *what, const char *path, struct err *err)
{
    struct stat st;
    if (fdname_stat(path, false, &st) < 0)
        return err_say(err, errno, "%s '%s': %s; give a file that this user may read with --%s", what, path, strerror(errno), what);
    if (S_ISDIR(st.st_mode))
        return err_say(err, EISDIR, "%s '%s': is a directory, give a file", what, path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_say(err, EINVAL, "%s '%s': is a pipe or device, give a regular file", what, path);
    return 0;
}

static int check_memory(uint64_t bytes, struct err *err)
{
    uint64_t host = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (bytes < MEMORY_MIN)
        return err_say(err, EINVAL, "memory of %llu bytes is too little, give at least 8M", (unsigned long long)bytes);
    if (bytes > host)
        return err_say(err, ENOMEM, "memory of %llu MiB is more than this host's %llu MiB, give less with --memory",
                       (unsigned long long)bytes >> 20, (unsigned long long)host >> 20);
    return 0;
}

static int check_throttle(const struct vm_config *config, const struct vm_throttle *throttle, struct err *err)
{
    struct throttle_share shares[VM_MAX_DISKS];
    unsigned count = 0;
    for (unsigned i = 0; i < config->disk_count; i++)
        if (config->disks[i].throttle && !strcmp(config->disks[i].throttle, throttle->name))
            shares[count++] = config->disks[i].share;
    int r = throttle_check(&throttle->limits, shares, count, err);
    return r < 0 ? err_ctx(err, "throttle '%s'", throttle->name) : 0;
}

int vm_config_check_throttles(const struct vm_config *config, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; i < config->disk_count; i++) {
        const struct vm_disk *disk = &config->disks[i];
        bool shares = disk->share.weight || disk->share.reservation || disk->share.limit;
        if (disk->throttle && vm_config_find_throttle(config, disk->throttle) < 0)
            return err_say(err, EINVAL, "disk '%s': there is no group '%s', make it by --throttle %s,iops=N or PUT /throttles/%s",
                           disk->path, disk->throttle, disk->throttle, disk->throttle);
        if (!disk->throttle && shares)
            return err_say(err, EINVAL, "disk '%s': weight, reserve and limit are parts of a group, give throttle=NAME too", disk->path);
    }
    for (unsigned i = 0; r == 0 && i < config->throttle_count; i++)
        r = check_throttle(config, &config->throttles[i], err);
    return r;
}

int vm_config_check(const struct vm_config *config, struct err *err)
{
    if (!config->kernel)
        return err_say(err, EINVAL, "no kernel to boot, give one with --kernel");
    if (config->cpus < 1 || config->cpus > VM_MAX_VCPUS)
        return err_say(err, EINVAL, "%u vCPUs are not possible, give 1 to %d", config->cpus, VM_MAX_VCPUS);
    if (config->has_hvc && config->hvc.mode == VM_CONSOLE_STDIO && config->console.mode == VM_CONSOLE_STDIO)
        return err_say(err, EINVAL, "both consoles are on stdio, give the serial port --console none or another place");
    int r = check_memory(config->memory_bytes, err);
    if (r == 0)
        r = check_file("kernel", config->kernel, err);
    if (r == 0 && config->initrd)
        r = check_file("initrd", config->initrd, err);
    for (unsigned i = 0; r == 0 && i < config->disk_count; i++)
        r = check_file("disk", config->disks[i].path, err);
    return r < 0 ? r : vm_config_check_throttles(config, err);
}
