/* What steps do to a machine that runs, and what is left to do when it does not. */
#include "control/instance_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "base/log.h"
#include "base/own.h"
#include "control/fault.h"
#include "control/network.h"
#include "control/vmm_client.h"
#include "control/volume.h"

#define KNOCK_MS 60u    /* a try whether the guest answers */
#define START_MS 30000u /* the agent mounts and starts */
#define CALL_MS 5000u
#define END_MS 2000u    /* a guest that shall end at once has no longer to answer */
#define LOG_TAIL 8192

static char *run_path(const struct instance *instance, const char *name)
{
    return instance_path(instance->owner->config.run_dir, instance->id, name);
}

/* ---- start ---- */

static int read_start(const struct instance *instance, json_t **ret_start, struct err *err)
{
    own_free char *path = run_path(instance, "start.json");
    json_t *start = path ? json_load_file(path, 0, NULL) : NULL;
    struct timespec now;
    if (!start)
        return err_say(err, EIO, "'%s' cannot be read", path);
    clock_gettime(CLOCK_REALTIME, &now);
    json_object_set_new(start, "time_ns", json_integer((json_int_t)now.tv_sec * 1000000000 + now.tv_nsec));
    *ret_start = start;
    return 0;
}

/* The addresses without their prefixes, for the document. */
static json_t *addresses_of(const json_t *start)
{
    size_t i;
    json_t *network;
    json_t *addresses = json_array();
    json_array_foreach (json_object_get(start, "networks"), i, network) {
        const char *address = json_text(network, "address");
        json_array_append_new(addresses, json_stringn(address, strcspn(address, "/")));
    }
    return addresses;
}

/* A start that was sent before a crash of ours is refused the second time: then the main process is there. */
static bool has_begun(const char *vsock)
{
    own_json json_t *reply = NULL;
    return !agent_call(vsock, "ping", NULL, CALL_MS, &reply, NULL) && strcmp(json_text(reply, "state"), "waiting") != 0;
}

static int send_start(struct instance *instance, const char *vsock, const json_t *start, struct err *err)
{
    struct agent_session *session = NULL;
    own_json json_t *reply = NULL;
    int ret = agent_connect(vsock, KNOCK_MS, &session, err);
    if (ret < 0)
        return -EAGAIN;
    ret = agent_request(session, "start", start, START_MS, &reply, err);
    agent_close(session);
    if (ret == -EREMOTEIO && has_begun(vsock))
        return 0;
    /* as shells say it: 127 not found, 126 cannot be run */
    if (ret == -EREMOTEIO && json_number(reply, "code") > 0) {
        instance->has_exit = true;
        instance->exit_code_now = (int)json_number(reply, "code") & 0xff;
    }
    if (ret == -EREMOTEIO || ret == -ETIMEDOUT || ret == -EMSGSIZE || ret == -ENOMEM)
        return ret;
    return ret < 0 ? -EAGAIN : 0; /* the guest restarts, or did not get that far */
}

static int host_greet(struct instance *instance, const json_t *doc, json_t **ret_status, struct err *err)
{
    own_json json_t *start = NULL;
    own_free char *vsock = run_path(instance, "vsock.sock");
    if (!vsock)
        return err_set(err, ENOMEM, "guest");
    int ret = read_start(instance, &start, err);
    if (!ret && !instance_doc_is_vm(doc)) /* a system of its own takes its time, and may have no agent */
        ret = send_start(instance, vsock, start, err);
    if (ret < 0)
        return ret;
    *ret_status = json_pack("{s:o}", "addresses", addresses_of(start));
    return 0;
}

/* ---- while it runs ---- */

static int host_wait(struct instance *instance, struct agent_session **ret_session, struct err *err)
{
    own_free char *vsock = run_path(instance, "vsock.sock");
    return vsock ? agent_open(vsock, "wait", NULL, CALL_MS, ret_session, NULL, err) : err_set(err, ENOMEM, "guest");
}

static int host_ask_to_stop(struct instance *instance, const json_t *doc, unsigned timeout_ms, struct err *err)
{
    (void)doc;
    own_json json_t *start = NULL;
    own_free char *vsock = run_path(instance, "vsock.sock");
    int ret = vsock ? read_start(instance, &start, err) : err_set(err, ENOMEM, "guest");
    if (ret < 0)
        return ret;
    own_json json_t *request = json_pack("{s:i}", "timeout_ms", (int)timeout_ms);
    if (!timeout_ms)
        json_object_set_new(request, "signal", json_string("KILL"));
    else if (*json_text(start, "stop_signal"))
        json_object_set(request, "signal", json_object_get(start, "stop_signal"));
    struct agent_session *session = NULL;
    ret = agent_open(vsock, "shutdown", request, timeout_ms ? CALL_MS : END_MS, &session, NULL, err);
    if (ret < 0)
        return ret;
    if (instance->wait) {
        instance_unwatch_fd(instance, agent_fd(instance->wait));
        agent_close(instance->wait);
    }
    instance->wait = session;
    return 0;
}

static int host_press_power(struct instance *instance, struct err *err)
{
    own_free char *api = run_path(instance, "api.sock");
    return api ? vmm_power_button(api, err) : err_set(err, ENOMEM, "machine");
}

