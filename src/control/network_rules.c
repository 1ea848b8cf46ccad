/* Table `inet`: masquerading, forwards, isolation. Table `bridge`: what comes in from a tap must bear the MAC and the
 * address of its lease. The rules are the same for any number of interfaces: what differs is in sets and maps.
 *
 * Policies are `accept` and verdicts reach no further than these chains: traffic that is not of our bridges is left alone,
 * and rules of others still see ours. Where a reject looks late (hook forward), it is so that established connections and
 * forwards go first. Sources: nft(8); RFC 826 and RFC 5227 (probes have the sender address 0.0.0.0); RFC 2131 §4.1. */
#include "control/network_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct network_info *network_state_find(const struct network_state *state, const char *name)
{
    for (size_t i = 0; i < state->network_count; i++) {
        if (!strcmp(state->networks[i].name, name))
            return &state->networks[i];
    }
    return NULL;
}

struct writer {
    FILE *out;
    const struct network_state *state;
    bool first; /* no element of the set was written yet */
};

typedef void network_fn(struct writer *w, const struct network_info *network);
typedef void lease_fn(struct writer *w, const struct network_lease *lease);

static void separate(struct writer *w)
{
    fputs(w->first ? " elements = { " : ", ", w->out);
    w->first = false;
}

static void open_set(struct writer *w, const char *kind, const char *name, const char *type)
{
    fprintf(w->out, "\t%s %s { type %s;", kind, name, type);
    w->first = true;
}

static void close_set(struct writer *w)
{
    fputs(w->first ? " }\n" : " }; }\n", w->out);
}

static void each_network(struct writer *w, network_fn *fn)
{
    for (size_t i = 0; i < w->state->network_count; i++) {
        if (w->state->networks[i].kind == NETWORK_NAT)
            fn(w, &w->state->networks[i]);
    }
}

static void each_lease(struct writer *w, lease_fn *fn)
{
    for (size_t i = 0; i < w->state->lease_count; i++) {
        const struct network_info *network = network_state_find(w->state, w->state->leases[i].network);
        if (network && network->kind == NETWORK_NAT)
            fn(w, &w->state->leases[i]);
    }
}

/* ---- elements ---- */

static void bridge_element(struct writer *w, const struct network_info *network)
{
    separate(w);
    fprintf(w->out, "\"%s\"", network->bridge);
}

static void open_bridge_element(struct writer *w, const struct network_info *network)
{
    if (network->isolated)
        return;
    separate(w);
    fprintf(w->out, "\"%s\" . \"%s\"", network->bridge, network->bridge);
}

static void gateway_element(struct writer *w, const struct network_info *network)
{
    char gateway[IPV4_TEXT_SIZE];
    ipv4_format(network->gateway, gateway);
    separate(w);
    fprintf(w->out, "\"%s\" . %s", network->bridge, gateway);
}

static void tap_element(struct writer *w, const struct network_lease *lease)
{
    char tap[TAP_NAME_SIZE];
    network_tap_name(lease->mac, tap);
    separate(w);
    fprintf(w->out, "\"%s\"", tap);
}

static void mac_element(struct writer *w, const struct network_lease *lease)
{
    char mac[MAC_TEXT_SIZE];
    mac_format(lease->mac, mac);
    tap_element(w, lease);
    fprintf(w->out, " . %s", mac);
}

static void guest_element(struct writer *w, const struct network_lease *lease)
{
    char address[IPV4_TEXT_SIZE];
    ipv4_format(lease->address, address);
    mac_element(w, lease);
    fprintf(w->out, " . %s", address);
}

static void forward_element(struct writer *w, const struct network_lease *lease, bool udp, bool any)
{
    char to[IPV4_TEXT_SIZE], from[IPV4_TEXT_SIZE];
    ipv4_format(lease->address, to);
    for (unsigned i = 0; i < lease->ports.count; i++) {
        const struct network_port *port = &lease->ports.port[i];
        if (port->udp != udp || !port->host_address != any)
            continue;
        separate(w);
        ipv4_format(port->host_address, from);
        if (!any)
            fprintf(w->out, "%s . ", from);
        fprintf(w->out, "%u : %s . %u", port->host, to, port->guest);
    }
}

static void tcp_any(struct writer *w, const struct network_lease *lease)
{
    forward_element(w, lease, false, true);
}

static void tcp_at(struct writer *w, const struct network_lease *lease)
{
    forward_element(w, lease, false, false);
}

static void udp_any(struct writer *w, const struct network_lease *lease)
{
    forward_element(w, lease, true, true);
}

static void udp_at(struct writer *w, const struct network_lease *lease)
{
    forward_element(w, lease, true, false);
}

/* ---- tables ---- */

static void network_set(struct writer *w, const char *name, const char *type, network_fn *fn)
{
    open_set(w, "set", name, type);
    each_network(w, fn);
    close_set(w);
}

static void lease_set(struct writer *w, const char *kind, const char *name, const char *type, lease_fn *fn)
{
    open_set(w, kind, name, type);
    each_lease(w, fn);
    close_set(w);
}

