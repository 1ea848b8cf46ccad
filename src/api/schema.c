/* Checking of values against schemas. Patterns are compiled once and read by all threads. */
#include "api/schema.h"

#include <errno.h>
#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/schema_impl.h"

#define IPV4_PART "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define IPV4 "(" IPV4_PART "\\.){3}" IPV4_PART

/* `what` completes "must be ...". */
const struct schema_format_class schema_formats[SCHEMA_FORMATS] = {
    [SCHEMA_TEXT] = {NULL, "text"},
    [SCHEMA_NAME] = {"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", "1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"},
    [SCHEMA_ID] = {"^[0-9a-f]{16}$", "16 hexadecimal digits"},
    [SCHEMA_LABEL] = {"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$", "1 to 128 of A-Z, a-z, 0-9 and '._/-'"},
    [SCHEMA_REF] = {"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,511}$", "an image reference like 'debian:12'"},
    [SCHEMA_ENV] = {"^[^=]+=", "NAME=VALUE"},
    [SCHEMA_PATH] = {"^/", "an absolute path"},
    [SCHEMA_SIGNAL] = {"^([1-9]|[1-5][0-9]|6[0-4]|(SIG)?[A-Z][A-Z0-9+-]{1,11})$", "a signal like 'TERM' or '15'"},
    [SCHEMA_MAC] = {"^(([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2})?$", "a MAC address like '52:54:00:12:34:56'"},
    [SCHEMA_IPV4] = {"^(" IPV4 ")?$", "an IPv4 address like '10.88.0.2'"},
    [SCHEMA_SUBNET] = {"^" IPV4 "/([1-9]|[12][0-9]|3[0-2])$", "an IPv4 subnet like '10.88.0.0/24'"},
    [SCHEMA_HOSTNAME] = {"^([A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?)?$", "a host name"},
    [SCHEMA_SUITE] = {"^[a-z0-9][a-z0-9.+:~-]{0,127}$", "a name like 'bookworm' or 'iproute2'"},
    [SCHEMA_MEMBERS] = {"^[a-z0-9_]+([.,][a-z0-9_]+)*$", "names of members with commas, like 'name,status.state'"},
};

static regex_t compiled[SCHEMA_FORMATS];
static pthread_once_t compile_once = PTHREAD_ONCE_INIT;

static void compile_all(void)
{
    for (int i = 0; i < SCHEMA_FORMATS; i++)
        if (schema_formats[i].pattern && regcomp(&compiled[i], schema_formats[i].pattern, REG_EXTENDED | REG_NOSUB) != 0)
            abort(); /* a pattern of the table above is wrong, or memory is out before anything runs */
}

int schema_check_text(enum schema_format format, const char *text, struct err *err)
{
    const struct schema_format_class *class = &schema_formats[format];
    if (!class->pattern)
        return 0;
    pthread_once(&compile_once, compile_all);
    if (regexec(&compiled[format], text, 0, NULL, 0) != 0)
        return err_say(err, EINVAL, "must be %s", class->what);
    return 0;
}

const struct schema_field *schema_find(const struct schema_field *fields, const char *name)
{
    for (const struct schema_field *f = fields; f && f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    return NULL;
}

uint64_t schema_max(const struct schema_field *field)
{
    if (field->max > 0)
        return (uint64_t)field->max;
    return field->type == SCHEMA_STRING ? SCHEMA_TEXT_MAX : SCHEMA_ITEMS_MAX;
}

/* "32 MiB" of a field in bytes, else the number. */
static void print_bound(const struct schema_field *field, int64_t bound, char text[32])
{
    static const char *const units[] = {"", " KiB", " MiB", " GiB", " TiB"};
    size_t len = strlen(field->name), unit = 0;
    bool is_bytes = len > 6 && !strcmp(field->name + len - 6, "_bytes");
    for (; is_bytes && bound && bound % 1024 == 0 && unit < sizeof units / sizeof *units - 1; unit++)
        bound /= 1024;
    snprintf(text, 32, "%lld%s", (long long)bound, units[unit]);
}

static int refuse_integer(const struct schema_field *field, struct err *err)
{
    char min[32], max[32];
    print_bound(field, field->min, min);
    print_bound(field, field->max, max);
    return err_say(err, EINVAL, "must be %s to %s", min, max);
}

static int check_integer(const struct schema_field *field, const json_t *value, struct err *err)
{
    if (!json_is_integer(value))
        return err_say(err, EINVAL, "must be an integer");
    json_int_t number = json_integer_value(value);
    if (number < field->min || number > field->max)
        return refuse_integer(field, err);
    return 0;
}

/* "a, b or c" of the values, as far as it fits. */
static int check_values(const char *const *values, const char *text, struct err *err)
{
    char known[160] = "";
    size_t used = 0;
    for (const char *const *v = values; *v; v++) {
        if (!strcmp(*v, text))
            return 0;
        int n = snprintf(known + used, sizeof known - used, "%s'%s'", v == values ? "" : v[1] ? ", " : " or ", *v);
        used += n > 0 && (size_t)n < sizeof known - used ? (size_t)n : 0;
    }
    return err_say(err, EINVAL, "must be %s", known);
}

static int check_string(const struct schema_field *field, size_t max, const json_t *value, struct err *err)
{
    if (!json_is_string(value))
        return err_say(err, EINVAL, "must be a string");
    if (json_string_length(value) > max)
        return err_say(err, EINVAL, "must have at most %zu bytes", max);
    if (field->values)
        return check_values(field->values, json_string_value(value), err);
    return schema_check_text(field->format, json_string_value(value), err);
}

static int check_list(const struct schema_field *field, const json_t *value, struct err *err)
{
    if (!json_is_array(value))
        return err_say(err, EINVAL, "must be a list");
    if (json_array_size(value) > schema_max(field))
        return err_say(err, EINVAL, "must have at most %llu items", (unsigned long long)schema_max(field));
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        int r = field->object ? schema_check(field->object, item, err) : check_string(field, SCHEMA_TEXT_MAX, item, err);
        if (r < 0)
            return err_ctx(err, "[%zu]", i);
    }
    return 0;
}

