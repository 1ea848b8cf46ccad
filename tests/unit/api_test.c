/* The API without a socket and without a machine: routes, bodies, phases, answers, config files, metrics, reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/api_impl.h"

/* What a machine would have been told. */
struct fake {
    enum api_vm_state state;
    unsigned starts, buttons;
    char path[64];
    struct vm_rate_limit limit;
    struct throttle_share share;
    struct throttle_limits limits;
    bool has_rx, has_tx;
    uint64_t balloon_mib;
    bool acknowledge;
    int fail; /* -errno of the next op */
};

static int fake_result(struct fake *fake, struct err *err)
{
    int code = -fake->fail;
    fake->fail = 0;
    return code ? err_say(err, code, "the fake fails") : 0;
}

static enum api_vm_state fake_state(void *arg)
{
    return ((struct fake *)arg)->state;
}

static int fake_start(void *arg, const struct vm_config *config, struct err *err)
{
    struct fake *fake = arg;
    assert_non_null(config->kernel);
    int ret = fake_result(fake, err);
    if (ret == 0) {
        fake->starts++;
        fake->state = API_VM_RUNNING;
    }
    return ret;
}

static int fake_pause(void *arg, struct err *err)
{
    ((struct fake *)arg)->state = API_VM_PAUSED;
    return fake_result(arg, err);
}

static int fake_resume(void *arg, struct err *err)
{
    ((struct fake *)arg)->state = API_VM_RUNNING;
    return fake_result(arg, err);
}

static int fake_button(void *arg, struct err *err)
{
    ((struct fake *)arg)->buttons++;
    return fake_result(arg, err);
}

static int fake_disk_path(void *arg, const char *id, const char *path, struct err *err)
{
    struct fake *fake = arg;
    assert_string_equal(id, "rootfs");
    snprintf(fake->path, sizeof fake->path, "%s", path);
    return fake_result(fake, err);
}

static int fake_disk_limit(void *arg, const char *id, const struct vm_rate_limit *limit, struct err *err)
{
    struct fake *fake = arg;
    assert_string_equal(id, "rootfs");
    fake->limit = *limit;
    return fake_result(fake, err);
}

static int fake_disk_share(void *arg, const char *id, const struct throttle_share *share, struct err *err)
{
    struct fake *fake = arg;
    assert_string_equal(id, "rootfs");
    fake->share = *share;
    return fake_result(fake, err);
}

static int fake_throttle(void *arg, const char *id, const struct throttle_limits *limits, struct err *err)
{
    struct fake *fake = arg;
    assert_string_equal(id, "slow");
    fake->limits = *limits;
    return fake_result(fake, err);
}

static int fake_net_limits(void *arg, const char *id, const struct vm_rate_limit *rx, const struct vm_rate_limit *tx,
                           struct err *err)
{
    struct fake *fake = arg;
    assert_string_equal(id, "eth0");
    fake->has_rx = rx != NULL;
    fake->has_tx = tx != NULL;
    return fake_result(fake, err);
}

static int fake_balloon_target(void *arg, uint64_t target_mib, struct err *err)
{
    ((struct fake *)arg)->balloon_mib = target_mib;
    return fake_result(arg, err);
}

static int fake_balloon_stats(void *arg, struct virtio_balloon_stats *ret_stats, struct err *err)
{
    *ret_stats = (struct virtio_balloon_stats){.target_mib = 16, .actual_mib = 8, .known = 1u << 4, .value = {[4] = 99}};
    return fake_result(arg, err);
}

static int fake_hinting_start(void *arg, bool acknowledge_on_stop, struct err *err)
{
    ((struct fake *)arg)->acknowledge = acknowledge_on_stop;
    return fake_result(arg, err);
}

static int fake_hinting_status(void *arg, struct virtio_balloon_hinting *ret_status, struct err *err)
{
    *ret_status = (struct virtio_balloon_hinting){.host_cmd = 2};
    return fake_result(arg, err);
}

