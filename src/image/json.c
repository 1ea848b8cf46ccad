/* JSON of foreign origin: bounded, no duplicate keys. */
#include <errno.h>
#include "image/image_impl.h"

int image_json_parse(const char *text, size_t len_bytes, const char *what, json_t **ret_json, struct err *err)
{
    json_error_t error;
    if (len_bytes > IMAGE_JSON_MAX)
        return err_say(err, EINVAL, "%s: %zu bytes are too many, at most %u are taken", what, len_bytes, IMAGE_JSON_MAX);
    json_t *json = json_loadb(text, len_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        return err_say(err, EINVAL, "%s: no JSON: %s at byte %d", what, error.text, error.position);
    if (!json_is_object(json)) {
        json_decref(json);
        return err_say(err, EINVAL, "%s: no JSON object", what);
    }
    *ret_json = json;
    return 0;
}

const char *image_json_string(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}
