/* Memory for generated code: shared memory mapped twice, writable and executable (W^X), with guard pages around both.
 * Not thread-safe: one vCPU's. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct mcode {
    uint8_t *write, *exec; /* the same bytes */
    size_t size;
    uint64_t touched[64]; /* a bit each 256 KiB, of 1 GiB at most */
};

must_check int mcode_create(struct mcode *mcode, size_t size, struct err *err);
void mcode_free(struct mcode *mcode);
/* [at, at + len) of the writable view is about to be written: takes host memory for it in larger pieces, as each page would cost two
 * faults. */
void mcode_touch(struct mcode *mcode, const uint8_t *at, size_t len);

/* The writable view of an executable address, and back. */
static inline uint8_t *mcode_writable(const struct mcode *mcode, const uint8_t *exec)
{
    return mcode->write + (exec - mcode->exec);
}
static inline uint8_t *mcode_executable(const struct mcode *mcode, const uint8_t *write)
{
    return mcode->exec + (write - mcode->write);
}
