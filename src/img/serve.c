/* serve: images over NBD, until SIGTERM or SIGINT. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/own.h"
#include "block/workers.h"
#include "img/img.h"
#include "nbd/nbd.h"

#define BACKLOG 64
#define PATIENCE_S 30u
#define DRAIN_S 10u

struct serving {
    const struct img_options *options;
    struct block_ring *ring;
    struct img_image images[NBD_EXPORTS_MAX];
    struct nbd_export exports[NBD_EXPORTS_MAX];
    unsigned count;
    int listen_fd;
    struct nbd_tls *tls;
    struct nbd_server *server;
    bool stopped;
};

/* ---- signals ---- */

static int signal_fd = -1;

static void on_signal(int number)
{
    int code = errno;
    (void)number;
    ssize_t ignored = write(signal_fd, &(uint64_t){1}, sizeof(uint64_t));
    (void)ignored;
    errno = code;
}

static void stop(void *arg)
{
    struct serving *s = arg;
    s->stopped = true;
}

static int watch_signals(struct serving *s, struct err *err)
{
    signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_fd < 0 || block_ring_watch(s->ring, signal_fd, stop, s) < 0)
        return err_set(err, ENOMEM, "serve");
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    return 0;
}

/* ---- where it listens ---- */

/* A socket that nobody listens on is left over, and goes. */
static int remove_stale(const struct sockaddr_un *address, struct err *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0)
        return 0;
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (!S_ISSOCK(st.st_mode))
        return err_say(err, EEXIST, "socket '%s': there is another file of this name; remove it", address->sun_path);
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno != ECONNREFUSED)
        return err_say(err, EADDRINUSE, "socket '%s' is in use by another server", address->sun_path);
    unlink(address->sun_path);
    return 0;
}

