/* Networks, interfaces and ports as a client of the API may write them. What is taken goes into documents and comes back the
 * same, and its rules are text without surprises. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "control/network_rules.h"


static void check_network(const json_t *json)
{
    struct network_info info, again;
    if (network_spec_parse(json, &info, NULL) < 0 || !info.subnet.prefix)
        return;
    strcpy(info.bridge, "pld-0");
    struct network_state state = {.networks = &info, .network_count = 1};
    json_t *document = network_info_to_json(&info);
    assert(network_info_from_json(document, &again, NULL) == 0 && again.gateway == info.gateway);
    json_decref(document);
    free(network_rules_text("polder", &state));
}

static void check_lease(const json_t *json)
{
    struct network_lease lease, again;
    if (network_lease_from_json(json, &lease, NULL) < 0)
        return;
    json_t *document = network_lease_to_json(&lease);
    assert(network_lease_from_json(document, &again, NULL) == 0 && again.ports.count == lease.ports.count);
    json_decref(document);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *json = json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL);
    struct network_info info;
    if (network_info_from_json(json, &info, NULL) == 0)
        json_decref(network_info_to_json(&info));
    check_network(json);
    check_lease(json);
    (void)!network_check_spec(json_object_get(json, "networks"), json_object_get(json, "ports"), NULL);
    json_decref(json);
    return 0;
}