static void fake_metrics(void *arg, metrics_emit_fn *emit, void *emit_arg)
{
    (void)arg;
    emit(emit_arg, METRICS_COUNTER, "block_rootfs", "read_count", 7);
    emit(emit_arg, METRICS_GAUGE, "memory", "rss_bytes", 4096);
}

/* No balloon_set_stats_interval, no balloon_hinting_stop: what is NULL is not there yet. */
static const struct api_vm_ops fake_ops = {
    .state = fake_state,
    .start = fake_start,
    .pause = fake_pause,
    .resume = fake_resume,
    .power_button = fake_button,
    .disk_set_path = fake_disk_path,
    .disk_set_limit = fake_disk_limit,
    .disk_set_share = fake_disk_share,
    .throttle_set = fake_throttle,
    .net_set_limits = fake_net_limits,
    .balloon_set_target = fake_balloon_target,
    .balloon_stats = fake_balloon_stats,
    .balloon_hinting_start = fake_hinting_start,
    .balloon_hinting_status = fake_hinting_status,
    .metrics = fake_metrics,
};

struct fixture {
    struct vm_config *config;
    struct fake fake;
    struct api *api;
};

static char kernel_path[] = "/tmp/api-test-kernel-XXXXXX"; /* a file that is there, for kernels and disks */

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->config = vm_config_new();
    assert_int_equal(api_create(f->config, &fake_ops, &f->fake, &f->api, NULL), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    api_free(f->api);
    vm_config_free(f->config);
    free(f);
    return 0;
}

/* Does a request; checks its status, and that the answer contains `part` (NULL: any). A '@' in a body stands for a path that
 * exists. */
static void request(struct fixture *f, const char *method, const char *path, const char *body, int status,
                    const char *part)
{
    char text[2048] = "";
    size_t len = 0;
    for (const char *p = body ? body : ""; *p; p++)
        len += (size_t)snprintf(text + len, sizeof text - len, *p == '@' ? "%s" : "%.1s", *p == '@' ? kernel_path : p);
    struct api_response response;
    api_handle(f->api, method, path, text, len, &response);
    if (response.status != status || (part && (!response.body || !strstr(response.body, part))))
        fail_msg("%s %s %s: %d %s, expected %d %s", method, path, text, response.status,
                 response.body ? response.body : "(nothing)", status, part ? part : "");
    assert_true((response.status == 204) == (response.body == NULL));
    if (status >= 400)
        assert_int_equal(strncmp(response.body, "{\"fault_message\":\"", 18), 0);
    free(response.body);
}

struct one_case {
    const char *method, *path, *body;
    int status;
    const char *part;
};

static void run_cases(struct fixture *f, const struct one_case *cases)
{
    for (; cases->method; cases++)
        request(f, cases->method, cases->path, cases->body, cases->status, cases->part);
}

