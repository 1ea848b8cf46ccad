/* Instances: virtual machines as documents of the store ("instances/NAME"), and the controller that makes them so.
 *
 * A document is {"id", "name", "spec", "desired", "created_at", "status"}; src/control/instance_spec.h says what a spec may hold.
 * Calls change what is desired and wait until the controller has done it or given up; all of them may be repeated, and a
 * process that dies half-way leaves nothing that the next one does not finish or take away. polder-vmm processes outlive
 * the controller: instances_open finds those that run and takes over.
 *
 * Any thread may call anything; calls on one instance are worked on one after the other. Errors hold one line for the user:
 * -ENOENT no such instance, -EEXIST the name is taken, -EINVAL a bad argument or spec, -EBUSY not in this state,
 * -ENOSPC admission refuses, -ECANCELED, -ETIMEDOUT. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "store/store.h"

struct agent_session;
struct image_store;
struct instances;
struct networks;
struct volumes;

struct instances_config {
    struct store *store;
    struct image_store *images;
    struct networks *networks;
    struct volumes *volumes;
    const char *state_dir; /* instances/ID/ lies below */
    const char *run_dir;   /* the same, for sockets and pid files */
    const char *guest_dir; /* vmlinuz and initramfs.cpio; NULL: starting a microVM is refused */
    const char *engine;    /* of instances that do not name one; NULL: "auto" */
    double memory_overcommit, cpu_overcommit; /* 0: 1.0 and 16.0 */
    uint64_t host_reserve_bytes;              /* memory that instances never get; 0: what admission.h says */
    bool keep_unknown;                        /* folders without a document go to STATE/lost, not away */
    bool no_sandbox;                          /* for hosts that cannot: polder-vmm runs as polderd's own user */
};

/* Takes over what runs, removes leftovers, begins to work. Everything in `config` outlives it; strings are copied. */
must_check int instances_open(const struct instances_config *config, struct instances **ret_instances, struct err *err);
/* Ends the work at the next safe point; machines run on. NULL is fine. */
void instances_close(struct instances *instances);
/* True when the kernel keeps the limits of all; otherwise why it does not, and the cure, for as long as `instances` is there. */
bool instances_keep_limits(const struct instances *instances, const char **ret_why, const char **ret_cure);

/* Who asks, and how a call that takes long tells how far it is. May be NULL, and so may every member. */
struct instance_call {
    const char *actor, *origin; /* for the audit record, see store.h */
    void (*progress)(void *arg, const char *what, uint64_t done, uint64_t total);
    bool (*cancelled)(void *arg); /* asked now and then; true: -ECANCELED as soon as nothing is half done */
    void *arg;
};

/* ---- documents ---- */

/* Checks and completes `spec` (a name is made up where there is none), pulls the image if it is not there, and creates;
 * with `start`, also waits until it runs. *ret_doc: the document. All or nothing: networks and volumes that it names are
 * there, and what could not be launched is removed again; what ended by itself stays to be looked at. */
must_check int instance_create(struct instances *instances, const json_t *spec, bool start, const struct instance_call *call,
                               json_t **ret_doc, struct err *err);
must_check int instance_get(struct instances *instances, const char *name, json_t **ret_doc, struct err *err);
/* The documents by name, as the text of a JSON array that the caller frees. */
must_check int instance_list(struct instances *instances, char **ret_text, struct err *err);
/* Changes members of the spec that may change: cpus, cpu_weight, memory_bytes, restart, labels, ports; those of a running
 * instance take effect at its next start. */
must_check int instance_update(struct instances *instances, const char *name, const json_t *changes,
                               const struct instance_call *call, json_t **ret_doc, struct err *err);
/* `force`: kills it first if it runs (-EBUSY without). */
must_check int instance_remove(struct instances *instances, const char *name, bool force, const struct instance_call *call,
                               struct err *err);
must_check int instance_rename(struct instances *instances, const char *name, const char *new_name,
                               const struct instance_call *call, json_t **ret_doc, struct err *err);
/* A stopped copy with a disk of its own; of a running instance the disk is as after a power cut. */
must_check int instance_clone(struct instances *instances, const char *name, const char *new_name,
                              const struct instance_call *call, json_t **ret_doc, struct err *err);

/* ---- state; each is fine when it is so already ---- */

must_check int instance_start(struct instances *instances, const char *name, const struct instance_call *call, struct err *err);
/* Asks politely (the image's stop signal, or the power button), then kills after `timeout_s` (negative: 10). */
must_check int instance_stop(struct instances *instances, const char *name, int timeout_s, const struct instance_call *call,
                             struct err *err);
