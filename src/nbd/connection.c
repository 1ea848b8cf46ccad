/* A connection's bytes: in from the socket to messages, out from answers to the socket, through TLS where it is used. */
#include <errno.h>
#include <stddef.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/iov.h"
#include "base/log.h"
#include "nbd/server_impl.h"

#define PROGRESS_BYTES 65536u

struct connection *connection_create(struct nbd_server *server, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->input = malloc(INPUT_BYTES);
    if (!c->input) {
        free(c);
        return NULL;
    }
    c->server = server;
    c->fd = fd;
    c->answers_end = &c->answers;
    for (unsigned i = 0; i < SLOTS; i++) {
        c->slots[i].c = c;
        c->slots[i].next = i + 1 < SLOTS ? &c->slots[i + 1] : NULL;
    }
    c->free_slots = c->slots;
    c->deadline_ns = nbd_now_ns() + server->config.patience_s * UINT64_C(1000000000);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* fails on others, which need none */
    negotiate_begin(c);
    return c;
}

void connection_free(struct connection *c)
{
    tls_session_free(c->tls);
    close(c->fd);
    free(c->input);
    free(c);
}

void connection_fail(struct connection *c)
{
    c->failed = true;
    shutdown(c->fd, SHUT_RDWR); /* ends what waits for the peer */
    connection_ready(c);
}

uint8_t *connection_control(struct connection *c, size_t len)
{
    if (CONTROL_BYTES - c->control_to < len) {
        connection_fail(c);
        return NULL;
    }
    c->control_to += len;
    return c->control + c->control_to - len;
}

/* ---- from the input to messages ---- */

static size_t take_skipped(struct connection *c, size_t len)
{
    size_t n = c->skip < len ? c->skip : len;
    c->skip -= n;
    if (!c->skip)
        negotiate_skipped(c);
    return n;
}

static void advance_write(struct connection *c, size_t n)
{
    struct slot *slot = c->writing;
    slot->done += n;
    if (slot->done < slot->len)
        return;
    c->writing = NULL;
    transmit_written(slot);
}

static size_t take_write(struct connection *c, const uint8_t *data, size_t len)
{
    size_t left = c->writing->len - c->writing->done, n = left < len ? left : len;
    memcpy(c->writing->data + c->writing->done, data, n);
    advance_write(c, n);
    return n;
}

static size_t take_message(struct connection *c, const uint8_t *data, size_t len)
{
    if (c->skip)
        return take_skipped(c, len);
    if (c->writing)
        return take_write(c, data, len);
    return c->stage == STAGE_REQUESTS ? transmit(c, data, len) : negotiate(c, data, len);
}

static bool handshake_ahead(const struct connection *c)
{
    return c->stage == STAGE_TLS_BEGINS || c->stage == STAGE_TLS;
}

/* All messages that are there, as far as there is room for them. */
static void take_messages(struct connection *c)
{
    while (!c->failed && !c->ending && c->input_from < c->input_to && !handshake_ahead(c)) {
        size_t n = take_message(c, c->input + c->input_from, c->input_to - c->input_from);
        if (!n)
            break;
        c->input_from += n;
    }
    if (c->input_from == c->input_to && !c->receiving) /* else bytes are on their way to input_to */
        c->input_from = c->input_to = 0;
}

/* The peer owes us the rest of a message, or does not take what we send. */
static bool peer_owes(const struct connection *c)
{
    return c->sending || c->writing || c->skip || (c->input_from < c->input_to && !c->in_flight && !c->starved);
}

/* A negotiation has one limit for all of it, as has the server's end; a message one for each PROGRESS_BYTES. */
static void set_deadline(struct connection *c)
{
    if (c->server->stopping || c->stage != STAGE_REQUESTS)
        return;
    if (!peer_owes(c)) {
        c->deadline_ns = 0;
    } else if (!c->deadline_ns || c->moved >= PROGRESS_BYTES) {
        c->deadline_ns = nbd_now_ns() + c->server->config.patience_s * UINT64_C(1000000000);
        c->moved = 0;
    }
}

/* ---- receiving ---- */

