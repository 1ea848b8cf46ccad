/* What networks, interfaces and port forwards look like as JSON, and as structures. Pure functions. */
#pragma once

#include <jansson.h>
#include <stddef.h>
#include "control/network.h"
#include "control/network_ipv4.h"

#define BRIDGE_NAME_SIZE 16
#define INSTANCE_ID_SIZE 33

struct network_info {
    char name[NETWORK_NAME_MAX + 1];
    enum network_kind kind;
    struct subnet subnet;
    uint32_t gateway;
    char bridge[BRIDGE_NAME_SIZE]; /* nat */
    struct mac mac;                /* nat: of the bridge */
    bool isolated;
    unsigned leases;       /* how many there are */
    uint32_t last_address; /* the latest given; 0: none yet */
    char created_at[24];
};

struct network_port {
    uint32_t host_address; /* 0: every address of the host */
    uint16_t host, guest;
    bool udp;
};

struct network_ports {
    struct network_port port[NETWORK_PORTS_MAX];
    unsigned count;
};

/* An interface as an instance's spec asks for it. */
struct network_entry {
    char network[NETWORK_NAME_MAX + 1];
    uint32_t address; /* 0: any */
    bool has_mac;
    struct mac mac;
};

struct network_lease {
    char instance[INSTANCE_ID_SIZE];
    char name[NETWORK_NAME_MAX + 1]; /* of the instance */
    char network[NETWORK_NAME_MAX + 1];
    unsigned index;
    struct mac mac;
    uint32_t address;
    bool attached;
    struct network_ports ports; /* while attached */
};

#define TAP_NAME_SIZE 16
/* The tap of an interface is named by its MAC, of which there is one. */
void network_tap_name(struct mac mac, char ret_name[static TAP_NAME_SIZE]);

bool network_name_valid(const char *name);

/* What network_create takes; subnet.prefix is 0 when none is given, gateway then too. -EINVAL names the member. */
must_check int network_spec_parse(const json_t *spec, struct network_info *ret_info, struct err *err);
/* Sets the subnet, and the gateway to its first host address unless it has one. */
void network_set_subnet(struct network_info *info, struct subnet subnet);
/* `entry`: an object or NULL. */
must_check int network_entry_parse(const json_t *entry, struct network_entry *ret_entry, struct err *err);
/* `ports`: an array or NULL. Two that would meet on the host are refused. */
must_check int network_ports_parse(const json_t *ports, struct network_ports *ret_ports, struct err *err);
/* Whether both cannot be on one host. */
bool network_ports_meet(const struct network_port *a, const struct network_port *b);

/* Documents of the store; -EINVAL for one that is damaged. The makers give NULL when memory is out. */
must_check int network_info_from_json(const json_t *document, struct network_info *ret_info, struct err *err);
json_t *network_info_to_json(const struct network_info *info);
must_check int network_lease_from_json(const json_t *document, struct network_lease *ret_lease, struct err *err);
json_t *network_lease_to_json(const struct network_lease *lease);
