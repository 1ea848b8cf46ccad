/* The daemon: what polderd is made of, its start and its end.
 *
 * Start: lock, store, images, volumes, networks, instances (which takes over those that run), then the API, so that no
 * request meets a part that is not there. End: the other way round; instances run on. */
#pragma once

#include "api/server.h"
#include "base/err.h"
#include "base/log.h"

struct options {
    const char *state_dir, *socket_path, *run_dir, *guest_dir, *engine;
    const char *listen, *tls_cert, *tls_key, *tls_ca;
    enum log_level log_level;
    double cpu_overcommit, memory_overcommit; /* 0: as usual */
    bool no_sandbox, restore;
    bool help, version, man;
};

extern const struct option_program polderd_program;

struct polderd {
    struct options options;
    char *state_dir, *run_dir, *socket_path, *guest_dir; /* as they were worked out */
    int lock_fd, run_lock_fd; /* of the state folder, of the run folder */
    struct platform platform;
    struct backup *backup;
    struct server *server;
};

/* Leaves what programs need and a PATH of the system's own folders; before any thread starts. */
must_check int environment_clean(struct err *err);
/* Fills in the paths that no option gave, makes the folders, takes the locks of the state and the run folder. */
must_check int polderd_find_paths(struct polderd *polderd, struct err *err);
must_check int polderd_start(struct polderd *polderd, struct err *err);
/* Operations under way get some seconds. */
void polderd_stop(struct polderd *polderd);
