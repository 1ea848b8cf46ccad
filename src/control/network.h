/* Networks of instances: desired state in the store, made real on the host and kept so by a thread.
 *
 * Two kinds. `nat`: a bridge with an IPv4 subnet, DHCP and DNS by instance name (one dnsmasq a network), masquerading, port
 * forwards, isolation and anti-spoofing in nftables; needs root. `user`: one passt process an instance, no privilege;
 * instances do not see each other. A network named `default` is made on first use: nat where possible, else user.
 *
 * An instance's interface has a lease (MAC, address) from its first attachment to its release, so that it comes back with
 * the same address; host ports are held only while it is attached. What is held is told by documents that exist once:
 *     networks/NAME             {"name","kind","subnet","gateway","bridge","mac","isolated","created_at","leases":N}
 *     leases/INSTANCE-ID/INDEX  {"network","instance","name","index","mac","address","attached","ports":[…]}
 *     addresses/NETWORK/ADDRESS {"lease"} · macs/HEX {"lease"} · host-ports/PROTOCOL/PORT {"holders":[{"host_address","lease"}]}
 * Each is made with "must not exist" or the revision it was read at, with the network's own revision in the same commit.
 *
 * Host state is never asked of an instance's process: taps end with it, all else is derived from the documents.
 * Any thread may call anything. Errors: -ENOENT no such network, -EEXIST, -EBUSY in use or taken, -EINVAL bad request,
 * -EPERM or -ENOTSUP nat cannot be had here, -ENOSPC pool exhausted; messages name the cure. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include "base/err.h"
#include "store/store.h"

#define NETWORK_NAME_MAX 63
#define NETWORK_INTERFACES_MAX 8 /* an instance */
#define NETWORK_PORTS_MAX 64     /* an instance */

struct networks;

enum network_kind { NETWORK_NAT, NETWORK_USER };

/* Reads no state yet, makes none; starts the reconcile thread, which makes the host match the documents at once, then
 * whenever they or the host change. `run_dir` exists; config and host files of dnsmasq go below it. `store` outlives it. */
must_check int networks_open(struct store *store, const char *run_dir, struct networks **ret_networks, struct err *err);
/* Ends the thread; bridges, rules and dnsmasq stay, for the instances that run on. NULL is fine. */
void networks_close(struct networks *networks);

/* 0 when kind nat can be had here, else -EPERM or -ENOTSUP with the reason and the cure. */
must_check int networks_nat_available(struct networks *networks, struct err *err);

/* `spec`: {"name", "kind"?: "nat"|"user", "subnet"?: "10.88.0.0/24", "gateway"?: "10.88.0.1", "isolated"?: bool (instances of
 * the network do not reach each other)}. A subnet that is not given is the first free one from 10.88.0.0/24 on. */
must_check int network_create(struct networks *networks, const json_t *spec, const struct store_audit *audit,
                              json_t **ret_document, struct err *err);
/* Takes the host state away, too. -EBUSY while a lease is in it. */
must_check int network_remove(struct networks *networks, const char *name, const struct store_audit *audit, struct err *err);
must_check int network_rename(struct networks *networks, const char *name, const char *new_name,
                              const struct store_audit *audit, struct err *err);
/* Documents by name, each with its leases as an array. */
must_check int network_list(struct networks *networks, json_t **ret_array, struct err *err);
must_check int network_inspect(struct networks *networks, const char *name, json_t **ret_document, struct err *err);

/* Whether the `networks` and `ports` members of an instance's spec are well-formed (either may be NULL); looks at no state. */
must_check int network_check_spec(const json_t *networks, const json_t *ports, struct err *err);

/* Whether the network of an entry of such `networks` is there, or is `default`, which will be. -ENOENT. */
must_check int network_check_there(struct networks *networks, const json_t *entry, struct err *err);

struct network_request {
    const char *instance_id;
    const char *instance_name; /* its name in DNS */
    unsigned index;            /* of the interface, from 0 */
    const json_t *entry;       /* {"network"?, "address"?, "mac"?}; NULL: network `default` */
    const json_t *ports;       /* [{"host_address"?: "0.0.0.0", "host", "guest", "protocol"?: "tcp"}]; NULL: none */
};

struct network_attachment {
    enum network_kind kind;
    int fd; /* nat: queue of a tap with vnet_hdr (polder-vmm --net tap=fd:N); user: socket of passt (--net user=fd:N) */
    char network[NETWORK_NAME_MAX + 1];
    char mac[18];
    char address[16];
    char gateway[16];
    char dns[16];
    unsigned prefix; /* bits of the subnet */
};

/* Gives the interface its lease, if it has none, and its host side. All or nothing. Attached again (the instance starts
 * anew) it gets a new fd. A passt ends by itself when the socket is closed. */
must_check int network_attach(struct networks *networks, const struct network_request *request,
                              struct network_attachment *ret_attachment, struct err *err);
/* Closes the fd if it is still there. */
void network_attachment_clear(struct network_attachment *attachment);

/* The instance has stopped: forwards, DNS name and taps of all its interfaces go, leases stay. */
must_check int network_detach(struct networks *networks, const char *instance_id, struct err *err);
/* The instance is removed: detaches and frees its leases. Fine without any. */
must_check int network_release(struct networks *networks, const char *instance_id, struct err *err);
must_check int network_rename_instance(struct networks *networks, const char *instance_id, const char *new_name,
                                       struct err *err);
/* The leases of an instance by index, as in the documents. */
must_check int network_leases(struct networks *networks, const char *instance_id, json_t **ret_array, struct err *err);

/* Makes the host match the documents now; what is at fault, or 0. */
must_check int networks_reconcile(struct networks *networks, struct err *err);