static void test_before_start(void **state)
{
    static const struct one_case cases[] = {
        {"GET", "/", NULL, 200, "\"state\":\"Not started\""},
        {"GET", "/version", NULL, 200, "\"firecracker_version\":\"1."},
        {"GET", "/machine-config", NULL, 200, "\"vcpu_count\":1,\"mem_size_mib\":128,\"smt\":false"},
        {"GET", "/machine-config/", NULL, 200, NULL},
        {"GET", "/vm/config", NULL, 200, "\"boot-source\":null"},
        {"GET", "/balloon", NULL, 400, "No balloon device"},
        {"GET", "/", "{}", 400, "GET request cannot have a body."},
        {"GET", "/nope", NULL, 400, "Invalid request method and/or path: GET nope."},
        {"DELETE", "/vsock", NULL, 400, "Invalid request method and/or path: DELETE vsock."},
        {"PATCH", "/boot-source", "{}", 400, "Invalid request method and/or path: PATCH boot-source."},
        {"PUT", "/machine-config", NULL, 400, "Empty PUT request."},
        {"PATCH", "/machine-config", NULL, 400, "Empty PATCH request."},
        {"PATCH", "/machine-config", "{}", 400, "Empty PATCH request."},
        {"PUT", "/machine-config", "{\"mem_size_mib\": 256}", 400, "missing field `vcpu_count`"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2}", 400, "missing field `mem_size_mib`"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 33, \"mem_size_mib\": 256}", 400, "expected 1 to 32"},
        {"PUT", "/machine-config", "{\"vcpu_count\": \"2\", \"mem_size_mib\": 256}", 400, "invalid type: string"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2, \"mem_size_mib\": 256, \"ht\": true}", 400, "unknown field `ht`"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2, \"mem_size_mib\": 256, \"smt\": true}", 400, "smt is not there"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2, \"mem_size_mib\": 3, \"huge_pages\": \"2M\"}", 400, "multiple"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2, \"mem_size_mib\": 18446744073709551616}", 400, "too big"},
        {"PUT", "/machine-config", "{\"vcpu_count\": 2, \"mem_size_mib\": 256, \"engine\": \"jit\"}", 204, NULL},
        {"GET", "/machine-config", NULL, 200, "\"vcpu_count\":2,\"mem_size_mib\":256"},
        {"PATCH", "/machine-config", "{\"vcpu_count\": 4, \"smt\": null}", 204, NULL},
        {"GET", "/machine-config", NULL, 200, "\"vcpu_count\":4,\"mem_size_mib\":256"},
        {"GET", "/machine-config", NULL, 200, "\"engine\":\"jit\""},
        {"PUT", "/boot-source", "{\"kernel_image_path\": \"/nope\"}", 400, "No such file or directory"},
        {"PUT", "/boot-source", "[]", 400, "invalid type: sequence"},
        {"PUT", "/boot-source", "{", 400, "line 1"},
        {"PUT", "/boot-source", "{\"kernel_image_path\": \"@\", \"kernel_image_path\": \"@\"}", 400, "duplicate"},
        {"PUT", "/vsock", "{\"guest_cid\": 2, \"uds_path\": \"v\"}", 400, "`guest_cid`"},
        {"PUT", "/vsock", "{\"guest_cid\": 3, \"uds_path\": \"v.sock\"}", 204, NULL},
        {"PUT", "/balloon", "{\"amount_mib\": 257, \"deflate_on_oom\": true}", 400, "cannot exceed"},
        {"PUT", "/balloon", "{\"amount_mib\": 64, \"deflate_on_oom\": true}", 204, NULL},
        {"GET", "/balloon", NULL, 200, "\"amount_mib\":64"},
        {"PATCH", "/machine-config", "{\"mem_size_mib\": 32}", 400, "smaller than the target"},
        {"PATCH", "/balloon", "{\"amount_mib\": 32}", 400, "not supported before starting"},
        {"PUT", "/entropy", "{}", 204, NULL},
        {"PUT", "/entropy", "{\"rate_limiter\": {\"ops\": {\"size\": 1}}}", 400, "missing field `refill_time`"},
        {"PUT", "/serial", "{\"serial_out_path\": \"/dev/null\"}", 204, NULL},
        {"PUT", "/cpu-config", "{}", 400, "not there yet"},
        {"PUT", "/mmds", "{\"a\": {\"b\": [1, 2.5, null]}}", 400, "not there yet"},
        {"GET", "/mmds", NULL, 400, "not there yet"},
        {"PUT", "/pmem/p0", "{\"id\": \"p0\", \"path_on_host\": \"@\"}", 400, "not there yet"},
        {"PUT", "/snapshot/load", "{\"snapshot_path\": \"s\"}", 400, "not there yet"},
        {"PUT", "/snapshot/create", "{\"snapshot_path\": \"s\", \"mem_file_path\": \"m\"}", 400, "before starting"},
        {"PATCH", "/vm", "{\"state\": \"Paused\"}", 400, "not supported before starting"},
        {"PUT", "/actions", "{\"action_type\": \"Jump\"}", 400, "unknown variant `Jump`"},
        {"PUT", "/actions", "{\"action_type\": \"SendCtrlAltDel\"}", 400, "not supported before starting"},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 400, "without kernel configuration"},
        {0}};
    run_cases(*state, cases);
}

