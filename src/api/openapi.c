/* The reference of all requests, made from the table of routes. */
#include "api/route.h"

#include <ctype.h>
#include <string.h>

#include "api/schemas.h"

static json_t *content(const char *media, json_t *schema)
{
    return json_pack("{s:{s:o}}", media, "schema", schema);
}

static json_t *path_parameter(const char *name, size_t len)
{
    const struct schema_field field = {.type = SCHEMA_STRING, .max = ROUTE_PARAM_MAX - 1, .required = true,
                                       .format = len == 2 ? SCHEMA_ID : SCHEMA_NAME};
    return json_pack("{s:s%, s:s, s:b, s:o}", "name", name, len, "in", "path", "required", 1, "schema",
                     schema_field_describe(&field));
}

static json_t *parameters(const struct route *route)
{
    json_t *list = json_array();
    for (const char *open = strchr(route->path, '{'); open; open = strchr(open + 1, '{'))
        json_array_append_new(list, path_parameter(open + 1, strcspn(open + 1, "}")));
    for (const struct schema_field *f = route->query; f && f->name; f++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:o}", "name", f->name, "in", "query", "required",
                                              f->required, "schema", schema_field_describe(f)));
    return list;
}

static json_t *body(const struct route *route)
{
    if (route->body == BODY_STREAM)
        return json_pack("{s:b, s:o}", "required", 1, "content",
                         content("application/x-tar", json_pack("{s:s, s:s}", "type", "string", "format", "binary")));
    return json_pack("{s:b, s:o}", "required", route->body == BODY_JSON, "content",
                     content("application/json", schema_reference(route->schema)));
}

static json_t *success(const struct route *route)
{
    static const char *const texts[] = {
        [ANSWER_JSON] = "Done.", [ANSWER_LIST] = "All of them.", [ANSWER_CREATED] = "Made.", [ANSWER_OPERATION] = "Begun: the operation.",
        [ANSWER_NOTHING] = "Done.", [ANSWER_STREAM] = "The stream.", [ANSWER_WEBSOCKET] = "A WebSocket from here on."};
    const struct schema *schema = route_answer_schema(route);
    json_t *out = json_pack("{s:s}", "description", texts[route->answer]);
    if (route->answer == ANSWER_LIST)
        json_object_set_new(out, "content", content("application/json", json_pack("{s:s, s:o}", "type", "array", "items",
                                                                                  schema_reference(schema))));
    else if (route->answer == ANSWER_STREAM)
        json_object_set_new(out, "content", content(route->media, json_pack("{s:s}", "type", "string")));
    else if (schema)
        json_object_set_new(out, "content", content("application/json", schema_reference(schema)));
    return out;
}

static json_t *responses(const struct route *route)
{
    char status[4] = {0};
    unsigned number = route_success(route);
    for (int i = 2; i >= 0; i--, number /= 10)
        status[i] = (char)('0' + number % 10);
    return json_pack("{s:o, s:{s:s}, s:{s:s}}", status, success(route), "503", "$ref", "#/components/responses/Unavailable",
                     "default", "$ref", "#/components/responses/Error");
}

static json_t *describe(const struct route *route)
{
    json_t *out = json_pack("{s:s, s:s, s:o, s:o}", "summary", route->text, "x-role", role_name(route->role), "parameters",
                            parameters(route), "responses", responses(route));
    if (route->body != BODY_NONE)
        json_object_set_new(out, "requestBody", body(route));
    if (route->answer == ANSWER_WEBSOCKET)
        json_object_set_new(out, "x-websocket", json_true());
    return out;
}

static void add_path(json_t *paths, const struct route *route)
{
    char method[8] = "";
    for (size_t i = 0; route->method[i] && i + 1 < sizeof method; i++)
        method[i] = (char)tolower((unsigned char)route->method[i]);
    json_t *path = json_object_get(paths, route->path);
    if (!path) {
        path = json_object();
        json_object_set_new(paths, route->path, path);
    }
    json_object_set_new(path, method, describe(route));
}

static json_t *error_response(const char *text)
{
    return json_pack("{s:s, s:o}", "description", text, "content", content("application/json", schema_reference(&schema_error)));
}

json_t *openapi_document(void)
{
    json_t *paths = json_object(), *schemas = json_object();
    schema_describe(&schema_error, schemas);
    for (unsigned i = 0; i < route_count(); i++) {
        const struct route *route = route_at(i);
        add_path(paths, route);
        schema_describe(route->schema, schemas);
        schema_describe(route_answer_schema(route), schemas);
    }
    return json_pack(
        "{s:s, s:{s:s, s:s, s:s}, s:o, s:{s:o, s:{s:o, s:o}, s:{s:{s:s, s:s}, s:{s:s}}}, s:[{s:[]}, {s:[]}]}", "openapi",
        "3.0.3", "info", "title", "Polder API", "version", POLDER_VERSION, "description",
        "The platform on one machine. Fields that no schema names are refused.", "paths", paths, "components", "schemas",
        schemas, "responses", "Error", error_response("Refused; the message says why and what to do."), "Unavailable",
        error_response("A part of the host that this needs is missing or busy."), "securitySchemes", "token", "type", "http",
        "scheme", "bearer", "certificate", "type", "mutualTLS", "security", "token", "certificate");
}
