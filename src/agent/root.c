#include "agent/root.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent/modules.h"
#include "base/own.h"

#define NEW_ROOT "/root"
#define DISK_WAIT_MS 5000
#define DISKS_MAX 32

struct mount_line {
    const char *fs, *path;
    unsigned long flags;
    const char *data;
};

/* In the initramfs; moved into the image's root. */
static const struct mount_line early[] = {
    {"devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755"},
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

/* In the image's root. */
static const struct mount_line late[] = {
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=666,mode=620,gid=5"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

static const struct {
    const char *to, *path;
} links[] = {{"/proc/self/fd", "/dev/fd"},
             {"/proc/self/fd/0", "/dev/stdin"},
             {"/proc/self/fd/1", "/dev/stdout"},
             {"/proc/self/fd/2", "/dev/stderr"},
             {"pts/ptmx", "/dev/ptmx"}};

static int upper_fd = -1; /* the instance's disk, which no path of the new root leads to */

static void mount_line(const struct mount_line *m)
{
    mkdir(m->path, 0755);
    mount(m->fs, m->path, m->fs, m->flags, m->data); /* what is missing then is missed by the program that wants it */
}

void root_early(void)
{
    for (unsigned i = 0; i < sizeof early / sizeof early[0]; i++)
        mount_line(&early[i]);
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; fd >= 0 && i < 3; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

void root_make_dirs(const char *path)
{
    char part[PATH_MAX];
    for (size_t i = 1; path[i - 1] && i < sizeof part; i++) {
        if (path[i] != '/' && path[i])
            continue;
        memcpy(part, path, i);
        part[i] = 0;
        mkdir(part, 0755);
    }
}

static bool wait_for(const char *path)
{
    struct timespec step = {.tv_nsec = 1000000};
    for (int i = 0; i < DISK_WAIT_MS; i++) {
        if (access(path, F_OK) == 0)
            return true;
        nanosleep(&step, NULL);
    }
    return false;
}

int root_mount_disk(const char *device, const char *path, const char *fs, unsigned long flags, struct err *err)
{
    char node[32];
    if (strlen(device) != 3 || strncmp(device, "vd", 2) != 0 || device[2] < 'a' || device[2] > 'z')
        return err_say(err, EINVAL, "'%.20s' is no disk; disks are vda to vdz", device);
    snprintf(node, sizeof node, "/dev/%s", device);
    if (!wait_for(node))
        return err_say(err, ENODEV, "the machine has no disk %s", device);
    root_make_dirs(path);
    if (mount(node, path, fs, flags, NULL) < 0)
        return err_set(err, errno, "mount %s (%s) on '%.100s'", device, fs, path);
    return 0;
}

/* Removes what the initramfs holds, but for what is mounted in it: its memory is free then. */
static void free_initramfs(int dir_fd, dev_t dev)
{
    DIR *dir = fdopendir(dir_fd);
    if (!dir) {
        close(dir_fd);
        return;
    }
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
            fstatat(dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_dev != dev)
            continue;
        if (S_ISDIR(st.st_mode))
            free_initramfs(openat(dir_fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), dev);
        unlinkat(dir_fd, e->d_name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
    }
    closedir(dir);
}

static int mount_overlay(struct err *err)
{
    int r = root_mount_disk("vda", "/lower", "erofs", MS_RDONLY, err);
    if (r == 0)
        r = root_mount_disk("vdb", "/upper", "ext4", 0, err);
    if (r < 0)
        return r;
    mkdir("/upper/data", 0755);
    mkdir("/upper/work", 0755);
    mkdir(NEW_ROOT, 0755);
    if (mount("overlay", NEW_ROOT, "overlay", 0, "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work") < 0)
        return err_set(err, errno, "mount the overlay of vda and vdb");
    upper_fd = open("/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return 0;
}

static int switch_root(struct err *err)
{
    struct stat st;
    own_fd int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || fstat(old, &st) < 0)
        return err_set(err, errno, "open the initramfs");
    for (unsigned i = 0; i < sizeof early / sizeof early[0]; i++) {
        char path[64];
        snprintf(path, sizeof path, NEW_ROOT "%s", early[i].path);
        mkdir(path, 0755);
        if (mount(early[i].path, path, NULL, MS_MOVE, NULL) < 0)
            return err_set(err, errno, "move %s into the image's root", early[i].path);
    }
    if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return err_set(err, errno, "move into the image's root");
    free_initramfs(TAKE_FD(old), st.st_dev);
    return 0;
}

/* /run is a tmpfs unless the image has something there that it means to find. */
static bool is_empty_dir(const char *path)
{
    DIR *dir = opendir(path);
    int entries = 0;
    while (dir && readdir(dir))
        entries++;
    if (dir)
        closedir(dir);
    return entries <= 2;
}

int root_enter(struct agent *agent, struct err *err)
{
    int r = modules_load(err);
    agent_moment(agent, MOMENT_MODULES);
    if (r == 0)
        r = mount_overlay(err);
    if (r == 0)
        r = switch_root(err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < sizeof late / sizeof late[0]; i++)
        mount_line(&late[i]);
    if (is_empty_dir("/run"))
        mount_line(&(struct mount_line){"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"});
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++) {
        if (!strcmp(links[i].path, "/dev/ptmx"))
            unlink(links[i].path);
        (void)!symlink(links[i].to, links[i].path);
    }
    agent_moment(agent, MOMENT_ROOT);
    return 0;
}

/* Volumes: every mount of a disk, the last first. */
static void unmount_disks(void)
{
    char *paths[DISKS_MAX], line[2 * PATH_MAX];
    int count = 0;
    struct mntent mount;
    FILE *f = setmntent("/proc/mounts", "re");
    while (f && count < DISKS_MAX && getmntent_r(f, &mount, line, sizeof line))
        if (strncmp(mount.mnt_fsname, "/dev/vd", 7) == 0 && (paths[count] = strdup(mount.mnt_dir)) != NULL)
            count++;
    if (f)
        endmntent(f);
    while (count-- > 0) {
        umount2(paths[count], 0);
        free(paths[count]);
    }
}

void root_close(void)
{
    sync();
    unmount_disks();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", upper_fd);
    mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
    sync();
}
