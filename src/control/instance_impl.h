/* Private to the controller of instances.
 *
 * One `struct instance` for each document, found by id. A step (instance_step.c) looks at the document and at the process and
 * does what brings them nearer; it never waits long, but says when it wants to come again. The queue (instance_queue.c) runs
 * steps, each instance's one after the other. Calls of users change documents and wait for what the mirror shows. */
#pragma once

#include <pthread.h>
#include <sys/types.h>
#include "base/clock.h"
#include "control/admission.h"
#include "control/agent.h"
#include "control/instance.h"
#include "control/instance_spec.h"
#include "control/json.h"

#define INSTANCE_BASE "base.qcow2" /* of kind vm: the image's disk, below root.qcow2 */
#define INSTANCE_ID_SIZE 17
#define INSTANCE_NAME_SIZE 64
#define INSTANCE_BUCKETS 1024
#define INSTANCE_WORKERS 6
#define INSTANCE_NOT_LAUNCHED 125 /* exit code when no process came of a start */

enum instance_state {
    INSTANCE_CREATED,
    INSTANCE_STARTING,
    INSTANCE_RUNNING,
    INSTANCE_PAUSED,
    INSTANCE_STOPPING,
    INSTANCE_STOPPED,
    INSTANCE_FAILED,
};

enum instance_desired { INSTANCE_WANT_STOPPED, INSTANCE_WANT_RUNNING, INSTANCE_WANT_PAUSED };

struct instance_name {
    struct instance_name *next;
    char text[INSTANCE_NAME_SIZE];
};

struct instance {
    struct instance *next; /* in its bucket */
    struct instances *owner;
    unsigned references;   /* the table's, waiters', the queue's */
    char id[INSTANCE_ID_SIZE];
    const char *_Atomic name;     /* stays readable when another one takes its place */
    struct instance_name *names;  /* all it has had; under the lock */

    /* Under the lock. The mirror: what the last commit said, kept for waiters beyond the document's end. */
    enum instance_state state;
    enum instance_desired desired;
    uint64_t revision;
    bool removed;
    unsigned runs, failures; /* how often it came to run, or failed to */
    int exit_code;
    char error[ERR_MESSAGE_SIZE];
    unsigned attaching;      /* calls that wait to see the main process from its start */
    /* Under the lock: the queue */
    struct instance *next_ready;
    bool ready, working, again;
    int64_t due_ms; /* CLOCK_MONOTONIC; 0: no time is set */
    bool watched;   /* wait_fd is in epoll */

    /* The worker's alone */
    pid_t pid;
    int pidfd;      /* -1: no process */
    struct agent_session *wait; /* tells of the main process's end; NULL: not connected */
    bool taken_over; /* its process is from an earlier life of the daemon, and nothing was asked of it yet */
    int64_t reboot_after_ms, reboot_pause_ms; /* when a restart within the guest may be noted again */
    bool has_exit;  /* the agent said `exit_code_now` */
    int exit_code_now;
    int64_t deadline_ms;  /* of what is under way; 0: nothing */
    bool asked_to_stop;
    bool told_to_end;     /* at once */
    char failure[ERR_MESSAGE_SIZE]; /* why the start failed, while its process is being killed */
    unsigned delay_ms;    /* between tries */
    int64_t phase_ms[4];  /* launch began, process there, guest answers, main runs; for the log */
};

/* What a step does to the world: one table for the real one, others for tests. All return -errno with `err`. */
struct instance_ops {
    /* Puts everything in its place and starts the process: *ret_pid, *ret_pidfd. All or nothing but for what the next
     * launch or `clean` takes up. */
    int (*launch)(struct instance *instance, const json_t *doc, pid_t *ret_pid, int *ret_pidfd, struct err *err);
    /* Sends the guest its start, *ret_status gets {"addresses"}; -EAGAIN: it does not answer yet. Again is fine. */
    int (*greet)(struct instance *instance, const json_t *doc, json_t **ret_status, struct err *err);
    /* A session whose EXIT tells of the main process's end. */
    int (*wait)(struct instance *instance, struct agent_session **ret_session, struct err *err);
    /* Asks the main process to end within the time, or ends it at once (0); the guest then writes all it has and goes off. */
    int (*ask_to_stop)(struct instance *instance, const json_t *doc, unsigned timeout_ms, struct err *err);
    int (*press_power)(struct instance *instance, struct err *err);
    int (*set_paused)(struct instance *instance, bool paused, struct err *err);
    /* The process is gone: what it held is given back. `*ret_code` -1: not known. `text`: one line on how it ended. */
    int (*ended)(struct instance *instance, const json_t *doc, int *ret_code, char *text, size_t size, struct err *err);
    /* Nothing is left but the document (NULL: not even that). */
    int (*clean)(struct instance *instance, const json_t *doc, struct err *err);
};
extern const struct instance_ops instance_ops_host;

struct instance_runtime; /* instance_launch.c: programs, cgroups */

struct instances {
    struct instances_config config; /* strings are owned */
    const struct instance_ops *ops;
    struct admission_host host;
    struct instance_runtime *runtime;
    pthread_mutex_t lock;
    pthread_cond_t changed, work; /* a mirror; the queue */
    struct instance *buckets[INSTANCE_BUCKETS];
    struct instance *first_ready, **last_ready;
    bool closing;
    int epoll_fd, wake_fd;
    pthread_t workers[INSTANCE_WORKERS], poller;
    unsigned worker_count;
    bool poller_runs;
};

