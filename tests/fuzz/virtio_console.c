/* Fuzz target: virtio-console's queues and control messages, with a terminal that types. */
#include <assert.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio/console.h"
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
    struct virtio_console_port ports[3] = {{.in_fd = pair[1], .out_fd = pair[1], .console = true, .cols = 80, .rows = 25},
                                           {.in_fd = -1, .out_fd = -1, .name = "named"},
                                           {.in_fd = -1, .out_fd = pair[1], .console = true}};
    struct virtio_console_config config = {.ports = ports, .port_count = 3};
    r = virtio_console_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    virtio_console_resize(d.dev, driver_byte(&d) % 4, 100, 40);
    driver_run(&d);
    driver_close(&d);
    close(pair[1]);
    return 0;
}
