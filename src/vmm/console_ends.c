/* Opening and closing the host's side of consoles. */
#include "vmm/console_ends.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/own.h"
#include "vmm/terminal.h"

/* A descriptor of its own for each way, as a loop watches each only once. */
static int open_other_way(struct console_ends *ends, struct err *err)
{
    ends->out_fd = fcntl(ends->in_fd, F_DUPFD_CLOEXEC, 0);
    ends->own = true;
    return ends->out_fd < 0 ? err_set(err, errno, "console") : 0;
}

static int open_pty(struct console_ends *ends, struct err *err)
{
    own_fd int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 ||
        ptsname_r(master, ends->pty_path, sizeof ends->pty_path) != 0)
        return err_set(err, errno, "console pty");
    /* Held open so that the pty outlives the programs that come and go on it. */
    ends->pty_slave = open(ends->pty_path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (ends->pty_slave < 0)
        return err_set(err, errno, "console pty '%s'", ends->pty_path);
    terminal_make_raw(ends->pty_slave);
    ends->in_fd = TAKE_FD(master);
    return open_other_way(ends, err);
}

/* Opening a named pipe does not wait for its reader, in which no signal could end us. */
static int open_file(struct console_ends *ends, const char *path, struct err *err)
{
    ends->out_fd = fdname_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY | O_NONBLOCK, 0600);
    if (ends->out_fd < 0 && errno == ENXIO)
        return err_say(err, ENXIO, "console file '%s': nobody reads this pipe, start its reader first", path);
    if (ends->out_fd < 0)
        return err_set(err, errno, "console file '%s'", path);
    fcntl(ends->out_fd, F_SETFL, fcntl(ends->out_fd, F_GETFL) & ~O_NONBLOCK);
    ends->own = true;
    return 0;
}

int console_ends_open(const struct vm_console *config, struct loop *loop, struct console_ends *ends, struct err *err)
{
    *ends = (struct console_ends){.in_fd = -1, .out_fd = -1, .pty_slave = -1};
    switch (config->mode) {
    case VM_CONSOLE_PTY:
        return open_pty(ends, err);
    case VM_CONSOLE_FILE:
        return open_file(ends, config->path, err);
    case VM_CONSOLE_SOCKET: {
        int r = console_hub_create(config->path, config->log_path, loop, &ends->hub, &ends->in_fd, err);
        return r == 0 ? open_other_way(ends, err) : r;
    }
    case VM_CONSOLE_STDIO:
        ends->in_fd = STDIN_FILENO;
        ends->out_fd = STDOUT_FILENO;
        ends->is_terminal = terminal_enter_raw(STDIN_FILENO);
        return 0;
    case VM_CONSOLE_NONE:
        break;
    }
    return 0;
}

void console_ends_close(struct console_ends *ends)
{
    if (ends->is_terminal)
        terminal_restore();
    if (ends->pty_slave >= 0)
        close(ends->pty_slave);
    if (ends->own && ends->out_fd >= 0)
        close(ends->out_fd);
    if (ends->own && ends->in_fd >= 0)
        close(ends->in_fd);
    console_hub_free(ends->hub);
    *ends = (struct console_ends){.in_fd = -1, .out_fd = -1, .pty_slave = -1};
}
