/* What the store says the host shall look like. */
#include <errno.h>
#include <stdlib.h>

#include "control/network_pool.h"

void pool_state_clear(struct network_state *state)
{
    free(state->networks);
    free(state->leases);
    *state = (struct network_state){.networks = NULL};
}

/* Keeps the first error and goes on. */
static void note(int r, struct err *first, const struct err *err)
{
    if (r < 0 && !first->code)
        *first = *err;
}

static void take_networks(const struct store_list *list, struct network_state *state, struct err *first)
{
    for (size_t i = 0; i < list->count; i++) {
        struct err err = {0};
        int r = network_info_from_json(list->docs[i].value, &state->networks[state->network_count], &err);
        note(r, first, &err);
        state->network_count += r == 0;
    }
}

static void take_leases(const struct store_list *list, struct network_state *state, struct err *first)
{
    for (size_t i = 0; i < list->count; i++) {
        struct err err = {0};
        struct network_lease *lease = &state->leases[state->lease_count];
        int r = network_lease_from_json(list->docs[i].value, lease, &err);
        note(r, first, &err);
        state->lease_count += r == 0 && lease->attached;
    }
}

static int load_lists(struct store *store, struct store_list *networks, struct store_list *leases, struct err *err)
{
    int r = store_list_prefix(store, "networks/", networks, err);
    if (r < 0)
        return r;
    r = store_list_prefix(store, "leases/", leases, err);
    if (r < 0)
        store_list_clear(networks);
    return r;
}

int pool_load(struct store *store, struct network_state *ret_state, struct err *err)
{
    struct store_list networks, leases;
    struct err first = {0};
    int r = load_lists(store, &networks, &leases, err);
    if (r < 0)
        return r;
    struct network_state state = {
        .networks = calloc(networks.count + 1, sizeof *state.networks),
        .leases = calloc(leases.count + 1, sizeof *state.leases),
    };
    if (state.networks && state.leases) {
        take_networks(&networks, &state, &first);
        take_leases(&leases, &state, &first);
        *ret_state = state;
    } else {
        pool_state_clear(&state);
        err_set(&first, ENOMEM, "networks");
    }
    store_list_clear(&networks);
    store_list_clear(&leases);
    if (!first.code)
        return 0;
    if (err)
        *err = first;
    return -first.code;
}
