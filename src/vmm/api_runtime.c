/* Handlers that act on the machine: its start, and what may change while it runs. With api->lock held. The
 * config follows what the machine took, so that GET /vm/config tells the truth. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <string.h>

int api_not_there(const char *what, struct err *err)
{
    return err_say(err, ENOTSUP, "The requested operation is not supported: %s is not there yet.", what);
}

/* ---- actions ---- */

static int start(struct api *api, struct err *err)
{
    if (api->ops->state(api->arg) != API_VM_NOT_STARTED)
        return err_say(err, EBUSY, "The requested operation is not supported after starting the microVM.");
    if (!api->config->kernel)
        return err_say(err, EINVAL,
                       "Start microvm error: Cannot start microvm without kernel configuration.");
    if (!api->ops->start)
        return api_not_there("starting the machine", err);
    int ret = vm_config_check(api->config, err);
    if (ret == 0)
        ret = api->ops->start(api->arg, api->config, err);
    return ret < 0 ? err_ctx(err, "Start microvm error") : 0;
}

int api_put_actions(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const char *action = api_string(request->body, "action_type");
    if (!strcmp(action, "InstanceStart"))
        return start(api, err);
    if (api->ops->state(api->arg) == API_VM_NOT_STARTED)
        return err_say(err, EBUSY, "The requested operation is not supported before starting the microVM.");
    if (!strcmp(action, "FlushMetrics"))
        return api->metrics ? metrics_flush(api->metrics, err) : 0;
    return api->ops->power_button ? api->ops->power_button(api->arg, err)
                                  : api_not_there("the power button", err);
}

int api_patch_vm(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    bool stop = !strcmp(api_string(request->body, "state"), "Paused");
    int (*op)(void *arg, struct err *err) = stop ? api->ops->pause : api->ops->resume;
    return op ? op(api->arg, err) : api_not_there(stop ? "pausing" : "resuming", err);
}

/* ---- network interfaces ---- */

int api_patch_net(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_net *net = api_net_find(api->config, request->id);
    if (!net)
        return err_say(err, ENOENT, "Invalid interface ID: %s", request->id);
    if (!api->ops->net_set_limits)
        return api_not_there("changing an interface's limits", err);
    struct vm_rate_limit rx = net->rx_limit, tx = net->tx_limit;
    bool has_rx = api_has(request->body, "rx_rate_limiter"),
         has_tx = api_has(request->body, "tx_rate_limiter");
    api_rate_limit_update(&rx, json_object_get(request->body, "rx_rate_limiter"));
    api_rate_limit_update(&tx, json_object_get(request->body, "tx_rate_limiter"));
    int ret = api->ops->net_set_limits(api->arg, net->id, has_rx ? &rx : NULL, has_tx ? &tx : NULL, err);
    if (ret < 0)
        return ret;
    net->rx_limit = rx;
    net->tx_limit = tx;
    return 0;
}

/* ---- balloon ---- */

/* There is a balloon, and the machine can do what is asked of it (`op` is not NULL). */
static int check_balloon(const struct api *api, bool op, const char *what, struct err *err)
{
    if (!api->config->balloon.present)
        return err_say(err, ENOENT, "Balloon config error: No balloon device found.");
    return op ? 0 : api_not_there(what, err);
}

int api_patch_balloon(struct api *api, const struct api_request *request, json_t **ret_answer,
                      struct err *err)
{
    (void)ret_answer;
    uint64_t target_mib = api_integer(request->body, "amount_mib", 0);
    int ret = check_balloon(api, api->ops->balloon_set_target != NULL, "inflating the balloon", err);
    if (ret < 0)
        return ret;
    if (target_mib > api->config->memory_bytes >> 20)
        return err_say(err, EINVAL,
                       "Balloon update error: Amount of pages requested cannot exceed memory size.");
    ret = api->ops->balloon_set_target(api->arg, target_mib, err);
    if (ret == 0)
        api->config->balloon.target_mib = target_mib;
    return ret;
}

