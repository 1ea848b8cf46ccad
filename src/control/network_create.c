/* Networks come, are renamed and go. Subnets are kept in one document, `network-subnets` {"NAME": "10.88.0.0/24"}: with its
 * revision in the commit, two networks that overlap cannot both be made. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/own.h"
#include "control/network_impl.h"
#include "control/network_link.h"
#include "control/network_nft.h"
#include "control/network_txn.h"

#define SUBNETS_KEY "network-subnets"
#define USER_SUBNET ((struct subnet){0x0a000200, 24}) /* 10.0.2.0: seen by the guest alone */

struct subnets {
    json_t *names; /* ours */
    uint64_t revision;
    struct subnet *taken; /* those of networks, then those of the host's routes */
    size_t count, own_count;
};

static void subnets_clear(struct subnets *subnets)
{
    json_decref(subnets->names);
    free(subnets->taken);
}

static int read_names(struct store *store, struct subnets *subnets, struct err *err)
{
    struct store_doc doc;
    int r = store_get(store, SUBNETS_KEY, &doc, err);
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) {
        subnets->revision = doc.revision;
        subnets->names = json_is_object(doc.value) ? json_copy(doc.value) : NULL;
        store_doc_clear(&doc);
    }
    if (!subnets->names)
        subnets->names = json_object();
    return subnets->names ? 0 : err_set(err, ENOMEM, SUBNETS_KEY);
}

static int add_routes(struct subnets *subnets, struct err *err)
{
    own_free struct subnet *routes = NULL;
    size_t count = 0, own = json_object_size(subnets->names);
    int r = link_routes(&routes, &count, err);
    if (r < 0)
        return r;
    subnets->taken = calloc(own + count + 1, sizeof *subnets->taken);
    if (!subnets->taken)
        return err_set(err, ENOMEM, SUBNETS_KEY);
    const char *name;
    json_t *value;
    json_object_foreach(subnets->names, name, value) {
        if (subnet_parse(json_string_value(value), &subnets->taken[subnets->count], NULL) == 0)
            subnets->count++;
    }
    subnets->own_count = subnets->count;
    if (count)
        memcpy(subnets->taken + subnets->count, routes, count * sizeof *routes);
    subnets->count += count;
    return 0;
}

static int check_subnet(const struct subnets *subnets, struct subnet subnet, struct err *err)
{
    for (size_t i = 0; i < subnets->count; i++) {
        char text[SUBNET_TEXT_SIZE];
        if (!subnets_overlap(subnet, subnets->taken[i]))
            continue;
        subnet_format(subnets->taken[i], text);
        return err_say(err, EBUSY, "the subnet overlaps with %s, which %s: choose another", text,
                       i < subnets->own_count ? "another network has" : "the host has a route to");
    }
    return 0;
}

static int choose_subnet(struct network_info *info, const struct subnets *subnets, struct err *err)
{
    struct subnet subnet;
    if (info->subnet.prefix)
        return check_subnet(subnets, info->subnet, err);
    if (!subnet_first_free(subnets->taken, (unsigned)subnets->count, &subnet))
        return err_say(err, ENOSPC, "no subnet is free from 10.88.0.0/24 on: give one");
    network_set_subnet(info, subnet);
    return 0;
}

/* ---- create ---- */

static int name_bridge(struct network_info *info, struct err *err)
{
    struct link_info link;
    for (unsigned tries = 0; tries < 100; tries++) {
        uint32_t number = 0;
        if (getrandom(&number, sizeof number, 0) != sizeof number)
            break;
        snprintf(info->bridge, sizeof info->bridge, "pld-%08x", number);
        int r = link_find(info->bridge, &link, err);
        if (r < 0 && r != -ENODEV)
            return r;
        if (r == -ENODEV)
            return 0;
    }
    return err_say(err, ENOSPC, "no name for a bridge is free");
}

