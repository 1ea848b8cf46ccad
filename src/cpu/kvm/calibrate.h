/* How fast this host's /dev/kvm runs guest code. */
#pragma once

#include <stdint.h>
#include "base/err.h"

/* Instructions a second of a long-mode loop; takes a few ms. Hardware virtualization runs billions; a /dev/kvm without it
 * below emulates a few million. `device` as engine_class.probe's. */
must_check int kvm_calibrate(const char *device, uint64_t *ret_instructions_per_s, struct err *err);
