/* What a client sends, through the checks before any handler: METHOD, path, parameters "name=value", each ended by a
 * newline, then an empty line and the body. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/fields.h"
#include "api/request.h"

static int take_parameters(struct request *request, char **at, struct err *err)
{
    for (char *line = strsep(at, "\n"); line && *line; line = strsep(at, "\n")) {
        char *name = strsep(&line, "=");
        if (request_add_query(request, name, line ? line : "", err) < 0)
            return -1;
    }
    return request_check_query(request, err);
}

/* Of what is kept, no member of another name is left, and it still is JSON. */
static void check_fields(json_t *body)
{
    json_t *list = json_pack("[O]", body), *kept;
    char *text = json_dumps(list, JSON_COMPACT);
    const char *name;
    json_t *member;
    if (!text)
        abort();
    fields_keep(text, "name,spec.image");
    kept = json_loads(text, 0, NULL);
    if (!kept || !json_object_get(body, "name") != !json_object_get(json_array_get(kept, 0), "name"))
        abort();
    json_object_foreach(json_array_get(kept, 0), name, member)
        if (strcmp(name, "name") != 0 && strcmp(name, "spec") != 0 && strcmp(name, "spec.image") != 0)
            abort();
    json_decref(kept);
    json_decref(list);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = calloc(1, size + 1), *at = text, allow[64];
    struct request request = {.body_fd = -1, .peer_fd = -1};
    struct err err = {0};
    if (!text)
        return 0;
    if (size)
        memcpy(text, data, size);
    char *method = strsep(&at, "\n"), *path = at ? strsep(&at, "\n") : NULL;
    if (path && route_find(method, path, &request.route, request.params, allow, &err) == 0 &&
        take_parameters(&request, &at, &err) == 0) {
        size_t len = at ? size - (size_t)(at - text) : 0;
        if (request_set_body(&request, at, len, &err) < 0 && !err.code)
            abort(); /* refused without a reason */
        if (json_is_object(request.body))
            check_fields(request.body);
    }
    if (request.route)
        request_clear(&request);
    free(text);
    return 0;
}