static void make_room(struct connection *c)
{
    if (!c->input_from)
        return;
    memmove(c->input, c->input + c->input_from, c->input_to - c->input_from);
    c->input_to -= c->input_from;
    c->input_from = 0;
}

/* Where the next plain bytes go: data of a write directly to its place. */
static unsigned input_room(struct connection *c, struct iovec iov[2])
{
    unsigned count = 0;
    if (c->writing)
        iov[count++] = (struct iovec){c->writing->data + c->writing->done, c->writing->len - c->writing->done};
    if (c->input_to > INPUT_BYTES / 2)
        make_room(c);
    if (c->input_to < INPUT_BYTES)
        iov[count++] = (struct iovec){c->input + c->input_to, INPUT_BYTES - c->input_to};
    return count;
}

static size_t direct_room(const struct connection *c)
{
    return c->writing ? c->writing->len - c->writing->done : 0;
}

/* `direct`: how much of it, at most, went to its place; the rest is in the input. */
static void input_came(struct connection *c, size_t n, size_t direct)
{
    if (direct > n)
        direct = n;
    if (direct)
        advance_write(c, direct);
    c->input_to += n - direct;
    take_messages(c);
}

/* What came encrypted. */
static void decrypt(struct connection *c)
{
    struct iovec iov[2];
    while (!c->failed && !c->ending && input_room(c, iov) > 0) {
        size_t direct = direct_room(c);
        ssize_t n = tls_read(c->tls, iov[0].iov_base, iov[0].iov_len);
        if (n == -EAGAIN)
            return;
        if (n <= 0)
            connection_fail(c);
        else
            input_came(c, (size_t)n, direct);
    }
}

static void receive_done(struct block_io *io, int result)
{
    struct connection *c = (struct connection *)(void *)((char *)io - offsetof(struct connection, receive));
    c->receiving = false;
    connection_ready(c);
    if (result == -EINTR || result == -EAGAIN || c->failed)
        return;
    if (result <= 0) {
        if (!c->ending)
            connection_fail(c);
        return;
    }
    c->moved += (size_t)result;
    if (c->tls)
        tls_received(c->tls, (size_t)result);
    else
        input_came(c, (size_t)result, c->receive_direct);
}

static void receive(struct connection *c)
{
    if (c->receiving || c->failed || c->ending || c->stage == STAGE_TLS_BEGINS)
        return;
    unsigned count = 1;
    if (c->tls)
        c->receive_iov[0].iov_base = tls_input(c->tls, &c->receive_iov[0].iov_len);
    else
        count = input_room(c, c->receive_iov);
    if (!count || !c->receive_iov[0].iov_len)
        return;
    c->receiving = true;
    c->receive_direct = direct_room(c);
    c->receive = (struct block_io){.kind = BLOCK_IO_RECEIVE, .fd = c->fd, .iov = c->receive_iov, .iov_count = count, .done = receive_done};
    block_ring_submit(c->server->config.ring, &c->receive);
}

/* ---- sending ---- */

static unsigned gather(struct connection *c, struct iovec *iov, unsigned most)
{
    unsigned count = 0;
    if (c->control_from < c->control_to)
        iov[count++] = (struct iovec){c->control + c->control_from, c->control_to - c->control_from};
    size_t sent = c->answers_sent;
    for (struct slot *slot = c->answers; slot && count + 2 <= most; slot = slot->next) {
        if (sent < slot->head_len)
            iov[count++] = (struct iovec){slot->head + sent, slot->head_len - sent};
        size_t in_data = sent > slot->head_len ? sent - slot->head_len : 0;
        if (in_data < slot->data_len)
            iov[count++] = (struct iovec){(uint8_t *)slot->iov.iov_base + in_data, slot->data_len - in_data};
        sent = 0;
    }
    return count;
}

/* The first `n` bytes of what gather() showed have gone. */
static void consume(struct connection *c, size_t n)
{
    size_t control = c->control_to - c->control_from;
    control = control < n ? control : n;
    c->control_from += control;
    if (c->control_from == c->control_to)
        c->control_from = c->control_to = 0;
    c->answers_sent += n - control;
    for (struct slot *slot; (slot = c->answers) && c->answers_sent >= slot->head_len + (size_t)slot->data_len;) {
        c->answers_sent -= slot->head_len + (size_t)slot->data_len;
        c->answers = slot->next;
        if (!c->answers)
            c->answers_end = &c->answers;
        transmit_release(slot);
    }
}

