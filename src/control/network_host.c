#include "control/network_host.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "control/network_dns.h"
#include "control/network_link.h"
#include "control/network_nft.h"
#include "control/network_passt.h"

/* ---- rules ---- */

/* Whether someone else has changed our tables since. */
static bool rules_touched(struct host *host)
{
    uint32_t generation;
    if (nft_generation(&generation, NULL) < 0)
        return true;
    if (generation == host->generation)
        return false;
    host->generation = generation; /* read first: a change while we look shows next time */
    return nft_fingerprint(host->table) != host->fingerprint;
}

static int apply_rules(struct host *host, const struct network_state *state, struct err *err)
{
    own_free char *text = network_rules_text(host->table, state);
    if (!text)
        return err_set(err, ENOMEM, "rules of nftables");
    if (host->rules && !strcmp(host->rules, text) && !rules_touched(host))
        return 0;
    int r = nft_apply(text, err);
    if (r < 0 || (r = nft_generation(&host->generation, err)) < 0)
        return r;
    host->fingerprint = nft_fingerprint(host->table);
    free(host->rules);
    host->rules = TAKE(text);
    return 0;
}

static int remove_rules(struct host *host, struct err *err)
{
    char text[256];
    snprintf(text, sizeof text, "add table inet %s\ndelete table inet %s\nadd table bridge %s\ndelete table bridge %s\n",
             host->table, host->table, host->table, host->table);
    free(host->rules);
    host->rules = NULL;
    return nft_apply(text, err);
}

/* ---- bridges ---- */

static int find_or_create(const struct network_info *network, struct link_info *bridge, struct err *err)
{
    int r = link_find(network->bridge, bridge, err);
    if (r == -ENODEV) {
        r = link_create_bridge(network->bridge, network->mac, err);
        if (r == 0)
            r = link_find(network->bridge, bridge, err);
    }
    if (r == 0 && !bridge->is_bridge)
        return err_say(err, EEXIST, "interface '%s' is not a bridge: remove or rename it", network->bridge);
    return r == 0 && !bridge->is_up ? link_set_up(bridge->index, err) : r;
}

/* Forwards of 127.0.0.1 need routes of loopback addresses through the bridge; guests have IPv4 only. */
static int set_sysctls(const struct network_info *network, struct err *err)
{
    char name[80];
    snprintf(name, sizeof name, "net/ipv6/conf/%s/disable_ipv6", network->bridge);
    int r = link_sysctl(name, "1", err);
    if (r < 0 && r != -ENOENT)
        return r;
    snprintf(name, sizeof name, "net/ipv4/conf/%s/route_localnet", network->bridge);
    r = link_sysctl(name, "1", err);
    return r < 0 ? r : link_sysctl("net/ipv4/ip_forward", "1", err);
}

static int connect_taps(const struct network_info *network, const struct link_info *bridge, const struct network_state *state,
                        struct err *err)
{
    for (size_t i = 0; i < state->lease_count; i++) {
        struct link_info tap;
        char name[TAP_NAME_SIZE];
        const struct network_lease *lease = &state->leases[i];
        network_tap_name(lease->mac, name);
        if (strcmp(lease->network, network->name) != 0 || link_find(name, &tap, err) < 0 || tap.master == bridge->index)
            continue; /* of one whose machine has ended there is no tap */
        int r = link_set_master(tap.index, bridge->index, network->isolated, err);
        if (r < 0 && r != -ENODEV)
            return r;
    }
    return 0;
}

static int apply_network(struct host *host, const struct network_info *network, const struct network_state *state,
                         struct err *err)
{
    char dir[sizeof host->dir + BRIDGE_NAME_SIZE + 1];
    struct link_info bridge;
    snprintf(dir, sizeof dir, "%s/%s", host->dir, network->bridge);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_set(err, errno, "make folder '%s'", dir);
    int r = find_or_create(network, &bridge, err);
    if (r < 0 || (r = link_set_address(bridge.index, network->gateway, network->subnet.prefix, err)) < 0 ||
        (r = set_sysctls(network, err)) < 0 || (r = connect_taps(network, &bridge, state, err)) < 0)
        return r;
    return dns_apply(dir, network, bridge.index, state, err);
}

/* ---- what is left of removed networks ---- */

static bool is_wanted(const struct network_state *state, const char *bridge)
{
    for (size_t i = 0; i < state->network_count; i++) {
        if (!strcmp(state->networks[i].bridge, bridge))
            return true;
    }
    return false;
}

static int remove_bridge(const struct host *host, const char *bridge, struct err *err)
{
    char dir[sizeof host->dir + 256 + 1];
    snprintf(dir, sizeof dir, "%s/%s", host->dir, bridge);
    dns_remove(dir, bridge);
    int r = link_remove(bridge, err);
    if (r < 0)
        return r;
    return rmdir(dir) < 0 && errno != ENOENT ? err_set(err, errno, "remove folder '%s'", dir) : 0;
}

static int remove_leftovers(const struct host *host, const struct network_state *state, bool *ret_any, struct err *err)
{
    DIR *folder = opendir(host->dir);
    if (!folder)
        return err_set(err, errno, "open folder '%s'", host->dir);
    int r = 0;
    *ret_any = false;
    for (const struct dirent *entry; r == 0 && (entry = readdir(folder));) {
        if (strncmp(entry->d_name, "pld-", 4) != 0 || is_wanted(state, entry->d_name))
            continue;
        *ret_any = true;
        r = remove_bridge(host, entry->d_name, err);
    }
    closedir(folder);
    return r;
}

static bool any_nat(const struct network_state *state)
{
    for (size_t i = 0; i < state->network_count; i++) {
        if (state->networks[i].kind == NETWORK_NAT)
            return true;
    }
    return false;
}

static void note(int r, struct err *first, const struct err *err)
{
    if (r < 0 && !first->code)
        *first = *err;
}

/* Rules come before ports of bridges: no frame passes unchecked. */
static void apply_all(struct host *host, const struct network_state *state, const char *only, struct err *first)
{
    struct err err = {0};
    note(apply_rules(host, state, &err), first, &err);
    if (first->code)
        return;
    for (size_t i = 0; i < state->network_count; i++) {
        const struct network_info *network = &state->networks[i];
        if (network->kind != NETWORK_NAT || (only && strcmp(only, network->name) != 0))
            continue;
        int r = apply_network(host, network, state, &err);
        note(r < 0 ? err_ctx(&err, "network '%s'", network->name) : 0, first, &err);
    }
}

void host_passt_dir(const struct host *host, char ret_dir[static PASST_DIR_SIZE])
{
    snprintf(ret_dir, PASST_DIR_SIZE, "%s/passt", host->dir);
}

int host_apply(struct host *host, const struct network_state *state, const char *only, struct err *err)
{
    struct err first = {0}, one = {0};
    bool left = false;
    char passts[PASST_DIR_SIZE];
    host_passt_dir(host, passts);
    if (!only) {
        note(remove_leftovers(host, state, &left, &one), &first, &one);
        note(passt_keep(passts, state, &one), &first, &one);
    }
    if (any_nat(state))
        apply_all(host, state, only, &first);
    else if (host->rules || left)
        note(remove_rules(host, &one), &first, &one);
    if (!first.code)
        return 0;
    if (err)
        *err = first;
    return -first.code;
}
