/* Handlers that add or replace disks and network interfaces before the start. With api->lock held; a refused
 * request leaves the config as it was. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdname.h"

struct vm_disk *api_disk_find(struct vm_config *config, const char *id)
{
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (!strcmp(config->disks[i].id, id))
            return &config->disks[i];
    }
    return NULL;
}

struct vm_net *api_net_find(struct vm_config *config, const char *id)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        if (!strcmp(config->nets[i].id, id))
            return &config->nets[i];
    }
    return NULL;
}

static void bucket_update(struct vm_rate_bucket *bucket, const json_t *body)
{
    if (!body || json_is_null(body))
        return;
    *bucket = (struct vm_rate_bucket){
        .size = api_integer(body, "size", 0),
        .burst = api_integer(body, "one_time_burst", 0),
        .refill_ms = api_integer(body, "refill_time", 0),
    };
}

void api_rate_limit_update(struct vm_rate_limit *limit, const json_t *body)
{
    bucket_update(&limit->bandwidth, json_object_get(body, "bandwidth"));
    bucket_update(&limit->ops, json_object_get(body, "ops"));
}

/* ---- disks ---- */

static int check_disk(struct vm_config *config, const char *id, const json_t *body, struct err *err)
{
    const char *path = api_string(body, "path_on_host");
    bool read_only = api_bool(body, "is_read_only", false);
    struct stat st;
    if (api_has(body, "socket"))
        return err_say(err, ENOTSUP, "vhost-user disks (socket) are not there yet");
    if (!path)
        return err_say(err, EINVAL, "missing field `path_on_host`");
    if (fdname_stat(path, !read_only, &st) < 0)
        return err_set(err, errno, "Error manipulating the backing file: '%.100s'", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_say(err, EINVAL,
                       "Error manipulating the backing file: '%.100s' is no file or block device", path);
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disks[i].root && api_bool(body, "is_root_device", false) &&
            strcmp(config->disks[i].id, id) != 0)
            return err_say(err, EEXIST, "A root block device already exists!");
    }
    if (config->disk_count == VM_MAX_DISKS && !api_disk_find(config, id))
        return err_say(err, ENOSPC, "too many drives, at most %d", VM_MAX_DISKS);
    return 0;
}

static int backing_fill(struct vm_disk *disk, const json_t *names, struct err *err)
{
    size_t count = json_array_size(names);
    int ret = count > VM_MAX_BACKING ? err_say(err, EINVAL, "backing: a chain of more than %d images", VM_MAX_BACKING) : 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = vm_config_set(&disk->backing[i], json_string_value(json_array_get(names, i)), err);
    return ret;
}

static int disk_fill(struct vm_disk *disk, const char *id, const json_t *body, struct err *err)
{
    const char *cache = api_string(body, "cache_type");
    const char *engine = api_string(body, "io_engine");
    int ret = vm_config_set(&disk->id, id, err);
    if (ret == 0)
        ret = vm_config_set(&disk->path, api_string(body, "path_on_host"), err);
    if (ret == 0)
        ret = vm_config_set(&disk->format, api_string(body, "format"), err);
    if (ret == 0)
        ret = backing_fill(disk, json_object_get(body, "backing"), err);
    if (ret == 0)
        ret = vm_config_set(&disk->key_path, api_string(body, "key_file"), err);
    if (ret == 0)
        ret = vm_config_set(&disk->partuuid, api_string(body, "partuuid"), err);
    disk->read_only = api_bool(body, "is_read_only", false);
    disk->root = api_bool(body, "is_root_device", false);
    disk->writeback = cache && !strcmp(cache, "Writeback");
    disk->direct = api_bool(body, "direct", false);
    disk->queues = (unsigned)api_integer(body, "queues", 0);
    disk->io_engine = !engine ? VM_IO_ANY : !strcmp(engine, "Sync") ? VM_IO_SYNC : VM_IO_ASYNC;
    api_rate_limit_update(&disk->limit, json_object_get(body, "rate_limiter"));
    return ret < 0 ? ret : api_share_update(disk, json_object_get(body, "throttle"), err);
}

