/* Shapes of JSON: one table says what a body, a query or an answer may hold. Validation and the OpenAPI document both
 * come from it.
 *
 * Members that no table names are refused by name; a member that is null counts as absent. Any thread. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define SCHEMA_TEXT_MAX 4096 /* bytes of a string whose field says no other bound */
#define SCHEMA_ITEMS_MAX 256 /* of a list or map whose field says no other bound */

enum schema_type {
    SCHEMA_BOOL,
    SCHEMA_INTEGER, /* min..max */
    SCHEMA_STRING,  /* at most max bytes; of `format`; one of `values` if there are any */
    SCHEMA_OBJECT,  /* of `object` */
    SCHEMA_LIST,    /* at most max items: of `object`, or strings of `format` */
    SCHEMA_MAP,     /* at most max members, all strings of `format`, keys of SCHEMA_LABEL */
};

/* What a string looks like: an extended regular expression each, in schema.c. */
enum schema_format {
    SCHEMA_TEXT, /* anything */
    SCHEMA_NAME, /* of an instance, network, volume, token or snapshot */
    SCHEMA_ID,   /* 16 hexadecimal digits */
    SCHEMA_LABEL,
    SCHEMA_REF,      /* of an image */
    SCHEMA_ENV,      /* K=V */
    SCHEMA_PATH,     /* absolute */
    SCHEMA_SIGNAL,   /* "TERM", "SIGTERM", "15" */
    SCHEMA_MAC,      /* or empty */
    SCHEMA_IPV4,     /* or empty */
    SCHEMA_SUBNET,   /* 192.0.2.0/24 */
    SCHEMA_HOSTNAME, /* or empty */
    SCHEMA_SUITE,    /* of Debian, and names of its packages */
    SCHEMA_MEMBERS,  /* paths of members with commas: name,status.state */
    SCHEMA_FORMATS
};

struct schema;

struct schema_field {
    const char *name; /* NULL ends a table */
    const char *text; /* one sentence for the reference */
    enum schema_type type;
    enum schema_format format;
    bool required;
    int64_t min, max; /* max 0 of a string, list or map: the default above */
    const char *const *values; /* NULL-terminated */
    const struct schema *object;
};

struct schema {
    const char *name; /* in the reference: "InstanceSpec" */
    const char *text;
    const struct schema_field *fields;
    bool open; /* further members may follow: of answers, never of bodies */
};

/* Checks an object; -EINVAL with the first thing wrong, named by its path: "ports[0].host: ...". */
must_check int schema_check(const struct schema *schema, const json_t *value, struct err *err);
/* Checks one string. */
must_check int schema_check_text(enum schema_format format, const char *text, struct err *err);
/* The value of a query parameter as its field's type: a boolean from "1", "0", "true", "false" or "", an integer from
 * decimal digits. Checked; *ret_value is the caller's. */
must_check int schema_parse(const struct schema_field *field, const char *text, json_t **ret_value, struct err *err);
const struct schema_field *schema_find(const struct schema_field *fields, const char *name);

/* The field as a JSON Schema of OpenAPI 3.0; objects as references to #/components/schemas. New reference. */
json_t *schema_field_describe(const struct schema_field *field);
/* The object and all inside it are added to `components` by their names. */
void schema_describe(const struct schema *schema, json_t *components);
json_t *schema_reference(const struct schema *schema);
