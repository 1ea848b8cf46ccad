/* Kernel modules of the initramfs: /modules/order names files beside it, one a line, in the order they are loaded. */
#pragma once

#include "base/err.h"

must_check int modules_load(struct err *err);
