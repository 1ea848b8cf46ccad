/* The machine's REST API and config file, compatible with Firecracker's: same paths, bodies, status codes and
 * `fault_message`. Before the start, requests fill a struct vm_config; after it, they go to the machine
 * through struct api_vm_ops and nothing else.
 *
 * Threads: one HTTP thread serves all connections; one lock serialises every request, config file included,
 * so ops are never called twice at once (metrics excepted). The config is the API's from api_create to
 * api_free: others read it only inside ops, or after api_free. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "virtio/balloon.h"
#include "vmm/config.h"
#include "vmm/disk_live.h"
#include "vmm/metrics.h"

struct api;

enum api_vm_state { API_VM_NOT_STARTED, API_VM_RUNNING, API_VM_PAUSED };

/* The machine as the API sees it. `err` gets one line for the user, without a prefix. A NULL member is
 * answered with "not there yet". Called in the HTTP thread with the API's lock held; an implementation may
 * hand the work to its loop and wait, but that loop must then never wait for the API (see api_free). */
struct api_vm_ops {
    enum api_vm_state (*state)(void *arg); /* never NULL; NOT_STARTED until the start is complete */
    /* Builds the machine and runs it. On error nothing is left of it and the config may be corrected. */
    int (*start)(void *arg, const struct vm_config *config, struct err *err);
    /* Pausing what is paused and resuming what runs are no errors. */
    int (*pause)(void *arg, struct err *err);
    int (*resume)(void *arg, struct err *err);
    int (*power_button)(void *arg, struct err *err);
    /* The new file behind a disk; the guest is told of its size. */
    int (*disk_set_path)(void *arg, const char *id, const char *path, struct err *err);
    /* See vmm/disk_live.h. */
    int (*disk_set_size)(void *arg, const char *id, uint64_t bytes, struct err *err);
    int (*disk_snapshot)(void *arg, const char *id, const char *path, struct err *err);
    int (*disk_internal_snapshot)(void *arg, const char *id, enum disk_snapshot_action action, const char *name,
                                  struct qcow2_snapshots *ret_list, struct err *err);
    int (*disk_chain)(void *arg, const char *id, char *ret_names[VM_MAX_BACKING + 1], struct err *err);
    int (*disk_copy_start)(void *arg, const char *id, const struct disk_copy_request *request, struct err *err);
    int (*disk_copy_status)(void *arg, const char *id, struct disk_copy_status *ret_status, struct err *err);
    /* `complete`: a mirror becomes the disk. */
    int (*disk_copy_end)(void *arg, const char *id, bool complete, struct err *err);
    int (*disk_set_limit)(void *arg, const char *id, const struct vm_rate_limit *limit, struct err *err);
    /* The disk is in a group, and the group, of the config's, has room for it. */
    int (*disk_set_share)(void *arg, const char *id, const struct throttle_share *share, struct err *err);
    int (*throttle_set)(void *arg, const char *id, const struct throttle_limits *limits, struct err *err);
    /* NULL leaves that direction as it is. */
    int (*net_set_limits)(void *arg, const char *id, const struct vm_rate_limit *rx,
                          const struct vm_rate_limit *tx, struct err *err);
    int (*balloon_set_target)(void *arg, uint64_t target_mib, struct err *err);
    int (*balloon_set_stats_interval)(void *arg, unsigned interval_s, struct err *err);
    int (*balloon_stats)(void *arg, struct virtio_balloon_stats *ret_stats, struct err *err);
    int (*balloon_hinting_start)(void *arg, bool acknowledge_on_stop, struct err *err);
    int (*balloon_hinting_stop)(void *arg, struct err *err);
    int (*balloon_hinting_status)(void *arg, struct virtio_balloon_hinting *ret_status, struct err *err);
    /* Emits the machine's counters; any thread, also before the start (then nothing). May be NULL. */
    void (*metrics)(void *arg, metrics_emit_fn *emit, void *emit_arg);
};

/* `config`, `ops` and `arg` are borrowed and outlive the API. */
must_check int api_create(struct vm_config *config, const struct api_vm_ops *ops, void *arg,
                          struct api **ret_api, struct err *err);
/* Ends the HTTP thread (waiting for a request under way), writes the last metrics, removes the socket. NULL
 * is fine. Not from the thread that an op under way waits for. */
void api_free(struct api *api);

/* ---- setting up; in this order, all before the loop that ops wait for, if they do, begins to run ---- */

/* Writes metrics to `path` from now on; what PUT /metrics and --metrics do. -EALREADY the second time. */
must_check int api_open_metrics(struct api *api, const char *path, struct err *err);

/* Applies a config file: one JSON object with a member for each resource, each checked and applied as the PUT
 * request to that resource would be. The first error ends it. */
must_check int api_load_config_file(struct api *api, const char *path, struct err *err);

/* Loads what api_listen needs, which does so itself where files can be opened. */
must_check int api_library_load(struct err *err);

/* Serves on a new unix socket at `path`, mode 0600. -EADDRINUSE when something is there already. */
must_check int api_listen(struct api *api, const char *path, struct err *err);

/* ---- without a socket: what the HTTP server, tests and the fuzz target call ---- */

#define API_BODY_MAX 51200

struct api_response {
    int status;      /* 200 with a body, 204 without; 400 or 413 with {"fault_message": ...} */
    char *body;      /* JSON text, from malloc; NULL for none. The caller frees it */
    bool deprecated; /* a deprecated field was used: "Deprecation: true" goes into the header */
};

/* One request. `body` need not end in NUL; len 0: no body. Any thread. */
void api_handle(struct api *api, const char *method, const char *path, const char *body, size_t len,
                struct api_response *ret_response);

/* The reference of all requests as an OpenAPI 3 document in YAML (docs/api/openapi.yaml, --openapi). */
void api_write_openapi(FILE *out);
