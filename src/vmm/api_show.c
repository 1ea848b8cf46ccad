/* Handlers that answer questions: struct vm_config and the machine's state as JSON, in the form a config file
 * has. With api->lock held. Where memory runs out an answer lacks members; it is never wrong in what it has.
 */
#include "vmm/api_impl.h"

#include <errno.h>
#include <stdio.h>

/* The level of Firecracker's API that the table in api_operations.c follows; clients choose their requests by
 * it. */
#define FIRECRACKER_LEVEL "1.16.0"

static void set_string(json_t *object, const char *name, const char *value)
{
    json_object_set_new(object, name, value ? json_string(value) : json_null());
}

static void set_integer(json_t *object, const char *name, uint64_t value)
{
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

static void set_bool(json_t *object, const char *name, bool value)
{
    json_object_set_new(object, name, json_boolean(value));
}

/* ---- parts ---- */

static json_t *bucket_json(const struct vm_rate_bucket *bucket)
{
    if (!bucket->size)
        return json_null();
    json_t *root = json_object();
    set_integer(root, "size", bucket->size);
    set_integer(root, "one_time_burst", bucket->burst);
    set_integer(root, "refill_time", bucket->refill_ms);
    return root;
}

static json_t *limit_json(const struct vm_rate_limit *limit)
{
    if (!limit->bandwidth.size && !limit->ops.size)
        return json_null();
    json_t *root = json_object();
    json_object_set_new(root, "bandwidth", bucket_json(&limit->bandwidth));
    json_object_set_new(root, "ops", bucket_json(&limit->ops));
    return root;
}

static json_t *machine_json(const struct vm_config *config)
{
    json_t *root = json_object();
    set_integer(root, "vcpu_count", config->cpus);
    set_integer(root, "mem_size_mib", config->memory_bytes >> 20);
    set_bool(root, "smt", false);
    set_bool(root, "track_dirty_pages", config->track_dirty_pages);
    set_string(root, "huge_pages", config->hugepages ? "2M" : "None");
    set_string(root, "cpu_model", config->cpu_model);
    set_string(root, "engine", config->engine);
    set_string(root, "engine_options", config->engine_options);
    return root;
}

static json_t *boot_json(const struct vm_config *config)
{
    if (!config->kernel)
        return json_null();
    json_t *root = json_object();
    set_string(root, "kernel_image_path", config->kernel);
    set_string(root, "initrd_path", config->initrd);
    set_string(root, "boot_args", config->cmdline);
    return root;
}

static json_t *backing_json(const struct vm_disk *disk)
{
    json_t *root = disk->backing[0] ? json_array() : json_null();
    for (unsigned i = 0; disk->backing[i]; i++)
        json_array_append_new(root, json_string(disk->backing[i]));
    return root;
}

static json_t *disk_json(const struct vm_disk *disk)
{
    json_t *root = json_object();
    set_string(root, "drive_id", disk->id);
    set_string(root, "path_on_host", disk->path);
    set_bool(root, "is_root_device", disk->root);
    set_string(root, "partuuid", disk->partuuid);
    set_bool(root, "is_read_only", disk->read_only);
    set_string(root, "cache_type", disk->writeback ? "Writeback" : "Unsafe");
    set_string(root, "io_engine", disk->io_engine == VM_IO_ANY    ? NULL
                                  : disk->io_engine == VM_IO_SYNC ? "Sync"
                                                                  : "Async");
    json_object_set_new(root, "rate_limiter", limit_json(&disk->limit));
    json_object_set_new(root, "throttle", api_share_json(disk));
    set_bool(root, "direct", disk->direct);
    set_string(root, "format", disk->format);
    json_object_set_new(root, "backing", backing_json(disk));
    set_string(root, "key_file", disk->key_path);
    set_integer(root, "queues", disk->queues);
    return root;
}

static json_t *net_json(const struct vm_net *net)
{
    char mac[18];
    json_t *root = json_object();
    set_string(root, "iface_id", net->id);
    set_string(root, "host_dev_name", net->backend == VM_NET_TAP ? net->tap : NULL);
    snprintf(mac, sizeof mac, "%02x:%02x:%02x:%02x:%02x:%02x", net->mac[0], net->mac[1], net->mac[2],
             net->mac[3], net->mac[4], net->mac[5]);
    set_string(root, "guest_mac", net->has_mac ? mac : NULL);
    if (net->mtu)
        set_integer(root, "mtu", net->mtu);
    json_object_set_new(root, "rx_rate_limiter", limit_json(&net->rx_limit));
    json_object_set_new(root, "tx_rate_limiter", limit_json(&net->tx_limit));
    set_string(root, "backend", net->backend == VM_NET_TAP ? "tap" : "user");
    set_integer(root, "queues", net->queues);
    return root;
}

static json_t *vsock_json(const struct vm_vsock *vsock)
{
    if (!vsock->present)
        return json_null();
    json_t *root = json_object();
    set_integer(root, "guest_cid", vsock->cid);
    set_string(root, "uds_path", vsock->uds_path);
    return root;
}

static json_t *balloon_json(const struct vm_balloon *balloon)
{
    if (!balloon->present)
        return json_null();
    json_t *root = json_object();
    set_integer(root, "amount_mib", balloon->target_mib);
    set_bool(root, "deflate_on_oom", balloon->deflate_on_oom);
    set_integer(root, "stats_polling_interval_s", balloon->stats_interval_s);
    set_bool(root, "free_page_hinting", balloon->free_page_hinting);
    set_bool(root, "free_page_reporting", balloon->free_page_reporting);
    return root;
}

static json_t *entropy_json(const struct vm_entropy *entropy)
{
    if (!entropy->present)
        return json_null();
    json_t *root = json_object();
    json_object_set_new(root, "rate_limiter", limit_json(&entropy->limit));
    return root;
}

static json_t *logger_json(const struct vm_config *config)
{
    static const char *const levels[] = {
        [LOG_ERROR] = "Error", [LOG_WARN] = "Warning", [LOG_INFO] = "Info", [LOG_DEBUG] = "Debug"};
    if (!config->log_path)
        return json_null();
    json_t *root = json_object();
    set_string(root, "log_path", config->log_path);
    set_string(root, "level", levels[config->log_level]);
    return root;
}

static json_t *metrics_json(const struct vm_config *config)
{
    if (!config->metrics_path)
        return json_null();
    json_t *root = json_object();
    set_string(root, "metrics_path", config->metrics_path);
    return root;
}

/* ---- handlers ---- */

int api_get_instance(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    static const char *const states[] = {
        [API_VM_NOT_STARTED] = "Not started", [API_VM_RUNNING] = "Running", [API_VM_PAUSED] = "Paused"};
    (void)request;
    (void)err;
    json_t *root = json_object();
    set_string(root, "id", api->config->id);
    set_string(root, "state", states[api->ops->state(api->arg)]);
    set_string(root, "vmm_version", POLDER_VERSION);
    set_string(root, "app_name", "Polder");
    *ret_answer = root;
    return 0;
}

int api_get_version(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)api;
    (void)request;
    (void)err;
    json_t *root = json_object();
    set_string(root, "firecracker_version", FIRECRACKER_LEVEL);
    set_string(root, "polder_version", POLDER_VERSION);
    *ret_answer = root;
    return 0;
}

