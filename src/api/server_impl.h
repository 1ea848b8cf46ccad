/* Private to the server. A request goes: server.c (sockets) -> server_request.c (libmicrohttpd's callbacks: who, what, body)
 * -> the route's handler -> server_answer.c. server_peers.c knows the connections and ends those that dawdle. */
#pragma once

#include <microhttpd.h>
#include <pthread.h>

#include "api/request.h"
#include "api/server.h"

#define SERVER_BODY_MAX (1u << 20) /* bytes of JSON */
#define SERVER_HEAD_MAX (32u << 10) /* bytes of a request's line and headers */
#define SERVER_STALL_S 30           /* without a byte moving */
#define SERVER_HEAD_S 60            /* from the connection, or the last answer, to the end of the next header */
#define SERVER_BODY_S 60            /* for a JSON body */
#define SERVER_STACK (1u << 20)     /* jansson recurses with the depth of a document */

struct peer {
    struct peer *next, *previous;
    int fd;
    bool tls;
    time_t deadline; /* CLOCK_MONOTONIC seconds; 0: none */
    /* of a unix socket, known at once: */
    struct actor actor;
    struct err refused; /* code 0: it is not */
};

struct server {
    struct server_config config;
    struct MHD_Daemon *local, *tls;
    int listen_fd, tls_fd;
    char *cert, *key, *ca;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct peer *peers;
    unsigned websockets; /* threads that serve one */
    bool ending;
    bool watching;
    pthread_t watchdog;
};

struct exchange {
    struct server *server;
    struct peer *peer;
    struct MHD_Connection *connection;
    struct request request;
    unsigned status; /* of an error, or 0 */
    struct err err;
    char allow[64];
    char *body;
    size_t len, size;
    int body_fd; /* BODY_STREAM: the client's end of a socket pair whose other end the handler reads; -1: none */
    bool upgraded; /* to a WebSocket: there will be no next header to wait for */
    bool running;
    pthread_t handler; /* runs the handler meanwhile, if `running` */
    int result;
};

/* ---- server_peers.c ---- */

void peers_notify(void *server, struct MHD_Connection *connection, void **context, enum MHD_ConnectionNotificationCode code);
/* seconds 0: no deadline */
void peer_set_deadline(struct server *server, struct peer *peer, unsigned seconds);
must_check int peers_watch(struct server *server, struct err *err);
void peers_end(struct server *server);

/* ---- server_request.c ---- */

enum MHD_Result server_on_request(void *server, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *data_size, void **context);
void server_on_completed(void *server, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code);
/* Whether bytes must move within SERVER_STALL_S: not while a handler works. */
void connection_expect_bytes(struct MHD_Connection *connection, bool expect);

/* ---- server_who.c ---- */

must_check int exchange_authenticate(struct exchange *exchange, struct err *err);
/* A browser's page of another origin has no business here. */
must_check int exchange_check_origin(const struct exchange *exchange, struct err *err);

/* ---- server_answer.c ---- */

enum MHD_Result exchange_answer(struct exchange *exchange);

/* ---- server_upgrade.c ---- */

must_check int exchange_check_upgrade(const struct exchange *exchange, struct err *err);
enum MHD_Result exchange_upgrade(struct exchange *exchange);
