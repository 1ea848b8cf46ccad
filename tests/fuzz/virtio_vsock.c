/* Fuzz target: virtio-vsock's packets and connection states, with a host that connects and one that listens. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "virtio/vsock.h"
#include "virtio_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static int open_socket(const char *at, bool listening)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", at);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert(fd >= 0);
    int r = listening ? bind(fd, (struct sockaddr *)&address, sizeof address)
                      : connect(fd, (struct sockaddr *)&address, sizeof address);
    assert(r == 0);
    if (listening)
        r = listen(fd, 8);
    assert(r == 0);
    return fd;
}

static void clean_up(void)
{
    char at[80];
    snprintf(at, sizeof at, "%s_52", path);
    unlink(at);
}

/* The host's listener on port 52 lives as long as the process. */
static int listener(void)
{
    static int fd = -1;
    char at[80];
    if (fd >= 0)
        return fd;
    snprintf(path, sizeof path, "/tmp/polder-fuzz-vsock-%d", getpid());
    snprintf(at, sizeof at, "%s_52", path);
    unlink(at);
    fd = open_socket(at, true);
    atexit(clean_up);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver d;
    int accepting = listener();
    driver_open(&d, data, size);
    unlink(path);
    struct virtio_vsock_config config = {.guest_cid = 3, .uds_path = path};
    int r = virtio_vsock_create(&config, &d.host, &d.dev, NULL);
    assert(r == 0);
    d.wire = open_socket(path, false);
    ssize_t ignored = write(d.wire, "CONNECT 77\n", 11);
    (void)ignored;
    driver_run(&d);
    driver_close(&d);
    for (int fd; (fd = accept4(accepting, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
        close(fd);
    return 0;
}
