#include "polderd/daemon.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/operation.h"
#include "control/volume.h"
#include "image/image.h"
#include "store/store.h"

#define OPERATIONS_END_MS 10000

static int open_store(struct daemon *daemon, struct err *err)
{
    char address[4200];
    snprintf(address, sizeof address, "sqlite:%s/state.db", daemon->state_dir);
    return store_open(address, &daemon->platform.store, err);
}

static int open_images(struct daemon *daemon, struct err *err)
{
    char folder[4200];
    snprintf(folder, sizeof folder, "%s/images", daemon->state_dir);
    return image_store_open(folder, &daemon->platform.images, err);
}

static int open_volumes(struct daemon *daemon, struct err *err)
{
    json_t *actions = NULL;
    size_t i;
    json_t *action;
    int r = volumes_open(daemon->platform.store, daemon->state_dir, &daemon->platform.volumes, err);
    if (r == 0)
        r = volumes_reconcile(daemon->platform.volumes, &actions, err);
    json_array_foreach(actions, i, action)
        log_info("%s", json_string_value(action));
    json_decref(actions);
    return r;
}

/* In this order: each finds what it needs of those before. */
static int open_parts(struct daemon *daemon, struct err *err)
{
    int r = open_store(daemon, err);
    if (r == 0)
        r = open_images(daemon, err);
    if (r == 0)
        r = open_volumes(daemon, err);
    return r;
}

static int start_api(struct daemon *daemon, struct err *err)
{
    struct platform *platform = &daemon->platform;
    const struct options *options = &daemon->options;
    const struct server_config config = {.platform = platform, .socket_path = daemon->socket_path, .listen = options->listen,
                                         .tls_cert = options->tls_cert, .tls_key = options->tls_key,
                                         .tls_ca = options->tls_ca};
    int r = events_create(platform->store, &platform->events, err);
    if (r == 0)
        r = metrics_create(&platform->metrics, err);
    if (r == 0)
        r = operations_create(platform->events, platform->metrics, &platform->operations, err);
    return r < 0 ? r : server_start(&config, &daemon->server, err);
}

int daemon_start(struct daemon *daemon, struct err *err)
{
    int r = daemon_find_paths(daemon, err);
    if (r < 0)
        return r;
    struct platform *platform = &daemon->platform;
    platform->state_dir = daemon->state_dir;
    platform->run_dir = daemon->run_dir;
    platform->guest_dir = daemon->guest_dir;
    platform->socket_path = daemon->socket_path;
    platform->started_at = time(NULL);
    r = open_parts(daemon, err);
    return r < 0 ? r : start_api(daemon, err);
}

void daemon_stop(struct daemon *daemon)
{
    struct platform *platform = &daemon->platform;
    atomic_store(&platform->stopping, true);
    if (platform->operations && !operations_stop(platform->operations, OPERATIONS_END_MS)) {
        log_warn("operations under way did not end in time; the next polderd takes over what they left");
        _exit(0); /* their threads use what would be freed; the store is consistent at any instant */
    }
    if (platform->events)
        events_wake(platform->events);
    server_stop(daemon->server);
    operations_free(platform->operations);
    events_free(platform->events);
    metrics_free(platform->metrics);
    volumes_close(platform->volumes);
    image_store_close(platform->images);
    store_close(platform->store);
    if (daemon->lock_fd >= 0)
        close(daemon->lock_fd);
    free(daemon->state_dir);
    free(daemon->run_dir);
    free(daemon->socket_path);
    free(daemon->guest_dir);
}
