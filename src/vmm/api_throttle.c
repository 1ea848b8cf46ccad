/* Groups of disks that share limits, and the disks' parts in them: from and to JSON, before and after the start. With
 * api->lock held. */
#include "vmm/api_impl.h"

#include <errno.h>

/* Members of a group's body, by enum throttle_kind. */
static const char *const members[THROTTLE_KINDS] = {"bps", "read_bps", "write_bps", "iops", "read_iops", "write_iops"};

static void limits_update(struct throttle_limits *limits, const json_t *body)
{
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++) {
        const json_t *rate = json_object_get(body, members[kind]);
        if (rate && !json_is_null(rate))
            limits->rates[kind] = (struct throttle_rate){.rate = api_integer(rate, "rate", 0),
                                                         .burst = api_integer(rate, "burst", 0),
                                                         .burst_s = (unsigned)api_integer(rate, "burst_s", 0)};
    }
}

static struct vm_throttle *find(const struct api *api, const char *id)
{
    int index = vm_config_find_throttle(api->config, id);
    return index < 0 ? NULL : &api->config->throttles[index];
}

int api_put_throttle(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct throttle_limits limits = {0};
    struct vm_throttle *throttle = find(api, request->id);
    limits_update(&limits, request->body);
    int ret = throttle_check(&limits, NULL, 0, err); /* with the disks: when the machine starts */
    if (ret == 0 && !throttle)
        ret = vm_config_add_throttle(api->config, request->id, &throttle, err);
    if (ret == 0)
        throttle->limits = limits;
    return ret;
}

int api_patch_throttle(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_throttle *throttle = find(api, request->id);
    if (!api->ops->throttle_set)
        return api_not_there("changing a group's limits", err);
    if (!throttle)
        return err_say(err, ENOENT, "Invalid throttle ID: %s", request->id);
    struct throttle_limits old = throttle->limits;
    limits_update(&throttle->limits, request->body);
    int ret = vm_config_check_throttles(api->config, err);
    if (ret == 0)
        ret = api->ops->throttle_set(api->arg, request->id, &throttle->limits, err);
    if (ret < 0)
        throttle->limits = old;
    return ret;
}

int api_share_update(struct vm_disk *disk, const json_t *body, struct err *err)
{
    const char *group = api_string(body, "throttle_id");
    disk->share.weight = (unsigned)api_integer(body, "weight", disk->share.weight);
    disk->share.reservation = api_integer(body, "reserve", disk->share.reservation);
    disk->share.limit = api_integer(body, "limit", disk->share.limit);
    return group ? vm_config_set(&disk->throttle, group, err) : 0;
}

json_t *api_share_json(const struct vm_disk *disk)
{
    if (!disk->throttle)
        return json_null();
    json_t *root = json_object();
    json_object_set_new(root, "throttle_id", json_string(disk->throttle));
    json_object_set_new(root, "weight", json_integer(disk->share.weight));
    json_object_set_new(root, "reserve", json_integer((json_int_t)disk->share.reservation));
    json_object_set_new(root, "limit", json_integer((json_int_t)disk->share.limit));
    return root;
}

json_t *api_throttle_json(const struct vm_throttle *throttle)
{
    json_t *root = json_object();
    json_object_set_new(root, "throttle_id", json_string(throttle->name));
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++) {
        const struct throttle_rate *rate = &throttle->limits.rates[kind];
        json_t *shown = rate->rate ? json_object() : json_null();
        if (rate->rate) {
            json_object_set_new(shown, "rate", json_integer((json_int_t)rate->rate));
            json_object_set_new(shown, "burst", json_integer((json_int_t)rate->burst));
            json_object_set_new(shown, "burst_s", json_integer(rate->burst_s));
        }
        json_object_set_new(root, members[kind], shown);
    }
    return root;
}
