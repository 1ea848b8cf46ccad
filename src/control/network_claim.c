#include "control/network_claim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/own.h"

struct claim {
    char key[40];
    uint64_t revision; /* 0: there was no document */
    json_t *holders;   /* array, ours */
};

struct claims {
    struct claim claim[2 * NETWORK_PORTS_MAX];
    unsigned count;
};

static void claims_clear(struct claims *claims)
{
    for (unsigned i = 0; i < claims->count; i++)
        json_decref(claims->claim[i].holders);
}

static int load(struct claim *claim, struct store *store, struct err *err)
{
    struct store_doc doc;
    int r = store_get(store, claim->key, &doc, err);
    if (r < 0 && r != -ENOENT)
        return r;
    if (r == 0) {
        claim->revision = doc.revision;
        claim->holders = json_deep_copy(json_object_get(doc.value, "holders"));
        store_doc_clear(&doc);
    }
    if (!json_is_array(claim->holders)) {
        json_decref(claim->holders);
        claim->holders = json_array();
    }
    return claim->holders ? 0 : err_set(err, ENOMEM, "%s", claim->key);
}

/* The document of a port, read once. */
static int find(struct claims *claims, struct store *store, const struct network_port *port, struct claim **ret_claim,
                struct err *err)
{
    char key[sizeof claims->claim->key];
    snprintf(key, sizeof key, "host-ports/%s/%u", port->udp ? "udp" : "tcp", port->host);
    for (unsigned i = 0; i < claims->count; i++) {
        if (!strcmp(claims->claim[i].key, key)) {
            *ret_claim = &claims->claim[i];
            return 0;
        }
    }
    struct claim *claim = &claims->claim[claims->count];
    *claim = (struct claim){.revision = 0};
    memcpy(claim->key, key, sizeof key);
    int r = load(claim, store, err);
    if (r < 0)
        return r;
    claims->count++;
    *ret_claim = claim;
    return 0;
}

static const char *member(const json_t *holder, const char *key)
{
    const char *text = json_string_value(json_object_get(holder, key));
    return text ? text : "";
}

static void drop(struct claim *claim, const char *lease)
{
    for (size_t i = json_array_size(claim->holders); i-- > 0;) {
        if (!strcmp(member(json_array_get(claim->holders, i), "lease"), lease))
            json_array_remove(claim->holders, i);
    }
}

/* The name of the instance that has lease `lease`. */
static void holder_name(struct store *store, const char *lease, char ret_name[static NETWORK_NAME_MAX + 1])
{
    char key[80];
    struct store_doc doc;
    snprintf(ret_name, NETWORK_NAME_MAX + 1, "another");
    snprintf(key, sizeof key, "leases/%s", lease);
    if (store_get(store, key, &doc, NULL) < 0)
        return;
    snprintf(ret_name, NETWORK_NAME_MAX + 1, "%s", member(doc.value, "name"));
    store_doc_clear(&doc);
}

static int take(struct claim *claim, struct store *store, const struct network_port *port, const char *lease, struct err *err)
{
    char address[IPV4_TEXT_SIZE], name[NETWORK_NAME_MAX + 1];
    for (size_t i = 0; i < json_array_size(claim->holders); i++) {
        const json_t *holder = json_array_get(claim->holders, i);
        struct network_port other = *port;
        if (!ipv4_parse(member(holder, "host_address"), &other.host_address) || !network_ports_meet(port, &other))
            continue;
        holder_name(store, member(holder, "lease"), name);
        return err_say(err, EBUSY, "port %u of the host is forwarded to instance '%s' already: choose another", port->host, name);
    }
    ipv4_format(port->host_address, address);
    json_t *holder = json_pack("{ss ss}", "host_address", address, "lease", lease);
    return json_array_append_new(claim->holders, holder) < 0 ? err_set(err, ENOMEM, "%s", claim->key) : 0;
}

static int change(struct claims *claims, struct store *store, const char *lease, const struct network_ports *before,
                  const struct network_ports *after, struct err *err)
{
    struct claim *claim;
    for (unsigned i = 0; i < before->count; i++) {
        int r = find(claims, store, &before->port[i], &claim, err);
        if (r < 0)
            return r;
        drop(claim, lease);
    }
    for (unsigned i = 0; i < after->count; i++) {
        int r = find(claims, store, &after->port[i], &claim, err);
        if (r < 0 || (r = take(claim, store, &after->port[i], lease, err)) < 0)
            return r;
    }
    return 0;
}

int claim_ports(struct txn *txn, struct store *store, const char *key, const struct network_ports *before,
                const struct network_ports *after, struct err *err)
{
    struct claims claims = {.count = 0};
    int r = change(&claims, store, key, before, after, err);
    for (unsigned i = 0; r == 0 && i < claims.count; i++) {
        struct claim *claim = &claims.claim[i];
        if (json_array_size(claim->holders))
            txn_put(txn, claim->revision, json_pack("{sO}", "holders", claim->holders), "%s", claim->key);
        else if (claim->revision)
            txn_delete(txn, claim->revision, "%s", claim->key);
    }
    claims_clear(&claims);
    return r;
}

static bool is_held(const struct network_ports *ports, const struct network_port *port)
{
    for (unsigned i = 0; i < ports->count; i++) {
        if (network_ports_meet(&ports->port[i], port))
            return true;
    }
    return false;
}

static int check_port(const struct network_port *port, struct err *err)
{
    own_fd int fd = socket(AF_INET, (port->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port->host), .sin_addr.s_addr = htonl(port->host_address)};
    int on = !port->udp; /* what only waits for its end does not count */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        return err_set(err, errno, "port %u of the host", port->host);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return 0;
    if (errno == EADDRINUSE)
        return err_say(err, EBUSY, "port %u of the host is in use by another program: choose another", port->host);
    if (errno == EADDRNOTAVAIL)
        return err_say(err, EINVAL, "the address to forward port %u from is none of the host's", port->host);
    return err_set(err, errno, "port %u of the host", port->host);
}

int claim_check_host(const struct network_ports *ports, const struct network_ports *held, struct err *err)
{
    for (unsigned i = 0; i < ports->count; i++) {
        int r = is_held(held, &ports->port[i]) ? 0 : check_port(&ports->port[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}
