#include "control/network_passt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/child.h"
#include "base/log.h"
#include "base/own.h"
#include "control/network_daemon.h"
#include "control/unix_socket.h"

#define SPEC_SIZE 40
#define NAME_SIZE (INSTANCE_ID_SIZE + 12)
#define PATH_SIZE 512
#define SOCKET_SUFFIX ".sock"
#define CONNECT_MS 200 /* longer only if many connections wait, which a polder-vmm that works takes */
#define GATEWAY_MAC "52:55:0a:00:02:01" /* as guests see it: one is like another, each behind its own passt */

/* Its own address, so that passt knows which queries to lead to the host's resolver. */
uint32_t passt_dns(const struct network_info *network)
{
    uint32_t last = subnet_broadcast(network->subnet) - 1;
    return last == network->gateway ? last - 1 : last;
}

static void port_spec(const struct network_port *port, char ret_spec[static SPEC_SIZE])
{
    char address[IPV4_TEXT_SIZE];
    ipv4_format(port->host_address, address);
    if (port->host_address)
        snprintf(ret_spec, SPEC_SIZE, "%s/%u:%u", address, port->host, port->guest);
    else
        snprintf(ret_spec, SPEC_SIZE, "%u:%u", port->host, port->guest);
}

struct passt_paths {
    const char *dir;
    char socket[PATH_SIZE], pid[PATH_SIZE];
    char pid_argument[PATH_SIZE]; /* the PID file as passt knows it: root's has become nobody, who may not come to `dir` */
};

/* The name of an interface's files, before the suffix. */
static void name_of(const struct network_lease *lease, char ret_name[static NAME_SIZE])
{
    snprintf(ret_name, NAME_SIZE, "%s-%u", lease->instance, lease->index);
}

static struct passt_paths paths_of(const char *dir, const char *name)
{
    struct passt_paths paths = {.dir = dir};
    snprintf(paths.pid_argument, sizeof paths.pid_argument, "%s/%s.pid", geteuid() == 0 ? DAEMON_MOUNT : dir, name);
    snprintf(paths.socket, sizeof paths.socket, "%s/%s" SOCKET_SUFFIX, dir, name);
    snprintf(paths.pid, sizeof paths.pid, "%s/%s.pid", dir, name);
    return paths;
}

static int run(const struct network_info *network, const struct network_lease *lease, struct passt_paths *paths, int fd,
               struct err *err)
{
    char address[IPV4_TEXT_SIZE], gateway[IPV4_TEXT_SIZE], dns[IPV4_TEXT_SIZE], prefix[12];
    char specs[NETWORK_PORTS_MAX][SPEC_SIZE];
    /* It takes what is not given from the interface with the default route, and does not start without one: all is given,
     * and the interface only named, so that a host without a way out has user networks, too. */
    char *argv[26 + 2 * NETWORK_PORTS_MAX] = {
        "passt",     "--quiet", "--fd",      "3",     "--ipv4-only",   "--no-map-gw", "--interface", "lo", "--mac-addr", GATEWAY_MAC,
        "--address", address,   "--netmask", prefix,  "--gateway",     gateway,       "--dns-forward", dns, "--dns", dns,
        "--pid",     paths->pid_argument};
    unsigned count = 22;
    ipv4_format(lease->address, address);
    ipv4_format(network->gateway, gateway);
    ipv4_format(passt_dns(network), dns);
    snprintf(prefix, sizeof prefix, "%u", network->subnet.prefix);
    for (unsigned i = 0; i < lease->ports.count; i++) {
        port_spec(&lease->ports.port[i], specs[i]);
        argv[count++] = lease->ports.port[i].udp ? "--udp-ports" : "--tcp-ports";
        argv[count++] = specs[i];
    }
    struct daemon_start request = {.program = "passt", .package = "passt", .argv = argv, .fd = fd,
                                   .mount_dir = geteuid() == 0 ? paths->dir : NULL};
    return daemon_start(&request, err);
}

static int make_pid_file(const char *path, struct err *err)
{
    own_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || (geteuid() == 0 && fchown(fd, CHILD_NOBODY, CHILD_NOBODY) < 0))
        return err_set(err, errno, "make '%s'", path);
    return 0;
}

/* Connects to the polder-vmm that listens, or will, and gives the connection to a new passt. -ECONNREFUSED, -ENOENT: none. */
static int connect_one(const struct network_info *network, const struct network_lease *lease, struct passt_paths *paths,
                       struct err *err)
{
    own_fd int fd = -1;
    const struct timeval none = {0};
    int size = 4 << 20; /* as far as the host's limits allow */
    int r = unix_connect(paths->socket, CONNECT_MS, &fd, err);
    if (r < 0)
        return r;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    r = make_pid_file(paths->pid, err);
    return r < 0 ? r : run(network, lease, paths, fd, err);
}

int passt_start(const char *dir, const struct network_info *network, const struct network_lease *lease, int *ret_fd, struct err *err)
{
    char name[NAME_SIZE];
    name_of(lease, name);
    struct passt_paths paths = paths_of(dir, name);
    own_fd int fd = -1;
    if (mkdir(dir, 0711) < 0 && errno != EEXIST)
        return err_set(err, errno, "make folder '%s'", dir);
    int r = unix_listen(paths.socket, &fd, err);
    if (r == 0)
        r = connect_one(network, lease, &paths, err);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* ---- those that have ended ---- */

static const struct network_lease *find_lease(const struct network_state *state, const char *name)
{
    char its[NAME_SIZE];
    for (size_t i = 0; i < state->lease_count; i++) {
        name_of(&state->leases[i], its);
        if (!strcmp(its, name))
            return &state->leases[i];
    }
    return NULL;
}

static int keep_one(const char *dir, const char *name, const struct network_state *state, struct err *err)
{
    struct passt_paths paths = paths_of(dir, name);
    own_fd int alive = daemon_find(paths.pid, paths.pid_argument);
    if (alive >= 0)
        return 0;
    const struct network_lease *lease = find_lease(state, name);
    const struct network_info *network = lease ? network_state_find(state, lease->network) : NULL;
    int r = network ? connect_one(network, lease, &paths, err) : -ENOENT;
    if (r == -ECONNREFUSED || r == -ENOENT) { /* polder-vmm has ended, too */
        unlink(paths.pid);
        unlink(paths.socket);
        return 0;
    }
    if (r < 0)
        return err_ctx(err, "instance '%s'", lease->name);
    log_warn("instance '%s': its passt had ended and was started again", lease->name);
    return 0;
}

int passt_keep(const char *dir, const struct network_state *state, struct err *err)
{
    struct err one = {0};
    int ret = 0;
    DIR *folder = opendir(dir);
    if (!folder)
        return errno == ENOENT ? 0 : err_set(err, errno, "open folder '%s'", dir);
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char name[NAME_SIZE];
        size_t len = strlen(entry->d_name), suffix = strlen(SOCKET_SUFFIX);
        if (len <= suffix || len - suffix >= sizeof name || strcmp(entry->d_name + len - suffix, SOCKET_SUFFIX) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(len - suffix), entry->d_name);
        int r = keep_one(dir, name, state, &one);
        if (r < 0 && ret == 0) {
            ret = r;
            if (err)
                *err = one;
        }
    }
    closedir(folder);
    return ret;
}
