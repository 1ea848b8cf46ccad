/* The host's side of the serial port: the terminal, a pty, a file, or nothing.
 *
 * On a terminal it switches to raw mode and restores it at every end of the program, crashes included; Ctrl-] asks to leave.
 * Everything runs in the loop's thread but the serial_host callbacks. One console on stdio at a time. */
#pragma once

#include "base/err.h"
#include "base/loop.h"
#include "dev/serial.h"
#include "vmm/config.h"

struct console;

/* `quit` is called in the loop's thread when the user types Ctrl-]. */
must_check int console_create(const struct vm_console *config, struct loop *loop, void (*quit)(void *arg), void *quit_arg,
                              struct console **ret_console, struct err *err);
/* Restores the terminal. NULL is fine. */
void console_free(struct console *console);
struct serial_host console_serial_host(struct console *console);
/* From here on moves bytes between the port and the outside. */
void console_attach(struct console *console, struct serial *serial);
/* Writes out what the guest has sent, waiting a second at most; the vCPUs are stopped. */
void console_drain(struct console *console);
/* Path of the pty's other end, NULL for other modes. */
const char *console_pty_path(const struct console *console);
