#include "cpu/jit/mcode.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/own.h"

#define GUARD ((size_t)64 << 10)

/* Reserves the range with guards on both sides and maps the file in the middle. */
static uint8_t *map_guarded(int fd, size_t size, int protection)
{
    uint8_t *range = mmap(NULL, size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return NULL;
    if (mmap(range + GUARD, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(range, size + 2 * GUARD);
        return NULL;
    }
    return range + GUARD;
}

int mcode_create(struct mcode *mcode, size_t size, struct err *err)
{
    own_fd int fd = memfd_create("polder-code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return err_set(err, errno, "memory for translated code");
    uint8_t *write = map_guarded(fd, size, PROT_READ | PROT_WRITE);
    uint8_t *exec = write ? map_guarded(fd, size, PROT_READ | PROT_EXEC) : NULL;
    if (!exec) {
        int code = errno;
        if (write)
            munmap(write - GUARD, size + 2 * GUARD);
        return err_set(err, code, "memory for translated code");
    }
    *mcode = (struct mcode){write, exec, size};
    return 0;
}

void mcode_free(struct mcode *mcode)
{
    if (!mcode->write)
        return;
    munmap(mcode->write - GUARD, mcode->size + 2 * GUARD);
    munmap(mcode->exec - GUARD, mcode->size + 2 * GUARD);
    *mcode = (struct mcode){0};
}