/* Puts `disk` in the place of the one with its id, or at the end; a root device comes first, as /dev/vda. */
static void disk_place(struct vm_config *config, struct vm_disk disk)
{
    struct vm_disk *old = api_disk_find(config, disk.id);
    unsigned index = old ? (unsigned)(old - config->disks) : config->disk_count;
    if (old)
        vm_disk_clear(old);
    else
        config->disk_count++;
    if (disk.root) {
        memmove(&config->disks[1], &config->disks[0], index * sizeof disk);
        index = 0;
    }
    config->disks[index] = disk;
}

int api_put_drive(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_disk disk = {0};
    int ret = check_disk(api->config, request->id, request->body, err);
    if (ret == 0)
        ret = disk_fill(&disk, request->id, request->body, err);
    if (ret) {
        vm_disk_clear(&disk);
        return err_ctx(err, "Drive config error");
    }
    disk_place(api->config, disk);
    return 0;
}

/* ---- network interfaces ---- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Six pairs of hex digits with colons between. */
static bool mac_parse(const char *text, uint8_t ret_mac[6])
{
    for (unsigned i = 0; i < 6; i++, text += 3) {
        int high = hex_digit(text[0]);
        int low = high < 0 ? -1 : hex_digit(text[1]);
        if (low < 0 || text[2] != (i < 5 ? ':' : '\0'))
            return false;
        ret_mac[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static int net_fill(struct vm_net *net, const char *id, const json_t *body, struct err *err)
{
    const char *backend = api_string(body, "backend");
    const char *tap = api_string(body, "host_dev_name");
    const char *mac = api_string(body, "guest_mac");
    bool user = backend && !strcmp(backend, "user");
    if (user && tap)
        return err_say(err, EINVAL, "host_dev_name is for the back end tap, not for user");
    if (!user && (!tap || !*tap))
        return err_say(err, EINVAL, "missing field `host_dev_name`");
    if (mac && !mac_parse(mac, net->mac))
        return err_say(err, EINVAL, "guest_mac '%s' is no MAC address; it looks like 06:00:ac:10:00:02", mac);
    net->has_mac = mac != NULL;
    net->backend = user ? VM_NET_USER : VM_NET_TAP;
    net->mtu = (uint16_t)api_integer(body, "mtu", 0);
    net->queues = (unsigned)api_integer(body, "queues", 0);
    api_rate_limit_update(&net->rx_limit, json_object_get(body, "rx_rate_limiter"));
    api_rate_limit_update(&net->tx_limit, json_object_get(body, "tx_rate_limiter"));
    int ret = vm_config_set(&net->id, id, err);
    return ret < 0 ? ret : vm_config_set(&net->tap, tap, err);
}

/* No other interface has its address or its tap, and there is room. */
static int check_net(struct vm_config *config, const struct vm_net *net, struct err *err)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        const struct vm_net *other = &config->nets[i];
        if (!strcmp(other->id, net->id))
            continue;
        if (net->has_mac && other->has_mac && !memcmp(net->mac, other->mac, sizeof net->mac))
            return err_say(err, EADDRINUSE,
                           "The MAC address is already in use: %02x:%02x:%02x:%02x:%02x:%02x", net->mac[0],
                           net->mac[1], net->mac[2], net->mac[3], net->mac[4], net->mac[5]);
        if (net->tap && other->tap && !strcmp(net->tap, other->tap))
            return err_say(err, EBUSY, "Could not create the network device: tap '%s' is in use by '%s'",
                           net->tap, other->id);
    }
    if (config->net_count == VM_MAX_NETS && !api_net_find(config, net->id))
        return err_say(err, ENOSPC, "too many network interfaces, at most %d", VM_MAX_NETS);
    return 0;
}

int api_put_net(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_config *config = api->config;
    struct vm_net net = {0};
    int ret = net_fill(&net, request->id, request->body, err);
    if (ret == 0)
        ret = check_net(config, &net, err);
    if (ret) {
        vm_net_clear(&net);
        return err_ctx(err, "Network config error");
    }
    struct vm_net *old = api_net_find(config, net.id);
    if (old)
        vm_net_clear(old);
    else
        old = &config->nets[config->net_count++];
    *old = net;
    return 0;
}
