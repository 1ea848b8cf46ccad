/* A process that the agent started, and the streams to and from it. It is either a program or a function of the agent in a
 * process of its own (files in and out), so that nothing it meets can hold up or end the agent.
 *
 * Output is read only while the owner has room, input is queued up to QUEUE_ROOM. The end is reported once: when the process
 * has ended and what it wrote was handed on. A pipe that a grandchild keeps open does not delay it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "agent/protocol.h"
#include "agent/queue.h"
#include "base/loop.h"

#define CHILD_ERROR_SIZE 200

/* All borrowed, and used before child_start() returns. */
struct child_spec {
    char *const *args;      /* NULL-terminated; NULL for a function */
    char *const *env;       /* NULL-terminated "K=V"; later ones win */
    const char *user;       /* "name", "uid", either with ":group"; NULL: root */
    const char *cwd;        /* made if missing; NULL: "/" */
    bool tty;
    bool use_stdin; /* otherwise it reads /dev/null */
    unsigned rows, cols;
    int (*run)(const char *path); /* the function: reads 0, writes 1, complains on 2, returns the exit code */
    const char *path;
};

struct child_owner {
    /* It runs (`error` NULL), or could not be started: then `code` is 126 (found, not runnable), 127 (not found) or 125, and
     * nothing more is called. */
    void (*on_start)(void *owner, const char *error, int code);
    bool (*has_room)(void *owner);
    void (*on_output)(void *owner, enum agent_frame_type stream, const uint8_t *data, size_t len_bytes);
    void (*on_input_room)(void *owner); /* the input queue is short again */
    void (*on_exit)(void *owner, int code);
};

struct child;

must_check int child_start(struct loop *loop, const struct child_spec *spec, const struct child_owner *owner,
                           void *arg, struct child **ret_child, struct err *err);
/* Closes its streams and sends SIGHUP if it still runs. NULL is fine. */
void child_free(struct child *child);
pid_t child_pid(const struct child *child);
/* False when the queue is full now: no more, please, until on_input_room. */
bool child_input(struct child *child, const uint8_t *data, size_t len_bytes);
void child_close_input(struct child *child);
void child_resize(struct child *child, unsigned rows, unsigned cols);
void child_signal(struct child *child, int signal);
/* Reads output again after the owner had no room. */
void child_resume(struct child *child);
/* Called for every SIGCHLD: takes the status of all that ended, also of orphans. */
void child_reap(void);
