/* Sockets, and the daemons on them. */
#include "api/server_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/auth.h"
#include "base/log.h"
#include "base/own.h"

#define LOCAL_CONNECTIONS 512u
#define TLS_CONNECTIONS 256u
#define TLS_CONNECTIONS_EACH 64u
#define PEM_MAX (1u << 20)
#define WEBSOCKETS_END_S 5

/* ---- the unix socket ---- */

/* A socket that nobody answers on was left by a polderd that died. */
static int remove_stale(const struct sockaddr_un *address, struct err *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return err_say(err, EEXIST, "'%s' is there and is no socket: remove it or give another --socket", address->sun_path);
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) == 0)
        return err_say(err, EADDRINUSE, "another process answers on '%s': give another --socket", address->sun_path);
    unlink(address->sun_path);
    return 0;
}

static void give_to_group(const char *path)
{
    gid_t gid;
    if (auth_group(&gid) && chown(path, (uid_t)-1, gid) < 0)
        log_warn("socket '%s' stays with polderd's own group: %s", path, strerror(errno));
}

static int listen_local(const char *path, int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return err_say(err, ENAMETOOLONG, "socket path '%.100s...' is longer than %zu bytes: give a shorter --socket", path,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    int r = remove_stale(&address, err);
    if (r < 0)
        return r;
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, errno, "socket");
    mode_t mask = umask(0177); /* no thread but this one is there yet */
    r = bind(fd, (struct sockaddr *)&address, sizeof address);
    int code = errno;
    umask(mask);
    if (r < 0)
        return err_set(err, code, "socket '%s'", path);
    give_to_group(path);
    if (chmod(path, 0660) < 0 || listen(fd, SOMAXCONN) < 0)
        return err_set(err, errno, "socket '%s'", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* ---- TLS ---- */

/* "192.0.2.1:443" or "[2001:db8::1]:443" into host and port. */
static int split_listen(const char *text, char host[128], char port[8], struct err *err)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    bool brackets = len > 2 && text[0] == '[' && text[len - 1] == ']';
    if (!colon || !len || len >= 128 || !colon[1] || strlen(colon + 1) > 5)
        return err_say(err, EINVAL, "--listen '%.100s': give ADDRESS:PORT", text);
    snprintf(host, 128, "%.*s", (int)(brackets ? len - 2 : len), text + brackets);
    snprintf(port, 8, "%s", colon + 1);
    return 0;
}

static int listen_tcp(const char *where, int *ret_fd, struct err *err)
{
    char host[128], port[8];
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found;
    int r = split_listen(where, host, port, err);
    if (r < 0)
        return r;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return err_say(err, EINVAL, "--listen '%.100s': no numeric address and port", where);
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0) {
        r = err_set(err, errno, "--listen %s", where);
        if (fd >= 0)
            close(fd);
    } else {
        *ret_fd = fd;
    }
    freeaddrinfo(found);
    return r;
}

static int read_pem(const char *path, char **ret_text, struct err *err)
{
    own_free char *text = malloc(PEM_MAX + 1);
    own_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 && text ? read(fd, text, PEM_MAX) : -1;
    if (n < 0)
        return err_set(err, errno, "read '%s'", path);
    text[n] = '\0';
    *ret_text = TAKE(text);
    return 0;
}

/* ---- daemons ---- */

#define USE                                                                                                  \
    (MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL | MHD_USE_ITC | MHD_ALLOW_UPGRADE)

static struct MHD_Daemon *start_daemon(struct server *server, unsigned flags, int fd, unsigned connections, unsigned each,
                                       const struct MHD_OptionItem *more)
{
    struct MHD_OptionItem none = {.option = MHD_OPTION_END};
    return MHD_start_daemon(
        USE | flags, 0, NULL, NULL, server_on_request, server, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
        connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT, each, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)SERVER_HEAD_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SERVER_STALL_S, MHD_OPTION_THREAD_STACK_SIZE, (size_t)SERVER_STACK,
        MHD_OPTION_NOTIFY_CONNECTION, peers_notify, server, MHD_OPTION_NOTIFY_COMPLETED, server_on_completed, server,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY, more ? more : &none,
        MHD_OPTION_END);
}