static void stamp(struct network_info *info)
{
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(info->created_at, sizeof info->created_at, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

static int put_new(struct txn *txn, const struct network_info *info, struct subnets *subnets)
{
    char text[SUBNET_TEXT_SIZE];
    subnet_format(info->subnet, text);
    if (info->kind == NETWORK_NAT) {
        json_object_set_new(subnets->names, info->name, json_string(text));
        txn_put(txn, subnets->revision, json_incref(subnets->names), SUBNETS_KEY);
    }
    txn_put(txn, 0, network_info_to_json(info), "networks/%s", info->name);
    return 0;
}

static int exists(struct networks *networks, const char *name, struct err *err)
{
    struct network_info info;
    struct err none = {0};
    int r = pool_get_network(networks->store, name, &info, NULL, &none);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        return err_say(err, EEXIST, "network '%s' exists already: choose another name", name);
    *err = none;
    return r;
}

static int try_create(struct networks *networks, const struct network_info *wanted, const struct store_audit *audit,
                      struct network_info *ret_info, struct err *err)
{
    struct network_info info = *wanted;
    struct subnets subnets = {.count = 0};
    struct txn txn = {.count = 0};
    int r = exists(networks, info.name, err);
    if (r == 0 && info.kind == NETWORK_USER && !info.subnet.prefix)
        network_set_subnet(&info, USER_SUBNET);
    if (r == 0 && info.kind == NETWORK_NAT && (r = read_names(networks->store, &subnets, err)) == 0 &&
        (r = add_routes(&subnets, err)) == 0)
        r = choose_subnet(&info, &subnets, err);
    if (r == 0)
        r = put_new(&txn, &info, &subnets);
    subnets_clear(&subnets);
    if (r < 0)
        return r;
    r = txn_commit(&txn, networks->store, audit, err);
    if (r == 0)
        *ret_info = info;
    return r;
}

static int prepare(struct networks *networks, const json_t *spec, struct network_info *info, struct err *err)
{
    int r = network_spec_parse(spec, info, err);
    if (r < 0)
        return r;
    stamp(info);
    if (info->kind == NETWORK_USER)
        return info->isolated ? err_say(err, EINVAL, "a network of kind user isolates its instances anyway") : 0;
    r = networks_nat_available(networks, err);
    if (r < 0)
        return r;
    info->mac = mac_random();
    return name_bridge(info, err);
}

/* Takes the documents of a network away if nobody has a lease in it. */
static int try_remove(struct networks *networks, const char *name, const struct store_audit *audit, struct err *err)
{
    struct network_info info;
    struct subnets subnets = {.count = 0};
    struct txn txn = {.count = 0};
    uint64_t revision;
    int r = pool_get_network(networks->store, name, &info, &revision, err);
    if (r < 0)
        return r;
    if (info.leases)
        return err_say(err, EBUSY, "network '%s' is in use by %u interface%s: remove their instances first", name, info.leases,
                       info.leases == 1 ? "" : "s");
    r = read_names(networks->store, &subnets, err);
    if (r == 0 && json_object_del(subnets.names, name) == 0)
        txn_put(&txn, subnets.revision, json_incref(subnets.names), SUBNETS_KEY);
    subnets_clear(&subnets);
    txn_delete(&txn, revision, "networks/%s", name);
    if (r == 0)
        return txn_commit(&txn, networks->store, audit, err);
    txn_clear(&txn);
    return r;
}

static int remove_documents(struct networks *networks, const char *name, const struct store_audit *audit, struct err *err)
{
    unsigned tries = 0;
    int r;
    do {
        r = try_remove(networks, name, audit, err);
    } while (txn_again(r, &tries));
    return r;
}

int network_create(struct networks *networks, const json_t *spec, const struct store_audit *audit, json_t **ret_document,
                   struct err *err)
{
    struct network_info wanted, info;
    int r = prepare(networks, spec, &wanted, err);
    if (r < 0)
        return r;
    unsigned tries = 0;
    do {
        r = try_create(networks, &wanted, audit, &info, err);
    } while (txn_again(r, &tries));
    if (r < 0)
        return r;
    r = network_apply(networks, info.name, err);
    if (r < 0) {
        (void)!remove_documents(networks, info.name, audit, NULL);
        (void)!network_apply(networks, NULL, NULL);
        return r;
    }
    return network_inspect(networks, info.name, ret_document, err);
}

int network_remove(struct networks *networks, const char *name, const struct store_audit *audit, struct err *err)
{
    int r = remove_documents(networks, name, audit, err);
    return r < 0 ? r : network_apply(networks, NULL, err);
}

/* ---- rename ---- */

static int try_rename(struct networks *networks, const char *name, const char *new_name, const struct store_audit *audit,
                      struct err *err)
{
    struct network_info info;
    struct subnets subnets = {.count = 0};
    struct txn txn = {.count = 0};
    uint64_t revision;
    int r = pool_get_network(networks->store, name, &info, &revision, err);
    if (r < 0 || (r = exists(networks, new_name, err)) < 0)
        return r;
    if (info.leases)
        return err_say(err, EBUSY, "network '%s' is in use by %u interface%s: it keeps its name", name, info.leases,
                       info.leases == 1 ? "" : "s");
    r = read_names(networks->store, &subnets, err);
    if (r == 0) {
        json_object_del(subnets.names, name);
        snprintf(info.name, sizeof info.name, "%s", new_name);
        r = put_new(&txn, &info, &subnets);
        txn_delete(&txn, revision, "networks/%s", name);
    }
    subnets_clear(&subnets);
    return r < 0 ? r : txn_commit(&txn, networks->store, audit, err);
}

int network_rename(struct networks *networks, const char *name, const char *new_name, const struct store_audit *audit,
                   struct err *err)
{
    if (!network_name_valid(new_name))
        return err_say(err, EINVAL, "'%.70s' is not a name: lower-case letters, digits and inner dashes", new_name);
    unsigned tries = 0;
    int r;
    do {
        r = try_rename(networks, name, new_name, audit, err);
    } while (txn_again(r, &tries));
    return r < 0 ? r : network_apply(networks, NULL, err);
}
