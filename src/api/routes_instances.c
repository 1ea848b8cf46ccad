/* Instances as documents. */
#include <errno.h>

#include "api/fields.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "api/work.h"

static int list_instances(struct request *request, struct err *err)
{
    char *list;
    int r = instance_list(request->platform->instances, &list, err);
    const char *fields = json_string_value(json_object_get(request->query, "fields"));
    if (r == 0 && fields)
        fields_keep(list, fields);
    return r < 0 ? r : request_reply_text(request, "application/json", list);
}

static int get_instance(struct request *request, struct err *err)
{
    json_t *instance;
    int r = instance_get(request->platform->instances, request->params[0], &instance, err);
    return r < 0 ? r : request_reply(request, instance);
}

static int run_create(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct instance_call call = work_call(operation);
    bool start = work_flag(work, "start");
    json_t *spec = json_copy(work->body);
    json_object_del(spec, "start");
    int r = instance_create(work->platform->instances, spec, start, &call, ret_result, err);
    json_decref(spec);
    return r;
}

static int create_instance(struct request *request, struct err *err)
{
    const char *name = request_member(request, "name");
    return work_begin(request, "instance.create", run_create, err, "instances/%s", name ? name : "");
}

static int update_instance(struct request *request, struct err *err)
{
    const struct instance_call call = request_call(request);
    json_t *instance;
    int r = instance_update(request->platform->instances, request->params[0], request->body, &call, &instance, err);
    return r < 0 ? r : request_reply(request, instance);
}

static int run_remove(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct instance_call call = work_call(operation);
    (void)ret_result;
    return instance_remove(work->platform->instances, work->params[0], json_is_true(json_object_get(work->query, "force")),
                           &call, err);
}

/* A name that is not there is refused at once, not by an operation. */
static int check_there(const struct request *request, struct err *err)
{
    json_t *instance;
    int r = instance_get(request->platform->instances, request->params[0], &instance, err);
    if (r == 0)
        json_decref(instance);
    return r;
}

static int remove_instance(struct request *request, struct err *err)
{
    int r = check_there(request, err);
    return r < 0 ? r : work_begin(request, "instance.remove", run_remove, err, "instances/%s", request->params[0]);
}

static int rename_instance(struct request *request, struct err *err)
{
    const struct instance_call call = request_call(request);
    json_t *instance;
    int r = instance_rename(request->platform->instances, request->params[0], request_member(request, "name"), &call,
                            &instance, err);
    return r < 0 ? r : request_reply(request, instance);
}

static int run_clone(struct operation *operation, void *arg, json_t **ret_result, struct err *err)
{
    const struct work *work = arg;
    const struct instance_call call = work_call(operation);
    return instance_clone(work->platform->instances, work->params[0], work_member(work, "name"), &call, ret_result, err);
}

static int clone_instance(struct request *request, struct err *err)
{
    int r = check_there(request, err);
    return r < 0 ? r : work_begin(request, "instance.clone", run_clone, err, "instances/%s", request->params[0]);
}

static const struct schema_field list_query[] = {
    {.name = "fields", .text = "Only these members, like 'name,spec.image,status.state'; all if left out.", .type = SCHEMA_STRING,
     .format = SCHEMA_MEMBERS, .max = 1000},
    {0},
};
static const struct schema_field force_query[] = {
    {.name = "force", .text = "Kills it first, if it runs.", .type = SCHEMA_BOOL},
    {0},
};

const struct route routes_instances[] = {
    {.method = "GET", .path = "/v1/instances", .role = ROLE_VIEWER, .handler = list_instances, .query = list_query,
     .answer = ANSWER_LIST, .answer_schema = &schema_object, .text = "All instances, by name."},
    {.method = "POST", .path = "/v1/instances", .role = ROLE_OPERATOR, .handler = create_instance, .body = BODY_JSON,
     .schema = &schema_instance_spec, .answer = ANSWER_OPERATION, .text = "A new instance; the result is its document."},
    {.method = "GET", .path = "/v1/instances/{name}", .role = ROLE_VIEWER, .handler = get_instance,
     .answer_schema = &schema_object, .text = "One instance."},
    {.method = "PATCH", .path = "/v1/instances/{name}", .role = ROLE_OPERATOR, .handler = update_instance, .body = BODY_JSON,
     .schema = &schema_instance_changes, .answer_schema = &schema_object, .text = "Changes what may change."},
    {.method = "DELETE", .path = "/v1/instances/{name}", .role = ROLE_OPERATOR, .handler = remove_instance,
     .query = force_query, .answer = ANSWER_OPERATION, .text = "Removes an instance and its root disk."},
    {.method = "POST", .path = "/v1/instances/{name}/rename", .role = ROLE_OPERATOR, .handler = rename_instance,
     .body = BODY_JSON, .schema = &schema_new_name, .answer_schema = &schema_object, .text = "Another name for it."},
    {.method = "POST", .path = "/v1/instances/{name}/clone", .role = ROLE_OPERATOR, .handler = clone_instance,
     .body = BODY_JSON, .schema = &schema_new_name, .answer = ANSWER_OPERATION,
     .text = "A stopped copy with a disk of its own."},
    {0},
};
