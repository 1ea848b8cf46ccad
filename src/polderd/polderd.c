#include "polderd/polderd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/operation.h"
#include "control/instance.h"
#include "control/network.h"
#include "control/volume.h"
#include "image/image.h"
#include "polderd/backup.h"
#include "store/store.h"

#define OPERATIONS_END_MS 10000

static int open_store(struct polderd *polderd, struct err *err)
{
    char address[4200];
    snprintf(address, sizeof address, "sqlite:%s/state.db", polderd->state_dir);
    int r = polderd->options.restore ? backup_restore(polderd->state_dir, err) : 0;
    if (r == 0)
        r = store_open(address, &polderd->platform.store, err);
    if (r == -EBADMSG && !polderd->options.restore) {
        fprintf(stderr, "polderd: %s\n", err->message);
        return backup_explain(polderd->state_dir, err);
    }
    return r < 0 ? r : backup_start(polderd->platform.store, polderd->state_dir, &polderd->backup, err);
}

static int open_images(struct polderd *polderd, struct err *err)
{
    char folder[4200];
    snprintf(folder, sizeof folder, "%s/images", polderd->state_dir);
    return image_store_open(folder, &polderd->platform.images, err);
}

static int open_volumes(struct polderd *polderd, struct err *err)
{
    json_t *actions = NULL;
    size_t i;
    json_t *action;
    int r = volumes_open(polderd->platform.store, polderd->state_dir, &polderd->platform.volumes, err);
    if (r == 0)
        r = volumes_reconcile(polderd->platform.volumes, &actions, err);
    json_array_foreach(actions, i, action)
        log_info("%s", json_string_value(action));
    json_decref(actions);
    return r;
}

static int open_instances(struct polderd *polderd, struct err *err)
{
    struct platform *platform = &polderd->platform;
    const struct instances_config config = {.store = platform->store, .images = platform->images,
                                            .networks = platform->networks, .volumes = platform->volumes,
                                            .state_dir = polderd->state_dir, .run_dir = polderd->run_dir,
                                            .guest_dir = polderd->guest_dir, .engine = polderd->options.engine,
                                            .no_sandbox = polderd->options.no_sandbox,
                                            .cpu_overcommit = polderd->options.cpu_overcommit,
                                            .memory_overcommit = polderd->options.memory_overcommit,
                                            .keep_unknown = polderd->options.restore};
    return instances_open(&config, &platform->instances, err);
}

/* In this order: each finds what it needs of those before. */
static int open_parts(struct polderd *polderd, struct err *err)
{
    int r = open_store(polderd, err);
    if (r == 0)
        r = open_images(polderd, err);
    if (r == 0)
        r = open_volumes(polderd, err);
    if (r == 0)
        r = networks_open(polderd->platform.store, polderd->run_dir, &polderd->platform.networks, err);
    if (r == 0)
        r = open_instances(polderd, err);
    return r;
}

static int start_api(struct polderd *polderd, struct err *err)
{
    struct platform *platform = &polderd->platform;
    const struct options *options = &polderd->options;
    const struct server_config config = {.platform = platform, .socket_path = polderd->socket_path, .listen = options->listen,
                                         .tls_cert = options->tls_cert, .tls_key = options->tls_key,
                                         .tls_ca = options->tls_ca};
    int r = events_create(platform->store, &platform->events, err);
    if (r == 0)
        r = metrics_create(&platform->metrics, err);
    if (r == 0)
        r = operations_create(platform->events, platform->metrics, &platform->operations, err);
    return r < 0 ? r : server_start(&config, &polderd->server, err);
}

int polderd_start(struct polderd *polderd, struct err *err)
{
    int r = polderd_find_paths(polderd, err);
    if (r < 0)
        return r;
    struct platform *platform = &polderd->platform;
    platform->state_dir = polderd->state_dir;
    platform->run_dir = polderd->run_dir;
    platform->guest_dir = polderd->guest_dir;
    platform->socket_path = polderd->socket_path;
    platform->started_at = time(NULL);
    r = open_parts(polderd, err);
    return r < 0 ? r : start_api(polderd, err);
}

/* Threads still use what would be freed; the store is consistent at any instant. */
static _Noreturn void leave_now(const char *why)
{
    log_warn("%s", why);
    _exit(0);
}

void polderd_stop(struct polderd *polderd)
{
    struct platform *platform = &polderd->platform;
    atomic_store(&platform->stopping, true);
    if (platform->operations && !operations_stop(platform->operations, OPERATIONS_END_MS))
        leave_now("operations under way did not end in time; the next polderd takes over what they left");
    if (platform->events)
        events_wake(platform->events);
    if (!server_stop(polderd->server))
        leave_now("a console or session does not end; polderd goes without waiting for it");
    operations_free(platform->operations);
    events_free(platform->events);
    metrics_free(platform->metrics);
    instances_close(platform->instances);
    networks_close(platform->networks);
    volumes_close(platform->volumes);
    image_store_close(platform->images);
    backup_stop(polderd->backup);
    store_close(platform->store);
    if (polderd->lock_fd >= 0)
        close(polderd->lock_fd);
    if (polderd->run_lock_fd >= 0)
        close(polderd->run_lock_fd);
    free(polderd->state_dir);
    free(polderd->run_dir);
    free(polderd->socket_path);
    free(polderd->guest_dir);
}