static int listen_unix(const char *path, int *ret_fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof address.sun_path)
        return err_say(err, EINVAL, "socket '%s': the path must have 1 to %zu bytes", path, sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    int r = remove_stale(&address, err);
    if (r < 0)
        return r;
    own_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t mask = umask(0177);
    r = fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    umask(mask);
    if (r == 0 && listen(fd, BACKLOG) < 0) {
        r = -errno;
        unlink(path);
    }
    if (r < 0)
        return err_set(err, -r, "socket '%s'", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int listen_tcp(const char *host, const char *port, int *ret_fd, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV}, *address;
    int r = getaddrinfo(host, port, &hints, &address);
    if (r != 0)
        return err_say(err, EINVAL, "'%s' port '%s' is no numeric address and port such as 127.0.0.1 and 10809", host, port);
    own_fd int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    r = fd < 0 || bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ? -errno : 0;
    freeaddrinfo(address);
    if (r < 0)
        return err_set(err, -r, "listen on %s port %s", host, port);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int start_listening(struct serving *s, struct err *err)
{
    const struct img_options *o = s->options;
    if (o->socket)
        return listen_unix(o->socket, &s->listen_fd, err);
    return listen_tcp(o->bind ? o->bind : "127.0.0.1", o->port ? o->port : "10809", &s->listen_fd, err);
}

/* ---- what it serves ---- */

struct probe {
    const struct nbd_export *export;
};

static int probe_bitmap(void *arg)
{
    const struct nbd_export *export = ((const struct probe *)arg)->export;
    uint64_t len;
    bool dirty;
    return block_bitmap_status(export->node, export->bitmap, 0, export->node->size, &len, &dirty);
}

static int check_bitmap(struct serving *s, const struct nbd_export *export, struct err *err)
{
    struct probe probe = {export};
    int r = export->bitmap && export->node->size ? block_run(s->ring, probe_bitmap, &probe) : 0;
    if (r == -ENOENT)
        return err_say(err, ENOENT, "image '%s' has no dirty bitmap '%s'", export->node->name, export->bitmap);
    return r < 0 ? err_set(err, -r, "bitmap '%s' of image '%s'", export->bitmap, export->node->name) : 0;
}

static const char *export_name(const struct img_options *o, const char *path)
{
    const char *slash = strrchr(path, '/');
    return o->export ? o->export : slash ? slash + 1 : path;
}

static int add_image(struct serving *s, const char *path, struct err *err)
{
    const struct img_options *o = s->options;
    struct nbd_export *export = &s->exports[s->count];
    const char *name = export_name(o, path);
    for (unsigned i = 0; i < s->count; i++)
        if (strcmp(s->exports[i].name, name) == 0)
            return err_say(err, EINVAL, "two images are named '%s'; serve them apart", name);
    if (strlen(name) > NBD_EXPORT_NAME_MAX)
        return err_say(err, EINVAL, "an export's name has at most %u bytes", NBD_EXPORT_NAME_MAX);
    int r = img_open_served(o, path, s->ring, &s->images[s->count], err);
    if (r < 0)
        return r;
    *export = (struct nbd_export){.name = name, .bitmap = o->bitmap, .node = s->images[s->count].node};
    s->count++;
    if (export->node->size % export->node->block_size)
        return err_say(err, EINVAL, "image '%s' does not end with a sector of %u bytes (pad: truncate -s %%%u)", path,
                       export->node->block_size, export->node->block_size);
    return check_bitmap(s, export, err);
}

static int check_options(const struct img_options *o, struct err *err)
{
    if (o->socket && (o->port || o->bind))
        return err_say(err, EINVAL, "give --socket or --port, not both");
    if (o->tls_psk && o->tls_certs)
        return err_say(err, EINVAL, "give --tls-psk or --tls-certs, not both");
    if (o->snapshot && o->bitmap)
        return err_say(err, EINVAL, "a bitmap belongs to the disk as it is, not to a snapshot");
    if (o->operand_count > 1 && (o->export || o->snapshot || o->bitmap))
        return err_say(err, EINVAL, "--export, --snapshot and --bitmap are for one image");
    return 0;
}

static int set_up(struct serving *s, struct err *err)
{
    const struct img_options *o = s->options;
    int r = check_options(o, err);
    if (r == 0)
        r = block_ring_create(NULL, &s->ring, err);
    if (r == 0)
        r = watch_signals(s, err);
    if (r == 0)
        r = block_workers_create(s->ring, (unsigned)sysconf(_SC_NPROCESSORS_ONLN), err);
    if (r == 0)
        r = block_ring_start(s->ring, err);
    for (unsigned i = 0; r == 0 && i < o->operand_count; i++)
        r = add_image(s, o->operands[i], err);
    if (r == 0 && (o->tls_psk || o->tls_certs))
        r = nbd_tls_create(o->tls_psk, o->tls_certs, &s->tls, err);
    if (r == 0)
        r = start_listening(s, err);
    struct nbd_server_config config = {.exports = s->exports,
                                       .export_count = s->count,
                                       .ring = s->ring,
                                       .tls = s->tls,
                                       .listen_fd = s->listen_fd,
                                       .patience_s = PATIENCE_S};
    return r < 0 ? r : nbd_server_create(&config, &s->server, err);
}

/* ---- serving ---- */

static void serve(struct serving *s)
{
    while (!s->stopped)
        nbd_server_step(s->server);
    if (s->options->socket)
        unlink(s->options->socket);
    nbd_server_stop(s->server, DRAIN_S);
    while (nbd_server_busy(s->server))
        nbd_server_step(s->server);
}

static int flush(void *arg)
{
    return block_do(arg, BLOCK_FLUSH, 0, NULL, 0);
}

/* What clients have written and not flushed. */
static int flush_images(struct serving *s, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; i < s->count; i++) {
        struct block_node *node = s->images[i].node;
        int flushed = node->read_only ? 0 : block_run(s->ring, flush, node);
        if (flushed < 0)
            r = err_set(err, -flushed, "image '%s'", node->name);
    }
    return r;
}

static void clean_up(struct serving *s)
{
    nbd_server_free(s->server);
    nbd_tls_free(s->tls);
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    for (unsigned i = 0; i < NBD_EXPORTS_MAX; i++) {
        s->images[i].ring = NULL;
        img_close(&s->images[i]);
    }
    block_ring_free(s->ring);
}

static int run_serve(const struct img_options *options, struct err *err)
{
    struct serving s = {.options = options, .listen_fd = -1};
    int r = set_up(&s, err);
    if (r == 0) {
        serve(&s);
        r = flush_images(&s, err);
    }
    clean_up(&s);
    return r;
}

static const struct option_letter letters[] = {{'f', "format"}, {0, NULL}};

const struct img_command img_serve = {
    .name = "serve",
    .usage = "[-f FORMAT] [--socket PATH | --port N] [--read-only] IMAGE...",
    .summary = "let others use images (NBD)",
    .accepts = " format key allow-backing socket port bind read-only export snapshot bitmap tls-psk tls-certs ",
    .letters = letters,
    .operands_min = 1,
    .operands_max = NBD_EXPORTS_MAX,
    .error_status = IMG_STATUS_FAILURE,
    .usage_status = IMG_STATUS_USAGE,
    .run = run_serve,
};
