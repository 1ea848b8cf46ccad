#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/own.h"
#include "control/network_ipv4.h"

#define FRAME_SIZE 70000u

/* Frames of a tap on both sides go over as they are, virtio_net_hdr and all. */
static bool carry(int from, int to)
{
    static uint8_t frame[FRAME_SIZE];
    ssize_t n = read(from, frame, sizeof frame);
    if (n > 0)
        (void)!write(to, frame, (size_t)n);
    return n > 0 || errno == EAGAIN || errno == EINVAL || errno == EIO;
}

static bool read_all(int fd, uint8_t *to, size_t len)
{
    while (len) {
        ssize_t n = recv(fd, to, len, MSG_WAITALL);
        if (n <= 0)
            return false;
        to += n;
        len -= (size_t)n;
    }
    return true;
}

static bool carry_from_passt(int passt, int tap)
{
    static uint8_t frame[FRAME_SIZE];
    uint8_t length[4];
    if (!read_all(passt, length, 4) || load_be32(length) > sizeof frame || !read_all(passt, frame, load_be32(length)))
        return false;
    (void)!write(tap, frame, load_be32(length));
    return true;
}

static bool carry_to_passt(int tap, int passt)
{
    static uint8_t frame[FRAME_SIZE + 4];
    ssize_t n = read(tap, frame + 4, FRAME_SIZE);
    if (n <= 0)
        return errno == EAGAIN;
    store_be32(frame, (uint32_t)n);
    return send(passt, frame, (size_t)n + 4, MSG_NOSIGNAL) >= 0;
}

static void carry_on(bool user, int host, int tap)
{
    struct pollfd fds[] = {{.fd = host, .events = POLLIN}, {.fd = tap, .events = POLLIN}};
    bool going = true;
    while (going && poll(fds, 2, -1) > 0) {
        if (fds[0].revents)
            going = user ? carry_from_passt(host, tap) : carry(host, tap);
        if (going && fds[1].revents)
            going = user ? carry_to_passt(tap, host) : carry(tap, host);
    }
}

/* One passt after the other. */
static void carry_on_for_user(int listen_fd, int tap)
{
    for (int passt; (passt = accept(listen_fd, NULL, NULL)) >= 0; close(passt))
        carry_on(true, passt, tap);
}

static int open_tap(const struct network_attachment *attachment, struct err *err)
{
    int header = attachment->kind == NETWORK_NAT ? IFF_VNET_HDR : 0;
    own_fd int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    struct ifreq request = {.ifr_name = "eth0", .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | header)};
    struct ifreq address = {.ifr_name = "eth0", .ifr_hwaddr.sa_family = ARPHRD_ETHER};
    struct mac mac;
    if (!mac_parse(attachment->mac, &mac))
        return err_say(err, EINVAL, "MAC %s", attachment->mac);
    memcpy(address.ifr_hwaddr.sa_data, &mac, sizeof mac);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, SIOCSIFHWADDR, &address) < 0)
        return err_set(err, errno, "tap eth0 of the stand-in");
    return TAKE_FD(fd);
}

static int open_tap_in(const struct network_attachment *attachment, const char *netns, struct err *err)
{
    own_fd int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = open(netns, O_RDONLY | O_CLOEXEC);
    if (here < 0 || there < 0 || setns(there, CLONE_NEWNET) < 0)
        return err_set(err, errno, "network namespace '%s'", netns);
    int fd = open_tap(attachment, err);
    return setns(here, CLONE_NEWNET) < 0 ? err_set(err, errno, "network namespace") : fd;
}

int guest_start(const struct network_attachment *attachment, const char *netns, pid_t *ret_pid, struct err *err)
{
    own_fd int tap = open_tap_in(attachment, netns, err);
    if (tap < 0)
        return tap;
    pid_t pid = fork();
    if (pid < 0)
        return err_set(err, errno, "fork");
    if (pid == 0) {
        setsid();
        signal(SIGPIPE, SIG_IGN);
        close(STDIN_FILENO);
        close(STDOUT_FILENO);
        if (attachment->kind == NETWORK_USER)
            carry_on_for_user(attachment->fd, tap);
        else
            carry_on(false, attachment->fd, tap);
        _exit(0);
    }
    *ret_pid = pid;
    return 0;
}
