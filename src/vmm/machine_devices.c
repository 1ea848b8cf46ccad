/* The virtio devices of a machine, made from its configuration in a fixed order: a guest finds the same device in the same
 * slot each time. */
#include "vmm/machine_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"
#include "block/block.h"
#include "block/crypt/key.h"
#include "net/net.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"

static struct virtio_host device_host(const struct machine *machine)
{
    return (struct virtio_host){
        .mem = machine->mem, .loop = machine->host.loop, .pci = machine->pci, .engine = machine->engine};
}

static struct token_bucket_config bucket(const struct vm_rate_bucket *rate)
{
    return (struct token_bucket_config){
        .size = rate->size, .one_time_burst = rate->burst, .refill_time_ms = rate->refill_ms};
}

struct limiter_config machine_limiter(const struct vm_rate_limit *limit)
{
    return (struct limiter_config){.bandwidth = bucket(&limit->bandwidth), .ops = bucket(&limit->ops)};
}

static const char *ring_of(enum vm_io_engine engine)
{
    return engine == VM_IO_SYNC ? "sync" : engine == VM_IO_ASYNC ? "io_uring" : NULL;
}

int machine_open_disk(const struct vm_config *config, const struct vm_disk *disk, const char *path,
                      struct block_node **ret_node, struct err *err)
{
    const char *dirs[VM_MAX_DISKS + 1], *backing[VM_MAX_BACKING + 1];
    for (unsigned i = 0; i <= VM_MAX_BACKING; i++)
        backing[i] = disk->backing[i];
    for (unsigned i = 0; i <= VM_MAX_DISKS; i++)
        dirs[i] = config->allow_backing[i];
    struct block_options options = {.driver = disk->format,
                                    .path = path,
                                    .fd = -1,
                                    .read_only = disk->read_only,
                                    .direct = disk->direct,
                                    .backing = disk->backing[0] && !strcmp(path, disk->path) ? backing : NULL,
                                    .allow_dirs = dirs};
    int r = options.driver ? 0 : block_guess_format(path, &options.driver);
    if (r < 0 && r != -EINVAL)
        return err_set(err, -r, "disk '%s'", path);
    if (r < 0)
        log_warn("disk '%s' has a qcow2 header and is taken as raw; say format=qcow2 if it is an image", path);
    if (options.driver && strcmp(options.driver, "raw") != 0 && strcmp(options.driver, "qcow2") != 0 &&
        strcmp(options.driver, "luks") != 0)
        return err_say(err, EINVAL, "disk '%s' has the format %s: convert it first (polder-img convert), or say format=raw", path,
                       options.driver);
    struct block_key *key = NULL;
    r = disk->key_path ? block_key_read(disk->key_path, &key, err) : 0;
    options.key = key;
    if (r == 0)
        r = block_open(&options, ret_node, err);
    block_key_free(key);
    if (r == 0 && disk->keep_discarded)
        (*ret_node)->can_discard = false;
    return r;
}

struct throttle_group *machine_throttle(const struct machine *machine, const char *name)
{
    int index = name ? vm_config_find_throttle(machine->config, name) : -1;
    return index < 0 ? NULL : machine->throttles[index];
}

static int add_throttles(struct machine *machine, struct err *err)
{
    for (unsigned i = 0; i < machine->config->throttle_count; i++) {
        machine->throttles[i] = throttle_group_new(&machine->config->throttles[i].limits);
        if (!machine->throttles[i])
            return err_set(err, ENOMEM, "throttle group");
    }
    return 0;
}

static int add_disk(struct machine *machine, unsigned index, struct err *err)
{
    const struct vm_disk *disk = &machine->config->disks[index];
    struct virtio_host host = device_host(machine);
    struct block_node *node;
    int r = machine_open_disk(machine->config, disk, disk->path, &node, err);
    if (r < 0)
        return r;
    struct virtio_blk_config config = {
        .id = disk->id,
        .node = node,
        .queues = disk->queues ? disk->queues : machine->config->cpus,
        .unsafe = !disk->writeback,
        .writethrough = disk->writethrough,
        .io_engine = ring_of(disk->io_engine),
        .limiter = machine_limiter(&disk->limit),
        .throttle = machine_throttle(machine, disk->throttle),
        .share = disk->share,
    };
    r = virtio_blk_create(&config, &host, &machine->devices.disks[index], err);
    if (r < 0)
        block_close(node);
    return r;
}

static int add_disks(struct machine *machine, struct err *err)
{
    int r = add_throttles(machine, err);
    for (unsigned i = 0; r == 0 && i < machine->config->disk_count; i++)
        r = add_disk(machine, i, err);
    return r;
}

static unsigned net_queues(const struct machine *machine, const struct vm_net *net)
{
    unsigned wanted = net->queues ? net->queues : machine->config->cpus;
    return wanted < VIRTIO_NET_MAX_PAIRS ? wanted : VIRTIO_NET_MAX_PAIRS;
}

