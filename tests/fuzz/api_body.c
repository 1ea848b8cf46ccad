/* What a client sends, through the checks before any handler: METHOD, path, parameters "name=value", each ended by a
 * newline, then an empty line and the body. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
    }
    if (request.route)
        request_clear(&request);
    free(text);
    return 0;
}
