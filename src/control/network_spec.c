#include "control/network_spec.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void network_tap_name(struct mac mac, char ret_name[static TAP_NAME_SIZE])
{
    const uint8_t *o = mac.octet;
    snprintf(ret_name, TAP_NAME_SIZE, "plt%02x%02x%02x%02x%02x%02x", o[0], o[1], o[2], o[3], o[4], o[5]);
}

bool network_name_valid(const char *name)
{
    size_t len = name ? strlen(name) : 0;
    return len && len <= NETWORK_NAME_MAX && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len && name[0] != '-' &&
           name[len - 1] != '-';
}

/* ---- members ---- */

static int only_members(const json_t *object, const char *what, const char *const *names, struct err *err)
{
    if (!json_is_object(object))
        return err_say(err, EINVAL, "%s must be a JSON object", what);
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        unsigned i = 0;
        while (names[i] && strcmp(names[i], key) != 0)
            i++;
        if (!names[i])
            return err_say(err, EINVAL, "%s: member '%.40s' is not known", what, key);
    }
    return 0;
}

/* NULL when absent; -EINVAL for another type. */
static int text_member(const json_t *object, const char *key, const char **ret_text, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    *ret_text = json_string_value(value);
    if (value && !*ret_text)
        return err_say(err, EINVAL, "'%s' must be a string", key);
    return 0;
}

static int address_member(const json_t *object, const char *key, uint32_t *ret_address, struct err *err)
{
    const char *text;
    int r = text_member(object, key, &text, err);
    if (r < 0)
        return r;
    *ret_address = 0;
    if (text && *text && !ipv4_parse(text, ret_address))
        return err_say(err, EINVAL, "%s '%.40s' is not an IPv4 address like 10.88.0.2", key, text);
    return 0;
}

static int mac_member(const json_t *object, const char *key, struct mac *ret_mac, bool *ret_given, struct err *err)
{
    const char *text;
    int r = text_member(object, key, &text, err);
    if (r < 0)
        return r;
    *ret_given = text && *text;
    if (*ret_given && (!mac_parse(text, ret_mac) || !mac_is_station(*ret_mac)))
        return err_say(err, EINVAL, "%s '%.40s' is not the address of a station, like 52:54:00:12:34:56", key, text);
    return 0;
}

static int name_member(const json_t *object, const char *key, const char *fallback, char ret_name[static NETWORK_NAME_MAX + 1],
                       struct err *err)
{
    const char *text;
    int r = text_member(object, key, &text, err);
    if (r < 0)
        return r;
    text = text ? text : fallback;
    if (!network_name_valid(text))
        return err_say(err, EINVAL, "%s '%.70s' is not a name: lower-case letters, digits and inner dashes, at most %d", key,
                       text ? text : "", NETWORK_NAME_MAX);
    memcpy(ret_name, text, strlen(text) + 1);
    return 0;
}

static int bool_member(const json_t *object, const char *key, bool *ret_value, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_boolean(value))
        return err_say(err, EINVAL, "'%s' must be true or false", key);
    *ret_value = json_is_true(value);
    return 0;
}

/* ---- networks ---- */

static int kind_member(const json_t *spec, enum network_kind *ret_kind, struct err *err)
{
    const char *text;
    int r = text_member(spec, "kind", &text, err);
    if (r < 0)
        return r;
    if (text && strcmp(text, "nat") != 0 && strcmp(text, "user") != 0)
        return err_say(err, EINVAL, "kind '%.40s' is not known: nat or user", text);
    *ret_kind = text && !strcmp(text, "user") ? NETWORK_USER : NETWORK_NAT;
    return 0;
}

void network_set_subnet(struct network_info *info, struct subnet subnet)
{
    info->subnet = subnet;
    if (!info->gateway)
        info->gateway = subnet.base + 1;
}

static int subnet_members(const json_t *spec, struct network_info *info, struct err *err)
{
    const char *text;
    int r = text_member(spec, "subnet", &text, err);
    if (r < 0 || (r = address_member(spec, "gateway", &info->gateway, err)) < 0)
        return r;
    if (!text || !*text)
        return info->gateway ? err_say(err, EINVAL, "a gateway goes with a subnet: give both") : 0;
    struct subnet subnet;
    r = subnet_parse(text, &subnet, err);
    if (r < 0)
        return r;
    network_set_subnet(info, subnet);
    if (!subnet_is_host(subnet, info->gateway))
        return err_say(err, EINVAL, "the gateway is not a host address of subnet %s", text);
    return 0;
}

