#include "control/network.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/own.h"
#include "control/network_impl.h"
#include "control/network_link.h"
#include "control/network_nft.h"
#include "control/network_passt.h"

#define DEFAULT_NETWORK "default"

/* ---- open, close ---- */

/* FNV-1a, 32 bits. */
static uint32_t hash(const char *text)
{
    uint32_t value = 0x811c9dc5u;
    for (; *text; text++)
        value = (value ^ (uint8_t)*text) * 0x01000193u;
    return value;
}

/* One table a daemon: several run beside each other on a host. */
static void name_table(struct host *host, const char *run_dir)
{
    own_free char *real = realpath(run_dir, NULL);
    const char *path = real ? real : run_dir;
    if (!strcmp(path, "/run/polder"))
        snprintf(host->table, sizeof host->table, "polder");
    else
        snprintf(host->table, sizeof host->table, "polder_%08x", hash(path));
}

int networks_open(struct store *store, const char *run_dir, struct networks **ret_networks, struct err *err)
{
    struct networks *networks = calloc(1, sizeof *networks);
    if (!networks)
        return err_set(err, ENOMEM, "networks");
    networks->store = store;
    name_table(&networks->host, run_dir);
    pthread_mutex_init(&networks->host_lock, NULL);
    int n = snprintf(networks->host.dir, sizeof networks->host.dir, "%s/networks", run_dir);
    int r = 0;
    if (n < 0 || (size_t)n >= sizeof networks->host.dir)
        r = err_say(err, ENAMETOOLONG, "the path of folder '%.80s…' is too long", run_dir);
    else if (mkdir(networks->host.dir, 0755) < 0 && errno != EEXIST)
        r = err_set(err, errno, "make folder '%s'", networks->host.dir);
    if (r == 0)
        r = network_watch_start(networks, err);
    if (r < 0) {
        pthread_mutex_destroy(&networks->host_lock);
        free(networks);
        return r;
    }
    *ret_networks = networks;
    return 0;
}

void networks_close(struct networks *networks)
{
    if (!networks)
        return;
    network_watch_end(networks);
    pthread_mutex_destroy(&networks->host_lock);
    free(networks->host.rules);
    free(networks);
}

/* ---- the host ---- */

static int probe_bridge(struct err *err)
{
    char name[BRIDGE_NAME_SIZE];
    snprintf(name, sizeof name, "pldp%u", (unsigned)getpid() & 0xffffff);
    struct err cause = {0};
    int r = link_create_bridge(name, mac_random(), &cause);
    if (r < 0 && r != -EEXIST)
        return err_say(err, ENOTSUP, "networks of kind nat need bridges in the kernel (modprobe bridge): %s", cause.message);
    return link_remove(name, err);
}

int networks_nat_available(struct networks *networks, struct err *err)
{
    uint32_t generation;
    int r = nft_generation(&generation, err);
    if (r < 0)
        return r;
    if (access("/dev/net/tun", R_OK | W_OK) < 0)
        return err_say(err, ENOTSUP, "networks of kind nat need /dev/net/tun: modprobe tun");
    pthread_mutex_lock(&networks->host_lock);
    r = probe_bridge(err);
    pthread_mutex_unlock(&networks->host_lock);
    return r;
}

int network_apply(struct networks *networks, const char *only, struct err *err)
{
    struct network_state state = {.networks = NULL};
    struct err damaged = {0};
    pthread_mutex_lock(&networks->host_lock); /* around the load: what is applied last is what was read last */
    int r = pool_load(networks->store, &state, &damaged);
    int done = state.networks ? host_apply(&networks->host, &state, only, err) : 0;
    pthread_mutex_unlock(&networks->host_lock);
    pool_state_clear(&state);
    if (done == 0 && r < 0 && err)
        *err = damaged;
    return done < 0 ? done : r;
}

int networks_reconcile(struct networks *networks, struct err *err)
{
    return network_apply(networks, NULL, err);
}

/* ---- interfaces ---- */

static int create_default(struct networks *networks, struct err *err)
{
    struct store_audit audit = {.actor = "controller", .action = "network.create", .target = "networks/" DEFAULT_NETWORK};
    bool nat = networks_nat_available(networks, NULL) == 0;
    json_t *document = NULL, *spec = json_pack("{ss ss}", "name", DEFAULT_NETWORK, "kind", nat ? "nat" : "user");
    int r = network_create(networks, spec, &audit, &document, err);
    json_decref(spec);
    json_decref(document);
    return r == -EEXIST ? 0 : r;
}

int network_check_there(struct networks *networks, const json_t *entry, struct err *err)
{
    struct network_entry parsed;
    json_t *document = NULL;
    int r = network_entry_parse(entry, &parsed, err);
    if (r == 0 && strcmp(parsed.network, DEFAULT_NETWORK) != 0)
        r = network_inspect(networks, parsed.network, &document, err);
    json_decref(document);
    return r;
}

