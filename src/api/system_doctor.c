/* Checks of the host, one function each. A check that is not ok says what does not work without it, and the cure. */
#include "api/system.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/own.h"
#include "base/program_find.h"
#include "control/instance.h"
#include "control/network.h"

#define DISK_LOW_BYTES (UINT64_C(2) << 30)

struct result {
    bool ok;
    char detail[320], cure[320];
};

struct check {
    const char *name;
    void (*run)(const struct check *check, struct platform *platform, struct result *result);
    const char *program, *package, *needed_for; /* of a check for a program */
};

#define SAY(result, member, ...) snprintf((result)->member, sizeof(result)->member, __VA_ARGS__)

static void check_engine(const struct check *check, struct platform *platform, struct result *result)
{
    (void)check;
    (void)platform;
    json_t *engine = system_engine();
    const char *name = json_string_value(json_object_get(engine, "name"));
    result->ok = name && *name;
    SAY(result, detail, "%s: %s", result->ok ? name : "none", json_string_value(json_object_get(engine, "reason")));
    if (!result->ok)
        SAY(result, cure, "an x86-64-v3 CPU (AVX2, BMI2) or a working /dev/kvm is needed");
    json_decref(engine);
}

static void check_kvm(const struct check *check, struct platform *platform, struct result *result)
{
    (void)check;
    (void)platform;
    own_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    result->ok = fd >= 0;
    if (result->ok) {
        SAY(result, detail, "/dev/kvm can be opened");
        return;
    }
    SAY(result, detail, "/dev/kvm: %s; instances run by the jit engine", strerror(errno));
    SAY(result, cure, "load kvm_intel or kvm_amd, and let polderd's user open /dev/kvm (group kvm)");
}

static void check_cgroup(const struct check *check, struct platform *platform, struct result *result)
{
    const char *why, *cure;
    (void)check;
    result->ok = instances_keep_limits(platform->instances, &why, &cure);
    SAY(result, detail, "%s", result->ok ? "limits of CPU, memory and tasks are kept by cgroup v2" : why);
    if (!result->ok)
        SAY(result, cure, "%s", cure);
}

static void check_network(const struct check *check, struct platform *platform, struct result *result)
{
    struct err err = {0};
    (void)check;
    result->ok = networks_nat_available(platform->networks, &err) == 0;
    SAY(result, detail, "%s", result->ok ? "networks of kind nat can be had" : err.message);
    if (!result->ok)
        SAY(result, cure, "run polderd as root for nat; networks of kind user work without");
}

static void check_program(const struct check *check, struct platform *platform, struct result *result)
{
    struct err err = {0};
    own_free char *path = NULL;
    (void)platform;
    result->ok = program_find(check->program, check->package, &path, &err) == 0;
    if (result->ok) {
        SAY(result, detail, "%s", path);
        return;
    }
    SAY(result, detail, "%s is not there: no %s", check->program, check->needed_for);
    SAY(result, cure, "apt-get install %s", check->package);
}

static void check_guest(const struct check *check, struct platform *platform, struct result *result)
{
    static const char *const files[] = {"vmlinuz", "initramfs.cpio"};
    (void)check;
    result->ok = platform->guest_dir != NULL;
    SAY(result, detail, "%s", result->ok ? platform->guest_dir : "no folder with the guests' kernel: microVMs do not start");
    for (size_t i = 0; result->ok && i < sizeof files / sizeof *files; i++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/%s", platform->guest_dir, files[i]);
        if (access(path, R_OK) == 0)
            continue;
        result->ok = false;
        SAY(result, detail, "'%.200s' cannot be read: microVMs do not start", path);
    }
    if (!result->ok)
        SAY(result, cure, "make them by tools/guest-image/build microvm, and give --guest-dir");
}

static void check_disk(const struct check *check, struct platform *platform, struct result *result)
{
    struct statvfs st;
    (void)check;
    if (statvfs(platform->state_dir, &st) < 0) {
        SAY(result, detail, "%.200s: %s", platform->state_dir, strerror(errno));
        return;
    }
    uint64_t available = (uint64_t)st.f_bavail * st.f_frsize;
    result->ok = available >= DISK_LOW_BYTES;
    SAY(result, detail, "%llu MiB free for %.200s", (unsigned long long)(available >> 20), platform->state_dir);
    if (!result->ok)
        SAY(result, cure, "free space, or polder system prune");
}

static void check_user_namespaces(const struct check *check, struct platform *platform, struct result *result)
{
    (void)check;
    (void)platform;
    unsigned long most = 0;
    FILE *file = fopen("/proc/sys/user/max_user_namespaces", "re");
    if (file && fscanf(file, "%lu", &most) != 1) /* NOLINT(cert-err34-c): the kernel's number */
        most = 0;
    if (file)
        fclose(file);
    result->ok = most > 0;
    SAY(result, detail, "the kernel allows %lu user namespaces", most);
    if (!result->ok)
        SAY(result, cure, "sysctl user.max_user_namespaces=15000; until then instances start only with polderd --no-sandbox, "
                          "and from images only if it is root");
}

static const struct check checks[] = {
    {"engine", check_engine, NULL, NULL, NULL},
    {"kvm", check_kvm, NULL, NULL, NULL},
    {"cgroups", check_cgroup, NULL, NULL, NULL},
    {"user-namespaces", check_user_namespaces, NULL, NULL, NULL},
    {"guest-files", check_guest, NULL, NULL, NULL},
    {"disk-space", check_disk, NULL, NULL, NULL},
    {"network-nat", check_network, NULL, NULL, NULL},
    {"nft", check_program, "nft", "nftables", "rules to look at (polderd itself uses libnftables)"},
    {"dnsmasq", check_program, "dnsmasq", "dnsmasq-base", "networks of kind nat"},
    {"passt", check_program, "passt", "passt", "networks of kind user"},
    {"mkfs.erofs", check_program, "mkfs.erofs", "erofs-utils", "instances of images"},
    {"mke2fs", check_program, "mke2fs", "e2fsprogs", "root disks and volumes with a file system"},
    {"mmdebstrap", check_program, "mmdebstrap", "mmdebstrap", "polder image build"},
};

json_t *system_doctor(struct platform *platform)
{
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        struct result result = {0};
        checks[i].run(&checks[i], platform, &result);
        json_array_append_new(list, json_pack("{s:s, s:b, s:s, s:s}", "name", checks[i].name, "ok", result.ok, "detail",
                                              result.detail, "cure", result.cure));
    }
    return list;
}