/* What was given as descriptor; -1: nothing. The name was checked. */
static int given_fd(const struct vm_net *net, int *ret_fd, struct err *err)
{
    const char *name = net->backend == VM_NET_TAP ? net->tap : net->socket;
    *ret_fd = -1;
    if (!name || fdname_parse(name) < 0)
        return 0;
    *ret_fd = fdname_open(name, O_RDWR, 0);
    return *ret_fd < 0 ? err_set(err, errno, "network '%s'", name) : 0;
}

static int open_net(const struct machine *machine, const struct vm_net *net, struct net_backend **ret_backend, struct err *err)
{
    own_fd int fd = -1;
    int r = given_fd(net, &fd, err);
    if (r < 0)
        return r;
    struct net_options options = {
        .driver = net->backend == VM_NET_TAP ? "tap" : "user",
        .name = net->tap,
        .forward = net->forward,
        .fd = fd,
        .queues = net->backend == VM_NET_TAP ? net_queues(machine, net) : 1,
    };
    r = net_open(&options, ret_backend, err);
    if (r == 0)
        TAKE_FD(fd);
    return r;
}

static int add_net(struct machine *machine, unsigned index, struct err *err)
{
    const struct vm_net *net = &machine->config->nets[index];
    struct virtio_host host = device_host(machine);
    struct net_backend *backend;
    int r = open_net(machine, net, &backend, err);
    if (r < 0)
        return r;
    struct virtio_net_config config = {
        .id = net->id,
        .backend = backend,
        .has_mac = net->has_mac,
        .mtu = net->mtu,
        .rx = machine_limiter(&net->rx_limit),
        .tx = machine_limiter(&net->tx_limit),
    };
    memcpy(config.mac, net->mac, sizeof config.mac);
    r = virtio_net_create(&config, &host, &machine->devices.nets[index], err);
    if (r < 0)
        net_close(backend);
    return r;
}

static int add_nets(struct machine *machine, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < machine->config->net_count; i++)
        r = add_net(machine, i, err);
    return r;
}

static int add_vsock(struct machine *machine, struct err *err)
{
    const struct vm_vsock *vsock = &machine->config->vsock;
    struct virtio_host host = device_host(machine);
    struct virtio_vsock_config config = {.guest_cid = vsock->cid, .uds_path = vsock->uds_path};
    return vsock->present ? virtio_vsock_create(&config, &host, &machine->devices.vsock, err) : 0;
}

static int add_balloon(struct machine *machine, struct err *err)
{
    const struct vm_balloon *balloon = &machine->config->balloon;
    struct virtio_host host = device_host(machine);
    struct virtio_balloon_config config = {
        .target_mib = (uint32_t)balloon->target_mib,
        .deflate_on_oom = balloon->deflate_on_oom,
        .stats_interval_s = balloon->stats_interval_s,
        .free_page_reporting = balloon->free_page_reporting,
        .free_page_hinting = balloon->free_page_hinting,
    };
    return balloon->present ? virtio_balloon_create(&config, &host, &machine->devices.balloon, err) : 0;
}

static int add_entropy(struct machine *machine, struct err *err)
{
    const struct vm_entropy *entropy = &machine->config->entropy;
    struct virtio_host host = device_host(machine);
    struct virtio_rng_config config = {.limiter = machine_limiter(&entropy->limit)};
    return entropy->present ? virtio_rng_create(&config, &host, &machine->devices.entropy, err) : 0;
}

int machine_add_devices(struct machine *machine, struct err *err)
{
    int r = add_disks(machine, err);
    if (r == 0)
        r = add_nets(machine, err);
    if (r == 0)
        r = add_vsock(machine, err);
    if (r == 0)
        r = add_balloon(machine, err);
    if (r == 0)
        r = add_entropy(machine, err);
    return r;
}

void machine_each_device(struct machine *machine, void (*fn)(struct virtio_device *dev))
{
    struct machine_devices *devices = &machine->devices;
    struct virtio_device *const single[] = {devices->vsock, devices->balloon, devices->entropy, devices->hvc};
    for (unsigned i = 0; i < VM_MAX_DISKS; i++)
        if (devices->disks[i])
            fn(devices->disks[i]);
    for (unsigned i = 0; i < VM_MAX_NETS; i++)
        if (devices->nets[i])
            fn(devices->nets[i]);
    for (unsigned i = 0; i < sizeof single / sizeof single[0]; i++)
        if (single[i])
            fn(single[i]);
}

void machine_free_devices(struct machine *machine)
{
    machine_each_device(machine, virtio_free);
    for (unsigned i = 0; i < VM_MAX_THROTTLES; i++)
        throttle_group_free(machine->throttles[i]);
    machine->devices = (struct machine_devices){0};
}
