/* Private to the schemas: what their description needs of the checks. */
#pragma once

#include "api/schema.h"

struct schema_format_class {
    const char *pattern; /* extended regular expression, also valid in OpenAPI; NULL: anything */
    const char *what;
};

extern const struct schema_format_class schema_formats[SCHEMA_FORMATS];
/* The bound on a string's bytes, a list's items or a map's members. */
uint64_t schema_max(const struct schema_field *field);