static void test_drives(void **state)
{
    struct fixture *f = *state;
    static const struct one_case cases[] = {
        {"PUT", "/drives/", "{}", 400, "The ID cannot be empty."},
        {"PUT", "/drives/a-b", "{}", 400, "alphanumeric"},
        {"PUT", "/drives/a", "{\"drive_id\": \"b\", \"is_root_device\": false}", 400, "does not match"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false}", 400, "`path_on_host`"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"/nope\"}", 400,
         "No such file"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false, \"socket\": \"s\"}", 400, "vhost-user"},
        {"PUT", "/drives/a",
         "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"@\", \"io_engine\": \"Async\"}", 204, NULL},
        {"PUT", "/drives/rootfs",
         "{\"drive_id\": \"rootfs\", \"is_root_device\": true, \"path_on_host\": \"@\", \"cache_type\": \"Writeback\","
         "\"io_engine\": \"Sync\","
         "\"rate_limiter\": {\"bandwidth\": {\"size\": 10, \"refill_time\": 20, \"one_time_burst\": null}, \"ops\": null}}",
         204, NULL},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": true, \"path_on_host\": \"@\"}", 400,
         "A root block device already exists!"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"@\"}", 204, NULL},
        {"PUT", "/drives/a",
         "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"@\", \"backing\": [\"/x\", \"fd:3\"]}", 204, NULL},
        {"GET", "/vm/config", NULL, 200, "\"backing\":[\"/x\",\"fd:3\"]"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"@\", \"backing\": \"/x\"}", 400,
         "backing"},
        {"PUT", "/drives/a", "{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"@\", \"backing\": null}", 204,
         NULL},
        {"PATCH", "/drives/a", "{\"drive_id\": \"a\", \"path_on_host\": \"@\"}", 400, "before starting"},
        {0}};
    run_cases(f, cases);
    assert_int_equal(f->config->disk_count, 2);
    assert_string_equal(f->config->disks[0].id, "rootfs");
    assert_int_equal(f->config->disks[0].io_engine, VM_IO_SYNC);
    assert_int_equal(f->config->disks[1].io_engine, VM_IO_ANY); /* replaced as a whole */
    assert_true(f->config->disks[0].writeback);
    assert_int_equal(f->config->disks[0].limit.bandwidth.size, 10);
    assert_int_equal(f->config->disks[0].limit.bandwidth.refill_ms, 20);
    assert_string_equal(f->config->disks[1].id, "a");
    assert_false(f->config->disks[1].writeback);
    assert_null(f->config->disks[1].backing[0]);
    char path[32], body[160];
    for (unsigned i = 0; i < VM_MAX_DISKS; i++) {
        snprintf(path, sizeof path, "/drives/d%u", i);
        snprintf(body, sizeof body, "{\"drive_id\":\"d%u\",\"is_root_device\":false,\"path_on_host\":\"@\"}", i);
        request(f, "PUT", path, body, i < VM_MAX_DISKS - 2 ? 204 : 400, i < VM_MAX_DISKS - 2 ? NULL : "too many");
    }
}

