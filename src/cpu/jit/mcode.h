/* Memory for generated code: one memfd mapped twice, writable and executable (W^X), with guard pages around both.
 * Not thread-safe: one vCPU's. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct mcode {
    uint8_t *write, *exec; /* the same bytes */
    size_t size;
};

must_check int mcode_create(struct mcode *mcode, size_t size, struct err *err);
void mcode_free(struct mcode *mcode);

/* The writable view of an executable address, and back. */
static inline uint8_t *mcode_writable(const struct mcode *mcode, const uint8_t *exec)
{
    return mcode->write + (exec - mcode->exec);
}
static inline uint8_t *mcode_executable(const struct mcode *mcode, const uint8_t *write)
{
    return mcode->exec + (write - mcode->write);
}