int api_get_machine_config(struct api *api, const struct api_request *request, json_t **ret_answer,
                           struct err *err)
{
    (void)request;
    (void)err;
    *ret_answer = machine_json(api->config);
    return 0;
}

int api_get_balloon(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)request;
    if (!api->config->balloon.present)
        return err_say(err, ENOENT, "Balloon config error: No balloon device found.");
    *ret_answer = balloon_json(&api->config->balloon);
    return 0;
}

int api_get_vm_config(struct api *api, const struct api_request *request, json_t **ret_answer,
                      struct err *err)
{
    (void)request;
    struct vm_config *config = api->config;
    bool runs = api->ops->state(api->arg) != API_VM_NOT_STARTED;
    for (unsigned i = 0; runs && i < config->disk_count; i++) {
        int ret = api_disk_update_backing(api, &config->disks[i], err);
        if (ret < 0)
            return ret;
    }
    json_t *root = json_object(), *throttles = json_array(), *drives = json_array(), *nets = json_array();
    for (unsigned i = 0; i < config->throttle_count; i++)
        json_array_append_new(throttles, api_throttle_json(&config->throttles[i]));
    for (unsigned i = 0; i < config->disk_count; i++)
        json_array_append_new(drives, disk_json(&config->disks[i]));
    for (unsigned i = 0; i < config->net_count; i++)
        json_array_append_new(nets, net_json(&config->nets[i]));
    json_object_set_new(root, "machine-config", machine_json(config));
    json_object_set_new(root, "boot-source", boot_json(config));
    json_object_set_new(root, "throttles", throttles);
    json_object_set_new(root, "drives", drives);
    json_object_set_new(root, "network-interfaces", nets);
    json_object_set_new(root, "vsock", vsock_json(&config->vsock));
    json_object_set_new(root, "balloon", balloon_json(&config->balloon));
    json_object_set_new(root, "entropy", entropy_json(&config->entropy));
    json_object_set_new(root, "logger", logger_json(config));
    json_object_set_new(root, "metrics", metrics_json(config));
    *ret_answer = root;
    return 0;
}