static void test_interfaces(void **state)
{
    struct fixture *f = *state;
    static const struct one_case cases[] = {
        {"PUT", "/network-interfaces/eth0", "{\"iface_id\": \"eth0\"}", 400, "`host_dev_name`"},
        {"PUT", "/network-interfaces/eth0", "{\"iface_id\": \"eth0\", \"host_dev_name\": \"0123456789abcdef\"}", 400,
         "too long"},
        {"PUT", "/network-interfaces/eth0",
         "{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap0\", \"guest_mac\": \"06:00:00:00:00\"}", 400, "MAC"},
        {"PUT", "/network-interfaces/eth0",
         "{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap0\", \"guest_mac\": \"06:00:00:00:00:aB\"}", 204, NULL},
        {"PUT", "/network-interfaces/eth1",
         "{\"iface_id\": \"eth1\", \"host_dev_name\": \"tap1\", \"guest_mac\": \"06:00:00:00:00:ab\"}", 400,
         "The MAC address is already in use: 06:00:00:00:00:ab"},
        {"PUT", "/network-interfaces/eth1", "{\"iface_id\": \"eth1\", \"host_dev_name\": \"tap0\"}", 400,
         "Could not create the network device"},
        {"PUT", "/network-interfaces/eth1", "{\"iface_id\": \"eth1\", \"backend\": \"user\", \"mtu\": 67}", 400, "mtu"},
        {"PUT", "/network-interfaces/eth1", "{\"iface_id\": \"eth1\", \"backend\": \"user\", \"mtu\": 9000}", 204, NULL},
        {"GET", "/vm/config", NULL, 200, "\"mtu\":9000"},
        {"PUT", "/network-interfaces/eth0", "{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap2\"}", 204, NULL},
        {"GET", "/vm/config", NULL, 200, "\"host_dev_name\":\"tap2\",\"guest_mac\":null"},
        {0}};
    run_cases(f, cases);
    assert_int_equal(f->config->net_count, 2);
    assert_int_equal(f->config->nets[1].backend, VM_NET_USER);
}

/* A machine that runs. */
static void start(struct fixture *f)
{
    static const struct one_case cases[] = {
        {"PUT", "/boot-source", "{\"kernel_image_path\": \"@\", \"boot_args\": \"a b\", \"initrd_path\": null}", 204, NULL},
        {"PUT", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"is_root_device\": true, \"path_on_host\": \"@\"}", 204, NULL},
        {"PUT", "/network-interfaces/eth0", "{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap0\"}", 204, NULL},
        {"PUT", "/balloon",
         "{\"amount_mib\": 8, \"deflate_on_oom\": false, \"stats_polling_interval_s\": 1, \"free_page_hinting\": true}",
         204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 204, NULL},
        {0}};
    run_cases(f, cases);
    assert_int_equal(f->fake.starts, 1);
}