static int start_tls(struct server *server, struct err *err)
{
    const struct server_config *config = &server->config;
    if (!config->tls_cert || !config->tls_key)
        return err_say(err, EINVAL, "--listen needs --tls-cert and --tls-key");
    int r = read_pem(config->tls_cert, &server->cert, err);
    if (r == 0)
        r = read_pem(config->tls_key, &server->key, err);
    if (r == 0 && config->tls_ca)
        r = read_pem(config->tls_ca, &server->ca, err);
    if (r == 0)
        r = listen_tcp(config->listen, &server->tls_fd, err);
    if (r < 0)
        return r;
    static char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    struct MHD_OptionItem options[] = {
        {.option = MHD_OPTION_HTTPS_MEM_CERT, .ptr_value = server->cert},
        {.option = MHD_OPTION_HTTPS_MEM_KEY, .ptr_value = server->key},
        {.option = MHD_OPTION_HTTPS_PRIORITIES, .ptr_value = priorities},
        {.option = server->ca ? MHD_OPTION_HTTPS_MEM_TRUST : MHD_OPTION_END, .ptr_value = server->ca},
        {.option = MHD_OPTION_END},
    };
    server->tls = start_daemon(server, MHD_USE_TLS, server->tls_fd, TLS_CONNECTIONS, TLS_CONNECTIONS_EACH, options);
    if (!server->tls)
        return err_say(err, EINVAL, "TLS cannot start: are '%s' and '%s' a certificate and its key in PEM?", config->tls_cert,
                       config->tls_key);
    server->tls_fd = -1;
    return 0;
}

static int start_local(struct server *server, struct err *err)
{
    int r = listen_local(server->config.socket_path, &server->listen_fd, err);
    if (r < 0)
        return r;
    server->local = start_daemon(server, 0, server->listen_fd, LOCAL_CONNECTIONS, 0, NULL);
    if (!server->local)
        return err_say(err, EIO, "HTTP cannot start on '%s'", server->config.socket_path);
    server->listen_fd = -1;
    return 0;
}

int server_start(const struct server_config *config, struct server **ret_server, struct err *err)
{
    struct server *server = calloc(1, sizeof *server);
    if (!server)
        return err_set(err, ENOMEM, "server");
    *server = (struct server){.config = *config, .listen_fd = -1, .tls_fd = -1};
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    int r = peers_watch(server, err);
    if (r == 0)
        r = start_local(server, err);
    if (r == 0 && config->listen)
        r = start_tls(server, err);
    if (r < 0) {
        (void)server_stop(server);
        return r;
    }
    *ret_server = server;
    return 0;
}

/* Those that serve WebSockets see platform.stopping within a second. */
static bool wait_websockets(struct server *server)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WEBSOCKETS_END_S;
    pthread_mutex_lock(&server->lock);
    while (server->websockets && pthread_cond_timedwait(&server->changed, &server->lock, &until) == 0)
        ;
    bool ended = !server->websockets;
    pthread_mutex_unlock(&server->lock);
    return ended;
}

static void wipe(char *secret)
{
    if (secret)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}

bool server_stop(struct server *server)
{
    if (!server)
        return true;
    if (server->local)
        unlink(server->config.socket_path);
    if (!wait_websockets(server))
        return false;
    if (server->local)
        MHD_stop_daemon(server->local);
    if (server->tls)
        MHD_stop_daemon(server->tls);
    peers_end(server);
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    if (server->tls_fd >= 0)
        close(server->tls_fd);
    free(server->cert);
    wipe(server->key);
    free(server->ca);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
    return true;
}

unsigned server_port(const struct server *server)
{
    const union MHD_DaemonInfo *info = server->tls ? MHD_get_daemon_info(server->tls, MHD_DAEMON_INFO_BIND_PORT) : NULL;
    return info ? info->port : 0;
}
