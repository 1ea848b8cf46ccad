/* NBD server: block nodes as exports for any number of clients.
 *
 * All of it runs in the thread of one ring, which also drives the sockets: requests are received, submitted and answered
 * many at a time, and none of them allocates. What a peer sends is bounded: connections, requests and bytes in flight (of
 * a connection and of all together), the length of options, the time that a negotiation or a half-sent message may take.
 * Who reaches a limit is not read from until there is room again. */
#pragma once

#include "base/err.h"
#include "block/block.h"

#define NBD_EXPORTS_MAX 16u
#define NBD_EXPORT_NAME_MAX 255u
#define NBD_CONNECTIONS_MAX 64u

struct nbd_server;
struct nbd_tls;

/* Strings and node are the caller's, and outlive the server. The node is attached to the server's ring. */
struct nbd_export {
    const char *name;
    const char *bitmap; /* shown as context qemu:dirty-bitmap:NAME; NULL: none */
    struct block_node *node;
};

struct nbd_server_config {
    const struct nbd_export *exports; /* the first is also the default, "" */
    unsigned export_count;
    struct block_ring *ring;
    struct nbd_tls *tls; /* NULL: connections are not encrypted; else all must be */
    int listen_fd;       /* a listening, blocking socket; the caller's; -1: none */
    unsigned patience_s; /* how long a negotiation may take, and a message that has begun */
};

must_check int nbd_server_create(const struct nbd_server_config *config, struct nbd_server **ret_server, struct err *err);
/* Drops all connections. Waits for requests in flight. NULL is fine. */
void nbd_server_free(struct nbd_server *server);
/* Takes over a connected stream socket; -EBUSY (and closed) when there are too many. */
int nbd_server_add(struct nbd_server *server, int fd);
/* Waits until something happens, and does it. */
void nbd_server_step(struct nbd_server *server);
/* No new connections and requests; what was received is still done and answered, to peers that take it in time. */
void nbd_server_stop(struct nbd_server *server, unsigned limit_s);
/* After nbd_server_stop: true until all connections have ended. */
bool nbd_server_busy(const struct nbd_server *server);

/* ---- tls.c ---- */

/* One of the two: a file of lines USER:HEXKEY as psktool writes it, or a folder with ca-cert.pem, server-cert.pem and
 * server-key.pem; clients then show a certificate of that CA. */
must_check int nbd_tls_create(const char *psk_file, const char *certificates, struct nbd_tls **ret_tls, struct err *err);
void nbd_tls_free(struct nbd_tls *tls);
