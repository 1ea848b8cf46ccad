#include "sandbox/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/own.h"

#define PERIOD_US 100000u
#define FILE_MAX 4096
#define CURE_V1 "boot with systemd.unified_cgroup_hierarchy=1"
#define CURE_USER "start polderd by systemd-run --user -p Delegate=yes, or by a unit with Delegate=yes (systemd.resource-control(5))"
#define REMOVE_TRIES 100 /* of 10 ms */

/* Memory first: see delegate(). */
static const struct {
    const char *name;
    unsigned bit;
} controllers[] = {{"memory", CGROUP_MEMORY}, {"cpu", CGROUP_CPU}, {"pids", CGROUP_PIDS}};
#define CONTROLLERS (sizeof controllers / sizeof controllers[0])

/* ---- files ---- */

/* `ret_text`: FILE_MAX bytes. */
static int read_text(const char *folder, const char *name, char *ret_text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret_text, FILE_MAX - 1);
    ret_text[n < 0 ? 0 : n] = '\0';
    return n < 0 ? -errno : 0;
}

static int write_text(const char *folder, const char *name, const char *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    own_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* The number behind the word `key` at the start of a line; 0 when there is none. */
static uint64_t number_of(const char *text, const char *key)
{
    size_t len = strlen(key);
    for (const char *line = text; line; line = (line = strchr(line, '\n')) ? line + 1 : NULL)
        if (strncmp(line, key, len) == 0 && line[len] == ' ')
            return strtoull(line + len, NULL, 10);
    return 0;
}

static unsigned controllers_in(const char *folder, const char *file)
{
    char text[FILE_MAX], *save = NULL;
    unsigned found = 0;
    if (read_text(folder, file, text) < 0)
        return 0;
    for (const char *word = strtok_r(text, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
        for (unsigned i = 0; i < CONTROLLERS; i++)
            found |= strcmp(word, controllers[i].name) == 0 ? controllers[i].bit : 0;
    return found;
}

/* ---- the host ---- */

/* Where the one hierarchy of v2 is mounted; alone, or beside those of v1. */
static const char *find_mount(void)
{
    static const char *const places[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    for (unsigned i = 0; i < 2; i++) {
        char text[FILE_MAX] = "";
        if (read_text(places[i], "cgroup.controllers", text) == 0)
            return places[i];
    }
    return NULL;
}

/* For root at the top; for a user in the group that the session manager gave it, if it did. */
static char *find_base(const char *mount)
{
    char text[FILE_MAX], *base = NULL;
    if (geteuid() == 0)
        return strdup(mount);
    const char *own = read_text("/proc/self", "cgroup", text) == 0 ? strstr(text, "0::/") : NULL;
    if (own && asprintf(&base, "%s%.*s", mount, (int)strcspn(own + 3, "\n"), own + 3) < 0)
        return NULL;
    return base;
}

static void delegate(const char *folder)
{
    for (unsigned i = 0; i < CONTROLLERS; i++) {
        char word[16];
        snprintf(word, sizeof word, "+%s", controllers[i].name);
        /* What this did shows in the end. But a group with processes hands on cpu and pids alone, and those below it are then
         * for threads only: all or none. */
        if (write_text(folder, "cgroup.subtree_control", word) == -EBUSY)
            return;
    }
}

/* A group that hands controllers on has no processes, but for the one at the top: in the way itself, this one steps aside. */
static void step_aside(const char *base, const char *name)
{
    char aside[PATH_MAX];
    snprintf(aside, sizeof aside, "%s/%s-daemon", base, name);
    if (geteuid() != 0 && (mkdir(aside, 0755) == 0 || errno == EEXIST))
        (void)write_text(aside, "cgroup.procs", "0");
}

static void say_missing(struct cgroup_host *host)
{
    char names[64] = "";
    for (unsigned i = 0; i < CONTROLLERS; i++)
        if (!(host->available & controllers[i].bit))
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? ", " : "", controllers[i].name);
    bool v1 = access("/sys/fs/cgroup/memory/cgroup.procs", F_OK) == 0 || access("/sys/fs/cgroup/cpu/cgroup.procs", F_OK) == 0;
    if (!*names)
        return;
    const char *why = v1               ? "they are bound to cgroup v1"
                      : geteuid() == 0 ? "the kernel lacks them, or the groups above do not hand them on"
                                       : "they are not delegated to this user";
    snprintf(host->message, sizeof host->message, "cgroup v2 has no controller %s here: %s", names, why);
    host->cure = v1               ? CURE_V1
                 : geteuid() == 0 ? "look at cgroup.controllers and cgroup.subtree_control from /sys/fs/cgroup down"
                                  : CURE_USER;
}

void cgroup_host_init(const char *name, struct cgroup_host *ret_host)
{
    *ret_host = (struct cgroup_host){0};
    const char *mount = find_mount();
    own_free char *base = mount ? find_base(mount) : NULL;
    char *parent = NULL;
    if (!base || asprintf(&parent, "%s/%s", base, name) < 0) {
        snprintf(ret_host->message, sizeof ret_host->message,
                 "no cgroup v2 is mounted below /sys/fs/cgroup: CPU and memory have no limits");
        ret_host->cure = CURE_V1;
        return;
    }
    step_aside(base, name);
    delegate(base);
    if (mkdir(parent, 0755) < 0 && (errno != EEXIST || access(parent, W_OK) < 0)) { /* it may be root's */
        snprintf(ret_host->message, sizeof ret_host->message, "cgroup '%.120s' cannot be made (%s): CPU and memory have no limits", parent,
                 strerror(errno));
        ret_host->cure = geteuid() == 0 ? "mount /sys/fs/cgroup for writing" : CURE_USER;
        free(parent);
        return;
    }
    delegate(parent);
    ret_host->parent = parent;
    ret_host->available = controllers_in(parent, "cgroup.subtree_control");
    say_missing(ret_host);
}

void cgroup_host_free(struct cgroup_host *host)
{
    free(host->parent);
    *host = (struct cgroup_host){0};
}

/* ---- one group ---- */

static int set_number(const char *path, const char *file, uint64_t value, struct err *err)
{
    char text[64];
    if (value)
        snprintf(text, sizeof text, "%" PRIu64, value);
    else
        snprintf(text, sizeof text, "%s", strcmp(file, "cpu.weight") == 0 ? "100" : "max");
    int r = write_text(path, file, text);
    return r < 0 ? err_set(err, -r, "%s of '%s'", file, path) : 0;
}

static int set_quota(const char *path, uint64_t quota_us, struct err *err)
{
    char text[64];
    if (quota_us)
        snprintf(text, sizeof text, "%" PRIu64 " %u", quota_us, PERIOD_US);
    else
        snprintf(text, sizeof text, "max %u", PERIOD_US);
    int r = write_text(path, "cpu.max", text);
    return r < 0 ? err_set(err, -r, "cpu.max of '%s'", path) : 0;
}

int cgroup_set(const struct cgroup_host *host, const char *path, const struct cgroup_limits *limits, struct err *err)
{
    int r = 0;
    if (host->available & CGROUP_CPU) {
        r = set_number(path, "cpu.weight", limits->cpu_weight, err);
        if (r == 0)
            r = set_quota(path, limits->cpu_quota_us, err);
    }
    if (r == 0 && host->available & CGROUP_MEMORY) {
        r = set_number(path, "memory.high", limits->memory_high, err);
        if (r == 0)
            r = set_number(path, "memory.max", limits->memory_max, err);
    }
    return r == 0 && host->available & CGROUP_PIDS ? set_number(path, "pids.max", limits->pids_max, err) : r;
}

int cgroup_create(const struct cgroup_host *host, const char *name, const struct cgroup_limits *limits, char **ret_path,
                  struct err *err)
{
    own_free char *path = NULL;
    *ret_path = NULL;
    if (!host->parent)
        return 0;
    if (asprintf(&path, "%s/%s", host->parent, name) < 0)
        return err_set(err, ENOMEM, "cgroup");
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_set(err, errno, "cgroup '%s'", path);
    int r = cgroup_set(host, path, limits, err);
    if (r == 0)
        *ret_path = TAKE(path);
    return r;
}

int cgroup_read(const char *path, struct cgroup_usage *ret_usage, struct err *err)
{
    char text[FILE_MAX] = "";
    struct cgroup_usage usage = {0};
    int r = read_text(path, "cpu.stat", text);
    if (r < 0)
        return err_set(err, -r, "cgroup '%s'", path);
    usage.cpu_us = number_of(text, "usage_usec");
    usage.throttled_us = number_of(text, "throttled_usec");
    if (read_text(path, "memory.current", text) == 0)
        usage.memory_bytes = strtoull(text, NULL, 10);
    if (read_text(path, "memory.peak", text) == 0)
        usage.memory_peak_bytes = strtoull(text, NULL, 10);
    if (read_text(path, "memory.events", text) == 0)
        usage.oom_kills = number_of(text, "oom_kill");
    *ret_usage = usage;
    return 0;
}

/* Linux before 5.14 has no cgroup.kill. */
static void kill_all(const char *path)
{
    char text[FILE_MAX], *save = NULL;
    if (write_text(path, "cgroup.kill", "1") == 0 || read_text(path, "cgroup.procs", text) < 0)
        return;
    for (const char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        long pid = strtol(line, NULL, 10);
        if (pid > 0)
            kill((pid_t)pid, SIGKILL);
    }
}

int cgroup_remove(const char *path, struct err *err)
{
    for (unsigned i = 0; i < REMOVE_TRIES; i++) {
        if (rmdir(path) == 0 || errno == ENOENT)
            return 0;
        if (errno != EBUSY)
            return err_set(err, errno, "remove cgroup '%s'", path);
        kill_all(path);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return err_say(err, EBUSY, "cgroup '%s' has processes that do not end", path);
}
