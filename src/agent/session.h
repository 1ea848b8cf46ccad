/* A connection from the host: one request, and what its operation makes of the rest. Sessions end themselves by
 * session_finish(); the host ends them by closing, whenever it likes. */
#pragma once

#include <stdbool.h>
#include <jansson.h>
#include "agent/agent.h"
#include "agent/queue.h"

struct session;
struct child;

/* What a request does: a line of the table in ops.c. */
struct session_op {
    const char *name;
    /* Answers (session_reply, session_refuse) now or later; -errno with `err` is answered by the caller. */
    int (*open)(struct session *s, const json_t *request, struct err *err);
    /* Frames after the request: DATA_IN, CLOSE_IN, RESIZE, SIGNAL. NULL: ignored. False: no more until session_resume(). */
    bool (*on_frame)(struct session *s, const struct agent_frame *frame);
    void (*on_room)(struct session *s); /* the output is short again */
    void (*close)(struct session *s);
};

extern const struct session_op session_ops[]; /* ends with a NULL name */

struct session {
    struct session *next;
    struct agent *agent;
    int fd;
    uint32_t events; /* watched for */
    struct loop_source *source;
    struct loop_source *linger_timer;
    const struct session_op *op; /* NULL until the request */
    struct queue out;
    bool paused;     /* no frames are taken: the process does not read its input */
    bool finishing;  /* closed once the output is sent */
    bool dead;       /* freed soon, by the loop */
    struct child *child;
    bool is_waiting; /* for the end of the main process */
    bool is_attached;
    bool takes_input;
    bool is_lagging;     /* attached, and took nothing for too long */
    uint64_t lost_bytes; /* not sent to it because it lagged */
    struct agent_reader reader;
};

/* Listens on an accepting non-blocking socket. */
must_check int sessions_listen(struct agent *agent, int listen_fd, struct err *err);
void session_send(struct session *s, enum agent_frame_type type, const void *data, size_t len_bytes);
/* {"ok": true} and what `extra` (taken, may be NULL) has. */
void session_reply(struct session *s, json_t *extra);
/* {"error": text, "code": code}; without "code" when 0. */
void session_refuse(struct session *s, const char *text, int code);
/* EXIT, and the end. */
void session_exit(struct session *s, int code);
/* All is said: closes when the host has taken it. */
void session_finish(struct session *s);
bool session_has_room(const struct session *s);
/* Takes frames again after on_frame said false. */
void session_resume(struct session *s);