int api_patch_balloon_stats(struct api *api, const struct api_request *request, json_t **ret_answer,
                            struct err *err)
{
    (void)ret_answer;
    unsigned interval_s = (unsigned)api_integer(request->body, "stats_polling_interval_s", 0);
    struct vm_balloon *balloon = &api->config->balloon;
    int ret =
        check_balloon(api, api->ops->balloon_set_stats_interval != NULL, "changing the statistics", err);
    if (ret < 0)
        return ret;
    if (!interval_s != !balloon->stats_interval_s)
        return err_say(
            err, EINVAL,
            "Balloon update error: Statistics cannot be enabled or disabled after starting the microVM.");
    ret = api->ops->balloon_set_stats_interval(api->arg, interval_s, err);
    if (ret == 0)
        balloon->stats_interval_s = interval_s;
    return ret;
}

static json_t *balloon_stats_json(const struct virtio_balloon_stats *stats)
{
    static const char *const names[VIRTIO_BALLOON_STAT_COUNT] = {
        "swap_in",      "swap_out",         "major_faults", "minor_faults",        "free_memory",
        "total_memory", "available_memory", "disk_caches",  "hugetlb_allocations", "hugetlb_failures",
    };
    json_t *root = json_object();
    json_object_set_new(root, "target_pages", json_integer(stats->target_pages));
    json_object_set_new(root, "actual_pages", json_integer(stats->actual_pages));
    json_object_set_new(root, "target_mib", json_integer(stats->target_mib));
    json_object_set_new(root, "actual_mib", json_integer(stats->actual_mib));
    for (unsigned i = 0; i < VIRTIO_BALLOON_STAT_COUNT; i++) {
        if (stats->known >> i & 1)
            json_object_set_new(root, names[i], json_integer((json_int_t)(stats->value[i] & INT64_MAX)));
    }
    return root;
}

int api_get_balloon_stats(struct api *api, const struct api_request *request, json_t **ret_answer,
                          struct err *err)
{
    (void)request;
    struct virtio_balloon_stats stats = {0};
    int ret = check_balloon(api, api->ops->balloon_stats != NULL, "reading the statistics", err);
    if (ret < 0)
        return ret;
    if (!api->config->balloon.stats_interval_s)
        return err_say(err, ENOTSUP,
                       "Balloon statistics are not enabled: give the balloon a stats_polling_interval_s.");
    ret = api->ops->balloon_stats(api->arg, &stats, err);
    if (ret == 0)
        *ret_answer = balloon_stats_json(&stats);
    return ret;
}

static int check_hinting(const struct api *api, bool op, struct err *err)
{
    int ret = check_balloon(api, op, "free page hinting", err);
    if (ret == 0 && !api->config->balloon.free_page_hinting)
        ret = err_say(err, ENOTSUP, "Balloon hinting is not enabled: give the balloon free_page_hinting.");
    return ret;
}

int api_patch_hinting_start(struct api *api, const struct api_request *request, json_t **ret_answer,
                            struct err *err)
{
    (void)ret_answer;
    int ret = check_hinting(api, api->ops->balloon_hinting_start != NULL, err);
    if (ret < 0)
        return ret;
    return api->ops->balloon_hinting_start(api->arg, api_bool(request->body, "acknowledge_on_stop", true),
                                           err);
}

int api_patch_hinting_stop(struct api *api, const struct api_request *request, json_t **ret_answer,
                           struct err *err)
{
    (void)request;
    (void)ret_answer;
    int ret = check_hinting(api, api->ops->balloon_hinting_stop != NULL, err);
    return ret < 0 ? ret : api->ops->balloon_hinting_stop(api->arg, err);
}

int api_get_hinting(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)request;
    struct virtio_balloon_hinting status = {0};
    int ret = check_hinting(api, api->ops->balloon_hinting_status != NULL, err);
    if (ret == 0)
        ret = api->ops->balloon_hinting_status(api->arg, &status, err);
    if (ret < 0)
        return ret;
    json_t *root = json_object();
    json_object_set_new(root, "host_cmd", json_integer(status.host_cmd));
    json_object_set_new(root, "guest_cmd",
                        status.guest_cmd_known ? json_integer(status.guest_cmd) : json_null());
    *ret_answer = root;
    return 0;
}
