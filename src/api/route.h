/* The table of routes: what each takes, who may call it, what it answers. Dispatch, validation, authorization, metrics and
 * the OpenAPI document all come from it.
 *
 * One file per resource (routes_*.c) holds its handlers and its part of the table; route.c has one line for each part. */
#pragma once

#include "api/schema.h"

#define ROUTE_PARAMS 2      /* in a path, at most */
#define ROUTE_PARAM_MAX 64  /* bytes of one, with its NUL */

enum role { ROLE_NONE, ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN };

enum route_body {
    BODY_NONE,
    BODY_JSON,     /* of `schema` */
    BODY_OPTIONAL, /* the same, or nothing */
    BODY_STREAM,   /* application/x-tar and the like, of any length */
};

enum route_answer {
    ANSWER_JSON,      /* 200 and an object */
    ANSWER_LIST,      /* 200 and an array of objects */
    ANSWER_CREATED,   /* 201 and the document */
    ANSWER_OPERATION, /* 202 and the operation */
    ANSWER_NOTHING,   /* 204 */
    ANSWER_STREAM,    /* 200, `media`, chunked */
    ANSWER_WEBSOCKET, /* 101 */
};

struct request;

/* 0 with an answer put into the request (request.h), or -errno with a message that goes to the client as it is:
 * ENOENT 404; EEXIST, EBUSY, EAGAIN, ESTALE 409; EINVAL and the like 400; EACCES, EPERM 403; ENOTSUP, ETIMEDOUT, ENOSPC,
 * EHOSTUNREACH, ECANCELED ... 503; others 500. */
typedef int route_handler(struct request *request, struct err *err);

struct route {
    const char *method;
    const char *path; /* "/v1/instances/{name}"; {name}, {snapshot}: SCHEMA_NAME, {id}: SCHEMA_ID */
    enum role role;   /* that it needs at least */
    route_handler *handler;
    const char *text; /* one sentence for the reference */
    enum route_body body;
    const struct schema *schema;      /* of the body */
    const struct schema_field *query; /* NULL: no parameters */
    enum route_answer answer;
    const struct schema *answer_schema; /* NULL: ANSWER_OPERATION's is known, others have none */
    const char *media;                  /* of a stream; NULL: application/json */
};

/* Arrays that end with a NULL method; NULL ends the list. */
extern const struct route *const route_tables[];

/* 0 with the route, -ENOENT, or -ENOTSUP when the path is there for other methods, whose names go to `ret_allow` ("GET,
 * POST"). `ret_params` gets the values in the path as they are, checked. */
must_check int route_find(const char *method, const char *path, const struct route **ret_route,
                          char ret_params[ROUTE_PARAMS][ROUTE_PARAM_MAX], char ret_allow[64], struct err *err);
/* Position in the table as a whole; -1 for NULL. */
int route_index(const struct route *route);
unsigned route_count(void);
const struct route *route_at(unsigned index);
/* "viewer", "operator", "admin". */
const char *role_name(enum role role);
bool role_parse(const char *text, enum role *ret_role);
/* The API's reference: an OpenAPI 3.0 document. New reference. */
json_t *openapi_document(void);
/* HTTP status of success. */
unsigned route_success(const struct route *route);
const struct schema *route_answer_schema(const struct route *route);
