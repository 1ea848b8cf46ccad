/* Handlers that configure the machine before its start: all but disks and network interfaces
 * (api_config_devices.c).
 *
 * With api->lock held. A handler checks everything first and changes the config last, so that a refused
 * request leaves it as it was. */
#include "vmm/api_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"

#define MIB_SHIFT 20

/* ---- boot source ---- */

static int check_readable(const char *what, const char *path, struct err *err)
{
    own_fd int fd = fdname_open(path, O_RDONLY | O_NONBLOCK, 0);
    return fd < 0 ? err_set(err, errno, "The %s file cannot be opened: '%.100s'", what, path) : 0;
}

int api_put_boot_source(struct api *api, const struct api_request *request, json_t **ret_answer,
                        struct err *err)
{
    (void)ret_answer;
    const char *kernel = api_string(request->body, "kernel_image_path");
    const char *initrd = api_string(request->body, "initrd_path");
    const char *args = api_string(request->body, "boot_args");
    int ret = check_readable("kernel", kernel, err);
    if (ret == 0 && initrd)
        ret = check_readable("initrd", initrd, err);
    if (ret < 0)
        return err_ctx(err, "Boot source error");
    struct vm_config *config = api->config;
    ret = vm_config_set(&config->kernel, kernel, err);
    if (ret == 0)
        ret = vm_config_set(&config->initrd, initrd, err);
    if (ret == 0)
        ret = vm_config_set(&config->cmdline, args, err);
    return ret;
}

/* ---- machine ---- */

static int check_machine(const struct vm_config *config, const json_t *body, uint64_t mib, bool hugepages,
                         struct err *err)
{
    const char *template = api_string(body, "cpu_template");
    if (api_bool(body, "smt", false))
        return err_say(err, ENOTSUP, "smt is not there yet: each vCPU is a core of its own");
    if (template && strcmp(template, "None") != 0)
        return err_say(err, ENOTSUP, "cpu_template '%s' is not there: choose a cpu_model, such as x86-64-v3",
                       template);
    if (hugepages && mib % 2)
        return err_say(err, EINVAL, "The memory size (MiB) is not a multiple of the configured page size.");
    if (config->balloon.present && config->balloon.target_mib > mib)
        return err_say(err, EINVAL,
                       "The memory size (MiB) is smaller than the target of the balloon, %llu MiB.",
                       (unsigned long long)config->balloon.target_mib);
    return 0;
}

static int set_engine_fields(struct vm_config *config, const json_t *body, struct err *err)
{
    char **const fields[] = {&config->cpu_model, &config->engine, &config->engine_options};
    static const char *const names[] = {"cpu_model", "engine", "engine_options"};
    int ret = 0;
    for (unsigned i = 0; ret == 0 && i < sizeof names / sizeof names[0]; i++) {
        if (api_has(body, names[i]))
            ret = vm_config_set(fields[i], api_string(body, names[i]), err);
    }
    return ret;
}

/* PUT and PATCH. A PUT sets the members of Firecracker that it leaves out back to their defaults; our own
 * stay, so that what the command line chose holds for clients that do not know of them. */
int api_put_machine_config(struct api *api, const struct api_request *request, json_t **ret_answer,
                           struct err *err)
{
    (void)ret_answer;
    struct vm_config *config = api->config;
    const json_t *body = request->body;
    bool partial = request->operation->partial;
    const char *huge = api_string(body, "huge_pages");
    bool hugepages = huge ? !strcmp(huge, "2M") : partial && config->hugepages;
    uint64_t mib = api_integer(body, "mem_size_mib", config->memory_bytes >> MIB_SHIFT);
    if (partial && !json_object_size(body))
        return err_say(err, EINVAL, "Empty PATCH request.");
    int ret = check_machine(config, body, mib, hugepages, err);
    if (ret == 0)
        ret = set_engine_fields(config, body, err);
    if (ret < 0)
        return err_ctx(err, "Machine config error");
    config->cpus = (unsigned)api_integer(body, "vcpu_count", config->cpus);
    if (api_has(body, "mem_size_mib"))
        config->memory_bytes = mib << MIB_SHIFT;
    config->hugepages = hugepages;
    config->track_dirty_pages = api_bool(body, "track_dirty_pages", partial && config->track_dirty_pages);
    return 0;
}

