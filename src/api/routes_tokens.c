/* Tokens and the audit log. */
#include <errno.h>
#include <stdio.h>

#include "api/auth.h"
#include "api/routes.h"
#include "api/schemas.h"

static const char *const roles[] = {"viewer", "operator", "admin", NULL};

static int list_tokens(struct request *request, struct err *err)
{
    struct store_list list;
    int r = store_list_prefix(request->platform->store, "tokens/", &list, err);
    if (r < 0)
        return r;
    json_t *out = json_array();
    for (size_t i = 0; i < list.count; i++) {
        json_object_del(list.docs[i].value, "hash");
        json_array_append(out, list.docs[i].value);
    }
    store_list_clear(&list);
    return request_reply(request, out);
}

static int create_token(struct request *request, struct err *err)
{
    const char *name = request_member(request, "name");
    enum role role = ROLE_VIEWER;
    char token[TOKEN_SIZE], key[STORE_KEY_MAX];
    struct request_audit audit;
    json_t *document;
    if (!role_parse(request_member(request, "role"), &role))
        return err_say(err, EINVAL, "role must be viewer, operator or admin");
    int r = token_make(name, role, request->actor.name, token, &document, err);
    if (r < 0)
        return r;
    snprintf(key, sizeof key, "tokens/%s", name);
    request_audit(request, &audit, "token.create", "%s", key);
    const struct store_op op = {.kind = STORE_PUT, .key = key, .value = document, .expected = 0};
    r = store_commit(request->platform->store, &op, 1, &audit.audit, NULL, err);
    if (r < 0) {
        json_decref(document);
        return r == -EAGAIN ? err_say(err, EEXIST, "there is a token '%s' already: remove it first", name) : r;
    }
    json_object_del(document, "hash");
    json_object_set_new(document, "token", json_string(token));
    return request_reply(request, document);
}

static int remove_token(struct request *request, struct err *err)
{
    char key[STORE_KEY_MAX];
    struct request_audit audit;
    struct store_doc doc;
    snprintf(key, sizeof key, "tokens/%s", request->params[0]);
    request_audit(request, &audit, "token.remove", "%s", key);
    int r = store_get(request->platform->store, key, &doc, err);
    if (r < 0)
        return r == -ENOENT ? err_say(err, ENOENT, "there is no token '%s'", request->params[0]) : r;
    store_doc_clear(&doc);
    const struct store_op op = {.kind = STORE_DELETE, .key = key, .expected = STORE_ANY};
    return store_commit(request->platform->store, &op, 1, &audit.audit, NULL, err);
}

static int get_audit(struct request *request, struct err *err)
{
    json_t *records;
    int r = store_audit_list(request->platform->store, (uint64_t)request_integer(request, "before", 0),
                             (size_t)request_integer(request, "limit", 100), &records, err);
    return r < 0 ? r : request_reply(request, records);
}

static const struct schema_field token_fields[] = {
    {.name = "name", .text = "What it is for.", .type = SCHEMA_STRING, .format = SCHEMA_NAME, .required = true},
    {.name = "role", .text = "What it may do.", .type = SCHEMA_STRING, .values = roles, .required = true},
    {0},
};
static const struct schema token_schema = {"TokenSpec", "A token to make.", token_fields, false};
static const struct schema_field audit_query[] = {
    {.name = "before", .text = "Only records with ids below.", .type = SCHEMA_INTEGER, .max = INT64_MAX},
    {.name = "limit", .text = "At most so many; 100.", .type = SCHEMA_INTEGER, .min = 1, .max = 1000},
    {0},
};

const struct route routes_tokens[] = {
    {.method = "GET", .path = "/v1/tokens", .role = ROLE_ADMIN, .handler = list_tokens, .answer = ANSWER_LIST,
     .answer_schema = &schema_object, .text = "All tokens, without their secrets."},
    {.method = "POST", .path = "/v1/tokens", .role = ROLE_ADMIN, .handler = create_token, .body = BODY_JSON,
     .schema = &token_schema, .answer = ANSWER_CREATED, .answer_schema = &schema_object,
     .text = "A new token; its secret is in the answer and nowhere else."},
    {.method = "DELETE", .path = "/v1/tokens/{name}", .role = ROLE_ADMIN, .handler = remove_token, .answer = ANSWER_NOTHING,
     .text = "Takes a token away; whoever has it is refused from now on."},
    {.method = "GET", .path = "/v1/audit", .role = ROLE_ADMIN, .handler = get_audit, .query = audit_query,
     .answer = ANSWER_LIST, .answer_schema = &schema_object, .text = "Who changed what, from where; newest first."},
    {0},
};
