/* The parts of the table of routes, one file each. */
#pragma once

#include "api/route.h"

extern const struct route routes_system[], routes_operations[], routes_events[], routes_tokens[], routes_instances[],
    routes_instance_state[], routes_instance_ways[], routes_images[], routes_networks[], routes_volumes[];