/* ---- single devices ---- */

int api_put_vsock(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_vsock *vsock = &api->config->vsock;
    const char *path = api_string(request->body, "uds_path");
    if (!*path)
        return err_say(err, EINVAL, "Vsock config error: uds_path is empty");
    int ret = vm_config_set(&vsock->uds_path, path, err);
    if (ret < 0)
        return ret;
    vsock->cid = (uint32_t)api_integer(request->body, "guest_cid", 3);
    vsock->present = true;
    return 0;
}

int api_put_balloon(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const json_t *body = request->body;
    uint64_t target_mib = api_integer(body, "amount_mib", 0);
    if (target_mib > api->config->memory_bytes >> MIB_SHIFT)
        return err_say(err, EINVAL,
                       "Balloon config error: Amount of pages requested cannot exceed memory size.");
    api->config->balloon = (struct vm_balloon){
        .present = true,
        .target_mib = target_mib,
        .deflate_on_oom = api_bool(body, "deflate_on_oom", false),
        .stats_interval_s = (unsigned)api_integer(body, "stats_polling_interval_s", 0),
        .free_page_reporting = api_bool(body, "free_page_reporting", false),
        .free_page_hinting = api_bool(body, "free_page_hinting", false),
    };
    return 0;
}

int api_put_entropy(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    (void)err;
    struct vm_entropy *entropy = &api->config->entropy;
    *entropy = (struct vm_entropy){.present = true};
    api_rate_limit_update(&entropy->limit, json_object_get(request->body, "rate_limiter"));
    return 0;
}

int api_put_serial(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    struct vm_console *console = &api->config->console;
    const char *path = api_string(request->body, "serial_out_path");
    if (api_has(request->body, "rate_limiter"))
        return err_say(err, ENOTSUP,
                       "The requested operation is not supported: a serial rate_limiter is not there yet.");
    int ret = vm_config_set(&console->path, path, err);
    if (ret == 0)
        console->mode = path ? VM_CONSOLE_FILE : VM_CONSOLE_STDIO;
    return ret;
}

/* ---- logger ---- */

/* The log's file may be written by other threads right now: its descriptor keeps its number when the file
 * changes. */
static int log_switch(struct api *api, const char *path, struct err *err)
{
    own_fd int fd = api->open_output(path);
    if (fd < 0)
        return err_set(err, -fd, "Logger error: log file '%.100s'", path);
    if (api->log_fd < 0) {
        api->log_fd = TAKE_FD(fd);
        log_to(api->log_fd);
    } else if (dup3(fd, api->log_fd, O_CLOEXEC) < 0) {
        return err_set(err, errno, "Logger error: log file '%.100s'", path);
    }
    return 0;
}

static enum log_level level_of(const char *level)
{
    enum log_level parsed;
    if (!strcasecmp(level, "Trace"))
        return LOG_DEBUG;
    return log_level_parse(level, &parsed) ? parsed : LOG_ERROR;
}

int api_put_logger(struct api *api, const struct api_request *request, json_t **ret_answer, struct err *err)
{
    (void)ret_answer;
    const char *level = api_string(request->body, "level");
    const char *path = api_string(request->body, "log_path");
    bool off = level && !strcasecmp(level, "Off");
    if (api_has(request->body, "module"))
        return err_say(err, ENOTSUP,
                       "The requested operation is not supported: a log of one module is not there yet.");
    int ret = off || path ? log_switch(api, off ? "/dev/null" : path, err) : 0;
    if (ret == 0 && path)
        ret = vm_config_set(&api->config->log_path, path, err);
    if (ret == 0 && level)
        api->config->log_level = log_threshold = level_of(level);
    return ret;
}