must_check int instance_restart(struct instances *instances, const char *name, int timeout_s, const struct instance_call *call,
                                struct err *err);
/* Sends `signal` ("TERM", "9"; NULL: KILL) to the main process. KILL ends the machine itself. */
must_check int instance_kill(struct instances *instances, const char *name, const char *signal, const struct instance_call *call,
                             struct err *err);
must_check int instance_pause(struct instances *instances, const char *name, const struct instance_call *call, struct err *err);
must_check int instance_resume(struct instances *instances, const char *name, const struct instance_call *call, struct err *err);
/* Until it has stopped, without a restart to come: *ret_exit_code as of the last run (also when it was removed at its
 * exit). Never started: waits for that. */
must_check int instance_wait(struct instances *instances, const char *name, const struct instance_call *call, int *ret_exit_code,
                             struct err *err);

/* ---- snapshots of the root disk ---- */

must_check int instance_snapshot_create(struct instances *instances, const char *name, const char *snapshot,
                                        const struct instance_call *call, struct err *err);
/* Array of {"name", "created_at", "size_bytes"}. */
must_check int instance_snapshot_list(struct instances *instances, const char *name, json_t **ret_snapshots, struct err *err);
/* Of a stopped instance only. */
must_check int instance_snapshot_restore(struct instances *instances, const char *name, const char *snapshot,
                                         const struct instance_call *call, struct err *err);
must_check int instance_snapshot_remove(struct instances *instances, const char *name, const char *snapshot,
                                        const struct instance_call *call, struct err *err);

/* ---- ways in ---- */

/* Sessions with the agent (control/agent.h), behind the REPLY; the caller closes them. `request`: {"args", "env", "user",
 * "cwd", "tty", "rows", "cols", "stdin"}; what is left out is as for the main process. */
must_check int instance_exec(struct instances *instances, const char *name, const json_t *request,
                             struct agent_session **ret_session, struct err *err);
/* The main process. With `from_start`, first what it has printed so far. May come before the start, and then waits for it up to a
 * minute: nothing of a main process that ends at once is missed. */
must_check int instance_attach(struct instances *instances, const char *name, bool use_stdin, bool from_start,
                               struct agent_session **ret_session, struct err *err);
/* A tar archive of `path`: DATA_OUT frames, then EXIT. */
must_check int instance_files_get(struct instances *instances, const char *name, const char *path,
                                  struct agent_session **ret_session, struct err *err);
/* Unpacks a tar archive, sent as DATA_IN frames and CLOSE_IN, into the folder `path`; EXIT answers. */
must_check int instance_files_put(struct instances *instances, const char *name, const char *path,
                                  struct agent_session **ret_session, struct err *err);
/* The serial console: a connected stream socket of bytes, which the caller owns. */
must_check int instance_console(struct instances *instances, const char *name, int *ret_fd, struct err *err);

/* {"state", "cpu_usage_ns", "memory_bytes", "memory_limit_bytes", "net_rx_bytes", "net_tx_bytes", "disk_read_bytes",
 * "disk_write_bytes", "guest": {...}}; what cannot be had is left out. `ask_guest`: with the last, which takes longer. */
must_check int instance_stats(struct instances *instances, const char *name, bool ask_guest, json_t **ret_stats,
                              struct err *err);

/* ---- logs ---- */

enum instance_log_source { INSTANCE_LOG_MAIN, INSTANCE_LOG_BOOT, INSTANCE_LOG_VMM };
struct instance_log;

/* `tail_lines` negative: from the oldest byte that is kept. */
must_check int instance_log_open(struct instances *instances, const char *name, enum instance_log_source source,
                                 int64_t tail_lines, bool follow, struct instance_log **ret_log, struct err *err);
/* Bytes read; 0 at the end (never while a followed instance exists and runs); -EAGAIN after `timeout_ms` without any. */
must_check ssize_t instance_log_read(struct instance_log *log, char *buffer, size_t size, int timeout_ms);
void instance_log_close(struct instance_log *log); /* NULL is fine */

/* ---- the host's share ---- */

/* {"memory": {"capacity_bytes", "reserved_bytes", "overcommit"}, "cpus": {"capacity", "reserved", "overcommit"}}; capacity is
 * what may be promised, overcommit included. */
must_check int instances_admission(struct instances *instances, json_t **ret_admission, struct err *err);
