/* Checks of the API against its table: routes to operations and bodies against schemas. Pure functions on
 * parsed JSON; recursion follows the schema, so its depth is the table's. Messages name the member, in the
 * words Firecracker's clients know. */
#include "vmm/api_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <strings.h>

static const char *const method_names[] = {[API_GET] = "GET", [API_PUT] = "PUT", [API_PATCH] = "PATCH"};

const char *api_method_name(enum api_method method)
{
    return method_names[method];
}

bool api_method_parse(const char *name, enum api_method *ret_method)
{
    for (unsigned i = 0; i < sizeof method_names / sizeof method_names[0]; i++) {
        if (!strcmp(name, method_names[i])) {
            *ret_method = (enum api_method)i;
            return true;
        }
    }
    return false;
}

/* ---- routes ---- */

/* True when `path` (`len` bytes) is the table's; its id, if it has one, is then `*ret_id_len` bytes at `*ret_id`. */
static bool path_matches(const char *table_path, const char *path, size_t len, const char **ret_id, size_t *ret_id_len)
{
    size_t front = strcspn(table_path, "{");
    *ret_id = NULL;
    if (!table_path[front])
        return len == front && !memcmp(path, table_path, front);
    const char *back = strchr(table_path, '}') + 1;
    size_t back_len = strlen(back);
    /* "/drives" alone is the disk with the empty id */
    if (!back_len && len == front - 1 && !memcmp(path, table_path, len)) {
        *ret_id = path + len;
        *ret_id_len = 0;
        return true;
    }
    if (len < front + back_len || memcmp(path, table_path, front) || memcmp(path + len - back_len, back, back_len))
        return false;
    *ret_id = path + front;
    *ret_id_len = len - front - back_len;
    return !memchr(*ret_id, '/', *ret_id_len);
}

int api_check_id(const char *id, size_t len, struct err *err)
{
    if (!len)
        return err_say(err, EINVAL, "The ID cannot be empty.");
    if (len > API_ID_MAX)
        return err_say(err, EINVAL, "API Resource IDs can only have %d characters.", API_ID_MAX);
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)id[i]) && id[i] != '_')
            return err_say(err, EINVAL,
                           "API Resource IDs can only contain alphanumeric characters and underscores.");
    }
    return 0;
}

static int take_id(const char *id, size_t len, char ret_id[API_ID_MAX + 1], struct err *err)
{
    int ret = api_check_id(id, len, err);
    if (ret < 0)
        return ret;
    memcpy(ret_id, id, len);
    ret_id[len] = '\0';
    return 0;
}

static int no_route(const char *method, const char *path, struct err *err)
{
    while (*path == '/')
        path++;
    return err_say(err, EINVAL, "Invalid request method and/or path: %.16s %.64s.", method, path);
}

int api_route(const char *method, const char *path, const struct api_operation **ret_operation,
              char ret_id[API_ID_MAX + 1], struct err *err)
{
    enum api_method wanted;
    if (path[0] != '/' || !api_method_parse(method, &wanted))
        return no_route(method, path, err);
    size_t len = strlen(path);
    if (len > 1 && path[len - 1] == '/')
        len--;
    for (unsigned i = 0; i < API_OPERATIONS; i++) {
        const char *id;
        size_t id_len;
        const struct api_operation *operation = &api_operations[i];
        if (operation->method != wanted || !path_matches(operation->path, path, len, &id, &id_len))
            continue;
        ret_id[0] = '\0';
        *ret_operation = operation;
        return id ? take_id(id, id_len, ret_id, err) : 0;
    }
    return no_route(method, path, err);
}

const struct api_operation *api_operation_find(enum api_method method, const char *path)
{
    for (unsigned i = 0; i < API_OPERATIONS; i++) {
        if (api_operations[i].method == method && !strcmp(api_operations[i].path, path))
            return &api_operations[i];
    }
    return NULL;
}

/* ---- bodies ---- */

/* Appends to a bounded text; what does not fit is cut off. */
static void append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t size, const char *format, ...)
{
    size_t len = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + len, size - len, format, args);
    va_end(args);
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "map";
    case JSON_ARRAY:
        return "sequence";
    case JSON_STRING:
        return "string";
    case JSON_INTEGER:
        return "integer";
    case JSON_REAL:
        return "floating point number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "boolean";
    case JSON_NULL:
    default:
        return "null";
    }
}

