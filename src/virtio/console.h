/* virtio console (VIRTIO 1.2 §5.3): port 0 is hvc0, further ports are consoles or named character devices. */
#pragma once

#include "virtio/device.h"

#define VIRTIO_CONSOLE_MAX_PORTS 8

struct virtio_console_port {
    int in_fd, out_fd; /* not owned; may be equal; -1: nothing comes in, output is dropped. Input ends at end of file or
                        * error: of a pty, keep the other end open */
    bool console;      /* a terminal (hvcN) rather than /dev/virtio-ports/NAME */
    const char *name;  /* NULL: none */
    uint16_t cols, rows; /* first window size; 0: unknown */
};

struct virtio_console_config {
    const char *id; /* NULL: "console" */
    const struct virtio_console_port *ports;
    unsigned port_count; /* 1..VIRTIO_CONSOLE_MAX_PORTS; port 0 must be a console */
    /* Optional: called in the loop's thread for what the user types on a console port; returns how many bytes of
     * `data` to hand on, edited in place (for an escape key such as Ctrl-]). */
    size_t (*filter)(void *arg, uint8_t *data, size_t len);
    void *filter_arg;
};

must_check int virtio_console_create(const struct virtio_console_config *config, const struct virtio_host *host,
                                     struct virtio_device **ret_dev, struct err *err);
/* Tells the guest a port's window size. Any thread (SIGWINCH handlers go through a loop first). */
void virtio_console_resize(struct virtio_device *dev, unsigned port, uint16_t cols, uint16_t rows);
