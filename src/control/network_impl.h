/* What the files of network.h share. */
#pragma once

#include <pthread.h>
#include "control/network_host.h"
#include "control/network_pool.h"

struct networks {
    struct store *store;
    pthread_mutex_t host_lock; /* guards `host` */
    struct host host;
    pthread_t thread;
    int wake_fd; /* eventfd; ends the thread */
};

/* Makes the host match the documents; `only` as in host_apply. */
must_check int network_apply(struct networks *networks, const char *only, struct err *err);
/* Starts and ends the thread that keeps it so. */
must_check int network_watch_start(struct networks *networks, struct err *err);
void network_watch_end(struct networks *networks);
