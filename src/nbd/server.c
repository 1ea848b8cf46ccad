/* The server: its connections, who may connect, time limits, the end. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "nbd/server_impl.h"

#define TICK_NS UINT64_C(1000000000)

uint64_t nbd_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void connection_ready(struct connection *c)
{
    if (c->ready)
        return;
    c->ready = true;
    c->next_ready = c->server->ready;
    c->server->ready = c;
}

void server_feed(struct nbd_server *server)
{
    for (struct connection *c = server->starving ? server->connections : NULL; c; c = c->next)
        if (c->starved)
            connection_ready(c);
    server->starving = false;
}

/* ---- who connects ---- */

static void accept_done(struct block_io *io, int result)
{
    struct nbd_server *server = (struct nbd_server *)(void *)((char *)io - offsetof(struct nbd_server, accept));
    server->accepting = false;
    if (result >= 0)
        nbd_server_add(server, result);
    else if (result != -ECONNABORTED && result != -EAGAIN && result != -EINTR && !server->stopping)
        log_debug("nbd: accept: errno %d", -result);
}

/* With all connections taken, others wait in the socket's queue. */
static void accept_next(struct nbd_server *server)
{
    if (server->accepting || server->stopping || server->config.listen_fd < 0 || server->connection_count == NBD_CONNECTIONS_MAX)
        return;
    server->accepting = true;
    server->accept = (struct block_io){.kind = BLOCK_IO_ACCEPT, .fd = server->config.listen_fd, .done = accept_done};
    block_ring_submit(server->config.ring, &server->accept);
}

int nbd_server_add(struct nbd_server *server, int fd)
{
    struct connection *c = NULL;
    if (server->connection_count < NBD_CONNECTIONS_MAX && !server->stopping)
        c = connection_create(server, fd);
    if (!c) {
        close(fd);
        return -EBUSY;
    }
    c->next = server->connections;
    server->connections = c;
    server->connection_count++;
    connection_ready(c);
    return 0;
}

static void remove_connection(struct nbd_server *server, struct connection *c)
{
    struct connection **link = &server->connections;
    while (*link && *link != c)
        link = &(*link)->next;
    *link = c->next;
    for (link = &server->ready; *link; link = &(*link)->next_ready) {
        if (*link == c) { /* its last slots came back just now */
            *link = c->next_ready;
            break;
        }
    }
    server->connection_count--;
    connection_free(c);
}

/* ---- time ---- */

static void check_time(struct nbd_server *server, uint64_t now)
{
    for (struct connection *c = server->connections; c; c = c->next) {
        if (c->deadline_ns && now > c->deadline_ns && !c->failed) {
            log_debug("nbd: a client took too long");
            connection_fail(c);
        }
    }
    server_feed(server); /* should memory be short elsewhere */
}

/* ---- the loop ---- */

static void run_ready(struct nbd_server *server)
{
    for (struct connection *c; (c = server->ready);) {
        server->ready = c->next_ready;
        c->ready = false;
        if (!connection_run(c))
            remove_connection(server, c);
    }
}

void nbd_server_step(struct nbd_server *server)
{
    run_ready(server);
    accept_next(server);
    block_ring_wait(server->config.ring, server->connections ? TICK_NS : UINT64_MAX);
    block_ring_dispatch(server->config.ring);
    run_ready(server);
    uint64_t now = nbd_now_ns();
    if (now - server->checked_ns < TICK_NS / 2)
        return;
    server->checked_ns = now;
    check_time(server, now);
}

void nbd_server_stop(struct nbd_server *server, unsigned limit_s)
{
    server->stopping = true;
    if (server->accepting)
        shutdown(server->config.listen_fd, SHUT_RDWR);
    for (struct connection *c = server->connections; c; c = c->next) {
        c->ending = true;
        c->deadline_ns = nbd_now_ns() + limit_s * UINT64_C(1000000000);
        connection_ready(c);
    }
}

bool nbd_server_busy(const struct nbd_server *server)
{
    return server->connections || server->accepting;
}

int nbd_server_create(const struct nbd_server_config *config, struct nbd_server **ret_server, struct err *err)
{
    struct nbd_server *server = calloc(1, sizeof *server);
    if (!server)
        return err_set(err, ENOMEM, "NBD server");
    server->config = *config;
    *ret_server = server;
    return 0;
}

void nbd_server_free(struct nbd_server *server)
{
    if (!server)
        return;
    nbd_server_stop(server, 0);
    for (struct connection *c = server->connections; c; c = c->next)
        connection_fail(c);
    while (nbd_server_busy(server))
        nbd_server_step(server);
    buffers_drain(&server->buffers);
    fiber_pool_drain(&server->fibers);
    free(server);
}
