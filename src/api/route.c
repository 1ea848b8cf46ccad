/* Finding a route: a walk over the table, which is short. */
#include "api/route.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/routes.h"
#include "api/schemas.h"

const struct route *const route_tables[] = {
    routes_system,
    routes_operations,
    routes_events,
    routes_tokens,
    routes_instances,
    routes_instance_state,
    routes_instance_ways,
    routes_images,
    routes_networks,
    routes_volumes,
    NULL,
};

unsigned route_count(void)
{
    unsigned count = 0;
    for (const struct route *const *table = route_tables; *table; table++)
        for (const struct route *r = *table; r->method; r++)
            count++;
    return count;
}

const struct route *route_at(unsigned index)
{
    for (const struct route *const *table = route_tables; *table; table++)
        for (const struct route *r = *table; r->method; r++)
            if (index-- == 0)
                return r;
    return NULL;
}

int route_index(const struct route *route)
{
    int index = 0;
    for (const struct route *const *table = route_tables; *table; table++)
        for (const struct route *r = *table; r->method; r++, index++)
            if (r == route)
                return index;
    return -1;
}

static const char *const role_names[] = {"none", "viewer", "operator", "admin"};

const char *role_name(enum role role)
{
    return role_names[role];
}

bool role_parse(const char *text, enum role *ret_role)
{
    for (int i = ROLE_VIEWER; i <= ROLE_ADMIN; i++)
        if (!strcmp(text, role_names[i])) {
            *ret_role = (enum role)i;
            return true;
        }
    return false;
}

/* Whether the path is of this shape; the values of its parameters go to `params`, cut off where too long to be good. */
static bool matches(const char *pattern, const char *path, char params[ROUTE_PARAMS][ROUTE_PARAM_MAX])
{
    unsigned param = 0;
    while (*pattern && *path) {
        if (*pattern != '{') {
            if (*pattern++ != *path++)
                return false;
            continue;
        }
        size_t len = strcspn(path, "/");
        if (!len || param == ROUTE_PARAMS)
            return false;
        snprintf(params[param++], ROUTE_PARAM_MAX, "%.*s", (int)(len < ROUTE_PARAM_MAX ? len : 0), path);
        path += len;
        pattern += strcspn(pattern, "}") + 1;
    }
    return !*pattern && !*path;
}

static int check_params(const struct route *route, char params[ROUTE_PARAMS][ROUTE_PARAM_MAX], struct err *err)
{
    const char *open = strchr(route->path, '{');
    for (unsigned i = 0; open; i++, open = strchr(open + 1, '{')) {
        bool is_id = !strncmp(open, "{id}", 4);
        if (schema_check_text(is_id ? SCHEMA_ID : SCHEMA_NAME, params[i], err) < 0)
            return err_ctx(err, "%.*s in the path", (int)strcspn(open + 1, "}"), open + 1);
    }
    return 0;
}

static void allow(char allowed[64], const char *method)
{
    size_t used = strlen(allowed);
    snprintf(allowed + used, 64 - used, "%s%s", used ? ", " : "", method);
}

int route_find(const char *method, const char *path, const struct route **ret_route,
               char ret_params[ROUTE_PARAMS][ROUTE_PARAM_MAX], char ret_allow[64], struct err *err)
{
    ret_allow[0] = '\0';
    for (const struct route *const *table = route_tables; *table; table++)
        for (const struct route *r = *table; r->method; r++) {
            if (!matches(r->path, path, ret_params))
                continue;
            if (!strcmp(r->method, method)) {
                *ret_route = r;
                return check_params(r, ret_params, err);
            }
            allow(ret_allow, r->method);
        }
    if (ret_allow[0])
        return err_say(err, ENOTSUP, "%.16s is not for %.64s, which takes %s", method, path, ret_allow);
    return err_say(err, ENOENT, "there is no %.16s %.64s, see /v1/openapi.json", method, path);
}

unsigned route_success(const struct route *route)
{
    static const unsigned statuses[] = {[ANSWER_JSON] = 200,      [ANSWER_LIST] = 200,    [ANSWER_CREATED] = 201,
                                        [ANSWER_OPERATION] = 202, [ANSWER_NOTHING] = 204, [ANSWER_STREAM] = 200,
                                        [ANSWER_WEBSOCKET] = 101};
    return statuses[route->answer];
}

const struct schema *route_answer_schema(const struct route *route)
{
    return route->answer == ANSWER_OPERATION ? &schema_operation : route->answer_schema;
}
