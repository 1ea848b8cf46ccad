/* The HTTP server: one daemon of libmicrohttpd on a unix socket, and one with TLS where it is asked for.
 *
 * One thread a connection, with small stacks and caps on their number: handlers wait (long polls, event streams, archives
 * of any length, guests), and a thread that waits is simpler than a state machine for each of these. Both daemons have caps
 * of their own, so that nobody on the network keeps the administrator out. */
#pragma once

#include <stdbool.h>

#include "api/platform.h"
#include "base/err.h"

struct server;

struct server_config {
    struct platform *platform;
    const char *socket_path; /* made with mode 0660 and group polder, if there is one; what a dead polderd left is removed */
    const char *listen;      /* "ADDRESS:PORT" or "[ADDRESS]:PORT"; NULL: no TLS */
    const char *tls_cert, *tls_key; /* PEM files */
    const char *tls_ca;             /* that client certificates are checked against; NULL: tokens only */
};

/* `config` is copied, the strings are borrowed. */
must_check int server_start(const struct server_config *config, struct server **ret_server, struct err *err);
/* Takes no more connections, ends those that are (platform.stopping must be set), removes the socket. NULL is fine. False when a
 * session does not end: then all still runs, and nothing that requests use may be freed. */
bool server_stop(struct server *server);
/* The port that --listen got (for port 0); 0 without TLS. */
unsigned server_port(const struct server *server);