static int grant(struct networks *networks, const struct network_request *request, struct pool_grant *ret_grant, struct err *err)
{
    struct network_entry entry;
    int r = network_entry_parse(request->entry, &entry, err);
    if (r < 0)
        return r;
    r = pool_attach(networks->store, request, ret_grant, err);
    if (r != -ENOENT || strcmp(entry.network, DEFAULT_NETWORK) != 0)
        return r;
    r = create_default(networks, err);
    return r < 0 ? r : pool_attach(networks->store, request, ret_grant, err);
}

/* Under the lock: while it is going on, no passt is missed. */
static int connect_passt(struct networks *networks, const struct pool_grant *granted, int *ret_fd, struct err *err)
{
    char dir[PASST_DIR_SIZE];
    host_passt_dir(&networks->host, dir);
    pthread_mutex_lock(&networks->host_lock);
    int r = passt_start(dir, &granted->network, &granted->lease, ret_fd, err);
    pthread_mutex_unlock(&networks->host_lock);
    return r;
}

static int connect_host(struct networks *networks, const struct pool_grant *granted, int *ret_fd, struct err *err)
{
    if (granted->network.kind == NETWORK_USER)
        return connect_passt(networks, granted, ret_fd, err);
    char tap[TAP_NAME_SIZE];
    network_tap_name(granted->lease.mac, tap);
    own_fd int fd = -1;
    int r = link_open_tap(tap, &fd, err);
    if (r < 0 || (r = network_apply(networks, granted->network.name, err)) < 0)
        return r;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static void describe(const struct pool_grant *granted, int fd, struct network_attachment *attachment)
{
    const struct network_info *network = &granted->network;
    *attachment = (struct network_attachment){.kind = network->kind, .fd = fd, .prefix = network->subnet.prefix};
    memcpy(attachment->network, network->name, sizeof attachment->network);
    mac_format(granted->lease.mac, attachment->mac);
    ipv4_format(granted->lease.address, attachment->address);
    ipv4_format(network->gateway, attachment->gateway);
    ipv4_format(network->kind == NETWORK_USER ? passt_dns(network) : network->gateway, attachment->dns);
}

int network_attach(struct networks *networks, const struct network_request *request, struct network_attachment *ret_attachment,
                   struct err *err)
{
    struct pool_grant granted;
    int fd, r = grant(networks, request, &granted, err);
    if (r < 0)
        return r;
    r = connect_host(networks, &granted, &fd, err);
    if (r < 0) {
        (void)!pool_detach(networks->store, request->instance_id, request->index, granted.is_new, NULL);
        (void)!network_apply(networks, granted.network.name, NULL);
        return err_ctx(err, "network '%s'", granted.network.name);
    }
    describe(&granted, fd, ret_attachment);
    return 0;
}

void network_attachment_clear(struct network_attachment *attachment)
{
    if (attachment->fd >= 0)
        close(attachment->fd);
    attachment->fd = -1;
}

typedef int lease_fn(struct networks *networks, const char *instance, unsigned index, const char *name, struct err *err);

/* Then the host follows; what it refuses is tried again, and told, by the thread. */
static int each_lease(struct networks *networks, const char *instance, const char *name, lease_fn *fn, struct err *err)
{
    for (unsigned index = 0; index < NETWORK_INTERFACES_MAX; index++) {
        int r = fn(networks, instance, index, name, err);
        if (r < 0)
            return r;
    }
    (void)!network_apply(networks, NULL, NULL);
    return 0;
}

static int detach_one(struct networks *networks, const char *instance, unsigned index, const char *name, struct err *err)
{
    (void)name;
    return pool_detach(networks->store, instance, index, false, err);
}

static int release_one(struct networks *networks, const char *instance, unsigned index, const char *name, struct err *err)
{
    (void)name;
    return pool_detach(networks->store, instance, index, true, err);
}

static int rename_one(struct networks *networks, const char *instance, unsigned index, const char *name, struct err *err)
{
    return pool_rename(networks->store, instance, index, name, err);
}

int network_detach(struct networks *networks, const char *instance_id, struct err *err)
{
    return each_lease(networks, instance_id, NULL, detach_one, err);
}

int network_release(struct networks *networks, const char *instance_id, struct err *err)
{
    return each_lease(networks, instance_id, NULL, release_one, err);
}

int network_rename_instance(struct networks *networks, const char *instance_id, const char *new_name, struct err *err)
{
    if (!network_name_valid(new_name))
        return err_say(err, EINVAL, "'%.70s' is not a name", new_name);
    return each_lease(networks, instance_id, new_name, rename_one, err);
}
