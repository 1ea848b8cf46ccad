#include "control/network_passt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/own.h"
#include "control/network_daemon.h"

#define SPEC_SIZE 40
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

static int run(const struct network_info *network, const struct network_lease *lease, int fd, struct err *err)
{
    char address[IPV4_TEXT_SIZE], gateway[IPV4_TEXT_SIZE], dns[IPV4_TEXT_SIZE], prefix[12];
    char specs[NETWORK_PORTS_MAX][SPEC_SIZE];
    /* It takes what is not given from the interface with the default route, and does not start without one: all is given,
     * and the interface only named, so that a host without a way out has user networks, too. */
    char *argv[24 + 2 * NETWORK_PORTS_MAX] = {
        "passt",     "--quiet", "--fd",      "3",     "--ipv4-only",   "--no-map-gw", "--interface", "lo", "--mac-addr", GATEWAY_MAC,
        "--address", address,   "--netmask", prefix,  "--gateway",     gateway,       "--dns-forward", dns, "--dns", dns};
    unsigned count = 20;
    ipv4_format(lease->address, address);
    ipv4_format(network->gateway, gateway);
    ipv4_format(passt_dns(network), dns);
    snprintf(prefix, sizeof prefix, "%u", network->subnet.prefix);
    for (unsigned i = 0; i < lease->ports.count; i++) {
        port_spec(&lease->ports.port[i], specs[i]);
        argv[count++] = lease->ports.port[i].udp ? "--udp-ports" : "--tcp-ports";
        argv[count++] = specs[i];
    }
    struct daemon_start request = {.program = "passt", .package = "passt", .argv = argv, .fd = fd};
    return daemon_start(&request, err);
}

int passt_start(const struct network_info *network, const struct network_lease *lease, int *ret_fd, struct err *err)
{
    int pair[2], size = 4 << 20; /* as far as the host's limits allow */
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set(err, errno, "passt");
    own_fd int ours = pair[0], theirs = pair[1];
    setsockopt(ours, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(theirs, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    int r = run(network, lease, theirs, err);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(ours);
    return 0;
}