static int check_map(const struct schema_field *field, json_t *value, struct err *err)
{
    const char *key;
    json_t *item;
    if (!json_is_object(value))
        return err_say(err, EINVAL, "must be an object of strings");
    if (json_object_size(value) > schema_max(field))
        return err_say(err, EINVAL, "must have at most %llu members", (unsigned long long)schema_max(field));
    json_object_foreach(value, key, item) {
        if (schema_check_text(SCHEMA_LABEL, key, err) < 0 || check_string(field, SCHEMA_TEXT_MAX, item, err) < 0)
            return err_ctx(err, "'%.64s'", key);
    }
    return 0;
}

static int check_field(const struct schema_field *field, json_t *value, struct err *err)
{
    switch (field->type) {
    case SCHEMA_BOOL:
        return json_is_boolean(value) ? 0 : err_say(err, EINVAL, "must be true or false");
    case SCHEMA_INTEGER:
        return check_integer(field, value, err);
    case SCHEMA_STRING:
        return check_string(field, schema_max(field), value, err);
    case SCHEMA_OBJECT:
        return schema_check(field->object, value, err);
    case SCHEMA_LIST:
        return check_list(field, value, err);
    case SCHEMA_MAP:
        return check_map(field, value, err);
    }
    return 0;
}

static int check_known(const struct schema *schema, const char *name, json_t *value, struct err *err)
{
    const struct schema_field *field = schema_find(schema->fields, name);
    if (!field)
        return schema->open ? 0 : err_say(err, EINVAL, "unknown field '%.64s'", name);
    if (json_is_null(value) || check_field(field, value, err) == 0)
        return 0;
    return err_ctx(err, "%s", name);
}

int schema_check(const struct schema *schema, const json_t *value, struct err *err)
{
    const char *name;
    json_t *member;
    if (!json_is_object(value))
        return err_say(err, EINVAL, "must be an object (%s)", schema->name);
    json_object_foreach((json_t *)(uintptr_t)value, name, member) {
        int r = check_known(schema, name, member, err);
        if (r < 0)
            return r;
    }
    for (const struct schema_field *f = schema->fields; f->name; f++) {
        const json_t *given = json_object_get(value, f->name);
        if (f->required && (!given || json_is_null(given)))
            return err_say(err, EINVAL, "field '%s' is missing", f->name);
    }
    return 0;
}

/* ---- query parameters ---- */

static int parse_bool(const char *text, json_t **ret_value, struct err *err)
{
    bool yes = !*text || !strcmp(text, "1") || !strcmp(text, "true");
    if (!yes && strcmp(text, "0") != 0 && strcmp(text, "false") != 0)
        return err_say(err, EINVAL, "must be 1 or 0");
    *ret_value = json_boolean(yes);
    return 0;
}

static int parse_integer(const struct schema_field *field, const char *text, json_t **ret_value, struct err *err)
{
    size_t digits = strspn(text, "0123456789");
    if (!digits || digits > 18 || text[digits])
        return err_say(err, EINVAL, "must be %lld to %lld", (long long)field->min, (long long)field->max);
    *ret_value = json_integer(strtoll(text, NULL, 10));
    return 0;
}

int schema_parse(const struct schema_field *field, const char *text, json_t **ret_value, struct err *err)
{
    json_t *value = NULL;
    int r = 0;
    if (field->type == SCHEMA_BOOL)
        r = parse_bool(text, &value, err);
    else if (field->type == SCHEMA_INTEGER)
        r = parse_integer(field, text, &value, err);
    else if (!(value = json_string(text)))
        r = err_say(err, EINVAL, "must be UTF-8");
    if (r == 0)
        r = check_field(field, value, err);
    if (r < 0) {
        json_decref(value);
        return err_ctx(err, "%s", field->name);
    }
    *ret_value = value;
    return 0;
}
