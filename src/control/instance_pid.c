/* Processes of machines across restarts of the daemon: who runs is told by a file with pid and start time, which together
 * name a process as long as the host is up (proc(5), field 22 of stat). */
#include "control/instance_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/log.h"
#include "base/own.h"

char *instance_path(const char *root, const char *id, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/instances/%s%s%s", root, id, name ? "/" : "", name ? name : "") < 0)
        return NULL;
    return path;
}

/* Up to `size` - 1 bytes of a small file, NUL-terminated. */
static ssize_t read_small(const char *path, char *text, size_t size)
{
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? -1 : read(fd, text, size - 1);
    text[len > 0 ? len : 0] = '\0';
    return len;
}

/* Clock ticks since the host's start; 0 when there is no such process. */
static unsigned long long start_time(pid_t pid)
{
    char path[64], text[1024];
    unsigned long long ticks = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_small(path, text, sizeof text) <= 0)
        return 0;
    /* the name, field 2, may hold anything but ends at the last parenthesis */
    const char *field = strrchr(text, ')');
    for (int i = 2; field && i < 22; i++)
        field = strchr(field + 1, ' ');
    if (field && sscanf(field, " %llu", &ticks) != 1)
        ticks = 0;
    return ticks;
}

int instance_pid_write(struct instances *instances, const char *id, pid_t pid, struct err *err)
{
    own_free char *path = instance_path(instances->config.run_dir, id, "vmm.pid");
    own_free char *part = instance_path(instances->config.run_dir, id, "vmm.pid.part");
    char text[64];
    if (!path || !part)
        return err_set(err, ENOMEM, "pid file");
    int len = snprintf(text, sizeof text, "%d %llu\n", (int)pid, start_time(pid));
    own_fd int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)len) != len || rename(part, path) < 0)
        return err_set(err, errno, "write '%s'", path);
    return 0;
}

int instance_pid_read(struct instances *instances, const char *id, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    own_free char *path = instance_path(instances->config.run_dir, id, "vmm.pid");
    char text[64];
    int pid;
    unsigned long long ticks;
    if (!path || read_small(path, text, sizeof text) <= 0 || sscanf(text, "%d %llu", &pid, &ticks) != 2 || pid <= 1)
        return err_set(err, ESRCH, "instance %s", id);
    own_fd int pidfd = pidfd_open(pid, 0);
    /* in this order: the pid that is open now is the one whose start is looked at, or it has ended */
    if (pidfd < 0 || start_time(pid) != ticks)
        return err_set(err, ESRCH, "instance %s", id);
    *ret_pid = pid;
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}

/* ---- leftovers ---- */

/* The argument behind `--id` of a process of ours that runs polder-vmm. */
static bool machine_id(const char *pid, char id[static INSTANCE_ID_SIZE])
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%.20s/cmdline", pid);
    ssize_t len = read_small(path, text, sizeof text);
    const char *slash = len > 0 ? strrchr(text, '/') : NULL;
    if (len <= 0 || strcmp(slash ? slash + 1 : text, "polder-vmm") != 0)
        return false;
    for (const char *word = text; word < text + len; word += strlen(word) + 1) {
        const char *next = word + strlen(word) + 1;
        if (!strcmp(word, "--id") && next < text + len && strlen(next) == INSTANCE_ID_SIZE - 1) {
            memcpy(id, next, INSTANCE_ID_SIZE);
            return true;
        }
    }
    return false;
}

/* A machine was started, but not yet noted, when the daemon died. Its folder shows that it is this daemon's. */
static void end_stray(struct instances *instances, const char *only, const char *pid_text)
{
    char id[INSTANCE_ID_SIZE];
    pid_t pid = atoi(pid_text);
    own_fd int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0 || !machine_id(pid_text, id) || (only && strcmp(id, only) != 0))
        return;
    own_free char *folder = instance_path(instances->config.run_dir, id, NULL);
    if (!folder || access(folder, F_OK) < 0)
        return;
    own_instance struct instance *instance = instance_find(instances, id);
    if (instance && instance->pidfd >= 0 && instance->pid == pid)
        return;
    log_warn("instance %s: ends process %d, which was not noted", id, (int)pid);
    pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
}

static bool is_id(const char *name)
{
    return strlen(name) == INSTANCE_ID_SIZE - 1 && strspn(name, "0123456789abcdef") == INSTANCE_ID_SIZE - 1;
}

/* A document may be missing because an older store came back: what its disk holds must not go for that. */
static void keep_folder(const struct instances *instances, const char *id)
{
    own_free char *from = instance_path(instances->config.state_dir, id, NULL);
    own_free char *lost = NULL;
    own_free char *to = NULL;
    if (!from || asprintf(&lost, "%s/lost", instances->config.state_dir) < 0 || asprintf(&to, "%s/%s", lost, id) < 0)
        return;
    if ((mkdir(lost, 0700) < 0 && errno != EEXIST) || rename(from, to) < 0)
        log_error("instance %s: no document knows it, and '%s' cannot be moved to '%s': %s", id, from, to, strerror(errno));
    else
        log_warn("instance %s: no document knows it; what it had is in '%s'", id, to);
}

static bool is_known(struct instances *instances, const char *id)
{
    own_instance struct instance *instance = instance_find(instances, id);
    return instance;
}

static void keep_unknown(struct instances *instances)
{
    own_free char *path = instance_path(instances->config.state_dir, "", NULL);
    DIR *folder = path ? opendir(path) : NULL;
    const struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        if (is_id(entry->d_name) && !is_known(instances, entry->d_name))
            keep_folder(instances, entry->d_name);
    }
    if (folder)
        closedir(folder);
}

/* Instances that have folders but no document: their steps clean up. */
static void find_leftovers(struct instances *instances, const char *root)
{
    own_free char *path = instance_path(root, "", NULL);
    DIR *folder = path ? opendir(path) : NULL;
    const struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        if (!is_id(entry->d_name))
            continue;
        own_json json_t *doc = json_pack("{s:s, s:s}", "id", entry->d_name, "name", "");
        own_instance struct instance *instance = doc ? instance_add(instances, doc) : NULL;
        if (instance && instance->pidfd < 0 &&
            instance_pid_read(instances, instance->id, &instance->pid, &instance->pidfd, NULL) < 0)
            instance->pidfd = -1;
    }
    if (folder)
        closedir(folder);
}

void instance_end_strays(struct instances *instances, const char *only)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
            end_stray(instances, only, entry->d_name);
    }
    if (proc)
        closedir(proc);
}

void instance_adopt_all(struct instances *instances)
{
    instance_end_strays(instances, NULL);
    if (instances->config.keep_unknown)
        keep_unknown(instances);
    find_leftovers(instances, instances->config.state_dir);
    find_leftovers(instances, instances->config.run_dir);
}
