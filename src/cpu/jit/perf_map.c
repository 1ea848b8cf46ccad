#include "cpu/jit/perf_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

static int map_fd = -1; /* one for all vCPUs: a line is one write */

void perf_map_open(void)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    map_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (map_fd < 0)
        log_warn("jit: %s: %s; perf will know no names", path, strerror(errno));
}

void perf_map_add(const uint8_t *code, size_t bytes, uint64_t rip)
{
    if (map_fd >= 0)
        dprintf(map_fd, "%lx %zx guest_%lx\n", (unsigned long)(uintptr_t)code, bytes, (unsigned long)rip);
}
