/* A virtual machine from a disk image, with an init of its own: kernel and initrd of the image, an overlay on its disk, and
 * what cloud-init reads on a small seed disk (NoCloud: a volume named CIDATA with meta-data, user-data, vendor-data,
 * network-config), which brings the agent too. */
#include "control/instance_launch.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "base/child.h"
#include "base/own.h"
#include "image/image.h"
#include "image/rootfs.h"

static int add_blob(struct launch *launch, const char *option, const char *digest, struct err *err)
{
    unsigned number;
    int fd = image_blob_open(launch->instance->owner->config.images, digest, err);
    int ret = fd < 0 ? fd : launch_pass(launch, fd, &number, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--%s=fd:%u", option, number);
}

/* ---- the root disk: the image's own is never written to ---- */

/* The image's disk under a name in the instance's folder: polder-img finds it beside the overlay, and it outlives the image. */
static int link_base(struct launch *launch, const char *digest, const char *path, struct err *err)
{
    char name[32];
    own_fd int fd = image_blob_open(launch->instance->owner->config.images, digest, err);
    if (fd < 0)
        return fd;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, name, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 && errno != EEXIST)
        return err_set(err, errno, "link '%s' to the image's disk", path);
    return 0;
}

static int make_overlay(struct launch *launch, const char *path, uint64_t least_bytes, struct err *err)
{
    uint64_t bytes = (uint64_t)json_number(launch->spec, "disk_bytes");
    own_free char *size = NULL;
    own_free char *part = NULL;
    if (asprintf(&size, "%llu", (unsigned long long)(bytes > least_bytes ? bytes : least_bytes)) < 0 ||
        asprintf(&part, "%s.part", path) < 0)
        return err_set(err, ENOMEM, "disk");
    const char *argv[] = {launch->instance->owner->runtime->img, "create", "-f", "qcow2", "-b", INSTANCE_BASE, "-F", "qcow2",
                          part, size, NULL};
    struct child child = {CHILD_INIT, .argv = argv, .confined = true}; /* a pulled image's disk is foreign */
    unlink(part);
    int ret = child_run(&child, NULL, err);
    if (!ret && rename(part, path) < 0)
        ret = err_set(err, errno, "rename '%s'", part);
    return ret;
}

static int add_disk(struct launch *launch, const struct image_disk_parts *image, struct err *err)
{
    const struct instances_config *config = &launch->instance->owner->config;
    own_free char *path = instance_path(config->state_dir, launch->instance->id, "root.qcow2");
    own_free char *base_path = instance_path(config->state_dir, launch->instance->id, INSTANCE_BASE);
    unsigned disk = 0, base = 0;
    if (!path || !base_path)
        return err_set(err, ENOMEM, "disk");
    int ret = 0;
    if (access(path, F_OK) < 0) {
        ret = link_base(launch, image->disk, base_path, err);
        if (!ret)
            ret = make_overlay(launch, path, image->disk_bytes, err);
    }
    if (!ret)
        ret = launch_open(launch, base_path, O_RDONLY, &base, err);
    if (!ret)
        ret = launch_open(launch, path, O_RDWR, &disk, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--disk=fd:%u,format=qcow2,backing=fd:%u", disk, base);
}

/* ---- the seed ---- */

/* Run once in an instance, early. */
static const char install_agent[] =
    "mkdir -p /run/polder; mount -o ro -L CIDATA /run/polder; install -m 755 /run/polder/polder-agent /usr/local/sbin/;"
    " install -m 644 /run/polder/polder-agent.service /etc/systemd/system/; umount /run/polder; systemctl daemon-reload;"
    " systemctl enable --now --no-block polder-agent";

static const char agent_unit[] =
    "[Unit]\nDescription=Polder's agent: commands, files and figures for the host\nConditionVirtualization=vm\n\n"
    "[Service]\nExecStart=/usr/local/sbin/polder-agent --service\nRestart=on-failure\nOOMScoreAdjust=-900\n"
    "KillMode=process\n\n[Install]\nWantedBy=multi-user.target\n";

static const char network_config[] =
    "version: 2\nethernets:\n  all:\n    match:\n      name: \"e*\"\n    dhcp4: true\n";

/* Volumes are mounted where they belong; vendor data, so that user data may still be anything. JSON is YAML too. */
static char *vendor_data(const struct launch *launch)
{
    size_t i;
    json_t *volume;
    json_t *mounts = json_array();
    json_array_foreach (json_object_get(launch->spec, "volumes"), i, volume) {
        char device[] = {'/', 'd', 'e', 'v', '/', 'v', 'd', LAUNCH_VOLUME_LETTER(i), '\0'};
        json_array_append_new(mounts, json_pack("[s, s, s, s, s, s]", device, json_text(volume, "path"), "ext4",
                                                json_flag(volume, "read_only") ? "ro,nofail" : "defaults,nofail", "0", "2"));
    }
    own_json json_t *config = json_pack("{s:[[s, s, s, s, s, s]], s:o}", "bootcmd", "cloud-init-per", "instance",
                                        "polder-agent", "sh", "-ec", install_agent, "mounts", mounts);
    own_free char *json = config ? json_dumps(config, JSON_COMPACT) : NULL;
    char *text = NULL;
    return json && asprintf(&text, "#cloud-config\n%s\n", json) >= 0 ? text : NULL;
}

static int write_entry(struct archive *archive, const char *name, const void *bytes, size_t size)
{
    struct archive_entry *entry = archive_entry_new();
    if (!entry)
        return ARCHIVE_FATAL;
    archive_entry_set_pathname(entry, name);
    archive_entry_set_size(entry, (la_int64_t)size);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0444);
    int ret = archive_write_header(archive, entry);
    if (ret == ARCHIVE_OK && archive_write_data(archive, bytes, size) < 0)
        ret = ARCHIVE_FATAL;
    archive_entry_free(entry);
    return ret;
}

