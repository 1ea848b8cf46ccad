#include "control/network_pool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/network_claim.h"
#include "control/network_passt.h"

static const struct network_ports no_ports;

static void mac_key(struct mac mac, char ret_key[static 24])
{
    const uint8_t *o = mac.octet;
    snprintf(ret_key, 24, "macs/%02x%02x%02x%02x%02x%02x", o[0], o[1], o[2], o[3], o[4], o[5]);
}

static void lease_key(const char *instance, unsigned index, char ret_key[static 48])
{
    snprintf(ret_key, 48, "%s/%u", instance, index);
}

int pool_get_network(struct store *store, const char *name, struct network_info *ret_network, uint64_t *ret_revision,
                     struct err *err)
{
    char key[80];
    struct store_doc doc;
    snprintf(key, sizeof key, "networks/%s", name);
    int r = network_name_valid(name) ? store_get(store, key, &doc, err) : -ENOENT;
    if (r == -ENOENT)
        return err_say(err, ENOENT, "there is no network '%.70s': polder network create makes one", name);
    if (r < 0)
        return r;
    r = network_info_from_json(doc.value, ret_network, err);
    if (ret_revision)
        *ret_revision = doc.revision;
    store_doc_clear(&doc);
    return r;
}

static int get_lease(struct store *store, const char *instance, unsigned index, struct network_lease *ret_lease,
                     uint64_t *ret_revision, struct err *err)
{
    char key[48], full[64];
    struct store_doc doc;
    lease_key(instance, index, key);
    snprintf(full, sizeof full, "leases/%s", key);
    int r = store_get(store, full, &doc, err);
    if (r < 0)
        return r;
    r = network_lease_from_json(doc.value, ret_lease, err);
    *ret_revision = doc.revision;
    store_doc_clear(&doc);
    return r;
}

/* ---- addresses ---- */