/* The controller over given ops; instances_open is this with the host's. */
must_check int instances_open_with(const struct instances_config *config, const struct instance_ops *ops,
                                   struct instances **ret_instances, struct err *err);

/* A document of a new instance; `spec` becomes part of it. */
must_check int instance_new_doc(const json_t *spec, const char *name, const char *image_digest, json_t **ret_doc, struct err *err);

/* ---- what runs it (instance_launch.c, instance_guest.c) ---- */

must_check int instance_runtime_open(struct instances *instances, struct err *err);
void instance_runtime_close(struct instances *instances);
/* Whether spec and image together say what to run. */
must_check int instance_check_process(struct instances *instances, const json_t *spec, struct err *err);
/* The uid and gid of the instance's machine. */
unsigned instance_uid(const char *id);
must_check int instance_send_signal(struct instance *instance, const char *signal, struct err *err);

/* ---- documents (instance_doc.c) ---- */

enum instance_promise { INSTANCE_PROMISE_KEEP, INSTANCE_PROMISE_TAKE, INSTANCE_PROMISE_DROP };

struct instance_change {
    json_t *doc;     /* to be changed in place */
    enum instance_promise promise;
    bool remove;     /* the document itself goes */
    char new_name[INSTANCE_NAME_SIZE]; /* it moves; empty: it stays */
    const void *arg;
};
/* -EALREADY: nothing is to be changed, which is no error of instance_change. */
typedef int instance_change_fn(struct instance_change *change, struct err *err);

/* Reads the document, lets `fn` change it and commits it with its promise; again when another was quicker. Updates the
 * mirror. `action` for the audit record. `ret_doc` may be NULL. */
must_check int instance_change(struct instances *instances, const char *name, instance_change_fn *fn, const void *arg,
                               const char *action, const struct instance_call *call, json_t **ret_doc, struct err *err);
/* A new document; -EEXIST, or -EAGAIN when its id's uid is taken: try another id. */
must_check int instance_doc_add(struct instances *instances, const char *name, const json_t *doc, const char *action,
                                const struct instance_call *call, struct err *err);
must_check int instance_doc_get(struct instances *instances, const char *name, json_t **ret_doc, struct err *err);
enum instance_state instance_doc_state(const json_t *doc);
enum instance_desired instance_doc_desired(const json_t *doc);
bool instance_doc_is_vm(const json_t *doc); /* of kind vm */
/* The image as it was when the instance was made, whatever its name leads to today: its manifest's digest. */
const char *instance_doc_image(const json_t *doc);
void instance_doc_set_state(json_t *doc, enum instance_state state);
void instance_doc_set_desired(json_t *doc, enum instance_desired desired);
void instance_doc_set_time(json_t *object, const char *member);
json_t *instance_status(const json_t *doc);
const char *instance_state_name(enum instance_state state);

/* ---- the table (instance_table.c) ---- */

/* A new reference; NULL when there is none. */
struct instance *instance_find(struct instances *instances, const char *id);
/* The same by name, through the document. `ret_doc` may be NULL. */
must_check int instance_find_name(struct instances *instances, const char *name, struct instance **ret_instance,
                                  json_t **ret_doc, struct err *err);
/* Adds one for the document (or finds it); a new reference. NULL when memory is out. */
struct instance *instance_add(struct instances *instances, const json_t *doc);
/* Takes it out of the table. */
void instance_forget(struct instance *instance);
void instance_unref(struct instance *instance);
static inline void own_instance_cleanup(struct instance **instance)
{
    instance_unref(*instance);
}
#define own_instance __attribute__((cleanup(own_instance_cleanup)))
/* Shows waiters what the document says at `revision`; what is older than the mirror is left out. */
void instance_mirror(struct instance *instance, const json_t *doc, uint64_t revision);

/* ---- the queue (instance_queue.c) ---- */

must_check int instance_queue_start(struct instances *instances, struct err *err);
void instance_queue_stop(struct instances *instances);
/* A step soon, or not before `delay_ms` (an earlier time that is set stays). */
void instance_enqueue(struct instance *instance);
void instance_enqueue_in(struct instance *instance, int64_t delay_ms);
/* A step when `fd` is readable; it must be watched no more before it is closed. */
void instance_watch_fd(struct instance *instance, int fd);
void instance_unwatch_fd(struct instance *instance, int fd);
/* Takes the instance for the caller's own work, as a step does; pairs with instance_give_back, which enqueues it. */
void instance_claim(struct instance *instance);
void instance_give_back(struct instance *instance);

/* ---- steps (instance_step.c) ---- */

/* One step; the queue calls it. */
void instance_step(struct instance *instance);

/* ---- processes (instance_pid.c) ---- */

/* ROOT/instances/ID[/NAME]; NULL when memory is out. */
char *instance_path(const char *root, const char *id, const char *name);
/* Writes run/instances/ID/vmm.pid: pid and start time. */
must_check int instance_pid_write(struct instances *instances, const char *id, pid_t pid, struct err *err);
/* The pidfd of the process that the file names, if it is that process still; -ESRCH. */
must_check int instance_pid_read(struct instances *instances, const char *id, pid_t *ret_pid, int *ret_pidfd,
                                 struct err *err);
/* Kills processes of this controller's machines that are not noted; those of the instance `only`, or before anything is worked
 * on, of all (NULL). */
void instance_end_strays(struct instances *instances, const char *only);
/* The same, and lets folders without a document be removed. */
void instance_adopt_all(struct instances *instances);
