#include "cpu/jit/mcode.h"

#include <errno.h>
#include <sys/mman.h>

#define GUARD ((size_t)64 << 10)
#define STEP ((size_t)256 << 10)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* A range with guards on both sides, and the start of its middle. */
static uint8_t *reserve(size_t size)
{
    uint8_t *range = mmap(NULL, size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? NULL : range + GUARD;
}

static void release(uint8_t *middle, size_t size)
{
    if (middle)
        munmap(middle - GUARD, size + 2 * GUARD);
}

/* Maps new shared memory at `write`, and the same memory a second time at `exec`. It is anonymous, not a memfd, because perf looks
 * names up (perf_map.h) only for code in anonymous memory. */
static bool map_twice(uint8_t *write, uint8_t *exec, size_t size)
{
    if (mmap(write, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return false;
    void *again = mremap(write, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, exec);
    return again != MAP_FAILED && mprotect(exec, size, PROT_READ | PROT_EXEC) == 0;
}

int mcode_create(struct mcode *mcode, size_t size, struct err *err)
{
    uint8_t *write = reserve(size), *exec = reserve(size);
    if (!write || !exec || !map_twice(write, exec, size)) {
        int code = errno;
        release(write, size);
        release(exec, size);
        return err_set(err, code, "memory for translated code");
    }
    *mcode = (struct mcode){.write = write, .exec = exec, .size = size};
    return 0;
}

void mcode_touch(struct mcode *mcode, const uint8_t *at, size_t len)
{
    size_t start = (size_t)(at - mcode->write) & ~(STEP - 1), end = (size_t)(at - mcode->write) + len;
    for (; start < end && start < mcode->size; start += STEP) {
        uint64_t bit = UINT64_C(1) << (start / STEP % 64), *word = &mcode->touched[start / STEP / 64];
        if (*word & bit)
            continue;
        *word |= bit;
        size_t piece = mcode->size - start < STEP ? mcode->size - start : STEP;
        madvise(mcode->write + start, piece, MADV_POPULATE_WRITE); /* only a hint: kernels before 5.14 have it not */
        madvise(mcode->exec + start, piece, MADV_POPULATE_READ);
    }
}

void mcode_free(struct mcode *mcode)
{
    release(mcode->write, mcode->size);
    release(mcode->exec, mcode->size);
    *mcode = (struct mcode){0};
}
