/* A request on its way, as handlers see it: checked, authenticated, and waiting for its answer. */
#pragma once

#include <sys/types.h>

#include "api/platform.h"
#include "api/route.h"
#include "store/store.h"

struct websocket;

/* Who asks, from where. */
struct actor {
    char name[80];   /* "uid:0", "token:ci", "cert:alice" */
    char origin[64]; /* "unix", "192.0.2.1" */
    enum role role;
};

/* The next bytes of a stream: 1..size; 0 at its end; -1 breaks it off, so that the client sees that it is not whole. May
 * wait, but looks at platform_stopping() every second or so. */
typedef ssize_t stream_fn(void *arg, char *buffer, size_t size);
/* Talks to the client until it returns. In a thread of its own. */
typedef void websocket_fn(void *arg, struct websocket *websocket);

struct answer {
    json_t *json;
    const char *media; /* of `text` and streams; NULL: application/json */
    char *text;        /* owned; instead of `json` */
    stream_fn *stream;
    websocket_fn *websocket;
    void *arg; /* of the two above, */
    void (*free_arg)(void *arg); /* called when they are through */
};

struct request {
    struct platform *platform;
    const struct route *route;
    struct actor actor;
    char params[ROUTE_PARAMS][ROUTE_PARAM_MAX];
    json_t *query; /* object of checked parameters, each of its field's type */
    json_t *body;  /* checked; NULL when there is none */
    int body_fd;   /* BODY_STREAM: reads until the client's end; -1 otherwise */
    int peer_fd;   /* of the connection, to be looked at only; -1: there is none */
    struct answer answer;
};

/* ---- what was asked ---- */

bool request_flag(const struct request *request, const char *parameter);
int64_t request_integer(const struct request *request, const char *parameter, int64_t otherwise);
/* NULL when it was not given. */
const char *request_text(const struct request *request, const char *parameter);
/* Of a member of the body. */
const char *request_member(const struct request *request, const char *name);

/* The audit record of a change: `audit` borrows from this struct. */
struct request_audit {
    char actor[80], origin[64], action[48], target[160];
    struct store_audit audit;
};
/* `target` as printf. */
void request_audit(const struct request *request, struct request_audit *ret_audit, const char *action, const char *target, ...)
    __attribute__((format(printf, 4, 5)));

/* Whether nobody waits for an answer any more: the client of that connection (request.peer_fd) has closed it, or polderd ends. A
 * handler that waits looks now and then, so that those who leave hold no thread and no place in the queue. */
bool request_is_over(const struct platform *platform, int peer_fd);

/* ---- the answer: one of these, once. All take what they are given ---- */

int request_reply(struct request *request, json_t *document);
int request_reply_text(struct request *request, const char *media, char *text);
int request_reply_stream(struct request *request, stream_fn *stream, void *arg, void (*free_arg)(void *arg));
int request_reply_websocket(struct request *request, websocket_fn *fn, void *arg, void (*free_arg)(void *arg));

/* ---- from the client's bytes: what the HTTP server, tests and the fuzz target call ---- */

/* Sets `query`, taking one parameter more. -EINVAL: unknown, twice, or not of its type. */
must_check int request_add_query(struct request *request, const char *name, const char *value, struct err *err);
/* Required parameters are there? */
must_check int request_check_query(const struct request *request, struct err *err);
/* Parses and checks a JSON body. `len` 0: none. */
must_check int request_set_body(struct request *request, const char *text, size_t len, struct err *err);
void request_clear(struct request *request);

/* HTTP status and code ("not_found") of a handler's -errno. */
unsigned status_of_error(int error);
const char *code_of_status(unsigned status);
/* {"error": {"code", "message", "exit_code"?}} */
json_t *error_document(unsigned status, const struct err *err);