static void open_table(struct writer *w, const char *family, const char *table)
{
    fprintf(w->out, "add table %s %s\ndelete table %s %s\ntable %s %s {\n", family, table, family, table, family, table);
}

static void bridge_table(struct writer *w, const char *table)
{
    open_table(w, "bridge", table);
    lease_set(w, "set", "taps", "ifname", tap_element);
    lease_set(w, "set", "macs", "ifname . ether_addr", mac_element);
    lease_set(w, "set", "guests", "ifname . ether_addr . ipv4_addr", guest_element);
    fputs("\tchain from_guests {\n"
          "\t\ttype filter hook prerouting priority -300; policy accept;\n"
          "\t\tiifname != @taps accept\n"
          "\t\tiifname . ether saddr != @macs counter drop\n"
          "\t\tether type arp iifname . arp saddr ether . arp saddr ip @guests accept\n"
          "\t\tether type arp iifname . arp saddr ether @macs arp saddr ip 0.0.0.0 accept\n"
          "\t\tether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept\n"
          "\t\tether type ip udp sport 67 counter drop\n"
          "\t\tether type ip iifname . ether saddr . ip saddr @guests accept\n"
          "\t\tcounter drop\n"
          "\t}\n"
          "}\n",
          w->out);
}

static void inet_sets(struct writer *w)
{
    static const char any[] = "inet_service : ipv4_addr . inet_service";
    static const char at[] = "ipv4_addr . inet_service : ipv4_addr . inet_service";
    network_set(w, "bridges", "ifname", bridge_element);
    network_set(w, "open_bridges", "ifname . ifname", open_bridge_element);
    network_set(w, "gateways", "ifname . ipv4_addr", gateway_element);
    lease_set(w, "map", "tcp_any", any, tcp_any);
    lease_set(w, "map", "tcp_at", at, tcp_at);
    lease_set(w, "map", "udp_any", any, udp_any);
    lease_set(w, "map", "udp_at", at, udp_at);
}

static void forward_chain(struct writer *w, const char *name, const char *hook)
{
    fprintf(w->out,
            "\tchain %s {\n"
            "\t\ttype nat hook %s priority -100; policy accept;\n"
            "\t\tfib daddr type local dnat ip to ip daddr . tcp dport map @tcp_at\n"
            "\t\tfib daddr type local dnat ip to tcp dport map @tcp_any\n"
            "\t\tfib daddr type local dnat ip to ip daddr . udp dport map @udp_at\n"
            "\t\tfib daddr type local dnat ip to udp dport map @udp_any\n"
            "\t}\n",
            name, hook);
}

/* To other networks and the world guests appear as the host; to each other through a forward, too, so that answers come
 * back the same way. */
static void masquerade(struct writer *w, const struct network_info *network)
{
    char subnet[SUBNET_TEXT_SIZE];
    subnet_format(network->subnet, subnet);
    fprintf(w->out,
            "\t\tip saddr %s oifname != \"%s\" masquerade\n"
            "\t\tip saddr %s ip daddr %s ct status dnat masquerade\n",
            subnet, network->bridge, subnet, subnet);
}

static void inet_table(struct writer *w, const char *table)
{
    open_table(w, "inet", table);
    inet_sets(w);
    forward_chain(w, "forwards", "prerouting");
    forward_chain(w, "forwards_of_host", "output");
    fputs("\tchain to_world {\n"
          "\t\ttype nat hook postrouting priority 100; policy accept;\n"
          "\t\toifname @bridges ip saddr 127.0.0.0/8 masquerade\n",
          w->out);
    each_network(w, masquerade);
    fputs("\t}\n"
          "\tchain loopback {\n" /* routable from bridges, for forwards of 127.0.0.1: guests must not get there */
          "\t\ttype filter hook prerouting priority -300; policy accept;\n"
          "\t\tiifname @bridges ip daddr 127.0.0.0/8 drop\n"
          "\t}\n"
          "\tchain to_host {\n"
          "\t\ttype filter hook input priority 0; policy accept;\n"
          "\t\tiifname != @bridges accept\n"
          "\t\tct state established,related accept\n"
          "\t\tiifname . ip daddr @gateways udp dport { 53, 67 } accept\n"
          "\t\tiifname . ip daddr @gateways tcp dport 53 accept\n"
          "\t\tip daddr 255.255.255.255 udp dport 67 accept\n"
          "\t\treject with icmpx type admin-prohibited\n"
          "\t}\n"
          "\tchain between {\n"
          "\t\ttype filter hook forward priority 0; policy accept;\n"
          "\t\tct state established,related accept\n"
          "\t\toifname @bridges ct status dnat accept\n"
          "\t\tiifname . oifname @open_bridges accept\n"
          "\t\toifname @bridges reject with icmpx type admin-prohibited\n"
          "\t}\n"
          "}\n",
          w->out);
}

char *network_rules_text(const char *table, const struct network_state *state)
{
    char *text = NULL;
    size_t size = 0;
    struct writer w = {.out = open_memstream(&text, &size), .state = state};
    if (!w.out)
        return NULL;
    inet_table(&w, table);
    bridge_table(&w, table);
    bool failed = ferror(w.out);
    if (fclose(w.out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
