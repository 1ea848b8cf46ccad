/* A microVM: the image's read-only root and a thin writable disk over it, the agent as init. */
#include "control/instance_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include "base/own.h"
#include "control/fault.h"
#include "control/volume.h"
#include "image/image.h"
#include "image/rootfs.h"

#define CMDLINE "console=ttyS0 quiet panic=-1 random.trust_cpu=on"

static json_t *texts(char *const *list)
{
    json_t *array = json_array();
    for (; *list; list++)
        json_array_append_new(array, json_string(*list));
    return array;
}

/* The image's configuration in the shape that instance_spec_process takes. */
static int image_process(struct image_store *images, const char *ref, json_t **ret_config, struct err *err)
{
    struct image image = {0};
    struct image_config config = {0};
    int ret = image_get(images, ref, &image, err);
    if (ret < 0)
        return ret;
    ret = image_config_get(images, &image, &config, err);
    image_clear(&image);
    if (ret < 0)
        return ret;
    *ret_config = json_pack("{s:o, s:o, s:o, s:s, s:s, s:s}", "entrypoint", texts(config.entrypoint), "cmd",
                            texts(config.cmd), "env", texts(config.env), "user", config.user, "workdir", config.workdir,
                            "stop_signal", config.stop_signal);
    image_config_clear(&config);
    return *ret_config ? 0 : err_set(err, ENOMEM, "image '%s'", ref);
}

int instance_check_process(struct instances *instances, const json_t *spec, struct err *err)
{
    own_json json_t *config = NULL;
    own_json json_t *process = NULL;
    if (!instances->config.images || strcmp(json_text(spec, "kind"), "microvm") != 0)
        return 0;
    int ret = image_process(instances->config.images, json_text(spec, "image"), &config, err);
    return ret < 0 ? ret : instance_spec_process(spec, config, &process, err);
}

static int add_kernel(struct launch *launch, struct err *err)
{
    const char *folder = launch->instance->owner->config.guest_dir;
    own_free char *kernel = NULL;
    own_free char *initrd = NULL;
    unsigned kernel_fd = 0, initrd_fd = 0;
    if (!folder)
        return err_say(err, ENOENT, "there is no guest kernel: start polderd with --guest-dir, or build one with "
                                    "tools/guest-image/build microvm");
    if (asprintf(&kernel, "%s/vmlinuz", folder) < 0 || asprintf(&initrd, "%s/initramfs.cpio", folder) < 0)
        return err_set(err, ENOMEM, "kernel");
    int ret = launch_open(launch, kernel, O_RDONLY, &kernel_fd, err);
    if (!ret)
        ret = launch_open(launch, initrd, O_RDONLY, &initrd_fd, err);
    if (!ret)
        ret = launch_arg(launch, err, "--kernel=fd:%u", kernel_fd);
    if (!ret)
        ret = launch_arg(launch, err, "--initrd=fd:%u", initrd_fd);
    if (!ret)
        ret = launch_arg(launch, err, "--cmdline=%s", CMDLINE);
    return ret;
}

static int add_root(struct launch *launch, struct err *err)
{
    const struct instances_config *config = &launch->instance->owner->config;
    own_free char *root = NULL;
    own_free char *disk = instance_path(config->state_dir, launch->instance->id, "root.qcow2");
    char digest[IMAGE_DIGEST_SIZE];
    unsigned root_fd = 0, disk_fd = 0;
    int ret = disk ? image_root(config->images, instance_doc_image(launch->doc), NULL, &root, digest, err)
                   : err_set(err, ENOMEM, "disk");
    if (!ret && access(disk, F_OK) < 0)
        ret = volume_root_create(config->volumes, disk, (uint64_t)json_number(launch->spec, "disk_bytes"), err);
    if (!ret)
        ret = launch_open(launch, root, O_RDONLY, &root_fd, err);
    if (!ret)
        ret = launch_open(launch, disk, O_RDWR, &disk_fd, err);
    if (!ret)
        ret = launch_arg(launch, err, "--disk=fd:%u,format=raw,ro", root_fd);
    if (!ret)
        ret = launch_arg(launch, err, "--disk=fd:%u,format=qcow2", disk_fd);
    return ret;
}

/* All that the agent is told, but for the time. */
static int begin_start(struct launch *launch, struct err *err)
{
    own_json json_t *config = NULL;
    json_t *process = NULL;
    const char *hostname = json_text(launch->spec, "hostname");
    int ret = image_process(launch->instance->owner->config.images, instance_doc_image(launch->doc), &config, err);
    if (!ret)
        ret = instance_spec_process(launch->spec, config, &process, err);
    if (ret < 0)
        return ret;
    launch->start = json_pack("{s:s, s:[], s:[], s:o, s:s}", "hostname",
                              *hostname ? hostname : json_text(launch->doc, "name"), "networks", "mounts", "process",
                              process, "stop_signal", json_text(config, "stop_signal"));
    return launch->start ? 0 : err_set(err, ENOMEM, "start");
}

int launch_microvm(struct launch *launch, struct err *err)
{
    int ret = begin_start(launch, err);
    if (!ret)
        ret = add_kernel(launch, err);
    if (!ret)
        ret = add_root(launch, err);
    fault_here("launch.disk");
    if (!ret)
        ret = launch_volumes(launch, err);
    fault_here("launch.volume");
    return ret;
}