static void set_guest_time(const struct instance *instance)
{
    own_free char *vsock = run_path(instance, "vsock.sock");
    struct timespec now;
    struct err err = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    own_json json_t *time = json_pack("{s:I}", "time_ns", (json_int_t)now.tv_sec * 1000000000 + now.tv_nsec);
    if (vsock && agent_call(vsock, "time", time, CALL_MS, NULL, &err) < 0)
        log_debug("instance %s: time: %s", instance->name, err.message);
}

static int host_set_paused(struct instance *instance, bool paused, struct err *err)
{
    own_free char *api = run_path(instance, "api.sock");
    int ret = api ? vmm_set_paused(api, paused, err) : err_set(err, ENOMEM, "machine");
    if (!ret && !paused)
        set_guest_time(instance);
    return ret;
}

int instance_send_signal(struct instance *instance, const char *signal, struct err *err)
{
    own_free char *vsock = run_path(instance, "vsock.sock");
    own_json json_t *request = json_pack("{s:s}", "signal", signal);
    return vsock ? agent_call(vsock, "signal", request, CALL_MS, NULL, err) : err_set(err, ENOMEM, "guest");
}

/* ---- the end ---- */

/* The last bytes of a log, NUL-terminated. A guest wrote them. */
static void read_tail(const struct instance *instance, const char *name, char text[static LOG_TAIL])
{
    own_free char *path = instance_path(instance->owner->config.state_dir, instance->id, name);
    own_fd int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    ssize_t len = 0;
    if (fd >= 0 && !fstat(fd, &st))
        len = pread(fd, text, LOG_TAIL - 1, st.st_size > LOG_TAIL - 1 ? st.st_size - (LOG_TAIL - 1) : 0);
    text[len > 0 ? len : 0] = '\0';
}

/* The code in the last exit line of the serial port's log, -1 without one. */
static int logged_code(const struct instance *instance)
{
    char text[LOG_TAIL];
    int code = -1;
    read_tail(instance, "boot.log", text);
    for (const char *line = text; (line = strstr(line, AGENT_EXIT_LINE)); line++) {
        int found;
        if (sscanf(line + strlen(AGENT_EXIT_LINE), "%3d", &found) == 1 && found >= 0 && found <= 255)
            code = found;
    }
    return code;
}

/* The last line that polder-vmm said, printable. */
static void last_words(const struct instance *instance, char *words, size_t size)
{
    char text[LOG_TAIL];
    read_tail(instance, "vmm.log", text);
    size_t len = strlen(text);
    while (len && text[len - 1] == '\n')
        text[--len] = '\0';
    const char *line = strrchr(text, '\n');
    snprintf(words, size, "%s", line ? line + 1 : text);
    for (char *c = words; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

/* Whether the kernel ended it for that. */
static bool ran_out_of_memory(const struct instance *instance)
{
    own_free char *path = instance_cgroup(instance);
    struct cgroup_usage usage = {0};
    return path && cgroup_read(path, &usage, NULL) == 0 && usage.oom_kills;
}

static int host_ended(struct instance *instance, const json_t *doc, int *ret_code, char *text, size_t size, struct err *err)
{
    (void)err;
    if (*ret_code < 0)
        *ret_code = logged_code(instance);
    if (*ret_code < 0 && ran_out_of_memory(instance))
        snprintf(text, size, "the machine needed more memory than its limit allows: give it more (--memory)");
    else if (*ret_code < 0)
        last_words(instance, text, size);
    if (*ret_code < 0 && instance_doc_is_vm(doc) && !*text)
        *ret_code = 0; /* it powered off */
    if (*ret_code < 0 && !*text)
        snprintf(text, size, "the machine ended without a word; its console may tell: polder logs --source boot");
    instance_let_go(instance, doc);
    return 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) < 0 && errno != ENOENT ? -1 : 0;
}

static int remove_folder(const char *root, const char *id, struct err *err)
{
    own_free char *path = instance_path(root, id, NULL);
    if (!path)
        return err_set(err, ENOMEM, "folder");
    if (nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
        return err_set(err, errno, "remove '%s'", path);
    return 0;
}

static int host_clean(struct instance *instance, const json_t *doc, struct err *err)
{
    const struct instances_config *config = &instance->owner->config;
    instance_let_go(instance, doc);
    int ret = config->networks ? network_release(config->networks, instance->id, err) : 0;
    fault_here("clean.network");
    if (!ret)
        ret = remove_folder(config->run_dir, instance->id, err);
    fault_here("clean.run");
    if (!ret)
        ret = remove_folder(config->state_dir, instance->id, err);
    fault_here("clean.state");
    return ret;
}

void instance_remove_folders(struct instances *instances, const char *id)
{
    struct err err = {0};
    if (remove_folder(instances->config.run_dir, id, &err) < 0 || remove_folder(instances->config.state_dir, id, &err) < 0)
        log_warn("instance %s: %s", id, err.message);
}

const struct instance_ops instance_ops_host = {
    .launch = instance_launch,
    .greet = host_greet,
    .wait = host_wait,
    .ask_to_stop = host_ask_to_stop,
    .press_power = host_press_power,
    .set_paused = host_set_paused,
    .ended = host_ended,
    .clean = host_clean,
};