/* 1 when the document is there, 0 when not. */
static int exists(struct store *store, const char *key, struct err *err)
{
    struct store_doc doc;
    int r = store_get(store, key, &doc, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    store_doc_clear(&doc);
    return 1;
}

static int address_taken(struct store *store, const struct network_info *network, uint32_t address, struct err *err)
{
    char text[IPV4_TEXT_SIZE], key[100];
    ipv4_format(address, text);
    snprintf(key, sizeof key, "addresses/%s/%s", network->name, text);
    return address == network->gateway ? 1 : exists(store, key, err);
}

static int check_address(struct store *store, const struct network_info *network, uint32_t address, struct err *err)
{
    char text[IPV4_TEXT_SIZE], subnet[SUBNET_TEXT_SIZE];
    ipv4_format(address, text);
    subnet_format(network->subnet, subnet);
    if (!subnet_is_host(network->subnet, address))
        return err_say(err, EINVAL, "address %s is not a host address of network '%s' (%s)", text, network->name, subnet);
    if (address == network->gateway)
        return err_say(err, EINVAL, "address %s is the gateway of network '%s': choose another", text, network->name);
    int r = address_taken(store, network, address, err);
    return r > 0 ? err_say(err, EBUSY, "address %s of network '%s' is held by another instance: choose another", text, network->name)
                 : r;
}

/* From the last one given on, so that an address is not given to another as soon as it is free. */
static int choose_address(struct store *store, const struct network_info *network, uint32_t *ret_address, struct err *err)
{
    uint32_t first = network->subnet.base + 1, hosts = subnet_broadcast(network->subnet) - first;
    uint32_t start = network->last_address ? network->last_address - first + 1 : 0;
    for (uint32_t i = 0; network->leases < hosts - 1 && i < hosts; i++) {
        uint32_t address = first + (start + i) % hosts;
        int r = address_taken(store, network, address, err);
        if (r < 0)
            return r;
        if (r == 0) {
            *ret_address = address;
            return 0;
        }
    }
    return err_say(err, ENOSPC,
                   "network '%s' has no free address left, %u are in use: remove instances or create a larger network",
                   network->name, network->leases);
}

/* Neither the gateway's nor that of the resolver that passt answers for. */
static bool is_free_for_user(const struct network_info *network, uint32_t address)
{
    return subnet_is_host(network->subnet, address) && address != network->gateway && address != passt_dns(network);
}

static uint32_t user_address(const struct network_info *network)
{
    uint32_t address = network->subnet.base + 1;
    while (!is_free_for_user(network, address)) /* a subnet has six hosts at least */
        address++;
    return address;
}

static int give_address(struct store *store, struct network_info *network, uint32_t wanted, uint32_t *ret_address, struct err *err)
{
    if (network->kind == NETWORK_USER) { /* each has a passt of its own: all are alike */
        *ret_address = wanted ? wanted : user_address(network);
        if (!is_free_for_user(network, *ret_address))
            return err_say(err, EINVAL, "the address is not a free host address of network '%s'", network->name);
        return 0;
    }
    if (wanted) {
        *ret_address = wanted;
        return check_address(store, network, wanted, err);
    }
    int r = choose_address(store, network, ret_address, err);
    if (r == 0)
        network->last_address = *ret_address;
    return r;
}

static int give_mac(struct store *store, const struct network_entry *entry, struct mac *ret_mac, struct err *err)
{
    char key[24], text[MAC_TEXT_SIZE];
    for (unsigned tries = 0; tries < 100; tries++) {
        struct mac mac = entry->has_mac ? entry->mac : mac_random();
        mac_key(mac, key);
        mac_format(mac, text);
        int r = exists(store, key, err);
        if (r < 0)
            return r;
        if (r == 0) {
            *ret_mac = mac;
            return 0;
        }
        if (entry->has_mac)
            return err_say(err, EBUSY, "MAC %s is held by another interface: choose another", text);
    }
    return err_say(err, ENOSPC, "no MAC address is free");
}

/* ---- leases ---- */

static void put_network(struct txn *txn, const struct network_info *network, uint64_t revision)
{
    txn_put(txn, revision, network_info_to_json(network), "networks/%s", network->name);
}

static json_t *holder(const char *key)
{
    return json_pack("{ss}", "lease", key);
}

static int make_lease(struct txn *txn, struct store *store, const struct network_request *request,
                      const struct network_entry *entry, struct pool_grant *grant, struct err *err)
{
    uint64_t revision;
    char key[48], address[IPV4_TEXT_SIZE], mac[24];
    struct network_info *network = &grant->network;
    struct network_lease *lease = &grant->lease;
    int r = pool_get_network(store, entry->network, network, &revision, err);
    if (r < 0 || (r = give_address(store, network, entry->address, &lease->address, err)) < 0 ||
        (r = give_mac(store, entry, &lease->mac, err)) < 0)
        return r;
    snprintf(lease->instance, sizeof lease->instance, "%s", request->instance_id);
    snprintf(lease->network, sizeof lease->network, "%s", network->name);
    lease->index = request->index;
    lease_key(lease->instance, lease->index, key);
    ipv4_format(lease->address, address);
    mac_key(lease->mac, mac);
    network->leases++;
    put_network(txn, network, revision);
    txn_put(txn, 0, holder(key), "%s", mac);
    if (network->kind == NETWORK_NAT)
        txn_put(txn, 0, holder(key), "addresses/%s/%s", network->name, address);
    return 0;
}

static void free_lease(struct txn *txn, struct network_info *network, uint64_t revision, const struct network_lease *lease)
{
    char address[IPV4_TEXT_SIZE], mac[24];
    ipv4_format(lease->address, address);
    mac_key(lease->mac, mac);
    network->leases -= network->leases > 0;
    put_network(txn, network, revision);
    txn_delete(txn, STORE_ANY, "%s", mac);
    if (network->kind == NETWORK_NAT)
        txn_delete(txn, STORE_ANY, "addresses/%s/%s", network->name, address);
}

/* Whether a lease is what the interface's entry asks for. */
static bool fits(const struct network_lease *lease, const struct network_entry *entry)
{
    return !strcmp(lease->network, entry->network) && (!entry->address || entry->address == lease->address) &&
           (!entry->has_mac || !memcmp(&entry->mac, &lease->mac, sizeof lease->mac));
}

static int try_attach(struct store *store, const struct network_request *request, const struct network_entry *entry,
                      const struct network_ports *ports, struct pool_grant *grant, struct err *err)
{
    struct txn txn = {.count = 0};
    uint64_t revision = 0;
    char key[48];
    struct network_lease *lease = &grant->lease;
    lease_key(request->instance_id, request->index, key);
    int r = get_lease(store, request->instance_id, request->index, lease, &revision, err);
    grant->is_new = r == -ENOENT;
    if (r == 0)
        r = pool_get_network(store, lease->network, &grant->network, NULL, err);
    else if (grant->is_new)
        r = make_lease(&txn, store, request, entry, grant, err);
    if (r == 0) {
        struct network_ports held = lease->attached ? lease->ports : no_ports;
        r = grant->network.kind == NETWORK_NAT ? claim_check_host(ports, &held, err) : 0;
        if (r == 0)
            r = claim_ports(&txn, store, key, &held, ports, err);
    }
    if (r < 0) {
        txn_clear(&txn);
        return r;
    }
    lease->attached = true;
    lease->ports = *ports;
    snprintf(lease->name, sizeof lease->name, "%s", request->instance_name);
    txn_put(&txn, revision, network_lease_to_json(lease), "leases/%s", key);
    return txn_commit(&txn, store, NULL, err);
}

static bool id_valid(const char *id)
{
    size_t len = id ? strlen(id) : 0;
    return len && len < INSTANCE_ID_SIZE && strspn(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == len;
}

/* An entry that has changed since the lease was made wants a new one. */
static int drop_unfit(struct store *store, const struct network_request *request, const struct network_entry *entry,
                      struct err *err)
{
    struct network_lease lease;
    uint64_t revision;
    int r = get_lease(store, request->instance_id, request->index, &lease, &revision, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    return fits(&lease, entry) ? 0 : pool_detach(store, request->instance_id, request->index, true, err);
}

int pool_attach(struct store *store, const struct network_request *request, struct pool_grant *ret_grant, struct err *err)
{
    struct network_entry entry;
    struct network_ports ports;
    if (!id_valid(request->instance_id) || !network_name_valid(request->instance_name) || request->index >= NETWORK_INTERFACES_MAX)
        return err_say(err, EINVAL, "an interface needs the id and name of its instance, and an index below %d",
                       NETWORK_INTERFACES_MAX);
    int r = network_entry_parse(request->entry, &entry, err);
    if (r < 0 || (r = network_ports_parse(request->ports, &ports, err)) < 0 ||
        (r = drop_unfit(store, request, &entry, err)) < 0)
        return r;
    unsigned tries = 0;
    do {
        *ret_grant = (struct pool_grant){.is_new = false};
        r = try_attach(store, request, &entry, &ports, ret_grant, err);
    } while (txn_again(r, &tries));
    return r;
}

static int try_detach(struct store *store, const char *instance, unsigned index, bool release, struct err *err)
{
    struct txn txn = {.count = 0};
    struct network_lease lease;
    struct network_info network = {.leases = 0};
    uint64_t revision, network_revision = 0;
    char key[48];
    lease_key(instance, index, key);
    int r = get_lease(store, instance, index, &lease, &revision, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = claim_ports(&txn, store, key, &lease.ports, &no_ports, err);
    if (r == 0 && release)
        r = pool_get_network(store, lease.network, &network, &network_revision, err);
    if (r < 0) {
        txn_clear(&txn);
        return r;
    }
    lease.attached = false;
    lease.ports = no_ports;
    if (release) {
        free_lease(&txn, &network, network_revision, &lease);
        txn_delete(&txn, revision, "leases/%s", key);
    } else {
        txn_put(&txn, revision, network_lease_to_json(&lease), "leases/%s", key);
    }
    return txn_commit(&txn, store, NULL, err);
}

int pool_detach(struct store *store, const char *instance, unsigned index, bool release, struct err *err)
{
    unsigned tries = 0;
    int r;
    do {
        r = try_detach(store, instance, index, release, err);
    } while (txn_again(r, &tries));
    return r;
}

static int try_rename(struct store *store, const char *instance, unsigned index, const char *name, struct err *err)
{
    struct txn txn = {.count = 0};
    struct network_lease lease;
    uint64_t revision;
    int r = get_lease(store, instance, index, &lease, &revision, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    snprintf(lease.name, sizeof lease.name, "%s", name);
    txn_put(&txn, revision, network_lease_to_json(&lease), "leases/%s/%u", instance, index);
    return txn_commit(&txn, store, NULL, err);
}

int pool_rename(struct store *store, const char *instance, unsigned index, const char *name, struct err *err)
{
    unsigned tries = 0;
    int r;
    do {
        r = try_rename(store, instance, index, name, err);
    } while (txn_again(r, &tries));
    return r;
}