static int wrong_type(const struct api_field *field, const json_t *value, const char *wanted, struct err *err)
{
    return err_say(err, EINVAL, "invalid type: %s for field `%s`, expected %s", type_name(value), field->name,
                   wanted);
}

static int unknown_field(const struct api_object *object, const char *name, struct err *err)
{
    char known[160] = "";
    for (const struct api_field *f = object->fields; f->name; f++)
        append(known, sizeof known, "%s`%s`", f == object->fields ? "" : ", ", f->name);
    return err_say(err, EINVAL, "unknown field `%.48s`, expected %s%s", name, known[0] ? "one of " : "none",
                   known);
}

static int check_integer(const struct api_field *field, const json_t *value, struct err *err)
{
    if (!json_is_integer(value))
        return wrong_type(field, value, "an integer", err);
    json_int_t number = json_integer_value(value);
    if (number < field->min || number > field->max)
        return err_say(err, EINVAL, "invalid value: integer `%lld` for field `%s`, expected %lld to %lld",
                       (long long)number, field->name, (long long)field->min, (long long)field->max);
    return 0;
}

static int check_variant(const struct api_field *field, const char *text, struct err *err)
{
    char known[120] = "";
    for (const char *const *value = field->values; *value; value++) {
        if (field->any_case ? !strcasecmp(text, *value) : !strcmp(text, *value))
            return 0;
        append(known, sizeof known, "%s`%s`", value == field->values ? "" : ", ", *value);
    }
    return err_say(err, EINVAL, "unknown variant `%.48s` for field `%s`, expected one of %s", text,
                   field->name, known);
}

static int check_string(const struct api_field *field, const json_t *value, struct err *err)
{
    if (!json_is_string(value))
        return wrong_type(field, value, "a string", err);
    size_t max = field->max ? (size_t)field->max : API_STRING_MAX;
    if (json_string_length(value) > max)
        return err_say(err, EINVAL, "field `%s` is too long, at most %zu bytes", field->name, max);
    return field->values ? check_variant(field, json_string_value(value), err) : 0;
}

static int check_list(const struct api_field *field, json_t *value, bool *deprecated, struct err *err)
{
    if (!json_is_array(value))
        return wrong_type(field, value, "a sequence", err);
    size_t index;
    json_t *item;
    json_array_foreach(value, index, item) {
        if (field->object ? !json_is_object(item) : !json_is_string(item))
            return wrong_type(field, item, field->object ? "maps" : "strings", err);
        int ret = field->object ? api_check(field->object, item, false, deprecated, err) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int check_field(const struct api_field *field, json_t *value, bool *deprecated, struct err *err)
{
    switch (field->type) {
    case API_BOOL:
        return json_is_boolean(value) ? 0 : wrong_type(field, value, "a boolean", err);
    case API_INTEGER:
        return check_integer(field, value, err);
    case API_STRING:
        return check_string(field, value, err);
    case API_LIST:
        return check_list(field, value, deprecated, err);
    case API_OBJECT:
        if (!json_is_object(value))
            return wrong_type(field, value, "a map", err);
        return api_check(field->object, value, false, deprecated, err);
    }
    return 0;
}

static const struct api_field *field_find(const struct api_object *object, const char *name)
{
    for (const struct api_field *f = object->fields; f->name; f++) {
        if (!strcmp(f->name, name))
            return f;
    }
    return NULL;
}

int api_check(const struct api_object *object, json_t *body, bool partial, bool *ret_deprecated,
              struct err *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(body))
        return err_say(err, EINVAL, "invalid type: %s, expected a map (%s)", type_name(body), object->name);
    if (object->open)
        return 0;
    json_object_foreach(body, name, value) {
        const struct api_field *field = field_find(object, name);
        if (!field)
            return unknown_field(object, name, err);
        if (json_is_null(value))
            continue;
        if (field->deprecated)
            *ret_deprecated = true;
        int ret = check_field(field, value, ret_deprecated, err);
        if (ret < 0)
            return ret;
    }
    for (const struct api_field *f = object->fields; f->name; f++) {
        if (f->required && !partial && !api_has(body, f->name))
            return err_say(err, EINVAL, "missing field `%s`", f->name);
    }
    return 0;
}
