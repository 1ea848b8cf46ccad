/* What `start` says about the machine: name, hosts, networks, volumes. */
#pragma once

#include <jansson.h>
#include "base/err.h"

must_check int setup_apply(const json_t *request, struct err *err);
