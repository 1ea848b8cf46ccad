/* Where things are: options, then the environment, then what is usual. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/own.h"
#include "polderd/polderd.h"

#define SYSTEM_STATE "/var/lib/polder"

static int join(char **ret, const char *folder, const char *name, struct err *err)
{
    return asprintf(ret, "%s/%s", folder, name) < 0 ? err_set(err, ENOMEM, "path") : 0;
}

static int own_copy(char **ret, const char *text, struct err *err)
{
    *ret = strdup(text);
    return *ret ? 0 : err_set(err, ENOMEM, "path");
}

static int find_state_dir(struct polderd *polderd, struct err *err)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME"); /* NOLINT(concurrency-mt-unsafe): before threads */
    if (polderd->options.state_dir)
        return own_copy(&polderd->state_dir, polderd->options.state_dir, err);
    if (geteuid() == 0)
        return own_copy(&polderd->state_dir, SYSTEM_STATE, err);
    if (data && data[0] == '/')
        return join(&polderd->state_dir, data, "polder", err);
    if (home && home[0] == '/')
        return join(&polderd->state_dir, home, ".local/share/polder", err);
    return err_say(err, EINVAL, "HOME is not set: give --state-dir");
}

static int find_run_dir(struct polderd *polderd, struct err *err)
{
    if (polderd->options.run_dir)
        return own_copy(&polderd->run_dir, polderd->options.run_dir, err);
    if (geteuid() == 0 && !strcmp(polderd->state_dir, SYSTEM_STATE))
        return own_copy(&polderd->run_dir, "/run/polder", err);
    return join(&polderd->run_dir, polderd->state_dir, "run", err);
}

/* NULL when there are none: microVMs cannot start then, and say so. */
static int find_guest_dir(struct polderd *polderd, struct err *err)
{
    const char *given = polderd->options.guest_dir ? polderd->options.guest_dir : getenv("POLDER_GUEST_DIR");
    char program[4096];
    if (given)
        return own_copy(&polderd->guest_dir, given, err);
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash = n > 0 ? memrchr(program, '/', (size_t)n) : NULL;
    if (!slash)
        return 0;
    *slash = '\0';
    own_free char *guest = NULL;
    int r = join(&guest, program, "../lib/polder/guest", err);
    if (r == 0 && access(guest, R_OK) == 0)
        polderd->guest_dir = TAKE(guest);
    return r;
}

/* With its parents; `mode` for the last. */
static int make_folder(const char *path, mode_t mode, struct err *err)
{
    char part[4096];
    if (strlen(path) >= sizeof part || path[0] != '/')
        return err_say(err, EINVAL, "'%.100s' must be an absolute path", path);
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return err_set(err, errno, "make folder '%s'", part);
    }
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return err_set(err, errno, "make folder '%s'", path);
    return 0;
}

/* `option` gives another folder. */
static int take_lock(const char *folder, const char *name, const char *option, int *ret_fd, struct err *err)
{
    own_free char *path = NULL;
    int r = join(&path, folder, name, err);
    if (r < 0)
        return r;
    own_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, errno, "lock '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_say(err, EBUSY, "another polderd uses '%s': end it, or give another %s", folder, option);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* A path that is not absolute is taken from here. */
static int make_absolute(char **path, struct err *err)
{
    own_free char *here = NULL;
    if (!*path || (*path)[0] == '/')
        return 0;
    here = get_current_dir_name();
    own_free char *relative = *path;
    *path = NULL;
    return here ? join(path, here, relative, err) : err_set(err, errno, "current folder");
}

int polderd_find_paths(struct polderd *polderd, struct err *err)
{
    int r = find_state_dir(polderd, err);
    if (r == 0)
        r = make_absolute(&polderd->state_dir, err);
    if (r == 0)
        r = find_run_dir(polderd, err);
    if (r == 0)
        r = make_absolute(&polderd->run_dir, err);
    if (r == 0)
        r = find_guest_dir(polderd, err);
    if (r == 0)
        r = make_absolute(&polderd->guest_dir, err);
    if (r == 0)
        r = polderd->options.socket_path ? own_copy(&polderd->socket_path, polderd->options.socket_path, err)
                                        : join(&polderd->socket_path, polderd->run_dir, "polderd.sock", err);
    if (r == 0)
        r = make_folder(polderd->state_dir, 0711, err); /* jailed machines reach their own files below */
    if (r == 0)
        r = make_folder(polderd->run_dir, 0755, err);
    if (r == 0)
        r = take_lock(polderd->state_dir, "lock", "--state-dir", &polderd->lock_fd, err);
    return r < 0 ? r : take_lock(polderd->run_dir, "polderd.lock", "--run-dir", &polderd->run_lock_fd, err);
}
