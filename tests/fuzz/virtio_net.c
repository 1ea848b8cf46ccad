/* Fuzz target: virtio-net's queues and control commands, and what a network (the passt protocol) sends. */
#include <assert.h>
#include <sys/socket.h>

#include "net/net.h"
#include "virtio/net.h"
#include "virtio_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    int pair[2];
    driver_open(&d, data, size);
    int r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    assert(r == 0);
    d.wire = pair[0];
    struct net_options options = {.driver = "user", .fd = pair[1]};
    struct virtio_net_config config = {.id = "eth0", .mtu = 1500};
    r = net_open(&options, &config.backend, NULL);
    assert(r == 0);
    config.backend->offloads = 0x7f; /* more commands to get wrong */
    r = virtio_net_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    driver_run(&d);
    driver_close(&d);
    return 0;
}
