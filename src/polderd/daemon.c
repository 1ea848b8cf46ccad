#include "polderd/daemon.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/events.h"
#include "api/metrics.h"
#include "api/operation.h"
#include "store/store.h"

#define OPERATIONS_END_MS 10000

static int open_store(struct daemon *daemon, struct err *err)
{
    char address[4200];
    snprintf(address, sizeof address, "sqlite:%s/state.db", daemon->state_dir);
    return store_open(address, &daemon->platform.store, err);
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
    r = open_store(daemon, err);
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
    store_close(platform->store);
    if (daemon->lock_fd >= 0)
        close(daemon->lock_fd);
    free(daemon->state_dir);
    free(daemon->run_dir);
    free(daemon->socket_path);
    free(daemon->guest_dir);
}
