/* Shapes of what the API takes and answers that more than one file speaks of. */
#pragma once

#include "api/schema.h"

extern const struct schema schema_error, schema_operation, schema_system, schema_object, schema_new_name;
extern const struct schema schema_instance_spec, schema_instance_changes;
