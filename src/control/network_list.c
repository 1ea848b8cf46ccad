/* Networks and leases as others see them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control/network_impl.h"

static const char *text(const json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "";
}

/* `match` is a name of a network; NULL: all. */
static json_t *pick_leases(const struct store_list *leases, const char *match)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < leases->count; i++) {
        if (!match || !strcmp(text(leases->docs[i].value, "network"), match))
            json_array_append(array, leases->docs[i].value);
    }
    return array;
}

static json_t *describe(const struct store_doc *network, const struct store_list *leases)
{
    json_t *document = json_copy(network->value);
    json_object_set_new(document, "leases", pick_leases(leases, text(document, "name")));
    return document;
}

int network_list(struct networks *networks, json_t **ret_array, struct err *err)
{
    struct store_list documents, leases;
    int r = store_list_prefix(networks->store, "networks/", &documents, err);
    if (r < 0)
        return r;
    r = store_list_prefix(networks->store, "leases/", &leases, err);
    if (r == 0) {
        json_t *array = json_array();
        for (size_t i = 0; i < documents.count; i++)
            json_array_append_new(array, describe(&documents.docs[i], &leases));
        *ret_array = array;
        store_list_clear(&leases);
    }
    store_list_clear(&documents);
    return r;
}

int network_inspect(struct networks *networks, const char *name, json_t **ret_document, struct err *err)
{
    struct network_info info; /* for its message */
    struct store_list leases;
    struct store_doc doc;
    char key[80];
    int r = pool_get_network(networks->store, name, &info, NULL, err);
    if (r < 0)
        return r;
    snprintf(key, sizeof key, "networks/%s", name);
    r = store_get(networks->store, key, &doc, err);
    if (r < 0)
        return r;
    r = store_list_prefix(networks->store, "leases/", &leases, err);
    if (r == 0) {
        *ret_document = describe(&doc, &leases);
        store_list_clear(&leases);
    }
    store_doc_clear(&doc);
    return r;
}

int network_leases(struct networks *networks, const char *instance_id, json_t **ret_array, struct err *err)
{
    struct store_list leases;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "leases/%.40s/", instance_id);
    int r = store_list_prefix(networks->store, prefix, &leases, err);
    if (r < 0)
        return r;
    *ret_array = pick_leases(&leases, NULL);
    store_list_clear(&leases);
    return 0;
}