static void send_done(struct block_io *io, int result)
{
    struct connection *c = (struct connection *)(void *)((char *)io - offsetof(struct connection, send));
    c->sending = false;
    connection_ready(c);
    if (result == -EINTR || result == -EAGAIN || c->failed)
        return;
    if (result < 0) {
        connection_fail(c);
        return;
    }
    c->moved += (size_t)result;
    if (c->tls)
        tls_sent(c->tls, (size_t)result);
    else
        consume(c, (size_t)result);
}

/* Encrypted output is a copy: plain bytes are done with when they are in it. */
static unsigned encrypt(struct connection *c, struct iovec *iov)
{
    unsigned count;
    ssize_t n;
    while (c->handshake_done && (count = gather(c, iov, SEND_IOVS)) > 0 && (n = tls_write(c->tls, iov, count)) > 0)
        consume(c, (size_t)n);
    size_t len;
    const uint8_t *output = tls_output(c->tls, &len);
    iov[0] = (struct iovec){(uint8_t *)(uintptr_t)output, len};
    return len ? 1 : 0;
}

static void send_answers(struct connection *c)
{
    if (c->sending || c->failed)
        return;
    unsigned count = c->tls ? encrypt(c, c->send_iov) : gather(c, c->send_iov, SEND_IOVS);
    if (!count)
        return;
    c->sending = true;
    c->send = (struct block_io){.kind = BLOCK_IO_SEND, .fd = c->fd, .iov = c->send_iov, .iov_count = count, .done = send_done};
    block_ring_submit(c->server->config.ring, &c->send);
}

/* ---- TLS begins ---- */

/* Behind the plain answer to STARTTLS. Whatever came with that option is taken as encrypted. */
static void begin_tls(struct connection *c)
{
    size_t room, ahead = c->input_to - c->input_from;
    c->tls = tls_session_create(c->server->config.tls);
    c->stage = STAGE_TLS;
    uint8_t *to = c->tls ? tls_input(c->tls, &room) : NULL;
    if (!to || ahead > room) {
        connection_fail(c);
        return;
    }
    memcpy(to, c->input + c->input_from, ahead);
    tls_received(c->tls, ahead);
    c->input_from = c->input_to = 0;
}

static void shake_hands(struct connection *c)
{
    int r = tls_handshake(c->tls);
    if (r == 0) {
        c->handshake_done = true;
        c->stage = STAGE_OPTIONS;
    } else if (r != -EAGAIN) {
        log_debug("nbd: TLS handshake failed");
        c->ending = true; /* behind the alert */
    }
}

/* ---- all that can be done ---- */

/* Of what nobody gets, and what will not come as a whole. */
static void drop(struct connection *c)
{
    if (c->writing && !c->receiving) {
        transmit_release(c->writing);
        c->writing = NULL;
    }
    for (struct slot *slot; c->failed && !c->sending && (slot = c->answers);) {
        c->answers = slot->next;
        transmit_release(slot);
    }
    if (!c->answers)
        c->answers_end = &c->answers;
}

/* True when it has ended. */
static bool end(struct connection *c)
{
    drop(c);
    if (c->sending || c->in_flight || (!c->failed && c->control_from < c->control_to))
        return false;
    if (c->receiving)
        shutdown(c->fd, SHUT_RDWR);
    return !c->receiving;
}

bool connection_run(struct connection *c)
{
    if (c->stage == STAGE_TLS_BEGINS && c->control_from == c->control_to && !c->sending && !c->receiving)
        begin_tls(c);
    if (c->stage == STAGE_TLS && !c->failed)
        shake_hands(c);
    take_messages(c);
    if (c->handshake_done)
        decrypt(c);
    send_answers(c);
    receive(c);
    set_deadline(c);
    return !((c->failed || c->ending) && end(c));
}