static void test_failed_start(void **state)
{
    struct fixture *f = *state;
    f->fake.fail = -ENOMEM;
    request(f, "PUT", "/boot-source", "{\"kernel_image_path\": \"@\"}", 204, NULL);
    request(f, "PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 400, "Start microvm error: the fake fails");
    request(f, "GET", "/", NULL, 200, "Not started");
    start(f);
}

static void test_after_start(void **state)
{
    struct fixture *f = *state;
    static const struct one_case cases[] = {
        {"GET", "/", NULL, 200, "\"state\":\"Running\""},
        {"PUT", "/boot-source", "{\"kernel_image_path\": \"@\"}", 400, "not supported after starting the microVM."},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 400, "not supported after starting"},
        {"PATCH", "/machine-config", "{\"vcpu_count\": 4}", 400, "not supported after starting"},
        {"PUT", "/logger", "{\"level\": \"Info\"}", 400, "not supported after starting"},
        {"PATCH", "/vm", "{\"state\": \"Paused\"}", 204, NULL},
        {"GET", "/", NULL, 200, "\"state\":\"Paused\""},
        {"PATCH", "/vm", "{\"state\": \"Resumed\"}", 204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"SendCtrlAltDel\"}", 204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"FlushMetrics\"}", 204, NULL},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\"}", 400, "neither"},
        {"PATCH", "/drives/none", "{\"drive_id\": \"none\", \"path_on_host\": \"@\"}", 400, "Invalid block device ID"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"is_read_only\": true}", 400, "unknown field `is_read_only`"},
        {"PATCH", "/drives/rootfs",
         "{\"drive_id\": \"rootfs\", \"path_on_host\": \"/new\","
         "\"rate_limiter\": {\"ops\": {\"size\": 5, \"refill_time\": 6}}}", 204, NULL},
        {"GET", "/vm/config", NULL, 200, "\"path_on_host\":\"/new\""},
        {"GET", "/drives/none/copy", NULL, 400, "Invalid block device ID: none"},
        {"GET", "/drives/rootfs/copy", NULL, 400, "a disk's copy is not there yet"},
        {"GET", "/drives//copy", NULL, 400, "cannot be empty"},
        {"GET", "/drives/root/fs/copy", NULL, 400, "Invalid request method and/or path"},
        {"PUT", "/drives/rootfs/copy", "{\"kind\": \"Clone\", \"path_on_host\": \"/x\"}", 400, "kind"},
        {"PUT", "/drives/rootfs/snapshot", "{\"path_on_host\": \"/x\"}", 400, "snapshot is not there yet"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"size\": 0}", 400, "size"},
        {"PATCH", "/network-interfaces/eth0",
         "{\"iface_id\": \"eth0\", \"tx_rate_limiter\": {\"bandwidth\": {\"size\": 5, \"refill_time\": 6}}}", 204, NULL},
        {"PATCH", "/balloon", "{\"amount_mib\": 1000}", 400, "cannot exceed"},
        {"PATCH", "/balloon", "{\"amount_mib\": 32}", 204, NULL},
        {"GET", "/balloon", NULL, 200, "\"amount_mib\":32"},
        {"GET", "/balloon/statistics", NULL, 200, "\"actual_mib\":8,\"free_memory\":99}"},
        {"PATCH", "/balloon/statistics", "{\"stats_polling_interval_s\": 2}", 400, "not there yet"},
        {"PATCH", "/balloon/hinting/start", NULL, 204, NULL},
        {"GET", "/balloon/hinting/status", NULL, 200, "{\"host_cmd\":2,\"guest_cmd\":null}"},
        {"PATCH", "/balloon/hinting/stop", NULL, 400, "not there yet"},
        {0}};
    start(f);
    run_cases(f, cases);
    assert_int_equal(f->fake.buttons, 1);
    assert_string_equal(f->fake.path, "/new");
    assert_int_equal(f->fake.limit.ops.size, 5);
    assert_int_equal(f->fake.limit.bandwidth.size, 0);
    assert_false(f->fake.has_rx);
    assert_true(f->fake.has_tx);
    assert_int_equal(f->fake.balloon_mib, 32);
    assert_true(f->fake.acknowledge);
    request(f, "PATCH", "/balloon/hinting/start", "{\"acknowledge_on_stop\": false}", 204, NULL);
    assert_false(f->fake.acknowledge);
}