static int write_agent(const struct launch *launch, struct archive *archive)
{
    const char *folder = launch->instance->owner->config.guest_dir;
    own_free char *path = NULL;
    struct stat st;
    if (!folder || asprintf(&path, "%s/polder-agent", folder) < 0)
        return ARCHIVE_OK; /* a machine without an agent is one still */
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return ARCHIVE_OK;
    void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return ARCHIVE_OK;
    int ret = write_entry(archive, "polder-agent", bytes, (size_t)st.st_size);
    munmap(bytes, (size_t)st.st_size);
    return ret;
}

static int write_seed(const struct launch *launch, struct archive *archive)
{
    char meta[256];
    own_free char *vendor = vendor_data(launch);
    if (!vendor)
        return ARCHIVE_FATAL;
    const char *hostname = json_text(launch->spec, "hostname"), *user_data = json_text(launch->spec, "user_data");
    snprintf(meta, sizeof meta, "instance-id: %s\nlocal-hostname: %s\n", launch->instance->id,
             *hostname ? hostname : json_text(launch->doc, "name"));
    const struct {
        const char *name, *text;
    } files[] = {{"meta-data", meta},
                 {"user-data", *user_data ? user_data : "#cloud-config\n{}\n"},
                 {"vendor-data", vendor},
                 {"network-config", network_config},
                 {"polder-agent.service", agent_unit}};
    int ret = ARCHIVE_OK;
    for (size_t i = 0; i < sizeof files / sizeof *files && ret == ARCHIVE_OK; i++)
        ret = write_entry(archive, files[i].name, files[i].text, strlen(files[i].text));
    return ret == ARCHIVE_OK ? write_agent(launch, archive) : ret;
}

/* ISO 9660 with Rock Ridge and the volume id that cloud-init looks for. */
static int make_seed(const struct launch *launch, const char *path, struct err *err)
{
    struct archive *archive = archive_write_new();
    if (!archive)
        return err_set(err, ENOMEM, "seed");
    int ret = archive_write_set_format_iso9660(archive);
    if (ret == ARCHIVE_OK)
        ret = archive_write_set_options(archive, "volume-id=CIDATA");
    if (ret == ARCHIVE_OK)
        ret = archive_write_open_filename(archive, path);
    if (ret == ARCHIVE_OK)
        ret = write_seed(launch, archive);
    if (ret == ARCHIVE_OK)
        ret = archive_write_close(archive);
    if (ret != ARCHIVE_OK)
        err_say(err, EIO, "seed disk: %.160s", archive_error_string(archive));
    archive_write_free(archive);
    return ret == ARCHIVE_OK ? 0 : -EIO;
}

static int add_seed(struct launch *launch, struct err *err)
{
    own_free char *path = instance_path(launch->instance->owner->config.state_dir, launch->instance->id, "seed.iso");
    unsigned number = 0;
    int ret = path ? make_seed(launch, path, err) : err_set(err, ENOMEM, "seed");
    if (!ret)
        ret = launch_open(launch, path, O_RDONLY, &number, err);
    return ret < 0 ? ret : launch_arg(launch, err, "--disk=fd:%u,format=raw,ro", number);
}

/* ---- the whole ---- */

static int add_all(struct launch *launch, const struct image_disk_parts *image, struct err *err)
{
    int ret = add_blob(launch, "kernel", image->kernel, err);
    if (!ret && *image->initrd)
        ret = add_blob(launch, "initrd", image->initrd, err);
    if (!ret)
        ret = launch_arg(launch, err, "--cmdline=%s", image->cmdline);
    if (!ret)
        ret = add_disk(launch, image, err);
    if (!ret)
        ret = add_seed(launch, err);
    return ret < 0 ? ret : launch_volumes(launch, err);
}

int launch_vm(struct launch *launch, struct err *err)
{
    struct image_disk_parts image;
    launch->start = json_pack("{s:[], s:[]}", "networks", "mounts");
    if (!launch->start)
        return err_set(err, ENOMEM, "instance");
    int ret = image_disk_parts(launch->instance->owner->config.images, instance_doc_image(launch->doc), &image, err);
    return ret < 0 ? ret : add_all(launch, &image, err);
}
