/* Where a console's bytes come from and go to on the host: a terminal or pipe, a pty, a file, the clients of a socket, nothing. */
#pragma once

#include <stdbool.h>
#include "base/err.h"
#include "base/loop.h"
#include "vmm/config.h"
#include "vmm/console_hub.h"

struct console_ends {
    int in_fd, out_fd; /* -1 for none */
    bool is_terminal;  /* stdio on a terminal, now in raw mode */
    char pty_path[64]; /* the other end; "" for none */
    int pty_slave;
    struct console_hub *hub; /* NULL: none */
    bool own; /* in_fd and out_fd are to be closed */
};

/* Always initialises *ends, so that console_ends_close is fine afterwards in any case. */
must_check int console_ends_open(const struct vm_console *config, struct loop *loop, struct console_ends *ends, struct err *err);
/* With the loop that was given still there. Restores the terminal. */
void console_ends_close(struct console_ends *ends);
