/* Private to the server's files: connections and their requests.
 *
 * Events (bytes came, bytes went, a request is done) only change a connection's state and put it on the server's ready
 * list; connection_run() then does all that can be done: takes messages from the input, sends what there is to send, asks
 * for more. So nothing recurses, and one system call serves many requests. */
#pragma once

#include "block/fiber.h"
#include "nbd/nbd.h"
#include "nbd/protocol.h"

#define INPUT_BYTES (256u << 10)  /* several write requests at once */
#define CONTROL_BYTES (16u << 10) /* the longest answer to an option: the list of all exports */
#define OPTION_MAX 8192u          /* longer ones are skipped and refused */
#define SLOTS 128u                /* requests of a connection */
#define SEND_IOVS 128u
#define CONNECTION_BYTES_MAX (32u << 20)
#define SERVER_BYTES_MAX (128u << 20)
#define STATUS_EXTENTS 512u /* in an answer, of a context */

/* Buffers of 4 KiB << class. */
#define BUFFER_CLASSES 14u
struct buffers {
    void *free[BUFFER_CLASSES];
    size_t in_use, kept;
};

enum { CONTEXT_ALLOCATION, CONTEXT_BITMAP, CONTEXTS }; /* also their ids on the wire, less one */

struct connection;

/* One command of a peer. */
struct slot {
    struct block_request block; /* first */
    struct connection *c;
    uint64_t cookie, offset, done;
    uint32_t len;
    uint16_t type, flags;
    int result;
    uint8_t *data; /* of `data_class`; NULL: none */
    unsigned data_class;
    uint32_t data_len; /* what of it is sent */
    struct iovec iov;
    uint8_t head[NBD_CHUNK_LEN + 12];
    unsigned head_len;
    struct slot *next; /* free, or to be sent */
};

enum stage { STAGE_FLAGS, STAGE_OPTIONS, STAGE_TLS_BEGINS, STAGE_TLS, STAGE_REQUESTS };

struct connection {
    struct nbd_server *server;
    struct connection *next, *next_ready;
    int fd;
    enum stage stage;
    bool ready, failed; /* failed: nothing is read or written any more */
    bool ending;        /* nothing is read any more; what is to be sent is sent */
    bool starved;       /* waits for memory */
    bool no_zeroes, structured, handshake_done;
    const struct nbd_export *export;
    const struct nbd_export *contexts_of; /* what `contexts` was set for */
    unsigned contexts;
    uint64_t deadline_ns; /* for the negotiation, or the message that has begun; 0: none */
    size_t moved;         /* bytes in and out since it was set */

    struct block_io receive, send;
    bool receiving, sending;
    size_t receive_direct; /* how much of what is received goes to a write's data at most */
    struct iovec receive_iov[2], send_iov[SEND_IOVS];
    uint8_t *input;
    size_t input_from, input_to;
    uint64_t skip;        /* of the input */
    uint32_t skip_option; /* is refused after that */
    struct slot *writing; /* has got `done` bytes of its data */
    uint8_t control[CONTROL_BYTES]; /* answers of the negotiation */
    size_t control_from, control_to;

    struct slot slots[SLOTS], *free_slots;
    struct slot *answers, **answers_end; /* done, to be sent */
    size_t answers_sent;                 /* bytes of the first one */
    unsigned in_flight;                  /* slots that are taken */
    size_t bytes;                        /* of their buffers */
    struct tls_session *tls;             /* NULL: plain */
};

struct nbd_server {
    struct nbd_server_config config;
    struct connection *connections, *ready;
    unsigned connection_count;
    struct block_io accept;
    bool accepting, stopping, starving; /* some connection waits for memory */
    uint64_t checked_ns;
    struct buffers buffers;
    struct fiber_pool fibers;
};

/* ---- server.c ---- */
uint64_t nbd_now_ns(void);
void connection_ready(struct connection *c);
/* There may be memory again for those that wait for it. */
void server_feed(struct nbd_server *server);

/* ---- connection.c ---- */
struct connection *connection_create(struct nbd_server *server, int fd);
void connection_free(struct connection *c);
/* Does what can be done. False: it has ended, free it. */
bool connection_run(struct connection *c);
void connection_fail(struct connection *c);
/* Room behind the control bytes, or NULL, and the connection has failed. */
uint8_t *connection_control(struct connection *c, size_t len);

/* ---- negotiate.c ---- */
void negotiate_begin(struct connection *c);
/* Takes one message of the negotiation; 0: it is not there as a whole. */
size_t negotiate(struct connection *c, const uint8_t *data, size_t len);
void negotiate_skipped(struct connection *c);

/* ---- transmit.c ---- */
/* Takes one request's head; 0: it is not there as a whole, or there is no room for it. */
size_t transmit(struct connection *c, const uint8_t *data, size_t len);
/* The slot's data has come. */
void transmit_written(struct slot *slot);
/* Makes the answer, and queues it. */
void transmit_done(struct slot *slot, int result);
void transmit_release(struct slot *slot);

/* ---- status.c ---- */
/* In fibers: BLOCK_STATUS and CACHE. */
void status_start(struct slot *slot);

/* ---- buffers.c ---- */
/* -1: more than there is. */
int buffers_class(size_t len);
static inline size_t buffers_size(unsigned class)
{
    return (size_t)4096 << class;
}
/* NULL: no memory, or too much is in use. */
void *buffers_take(struct buffers *buffers, unsigned class);
void buffers_give(struct buffers *buffers, void *buffer, unsigned class);
void buffers_drain(struct buffers *buffers);

/* ---- tls.c ---- */
struct tls_session *tls_session_create(struct nbd_tls *tls);
void tls_session_free(struct tls_session *session);
/* Bytes that came from the peer go to tls_input; its length to tls_received. NULL: no room. */
uint8_t *tls_input(struct tls_session *session, size_t *ret_room);
void tls_received(struct tls_session *session, size_t len);
/* 0: done; -EAGAIN: needs more from the peer; else it has failed. */
int tls_handshake(struct tls_session *session);
/* Bytes, 0: the peer has ended; -EAGAIN. */
ssize_t tls_read(struct tls_session *session, void *data, size_t len);
/* Encrypts as much as there is room for. */
ssize_t tls_write(struct tls_session *session, const struct iovec *iov, unsigned count);
/* Encrypted bytes to be sent. */
const uint8_t *tls_output(const struct tls_session *session, size_t *ret_len);
void tls_sent(struct tls_session *session, size_t len);
