/* What the guest's kernel says of itself (/proc): for `stats`. */
#pragma once

#include <jansson.h>

/* NULL when memory is out. Times since the boot, in µs; sizes in bytes; counters since the boot. */
json_t *stats_json(void);
