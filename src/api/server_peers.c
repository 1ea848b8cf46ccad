/* The connections that are open: who is at the other end, and until when it must have said what it wants.
 *
 * libmicrohttpd ends a connection on which nothing moves; one that sends a byte now and then is ended here. */
#include "api/server_impl.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "api/auth.h"

#define ALIVE_IDLE_S 60
#define ALIVE_STEP_S 15
#define ALIVE_STEPS 4

static time_t now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

/* A machine that is switched off says no goodbye: without this its sessions and long polls would last for ever. */
static void keep_alive(int fd)
{
    static const struct {
        int level, option, value;
    } options[] = {{IPPROTO_TCP, TCP_KEEPIDLE, ALIVE_IDLE_S}, {IPPROTO_TCP, TCP_KEEPINTVL, ALIVE_STEP_S},
                   {IPPROTO_TCP, TCP_KEEPCNT, ALIVE_STEPS},   {SOL_SOCKET, SO_KEEPALIVE, 1}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        setsockopt(fd, options[i].level, options[i].option, &options[i].value, sizeof options[i].value);
}

static struct peer *peer_new(struct server *server, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct peer *peer = calloc(1, sizeof *peer);
    if (!peer || !fd) {
        free(peer);
        return NULL;
    }
    peer->fd = fd->connect_fd;
    peer->tls = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION) != NULL;
    peer->deadline = now_s() + SERVER_HEAD_S;
    if (peer->tls)
        keep_alive(peer->fd);
    if (!peer->tls && auth_peer(peer->fd, &peer->actor, &peer->refused) == 0)
        peer->refused.code = 0;
    pthread_mutex_lock(&server->lock);
    peer->next = server->peers;
    if (peer->next)
        peer->next->previous = peer;
    server->peers = peer;
    pthread_mutex_unlock(&server->lock);
    return peer;
}

static void peer_free(struct server *server, struct peer *peer)
{
    if (!peer)
        return;
    pthread_mutex_lock(&server->lock);
    *(peer->previous ? &peer->previous->next : &server->peers) = peer->next;
    if (peer->next)
        peer->next->previous = peer->previous;
    pthread_mutex_unlock(&server->lock);
    free(peer);
}

void peers_notify(void *arg, struct MHD_Connection *connection, void **context, enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        *context = peer_new(arg, connection);
    else
        peer_free(arg, *context);
}

void peer_set_deadline(struct server *server, struct peer *peer, unsigned seconds)
{
    if (!peer)
        return;
    pthread_mutex_lock(&server->lock);
    peer->deadline = seconds ? now_s() + (time_t)seconds : 0;
    pthread_mutex_unlock(&server->lock);
}

static void *watch(void *arg)
{
    struct server *server = arg;
    pthread_mutex_lock(&server->lock);
    while (!server->ending) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        pthread_cond_timedwait(&server->changed, &server->lock, &until);
        time_t now = now_s();
        for (struct peer *peer = server->peers; peer; peer = peer->next)
            if (peer->deadline && now >= peer->deadline)
                shutdown(peer->fd, SHUT_RDWR); /* its thread closes it */
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

int peers_watch(struct server *server, struct err *err)
{
    int r = pthread_create(&server->watchdog, NULL, watch, server);
    if (r != 0)
        return err_set(err, r, "thread");
    server->watching = true;
    return 0;
}

void peers_end(struct server *server)
{
    if (!server->watching)
        return;
    pthread_mutex_lock(&server->lock);
    server->ending = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
    pthread_join(server->watchdog, NULL);
}
