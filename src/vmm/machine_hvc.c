/* The virtio console: its ends on the host, Ctrl-], and the terminal's size. */
#include "vmm/machine_impl.h"

#include <string.h>
#include <sys/ioctl.h>

#include "virtio/console.h"

#define ESCAPE_KEY 0x1d /* Ctrl-] */

static struct winsize terminal_size(const struct machine *machine)
{
    struct winsize size = {0};
    if (!machine->hvc_ends.is_terminal || ioctl(machine->hvc_ends.in_fd, TIOCGWINSZ, &size) < 0)
        return (struct winsize){0};
    return size;
}

/* Drops Ctrl-] and what is behind it. */
static size_t filter(void *arg, uint8_t *data, size_t len)
{
    struct machine *machine = arg;
    const uint8_t *at = machine->hvc_ends.is_terminal ? memchr(data, ESCAPE_KEY, len) : NULL;
    if (!at)
        return len;
    /* Not from within the device, whose lock is held: pausing would want it, too. */
    loop_call(machine->host.loop, machine_user_quit, machine);
    return (size_t)(at - data);
}

int machine_add_hvc(struct machine *machine, struct err *err)
{
    if (!machine->config->has_hvc)
        return 0;
    int r = console_ends_open(&machine->config->hvc, machine->host.loop, &machine->hvc_ends, err);
    if (r < 0)
        return r;
    struct winsize size = terminal_size(machine);
    struct virtio_console_port port = {.in_fd = machine->hvc_ends.in_fd,
                                       .out_fd = machine->hvc_ends.out_fd,
                                       .console = true,
                                       .cols = size.ws_col,
                                       .rows = size.ws_row};
    struct virtio_console_config config = {
        .id = "hvc", .ports = &port, .port_count = 1, .filter = filter, .filter_arg = machine};
    struct virtio_host host = {
        .mem = machine->mem, .loop = machine->host.loop, .pci = machine->pci, .engine = machine->engine};
    return virtio_console_create(&config, &host, &machine->devices.hvc, err);
}

void machine_window_changed(struct machine *machine)
{
    struct winsize size = terminal_size(machine);
    if (machine->devices.hvc && size.ws_col)
        virtio_console_resize(machine->devices.hvc, 0, size.ws_col, size.ws_row);
}
