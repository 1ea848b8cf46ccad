/* What GET /v1/system and its like tell about the host. */
#pragma once

#include <jansson.h>

#include "api/platform.h"
#include "base/err.h"

/* {"name", "reason"} of the engine that instances get, asked of polder-vmm once. New reference; any thread. */
json_t *system_engine(void);
/* Checks of the host, each {"name", "ok", "detail", "cure"}. New reference. */
json_t *system_doctor(struct platform *platform);
/* Bytes by part: {"file_system": {"total_bytes", "free_bytes"}, "images": {...}, "volumes": {...}, "instances": {...}}. */
must_check int system_df(struct platform *platform, json_t **ret_df, struct err *err);
