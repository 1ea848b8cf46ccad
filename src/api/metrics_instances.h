/* The instances' part of GET /metrics. */
#pragma once

#include <stdio.h>

#include "api/platform.h"

/* By state, and what each running one uses. */
void metrics_write_instances(FILE *out, struct platform *platform);
