/* A tap interface of the host, which must exist: nothing is created here, so nothing is left behind.
 * Frames go between the kernel and guest memory without a copy of ours, headers and all. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "net/net.h"

#define TUN_PATH "/dev/net/tun"
#define OFFLOADS_BASE (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN)
#define OFFLOADS_USO (NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6) /* Linux 6.2 */

extern unsigned int if_nametoindex(const char *name); /* <net/if.h> and <linux/if.h> exclude each other */

static int open_tun(struct err *err)
{
    int fd = open(TUN_PATH, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0)
        return fd;
    int code = errno;
    if (code == ENOENT || code == ENODEV || code == ENXIO)
        return err_say(err, code, "tap: " TUN_PATH " is missing; load its module: modprobe tun");
    if (code == EACCES || code == EPERM)
        return err_say(err, code, "tap: no permission to open " TUN_PATH "; make it accessible: chmod 666 " TUN_PATH);
    return err_set(err, code, "tap: open " TUN_PATH);
}

static int explain(const char *name, int code, struct err *err)
{
    if (code == EPERM || code == EACCES)
        return err_say(err, code,
                       "tap '%s': no permission; as root: ip tuntap del dev %s mode tap; ip tuntap add dev %s mode tap user %u",
                       name, name, name, geteuid());
    if (code == EBUSY)
        return err_say(err, code, "tap '%s' is in use by another machine", name);
    if (code == EINVAL)
        return err_say(err, code, "'%s' is not a tap interface; make one as root: ip tuntap add dev NAME mode tap", name);
    return err_set(err, code, "tap '%s'", name);
}

/* Attaches one more queue of the interface. With `multi` the interface must have multi_queue, without it must not. */
static int attach_queue(int fd, const char *name, bool multi)
{
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multi ? IFF_MULTI_QUEUE : 0))};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : 0;
}

static int set_up_queue(int fd, const char *name, struct err *err)
{
    int header = NET_HEADER_SIZE;
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 || ioctl(fd, TUNSETOFFLOAD, 0UL) < 0)
        return err_set(err, errno, "tap '%s': packet headers", name);
    return 0;
}

static unsigned probe_offloads(int fd)
{
    unsigned offloads = 0;
    if (ioctl(fd, TUNSETOFFLOAD, (unsigned long)OFFLOADS_BASE) == 0)
        offloads = OFFLOADS_BASE;
    if (offloads && ioctl(fd, TUNSETOFFLOAD, (unsigned long)(OFFLOADS_BASE | OFFLOADS_USO)) == 0)
        offloads |= OFFLOADS_USO;
    ioctl(fd, TUNSETOFFLOAD, 0UL);
    return offloads;
}

static int open_first(struct net_backend *tap, const char *name, bool *ret_multi, struct err *err)
{
    tap->fd[0] = open_tun(err);
    if (tap->fd[0] < 0)
        return tap->fd[0];
    *ret_multi = true;
    int r = attach_queue(tap->fd[0], name, true);
    if (r == -EINVAL) {
        *ret_multi = false;
        r = attach_queue(tap->fd[0], name, false);
    }
    return r < 0 ? explain(name, -r, err) : set_up_queue(tap->fd[0], name, err);
}

static int open_queues(struct net_backend *tap, const char *name, unsigned wanted, struct err *err)
{
    bool multi;
    int r = open_first(tap, name, &multi, err);
    if (r < 0)
        return r;
    for (tap->queues = 1; multi && tap->queues < wanted; tap->queues++) {
        int *fd = &tap->fd[tap->queues];
        *fd = open_tun(err);
        if (*fd < 0)
            return *fd;
        r = attach_queue(*fd, name, true);
        if (r < 0)
            return explain(name, -r, err);
        r = set_up_queue(*fd, name, err);
        if (r < 0)
            return r;
    }
    tap->offloads = probe_offloads(tap->fd[0]);
    return 0;
}

static void tap_close(struct net_backend *tap)
{
    for (unsigned i = 0; i < NET_MAX_QUEUES; i++) {
        if (tap->fd[i] >= 0)
            close(tap->fd[i]);
    }
    free(tap);
}

/* A queue that was opened and attached elsewhere, by someone with the right to. */
static int adopt(struct net_backend *tap, int fd, struct err *err)
{
    struct ifreq request = {0};
    if (ioctl(fd, TUNGETIFF, &request) < 0 || !(request.ifr_flags & IFF_TAP) || !(request.ifr_flags & IFF_NO_PI) ||
        !(request.ifr_flags & IFF_VNET_HDR))
        return err_say(err, EINVAL, "tap: the descriptor is no queue of a tap interface with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
    int r = set_up_queue(fd, "fd", err);
    if (r < 0)
        return r;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(err, errno, "tap fd %d", fd);
    tap->fd[0] = fd;
    tap->queues = 1;
    tap->offloads = probe_offloads(fd);
    return 0;
}

static int check_name(const char *name, struct err *err)
{
    if (!name || !*name || strlen(name) >= IFNAMSIZ)
        return err_say(err, EINVAL, "tap: '%s' is not an interface name", name ? name : "");
    if (!if_nametoindex(name))
        return err_say(err, ENODEV, "tap '%s' does not exist; as root: ip tuntap add dev %s mode tap user %u && ip link set %s up",
                       name, name, geteuid(), name);
    return 0;
}

static int tap_open(const struct net_options *options, struct net_backend **ret_backend, struct err *err)
{
    int r = options->fd < 0 ? check_name(options->name, err) : 0;
    if (r < 0)
        return r;
    struct net_backend *tap = calloc(1, sizeof *tap);
    if (!tap)
        return err_set(err, ENOMEM, "tap");
    tap->class = &net_tap;
    memset(tap->fd, -1, sizeof tap->fd);
    unsigned wanted = options->queues < NET_MAX_QUEUES ? options->queues : NET_MAX_QUEUES;
    r = options->fd < 0 ? open_queues(tap, options->name, wanted, err) : adopt(tap, options->fd, err);
    if (r < 0) {
        tap_close(tap);
        return r;
    }
    *ret_backend = tap;
    return 0;
}

static ssize_t tap_receive(struct net_backend *tap, unsigned queue, const struct iovec *iov, unsigned count)
{
    ssize_t n = readv(tap->fd[queue], iov, (int)count);
    if (n >= 0)
        return n;
    return errno == EINTR ? -EAGAIN : errno == EBADFD ? -EPIPE : -errno;
}

static int tap_send(struct net_backend *tap, unsigned queue, const struct iovec *iov, unsigned count)
{
    return writev(tap->fd[queue], iov, (int)count) < 0 ? -errno : 0;
}

static int tap_set_offloads(struct net_backend *tap, unsigned offloads)
{
    for (unsigned i = 0; i < tap->queues; i++) {
        if (ioctl(tap->fd[i], TUNSETOFFLOAD, (unsigned long)(offloads & tap->offloads)) < 0)
            return -errno;
    }
    return 0;
}

const struct net_class net_tap = {
    .name = "tap",
    .open = tap_open,
    .close = tap_close,
    .receive = tap_receive,
    .send = tap_send,
    .set_offloads = tap_set_offloads,
};
