#include "vmm/console_hub.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"
#include "vmm/console_log.h"

#define PIECE 4096
#define PIECES_PER_EVENT 16 /* then the loop's other work has its turn */

struct console_client {
    struct console_hub *hub;
    int fd; /* -1: free */
    bool typed_all; /* it has shut its side down, and still listens */
    size_t taken;   /* of hub->piece */
    struct loop_source *source;
};

struct console_hub {
    struct loop *loop;
    struct console_log log;
    char *path; /* of a socket of our own, to be removed; NULL: none */
    int listen_fd, inner; /* `inner` and the console's end are a pair */
    struct loop_source *listen_source, *source, *patience;
    struct console_client clients[CONSOLE_CLIENTS_MAX];
    size_t typed_start, typed_len; /* what the guest has not taken yet: nobody may type then */
    char typed[PIECE];
    size_t piece_len; /* what the guest has written and not all clients have taken: no more is read then */
    char piece[PIECE];
};

/* ---- clients ---- */

static void client_drop(struct console_client *client)
{
    loop_remove(client->source);
    close(client->fd);
    *client = (struct console_client){.hub = client->hub, .fd = -1};
}

static bool is_behind(const struct console_client *client)
{
    return client->fd >= 0 && client->taken < client->hub->piece_len;
}

static void watch(struct console_hub *hub)
{
    bool may_type = !hub->typed_len;
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++) {
        const struct console_client *client = &hub->clients[i];
        if (client->fd >= 0)
            loop_source_set_events(client->source, (may_type && !client->typed_all ? (uint32_t)EPOLLIN : 0) |
                                                       (is_behind(client) ? (uint32_t)EPOLLOUT : 0));
    }
    loop_source_set_events(hub->source, (hub->piece_len ? 0 : (uint32_t)EPOLLIN) | (may_type ? 0 : (uint32_t)EPOLLOUT));
}

/* What each client can take of the piece; a client that is gone is dropped. */
static void hand_round(struct console_hub *hub)
{
    bool all = true;
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++) {
        struct console_client *client = &hub->clients[i];
        if (!is_behind(client))
            continue;
        ssize_t n = send(client->fd, hub->piece + client->taken, hub->piece_len - client->taken, MSG_DONTWAIT | MSG_NOSIGNAL);
        client->taken += n > 0 ? (size_t)n : 0;
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            client_drop(client);
        all = all && !is_behind(client);
    }
    if (all)
        hub->piece_len = 0;
    loop_timer_set(hub->patience, all ? 0 : CONSOLE_PATIENCE_MS * UINT64_C(1000000));
    watch(hub);
}

/* Nobody has taken anything for so long. */
static void on_impatience(void *arg)
{
    struct console_hub *hub = arg;
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        if (is_behind(&hub->clients[i]))
            client_drop(&hub->clients[i]);
    hand_round(hub);
}

/* False when there is none left, or the last piece is still on its way. */
static bool hand_out(struct console_hub *hub)
{
    ssize_t n = hub->piece_len ? -1 : recv(hub->inner, hub->piece, sizeof hub->piece, MSG_DONTWAIT);
    if (n <= 0)
        return false;
    console_log_write(&hub->log, hub->piece, (size_t)n);
    hub->piece_len = (size_t)n;
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        hub->clients[i].taken = 0;
    hand_round(hub);
    return true;
}

static void hand_in(struct console_hub *hub)
{
    ssize_t n = send(hub->inner, hub->typed + hub->typed_start, hub->typed_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
        hub->typed_start += (size_t)n;
        hub->typed_len -= (size_t)n;
    }
    watch(hub);
}

static void on_client(void *arg, int fd, uint32_t events)
{
    struct console_client *client = arg;
    struct console_hub *hub = client->hub;
    if (events & EPOLLOUT)
        hand_round(hub);
    if (client->fd >= 0 && !(events & (EPOLLIN | EPOLLOUT)))
        client_drop(client);
    if (client->fd < 0 || !(events & EPOLLIN) || hub->typed_len)
        return;
    ssize_t n = recv(fd, hub->typed, sizeof hub->typed, MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        client_drop(client);
        return;
    }
    client->typed_all = n == 0;
    hub->typed_start = 0;
    hub->typed_len = n > 0 ? (size_t)n : 0;
    hand_in(hub);
}

static void on_listen(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct console_hub *hub = arg;
    // cppcheck-suppress nullPointer ; the peer's address may be left out
    int client_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct console_client *client = NULL;
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        if (hub->clients[i].fd < 0)
            client = &hub->clients[i];
    struct loop_source *source = NULL;
    if (client_fd >= 0 && client)
        source = loop_add_fd(hub->loop, client_fd, EPOLLIN, on_client, client);
    if (!source || !client) { /* one too many */
        if (client_fd >= 0)
            close(client_fd);
        return;
    }
    *client = (struct console_client){.hub = hub, .fd = client_fd, .source = source, .taken = hub->piece_len};
    watch(hub);
}

static void on_inner(void *arg, int fd, uint32_t events)
{
    (void)fd;
    struct console_hub *hub = arg;
    for (unsigned i = 0; i < PIECES_PER_EVENT && hand_out(hub); i++)
        ;
    if (events & EPOLLOUT)
        hand_in(hub);
}

/* ---- making and ending ---- */

void console_hub_free(struct console_hub *hub)
{
    if (!hub)
        return;
    while (hub->source && hand_out(hub))
        if (hub->piece_len)
            on_impatience(hub);
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        if (hub->clients[i].fd >= 0)
            client_drop(&hub->clients[i]);
    loop_remove(hub->listen_source);
    loop_remove(hub->source);
    loop_remove(hub->patience);
    console_log_close(&hub->log);
    const int fds[] = {hub->listen_fd, hub->inner};
    for (unsigned i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (hub->path)
        unlink(hub->path);
    free(hub->path);
    free(hub);
}

static int build(struct console_hub *hub, const char *socket, const char *log, int *ret_end, struct err *err)
{
    int pair[2], r = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return err_set(err, errno, "console");
    hub->inner = pair[0];
    *ret_end = pair[1];
    hub->source = loop_add_fd(hub->loop, hub->inner, EPOLLIN, on_inner, hub);
    hub->patience = loop_add_timer(hub->loop, on_impatience, hub);
    if (log)
        r = console_log_open(&hub->log, log, CONSOLE_LOG_MAX, err);
    if (r == 0 && socket)
        r = fdname_listen(socket, "console", CONSOLE_CLIENTS_MAX, &hub->listen_fd, err);
    if (r < 0)
        return r;
    if (socket) {
        hub->path = fdname_parse(socket) < 0 ? strdup(socket) : NULL;
        hub->listen_source = loop_add_fd(hub->loop, hub->listen_fd, EPOLLIN, on_listen, hub);
    }
    return hub->source && hub->patience && (!socket || hub->listen_source) ? 0 : err_set(err, ENOMEM, "console");
}

int console_hub_create(const char *socket, const char *log, struct loop *loop, struct console_hub **ret_hub, int *ret_end,
                       struct err *err)
{
    struct console_hub *hub = calloc(1, sizeof *hub);
    if (!hub)
        return err_set(err, ENOMEM, "console");
    *hub = (struct console_hub){.loop = loop, .log.fd = -1, .listen_fd = -1, .inner = -1};
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        hub->clients[i] = (struct console_client){.hub = hub, .fd = -1};
    own_fd int end = -1;
    int r = build(hub, socket, log, &end, err);
    if (r < 0) {
        console_hub_free(hub);
        return r;
    }
    *ret_end = TAKE_FD(end);
    *ret_hub = hub;
    return 0;
}