static void test_throttles(void **state)
{
    struct fixture *f = *state;
    static const struct one_case before[] = {
        {"PUT", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"burst\": 5}}", 400, "missing field `rate`"},
        {"PUT", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 5, \"burst\": 5}}", 400, "above the rate"},
        {"PUT", "/throttles/slow", "{\"throttle_id\": \"slow\", \"bps\": {\"rate\": 9}}", 204, NULL},
        {"PUT", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 100}, \"bps\": null}", 204, NULL},
        {"PATCH", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 5}}", 400, "before starting"},
        {"PUT", "/drives/x", "{\"drive_id\": \"x\", \"is_root_device\": false, \"path_on_host\": \"@\","
         "\"throttle\": {\"weight\": 5}}", 204, NULL},
        {"PUT", "/boot-source", "{\"kernel_image_path\": \"@\"}", 204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 400, "give throttle=NAME too"},
        {"PUT", "/drives/x", "{\"drive_id\": \"x\", \"is_root_device\": false, \"path_on_host\": \"@\","
         "\"throttle\": {\"throttle_id\": \"none\"}}", 204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 400, "there is no group 'none'"},
        {"PUT", "/drives/x", "{\"drive_id\": \"x\", \"is_root_device\": false, \"path_on_host\": \"@\"}", 204, NULL},
        {"PUT", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"is_root_device\": true, \"path_on_host\": \"@\","
         "\"throttle\": {\"throttle_id\": \"slow\", \"reserve\": 60}}", 204, NULL},
        {"PUT", "/actions", "{\"action_type\": \"InstanceStart\"}", 204, NULL},
        {0}};
    static const struct one_case after[] = {
        {"PATCH", "/throttles/none", "{\"throttle_id\": \"none\"}", 400, "Invalid throttle ID: none"},
        {"PATCH", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 50}}", 400, "60 requests a second are reserved"},
        {"PATCH", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 200}, \"read_bps\": {\"rate\": 7}}", 204, NULL},
        {"PATCH", "/drives/x", "{\"drive_id\": \"x\", \"throttle\": {\"weight\": 5}}", 400, "is in no group"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"throttle\": {\"throttle_id\": \"other\"}}", 400, "is in group slow"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"throttle\": {\"reserve\": 201}}", 400, "the group has 200"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"throttle\": {\"weight\": 10001}}", 400, "`weight`"},
        {"PATCH", "/drives/rootfs", "{\"drive_id\": \"rootfs\", \"throttle\": {\"weight\": 300, \"limit\": 90}}", 204, NULL},
        {"GET", "/vm/config", NULL, 200, "\"throttle\":{\"throttle_id\":\"slow\",\"weight\":300,\"reserve\":60,\"limit\":90}"},
        {"GET", "/vm/config", NULL, 200, "\"bps\":null,\"read_bps\":{\"rate\":7,\"burst\":0,\"burst_s\":0}"},
        {0}};
    run_cases(f, before);
    run_cases(f, after);
    assert_int_equal(f->fake.limits.rates[THROTTLE_IOPS].rate, 200);
    assert_int_equal(f->fake.limits.rates[THROTTLE_READ_BPS].rate, 7);
    assert_int_equal(f->fake.share.weight, 300);
    assert_int_equal(f->fake.share.reservation, 60);
    f->fake.fail = -EIO;
    request(f, "PATCH", "/throttles/slow", "{\"throttle_id\": \"slow\", \"iops\": {\"rate\": 70}}", 400, "the fake fails");
    request(f, "GET", "/vm/config", NULL, 200, "\"iops\":{\"rate\":200,");
}

static void test_large_body(void **state)
{
    struct fixture *f = *state;
    struct api_response response;
    char *body = malloc(API_BODY_MAX + 1);
    memset(body, ' ', API_BODY_MAX + 1);
    api_handle(f->api, "PUT", "/entropy", body, API_BODY_MAX + 1, &response);
    assert_int_equal(response.status, 413);
    assert_non_null(strstr(response.body, "larger than the limit of 51200"));
    free(response.body);
    body[0] = '{';
    body[1] = '}';
    api_handle(f->api, "PUT", "/entropy", body, API_BODY_MAX, &response);
    assert_int_equal(response.status, 204);
    free(body);
}

static void test_deprecated(void **state)
{
    struct fixture *f = *state;
    struct api_response response;
    const char *body = "{\"vcpu_count\": 1, \"mem_size_mib\": 128, \"cpu_template\": \"None\"}";
    api_handle(f->api, "PUT", "/machine-config", body, strlen(body), &response);
    assert_int_equal(response.status, 204);
    assert_true(response.deprecated);
}

/* Bytes of a request that end up in a message leave it as plain ASCII. */
static void test_strange_bytes(void **state)
{
    request(*state, "GET", "/\n\xff\"", NULL, 400, "GET ??\\\".");
    request(*state, "PUT", "/entropy", "{\"\\u00e4\\u0007\": 1}", 400, "unknown field `");
    request(*state, "PUT", "/entropy", "{\"a\\u0000b\": 1}", 400, "deserializing");
}

static int apply(struct fixture *f, const char *text, struct err *err)
{
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    int ret = api_apply_config(f->api, root, err);
    json_decref(root);
    return ret;
}

