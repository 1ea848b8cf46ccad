/* Networks and leases as documents of the store. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control/network_spec.h"

static json_t *address_json(uint32_t address)
{
    char text[IPV4_TEXT_SIZE];
    ipv4_format(address, text);
    return json_string(text);
}

static json_t *mac_json(struct mac mac)
{
    char text[MAC_TEXT_SIZE];
    mac_format(mac, text);
    return json_string(text);
}

static bool copy_text(const json_t *document, const char *key, char *to, size_t size)
{
    const char *text = json_string_value(json_object_get(document, key));
    if (!text || strlen(text) >= size)
        return false;
    memcpy(to, text, strlen(text) + 1);
    return true;
}

static bool read_address(const json_t *document, const char *key, uint32_t *ret_address)
{
    return ipv4_parse(json_string_value(json_object_get(document, key)), ret_address);
}

static bool read_mac(const json_t *document, struct mac *ret_mac)
{
    return mac_parse(json_string_value(json_object_get(document, "mac")), ret_mac);
}

static bool read_count(const json_t *document, const char *key, unsigned limit, unsigned *ret_count)
{
    json_int_t value = json_integer_value(json_object_get(document, key));
    *ret_count = (unsigned)value;
    return value >= 0 && value <= limit;
}

static bool read_bridge(const json_t *document, struct network_info *info)
{
    return info->kind == NETWORK_USER ||
           (copy_text(document, "bridge", info->bridge, sizeof info->bridge) && *info->bridge && read_mac(document, &info->mac));
}

int network_info_from_json(const json_t *document, struct network_info *ret_info, struct err *err)
{
    struct network_info info = {.kind = NETWORK_NAT};
    char kind[8];
    if (!copy_text(document, "name", info.name, sizeof info.name) || !network_name_valid(info.name))
        return err_say(err, EINVAL, "a network's document has no name");
    bool known = copy_text(document, "kind", kind, sizeof kind) && (!strcmp(kind, "nat") || !strcmp(kind, "user"));
    info.kind = known && !strcmp(kind, "user") ? NETWORK_USER : NETWORK_NAT;
    int r = subnet_parse(json_string_value(json_object_get(document, "subnet")), &info.subnet, err);
    if (r < 0)
        return err_ctx(err, "network '%s'", info.name);
    if (!known || !read_address(document, "gateway", &info.gateway) || !read_bridge(document, &info) ||
        !read_count(document, "leases", 1u << 24, &info.leases) ||
        !copy_text(document, "created_at", info.created_at, sizeof info.created_at))
        return err_say(err, EINVAL, "network '%s': its document is damaged", info.name);
    info.isolated = json_is_true(json_object_get(document, "isolated"));
    if (!read_address(document, "last_address", &info.last_address))
        info.last_address = 0;
    *ret_info = info;
    return 0;
}

json_t *network_info_to_json(const struct network_info *info)
{
    char subnet[SUBNET_TEXT_SIZE];
    subnet_format(info->subnet, subnet);
    json_t *document = json_pack("{ss ss ss so sb si ss}", "name", info->name, "kind", info->kind == NETWORK_NAT ? "nat" : "user",
                                 "subnet", subnet, "gateway", address_json(info->gateway), "isolated", info->isolated, "leases",
                                 (int)info->leases, "created_at", info->created_at);
    if (document && info->kind == NETWORK_NAT) {
        json_object_set_new(document, "bridge", json_string(info->bridge));
        json_object_set_new(document, "mac", mac_json(info->mac));
    }
    if (document && info->last_address)
        json_object_set_new(document, "last_address", address_json(info->last_address));
    return document;
}

static json_t *port_json(const struct network_port *port)
{
    return json_pack("{so si si ss}", "host_address", address_json(port->host_address), "host", (int)port->host, "guest",
                     (int)port->guest, "protocol", port->udp ? "udp" : "tcp");
}

json_t *network_lease_to_json(const struct network_lease *lease)
{
    json_t *ports = json_array();
    for (unsigned i = 0; i < lease->ports.count; i++)
        json_array_append_new(ports, port_json(&lease->ports.port[i]));
    return json_pack("{ss ss ss si so so sb so}", "instance", lease->instance, "name", lease->name, "network", lease->network,
                     "index", (int)lease->index, "mac", mac_json(lease->mac), "address", address_json(lease->address), "attached",
                     lease->attached, "ports", ports);
}

int network_lease_from_json(const json_t *document, struct network_lease *ret_lease, struct err *err)
{
    struct network_lease lease = {.attached = json_is_true(json_object_get(document, "attached"))};
    if (!copy_text(document, "instance", lease.instance, sizeof lease.instance) ||
        !copy_text(document, "name", lease.name, sizeof lease.name) || !network_name_valid(lease.name) ||
        !copy_text(document, "network", lease.network, sizeof lease.network) ||
        !read_count(document, "index", NETWORK_INTERFACES_MAX - 1, &lease.index) || !read_mac(document, &lease.mac) ||
        !read_address(document, "address", &lease.address))
        return err_say(err, EINVAL, "the document of a lease is damaged");
    int r = network_ports_parse(json_object_get(document, "ports"), &lease.ports, err);
    if (r < 0)
        return err_ctx(err, "lease of '%s'", lease.name);
    *ret_lease = lease;
    return 0;
}
