/* Small helpers over jansson for documents whose shape was checked, or is to be. */
#pragma once

#include <jansson.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"

static inline void own_json_cleanup(json_t **value)
{
    json_decref(*value);
}
#define own_json __attribute__((cleanup(own_json_cleanup)))

/* The text of a member, or "" where there is none. */
static inline const char *json_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static inline int64_t json_number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static inline bool json_flag(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

/* -EINVAL when the object has a member that is not in `allowed` ("|a|b|"). */
static inline int json_only_members(const char *what, const json_t *object, const char *allowed, struct err *err)
{
    json_t *iterable = (json_t *)(uintptr_t)object;
    for (void *iter = json_object_iter(iterable); iter; iter = json_object_iter_next(iterable, iter)) {
        char wanted[64];
        const char *key = json_object_iter_key(iter);
        if (strchr(key, '|') || snprintf(wanted, sizeof wanted, "|%s|", key) >= (int)sizeof wanted ||
            !strstr(allowed, wanted))
            return err_say(err, EINVAL, "%s: '%.40s' is no member of it", what, key);
    }
    return 0;
}
