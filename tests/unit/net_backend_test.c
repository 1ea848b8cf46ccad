/* Packet backends against the real thing: a tap in a network namespace of the test's own, and passt. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "net/net.h"

#define HEADER 12

static void expect_error(struct net_options options, const char *words)
{
    struct err err = {0};
    struct net_backend *backend = NULL;
    options.fd = -1;
    assert_true(net_open(&options, &backend, &err) < 0);
    if (!strstr(err.message, words))
        fail_msg("'%s' does not say '%s'", err.message, words);
}

static bool in_own_namespace(void)
{
    static int state;
    if (!state)
        state = geteuid() == 0 && unshare(CLONE_NEWNET) == 0 && access("/dev/net/tun", R_OK | W_OK) == 0 ? 1 : -1;
    if (state < 0)
        print_message("SKIP: no right to make a network namespace\n");
    return state > 0;
}

static void test_errors(void **state)
{
    (void)state;
    expect_error((struct net_options){.driver = "carrier-pigeon"}, "not known");
    expect_error((struct net_options){.driver = "tap"}, "not an interface name");
    expect_error((struct net_options){.driver = "tap", .name = "much-too-long-a-name"}, "not an interface name");
    expect_error((struct net_options){.driver = "tap", .name = "polder-none"}, "ip tuntap add dev polder-none");
    expect_error((struct net_options){.driver = "tap", .name = "lo"}, access("/dev/net/tun", R_OK | W_OK) ? "tap" : "lo");
    char *path = strdup(getenv("PATH"));
    setenv("PATH", "/nonexistent", 1);
    expect_error((struct net_options){.driver = "user"}, "apt install passt");
    setenv("PATH", path, 1);
    free(path);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
}

static void test_tap_without_permission(void **state)
{
    (void)state;
    if (!in_own_namespace())
        skip();
    assert_int_equal(system("ip tuntap add dev guarded mode tap user 0"), 0);
    pid_t child = fork();
    if (child == 0) {
        struct err err = {0};
        struct net_backend *backend;
        struct net_options options = {.driver = "tap", .name = "guarded", .fd = -1};
        if (setgid(65534) || setuid(65534))
            _exit(2);
        _exit(net_open(&options, &backend, &err) < 0 && strstr(err.message, "no permission") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static int packet_socket(const char *name)
{
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(3));
    struct {
        uint16_t family, protocol;
        int index;
        uint8_t rest[12];
    } address = {AF_PACKET, htons(3), (int)if_nametoindex(name), {0}};
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = 3};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static ssize_t receive(struct net_backend *backend, unsigned queue, uint8_t *data, size_t size)
{
    struct iovec iov[2] = {{data, 5}, {data + 5, size - 5}};
    struct pollfd ready = {.fd = backend->fd[queue], .events = POLLIN};
    ssize_t n = -EAGAIN;
    while (n == -EAGAIN && poll(&ready, 1, 3000) > 0) /* a frame may come in pieces */
        n = backend->class->receive(backend, queue, iov, 2);
    return n;
}