static void test_config_file(void **state)
{
    struct fixture *f = *state;
    struct err err = {0};
    char text[1024];
    snprintf(text, sizeof text,
             "{\"balloon\": {\"amount_mib\": 500, \"deflate_on_oom\": true},"
             "\"machine-config\": {\"vcpu_count\": 2, \"mem_size_mib\": 1024},"
             "\"boot-source\": {\"kernel_image_path\": \"%s\", \"boot_args\": \"x\", \"initrd_path\": null},"
             "\"drives\": [{\"drive_id\": \"rootfs\", \"path_on_host\": \"%s\", \"is_root_device\": true}],"
             "\"network-interfaces\": [], \"vsock\": null}", kernel_path, kernel_path);
    assert_int_equal(apply(f, text, &err), 0);
    assert_int_equal(f->config->cpus, 2);
    assert_int_equal(f->config->disk_count, 1);
    assert_int_equal(f->config->balloon.target_mib, 500);
    assert_true(apply(f, "{\"drive\": []}", &err) < 0);
    assert_non_null(strstr(err.message, "unknown member `drive`"));
    assert_true(apply(f, "{\"drives\": {}}", &err) < 0);
    assert_true(apply(f, "{\"drives\": [3]}", &err) < 0);
    assert_true(apply(f, "{\"drives\": [{\"drive_id\": \"a/b\", \"is_root_device\": false}]}", &err) < 0);
    assert_non_null(strstr(err.message, "alphanumeric"));
    assert_true(apply(f, "{\"vsock\": {\"guest_cid\": 3}}", &err) < 0);
    assert_string_equal(err.message, "vsock: missing field `uds_path`");
    assert_true(api_load_config_file(f->api, "/nope", &err) < 0);
    assert_non_null(strstr(err.message, "config file '/nope': open: No such file"));
}

static void test_metrics(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/api-test-metrics-XXXXXX", body[96], text[8192];
    int fd = mkstemp(path);
    snprintf(body, sizeof body, "{\"metrics_path\": \"%s\"}", path);
    request(f, "PUT", "/metrics", body, 204, NULL);
    request(f, "PUT", "/metrics", body, 400, "already");
    start(f);
    request(f, "PUT", "/actions", "{\"action_type\": \"FlushMetrics\"}", 204, NULL);
    request(f, "PUT", "/actions", "{\"action_type\": \"FlushMetrics\"}", 204, NULL);
    ssize_t len = read(fd, text, sizeof text - 1);
    assert_true(len > 0);
    text[len] = '\0';
    char *second = strchr(text, '\n');
    assert_non_null(second);
    *second++ = '\0';
    json_t *first_line = json_loads(text, 0, NULL), *second_line = json_loads(second, 0, NULL);
    json_t *block = json_object_get(first_line, "block_rootfs"), *later = json_object_get(second_line, "block_rootfs");
    assert_int_equal(json_integer_value(json_object_get(block, "read_count")), 7);
    assert_int_equal(json_integer_value(json_object_get(later, "read_count")), 0);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(second_line, "memory"), "rss_bytes")), 4096);
    json_t *put = json_object_get(first_line, "put_api_requests");
    assert_int_equal(json_integer_value(json_object_get(put, "metrics_count")), 2);
    assert_int_equal(json_integer_value(json_object_get(put, "metrics_fails")), 1);
    assert_true(json_integer_value(json_object_get(first_line, "utc_timestamp_ms")) > 0);
    json_decref(first_line);
    json_decref(second_line);
    close(fd);
    unlink(path);
}

static void test_openapi(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    api_write_openapi(out);
    fclose(out);
    unsigned paths = 0, answers = 0;
    for (const char *p = text; (p = strstr(p, "\n  \"/")); p++)
        paths++;
    for (const char *p = text; (p = strstr(p, "        default:\n")); p++)
        answers++;
    assert_int_equal(paths, 29);
    assert_int_equal(answers, API_OPERATIONS);
    assert_null(strchr(text, '\t'));
    free(text);
}

int main(void)
{
    int fd = mkstemp(kernel_path);
    if (fd < 0)
        return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_before_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_drives, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_interfaces, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_after_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_throttles, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_large_body, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_deprecated, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_strange_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_config_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_metrics, set_up, tear_down),
        cmocka_unit_test(test_openapi),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(kernel_path);
    return failed;
}
