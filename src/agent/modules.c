#include "agent/modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/own.h"

#define MODULES "/modules/"

static int load(const char *name, struct err *err)
{
    char path[128];
    snprintf(path, sizeof path, MODULES "%s", name);
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "open '%s'", path);
    if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
        return err_set(err, errno, "load the module '%s'", name);
    return 0;
}

int modules_load(struct err *err)
{
    FILE *f = fopen(MODULES "order", "re");
    if (!f)
        return err_set(err, errno, "open '" MODULES "order'");
    char name[100];
    int r = 0;
    while (r == 0 && fgets(name, sizeof name, f)) {
        name[strcspn(name, "\n")] = 0;
        if (name[0])
            r = load(name, err);
    }
    fclose(f);
    return r;
}
