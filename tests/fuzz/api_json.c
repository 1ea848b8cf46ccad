/* Fuzz target: API requests and config files. An input is a line "METHOD PATH" and a body; the line "CONFIG"
 * makes the rest a config file. The request is done before the start, after it, and paused. No file is
 * written, no socket opened. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/api_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum api_vm_state state;

static enum api_vm_state op_state(void *arg)
{
    (void)arg;
    return state;
}

static int op_start(void *arg, const struct vm_config *config, struct err *err)
{
    (void)arg, (void)config, (void)err;
    state = API_VM_RUNNING;
    return 0;
}

static int op_simple(void *arg, struct err *err)
{
    (void)arg;
    return err_say(err, EIO, "no");
}

static int op_path(void *arg, const char *id, const char *path, struct err *err)
{
    (void)arg, (void)err;
    assert(*id && path);
    return 0;
}

static int op_limit(void *arg, const char *id, const struct vm_rate_limit *limit, struct err *err)
{
    (void)arg, (void)err;
    assert(*id && limit);
    return 0;
}

static int op_share(void *arg, const char *id, const struct throttle_share *share, struct err *err)
{
    (void)arg, (void)err;
    assert(*id && share->weight <= 10000);
    return 0;
}

static int op_throttle(void *arg, const char *id, const struct throttle_limits *limits, struct err *err)
{
    (void)arg, (void)err;
    assert(*id && throttle_check(limits, NULL, 0, NULL) == 0);
    return 0;
}

static int op_limits(void *arg, const char *id, const struct vm_rate_limit *rx,
                     const struct vm_rate_limit *tx, struct err *err)
{
    (void)arg, (void)rx, (void)tx, (void)err;
    assert(*id);
    return 0;
}

static int op_target(void *arg, uint64_t target_mib, struct err *err)
{
    (void)arg, (void)err;
    assert(target_mib <= UINT32_MAX);
    return 0;
}

static int op_interval(void *arg, unsigned interval_s, struct err *err)
{
    (void)arg, (void)interval_s, (void)err;
    return 0;
}

static int op_stats(void *arg, struct virtio_balloon_stats *ret_stats, struct err *err)
{
    (void)arg, (void)err;
    *ret_stats = (struct virtio_balloon_stats){.known = UINT32_MAX, .value = {UINT64_MAX}};
    return 0;
}

static const struct api_vm_ops ops = {
    .state = op_state,
    .start = op_start,
    .pause = op_simple,
    .resume = op_simple,
    .disk_set_path = op_path,
    .disk_set_limit = op_limit,
    .disk_set_share = op_share,
    .throttle_set = op_throttle,
    .net_set_limits = op_limits,
    .balloon_set_target = op_target,
    .balloon_set_stats_interval = op_interval,
    .balloon_stats = op_stats,
};

static int open_nowhere(const char *path)
{
    (void)path;
    return open("/dev/null", O_WRONLY | O_CLOEXEC);
}

static void do_request(struct api *api, const char *method, const char *path, const char *body, size_t len)
{
    struct api_response response;
    api_handle(api, method, path, body, len, &response);
    json_error_t error;
    json_t *answer = response.body ? json_loads(response.body, 0, &error) : NULL;
    assert((response.status == 204) == !response.body);
    assert(!response.body || answer);
    if (response.status >= 400)
        assert(json_is_string(json_object_get(answer, "fault_message")));
    json_decref(answer);
    free(response.body);
}

static void do_config(struct api *api, const char *text, size_t len)
{
    struct err err = {0};
    json_error_t error;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (root && api_apply_config(api, root, &err) < 0)
        assert(err.message[0]);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, '\n', size) : NULL;
    if (!end || (size_t)(end - data) >= 128)
        return 0;
    char line[128];
    size_t line_len = (size_t)(end - data);
    memcpy(line, data, line_len);
    line[line_len] = '\0';
    const char *body = (const char *)end + 1;
    size_t len = size - line_len - 1;
    struct vm_config *config = vm_config_new();
    struct api *api;
    if (!config || api_create(config, &ops, NULL, &api, NULL) < 0)
        return 0;
    api->open_output = open_nowhere;
    state = API_VM_NOT_STARTED;
    char *path = strchr(line, ' ');
    if (!path) {
        do_config(api, body, len);
    } else {
        *path++ = '\0';
        do_request(api, line, path, body, len);
        state = API_VM_RUNNING;
        do_request(api, line, path, body, len);
        state = API_VM_PAUSED;
        do_request(api, line, path, body, len);
    }
    do_request(api, "GET", "/vm/config", NULL, 0);
    int log_fd = api->log_fd;
    api_free(api);
    if (log_fd >= 0) {
        log_to(2);
        close(log_fd);
    }
    vm_config_free(config);
    return 0;
}
