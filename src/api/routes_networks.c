/* Networks of instances. */
#include "api/request.h"
#include "api/routes.h"
#include "api/schemas.h"
#include "control/network.h"

static int list_networks(struct request *request, struct err *err)
{
    json_t *list;
    int r = network_list(request->platform->networks, &list, err);
    return r < 0 ? r : request_reply(request, list);
}

static int create_network(struct request *request, struct err *err)
{
    struct request_audit audit;
    json_t *network;
    request_audit(request, &audit, "network.create", "networks/%s", request_member(request, "name"));
    int r = network_create(request->platform->networks, request->body, &audit.audit, &network, err);
    return r < 0 ? r : request_reply(request, network);
}

static int get_network(struct request *request, struct err *err)
{
    json_t *network;
    int r = network_inspect(request->platform->networks, request->params[0], &network, err);
    return r < 0 ? r : request_reply(request, network);
}

static int remove_network(struct request *request, struct err *err)
{
    struct request_audit audit;
    request_audit(request, &audit, "network.remove", "networks/%s", request->params[0]);
    return network_remove(request->platform->networks, request->params[0], &audit.audit, err);
}

static const struct schema_field fields[] = {
    {.name = "name", .text = "Its name.", .type = SCHEMA_STRING, .format = SCHEMA_NAME, .required = true},
    {.name = "kind", .text = "nat where the host can, if left out.", .type = SCHEMA_STRING,
     .values = (const char *const[]){"nat", "user", NULL}},
    {.name = "subnet", .text = "A free one, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_SUBNET, .max = 18},
    {.name = "gateway", .text = "The subnet's first address, if left out.", .type = SCHEMA_STRING, .format = SCHEMA_IPV4,
     .max = 15},
    {.name = "isolated", .text = "Its instances do not reach each other.", .type = SCHEMA_BOOL},
    {0},
};
static const struct schema network_schema = {"NetworkSpec", "A network to make.", fields, false};

const struct route routes_networks[] = {
    {.method = "GET", .path = "/v1/networks", .role = ROLE_VIEWER, .handler = list_networks, .answer = ANSWER_LIST,
     .answer_schema = &schema_object, .text = "All networks, with their leases."},
    {.method = "POST", .path = "/v1/networks", .role = ROLE_OPERATOR, .handler = create_network, .body = BODY_JSON,
     .schema = &network_schema, .answer = ANSWER_CREATED, .answer_schema = &schema_object, .text = "A new network."},
    {.method = "GET", .path = "/v1/networks/{name}", .role = ROLE_VIEWER, .handler = get_network,
     .answer_schema = &schema_object, .text = "One network."},
    {.method = "DELETE", .path = "/v1/networks/{name}", .role = ROLE_OPERATOR, .handler = remove_network,
     .answer = ANSWER_NOTHING, .text = "Removes a network that no instance has."},
    {0},
};