static void test_tap_frames(void **state)
{
    (void)state;
    if (!in_own_namespace())
        skip();
    struct err err = {0};
    struct net_backend *tap, *other;
    uint8_t frame[HEADER + 100] = {0}, got[2000];
    assert_int_equal(system("ip tuntap add dev t0 mode tap && sysctl -qw net.ipv6.conf.t0.disable_ipv6=1 && ip link set t0 up"), 0);
    struct net_options options = {.driver = "tap", .name = "t0", .fd = -1, .queues = 4};
    if (net_open(&options, &tap, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(tap->queues, 1); /* the interface has no multi_queue */
    assert_true(tap->offloads & NET_OFFLOAD_TSO4);
    assert_int_equal(net_open(&options, &other, &err), -EBUSY);
    assert_non_null(strstr(err.message, "in use"));
    int sock = packet_socket("t0");
    memset(frame + HEADER, 0xff, 6);
    memcpy(frame + HEADER + 6, "\2\0\0\0\0\1\x88\xb5hello", 13);
    struct iovec iov[3] = {{frame, HEADER}, {frame + HEADER, 20}, {frame + HEADER + 20, 80}};
    assert_int_equal(tap->class->send(tap, 0, iov, 3), 0);
    assert_int_equal(recv(sock, got, sizeof got, 0), 100);
    assert_memory_equal(got, frame + HEADER, 100);
    assert_int_equal(send(sock, frame + HEADER, 100, 0), 100);
    assert_int_equal(receive(tap, 0, got, sizeof got), HEADER + 100);
    assert_memory_equal(got + HEADER, frame + HEADER, 100);
    assert_int_equal(tap->class->receive(tap, 0, iov, 1), -EAGAIN);
    assert_int_equal(tap->class->set_offloads(tap, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6), 0);
    assert_int_equal(tap->class->set_offloads(tap, 0), 0);
    memset(frame, 0xff, HEADER); /* a header that makes no sense is the kernel's to refuse */
    assert_true(tap->class->send(tap, 0, iov, 3) < 0);
    assert_int_equal(system("ip link del t0"), 0);
    struct iovec one = {got, sizeof got};
    assert_int_equal(tap->class->receive(tap, 0, &one, 1), -EPIPE);
    net_close(tap);
    close(sock);
    /* many queues; and an interface that outlives us as it was */
    assert_int_equal(system("ip tuntap add dev t1 mode tap multi_queue && ip link set t1 up"), 0);
    options.name = "t1";
    assert_int_equal(net_open(&options, &tap, &err), 0);
    assert_int_equal(tap->queues, 4);
    net_close(tap);
    options.queues = 0;
    assert_int_equal(net_open(&options, &tap, &err), 0);
    assert_int_equal(tap->queues, 1);
    net_close(tap);
    assert_int_equal(system("ip link del t1"), 0);
}

static uint16_t checksum(const uint8_t *p, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2)
        sum += load_be16(p + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* A DHCPDISCOVER with its virtio header; returns the length. */
static size_t discover(uint8_t *p)
{
    enum { DHCP = 240 + 4, UDP = 8 + DHCP, IP = 20 + UDP };
    memset(p, 0, HEADER + 14 + IP);
    uint8_t *eth = p + HEADER, *ip = eth + 14, *udp = ip + 20, *dhcp = udp + 8;
    memset(eth, 0xff, 6);
    memcpy(eth + 6, "\2\x11\x22\x33\x44\x55\x08\x00", 8);
    ip[0] = 0x45;
    store_be16(ip + 2, IP);
    ip[8] = 64;
    ip[9] = 17;
    memset(ip + 16, 0xff, 4);
    store_be16(ip + 10, checksum(ip, 20));
    store_be16(udp, 68);
    store_be16(udp + 2, 67);
    store_be16(udp + 4, UDP);
    dhcp[0] = dhcp[1] = 1;
    dhcp[2] = 6;
    memcpy(dhcp + 28, eth + 6, 6);
    store_be32(dhcp + 236, 0x63825363);
    memcpy(dhcp + 240, "\x35\1\1\xff", 4);
    return HEADER + 14 + IP;
}

/* Without privileges and with, passt hands out an address, and is gone after close. */
static void test_passt_dhcp(void **state)
{
    (void)state;
    if (system("passt --version >/dev/null 2>&1") != 0) {
        print_message("SKIP: passt is not installed\n");
        skip();
    }
    if (!in_own_namespace())
        skip();
    assert_int_equal(system("ip link set lo up; ip link add up0 type veth peer name up1 && ip addr add 10.9.0.2/24 dev up0 && "
                            "ip link set up0 up && ip link set up1 up && ip route add default via 10.9.0.1"), 0);
    struct err err = {0};
    struct net_backend *user;
    struct net_options options = {.driver = "user", .fd = -1};
    if (net_open(&options, &user, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(user->offloads, 0);
    uint8_t frame[700], got[2000];
    struct iovec iov = {frame, discover(frame)};
    assert_int_equal(user->class->send(user, 0, &iov, 1), 0);
    bool offered = false;
    for (unsigned i = 0; i < 20 && !offered; i++) {
        ssize_t n = receive(user, 0, got, sizeof got);
        assert_true(n > 0);
        const uint8_t *udp = got + HEADER + 14 + 20;
        offered = n > HEADER + 14 + 20 + 8 + 240 && load_be16(got + HEADER + 12) == 0x0800 && load_be16(udp) == 67;
        if (offered)
            assert_int_equal(load_be32(udp + 8 + 16), 0x0a090002);
    }
    assert_true(offered);
    net_close(user);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void test_passt_fails(void **state)
{
    (void)state;
    if (system("passt --version >/dev/null 2>&1") != 0 || !in_own_namespace())
        skip();
    assert_int_equal(system("ip link del up0 2>/dev/null; true"), 0);
    struct err err = {0};
    struct net_backend *user;
    struct net_options options = {.driver = "user", .fd = -1};
    assert_int_equal(net_open(&options, &user, &err), 0);
    uint8_t got[2000];
    assert_int_equal(receive(user, 0, got, sizeof got), -EPIPE); /* no route to use: it says so in the log */
    net_close(user);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static int connect_abstract(const struct sockaddr_un *address, socklen_t len)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)address, len), 0);
    return fd;
}

/* A frame of `len` bytes goes out with its length in front, and one comes in. */
static void check_stream(struct net_backend *user, int peer, size_t len)
{
    uint8_t frame[HEADER + 100] = {0}, stream[4 + 100], got[2000];
    struct iovec iov = {frame, HEADER + len};
    memset(frame + HEADER, 0x5a, len);
    assert_int_equal(user->class->send(user, 0, &iov, 1), 0);
    assert_int_equal(recv(peer, stream, 4 + len, MSG_WAITALL), 4 + len);
    assert_int_equal(load_be32(stream), len);
    assert_memory_equal(stream + 4, frame + HEADER, len);
    assert_int_equal(send(peer, stream, 4 + len, 0), 4 + len);
    assert_int_equal(receive(user, 0, got, sizeof got), HEADER + len);
    assert_memory_equal(got, frame, HEADER + len);
}

/* Whoever connects to a listening socket is passt; what the one before left half done does not reach the next. */
static void test_listening_socket(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
                                (size_t)snprintf(address.sun_path + 1, 60, "polder-net-test-%d", getpid()) + 1);
    int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listen_fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(listen_fd, 4), 0);
    struct net_options options = {.driver = "user", .fd = listen_fd};
    struct net_backend *user;
    struct err err = {0};
    uint8_t got[2000];
    assert_int_equal(net_open(&options, &user, &err), -EAGAIN); /* not without a first one; the socket stays the caller's */
    int first = connect_abstract(&address, len);
    assert_int_equal(net_open(&options, &user, &err), 0);
    check_stream(user, first, 60);
    assert_int_equal(send(first, "\0\0\0\x3c half", 9, 0), 9);
    close(first);
    assert_int_equal(receive(user, 0, got, sizeof got), -EPIPE);
    assert_int_equal(user->class->reopen(user, &err), -EAGAIN);
    assert_int_equal(user->class->reopen(user, &err), -EAGAIN);
    int second = connect_abstract(&address, len);
    assert_int_equal(user->class->reopen(user, &err), 0);
    check_stream(user, second, 77);
    net_close(user);
    assert_int_equal(recv(second, got, sizeof got, 0), 0);
    assert_int_equal(fcntl(listen_fd, F_GETFD), -1);
    close(second);
}

static void test_none(void **state)
{
    (void)state;
    struct net_backend *none;
    struct net_options options = {.driver = "none", .fd = -1};
    struct iovec iov = {NULL, 0};
    assert_int_equal(net_open(&options, &none, NULL), 0);
    assert_int_equal(none->class->receive(none, 0, &iov, 1), -EAGAIN);
    assert_int_equal(none->class->send(none, 0, &iov, 1), 0);
    net_close(none);
    net_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),     cmocka_unit_test(test_tap_without_permission),
        cmocka_unit_test(test_tap_frames), cmocka_unit_test(test_passt_dhcp),
        cmocka_unit_test(test_passt_fails), cmocka_unit_test(test_listening_socket),
        cmocka_unit_test(test_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
