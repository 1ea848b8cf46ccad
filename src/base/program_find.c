/* Where the programs are that a program calls. */
#include "base/program_find.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/own.h"

/* Takes `folder` (`len` bytes) if an executable file of that name lies in it. */
static bool try_folder(const char *folder, size_t len, const char *name, char **ret_path)
{
    own_free char *path = NULL;
    struct stat st;
    if (!len || asprintf(&path, "%.*s/%s", (int)len, folder, name) < 0)
        return false;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || access(path, X_OK) < 0)
        return false;
    *ret_path = TAKE(path);
    return true;
}

static bool find_beside(const char *name, char **ret_path)
{
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len <= 0)
        return false;
    self[len] = '\0';
    char *slash = strrchr(self, '/');
    return slash && try_folder(self, (size_t)(slash - self), name, ret_path);
}

int program_find(const char *name, const char *package, char **ret_path, struct err *err)
{
    if (!*name || strchr(name, '/'))
        return err_say(err, EINVAL, "'%s' is no name of a program", name);
    if (find_beside(name, ret_path))
        return 0;
    const char *folders = getenv("PATH");
    while (folders && *folders) {
        size_t len = strcspn(folders, ":");
        /* what is relative would depend on where the caller happens to be */
        if (folders[0] == '/' && try_folder(folders, len, name, ret_path))
            return 0;
        folders += len + (folders[len] == ':');
    }
    if (package)
        return err_say(err, ENOENT, "the program '%s' is missing: install the package %s", name, package);
    return err_say(err, ENOENT, "the program '%s' is missing beside this one and in PATH", name);
}