int network_spec_parse(const json_t *spec, struct network_info *ret_info, struct err *err)
{
    static const char *const members[] = {"name", "kind", "subnet", "gateway", "isolated", NULL};
    struct network_info info = {.kind = NETWORK_NAT};
    int r = only_members(spec, "a network", members, err);
    if (r < 0 || (r = name_member(spec, "name", "", info.name, err)) < 0 || (r = kind_member(spec, &info.kind, err)) < 0 ||
        (r = subnet_members(spec, &info, err)) < 0 || (r = bool_member(spec, "isolated", &info.isolated, err)) < 0)
        return r;
    *ret_info = info;
    return 0;
}

/* ---- interfaces and ports ---- */

int network_entry_parse(const json_t *entry, struct network_entry *ret_entry, struct err *err)
{
    static const char *const members[] = {"network", "address", "mac", NULL};
    struct network_entry parsed = {.network = "default"};
    int r = entry ? only_members(entry, "an entry of 'networks'", members, err) : 0;
    if (r < 0 || (r = name_member(entry, "network", "default", parsed.network, err)) < 0 ||
        (r = address_member(entry, "address", &parsed.address, err)) < 0 ||
        (r = mac_member(entry, "mac", &parsed.mac, &parsed.has_mac, err)) < 0)
        return r;
    *ret_entry = parsed;
    return 0;
}

static int number_member(const json_t *object, const char *key, uint16_t *ret_port, struct err *err)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    if (value < 1 || value > UINT16_MAX)
        return err_say(err, EINVAL, "'%s' of a port forward must be a port number, 1 to 65535", key);
    *ret_port = (uint16_t)value;
    return 0;
}

static int port_parse(const json_t *object, struct network_port *port, struct err *err)
{
    static const char *const members[] = {"host_address", "host", "guest", "protocol", NULL};
    const char *protocol;
    int r = only_members(object, "an entry of 'ports'", members, err);
    if (r < 0 || (r = address_member(object, "host_address", &port->host_address, err)) < 0 ||
        (r = number_member(object, "host", &port->host, err)) < 0 ||
        (r = number_member(object, "guest", &port->guest, err)) < 0 || (r = text_member(object, "protocol", &protocol, err)) < 0)
        return r;
    if (protocol && strcmp(protocol, "tcp") != 0 && strcmp(protocol, "udp") != 0)
        return err_say(err, EINVAL, "protocol '%.40s' cannot be forwarded: tcp or udp", protocol);
    port->udp = protocol && !strcmp(protocol, "udp");
    return 0;
}

bool network_ports_meet(const struct network_port *a, const struct network_port *b)
{
    return a->udp == b->udp && a->host == b->host &&
           (a->host_address == b->host_address || !a->host_address || !b->host_address);
}

int network_ports_parse(const json_t *ports, struct network_ports *ret_ports, struct err *err)
{
    struct network_ports parsed = {.count = 0};
    if (ports && !json_is_array(ports))
        return err_say(err, EINVAL, "'ports' must be an array");
    if (json_array_size(ports) > NETWORK_PORTS_MAX)
        return err_say(err, EINVAL, "an instance has at most %d port forwards", NETWORK_PORTS_MAX);
    for (size_t i = 0; i < json_array_size(ports); i++) {
        struct network_port *port = &parsed.port[parsed.count];
        int r = port_parse(json_array_get(ports, i), port, err);
        if (r < 0)
            return r;
        for (unsigned k = 0; k < parsed.count; k++) {
            if (network_ports_meet(&parsed.port[k], port))
                return err_say(err, EINVAL, "port %u of the host is forwarded twice", port->host);
        }
        parsed.count++;
    }
    *ret_ports = parsed;
    return 0;
}

int network_check_spec(const json_t *networks, const json_t *ports, struct err *err)
{
    struct network_ports parsed_ports;
    struct network_entry entry;
    if (networks && !json_is_array(networks))
        return err_say(err, EINVAL, "'networks' must be an array");
    if (json_array_size(networks) > NETWORK_INTERFACES_MAX)
        return err_say(err, EINVAL, "an instance has at most %d interfaces", NETWORK_INTERFACES_MAX);
    for (size_t i = 0; i < json_array_size(networks); i++) {
        int r = network_entry_parse(json_array_get(networks, i), &entry, err);
        if (r < 0)
            return r;
    }
    if (networks && !json_array_size(networks) && json_array_size(ports))
        return err_say(err, EINVAL, "port forwards need an interface: 'networks' is empty");
    return network_ports_parse(ports, &parsed_ports, err);
}
