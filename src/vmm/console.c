/* Bytes between the serial port and a host descriptor.
 *
 * vCPU threads only write to an eventfd; the loop's thread does the rest. Output is gathered for FLUSH_DELAY_NS, as guests
 * write it byte by byte and each byte would cost a wake-up. It is never lost: while the descriptor is
 * not writable, bytes stay in the serial port's ring, which then holds the guest back. Input is read only when the
 * port has taken the last piece. */
#include "vmm/console.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm/console_ends.h"

#define ESCAPE_KEY 0x1d /* Ctrl-] */
#define CHUNK 512       /* what a pipe or terminal that is writable takes without blocking */
#define PIECES_PER_EVENT 64 /* then the loop's other work has its turn, however fast the guest writes */
#define DRAIN_MS 1000
#define FLUSH_DELAY_NS UINT64_C(1000000)

struct console {
    struct loop *loop;
    struct serial *serial;
    void (*quit)(void *arg);
    void *quit_arg;
    struct console_ends ends;
    int wake_fd;
    struct loop_source *in_source, *out_source, *wake_source, *flush_timer;
    bool polls_input; /* the descriptor cannot be watched (a file): read whenever the port has room */
    size_t in_len, in_start, out_len, out_start;
    uint8_t in[CHUNK], out[CHUNK];
};

/* Any thread. */
static void console_wake(void *arg)
{
    struct console *console = arg;
    uint64_t one = 1;
    ssize_t ignored = write(console->wake_fd, &one, sizeof one);
    (void)ignored;
}

struct serial_host console_serial_host(struct console *console)
{
    return (struct serial_host){.arg = console, .output_ready = console_wake, .input_wanted = console_wake};
}

/* ---- output ---- */

static bool writable_within(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, timeout_ms) > 0;
}

/* Writes one piece; false when there is nothing left or the descriptor is not ready. */
static bool console_write_some(struct console *console, int timeout_ms)
{
    if (!console->out_len) {
        console->out_start = 0;
        console->out_len = serial_take_output(console->serial, console->out, sizeof console->out);
    }
    if (!console->out_len)
        return false;
    if (console->ends.out_fd < 0) {
        console->out_len = 0;
        return true;
    }
    if (!writable_within(console->ends.out_fd, timeout_ms))
        return false;
    ssize_t n = write(console->ends.out_fd, console->out + console->out_start, console->out_len);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        n = (ssize_t)console->out_len; /* nobody listens: the guest must not be held back for it */
    if (n > 0) {
        console->out_start += (size_t)n;
        console->out_len -= (size_t)n;
    }
    return true;
}

static void console_on_writable(void *arg, int fd, uint32_t events);

static void console_flush(struct console *console)
{
    unsigned pieces = 0;
    while (pieces < PIECES_PER_EVENT && console_write_some(console, 0))
        pieces++;
    if (pieces == PIECES_PER_EVENT)
        console_wake(console);
    if (console->out_len && !console->out_source)
        console->out_source = loop_add_fd(console->loop, console->ends.out_fd, EPOLLOUT, console_on_writable, console);
    if (!console->out_len && console->out_source) {
        loop_remove(console->out_source);
        console->out_source = NULL;
    }
}

static void console_on_writable(void *arg, int fd, uint32_t events)
{
    (void)fd, (void)events;
    console_flush(arg);
}

void console_drain(struct console *console)
{
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    long left_ms = DRAIN_MS;
    while (left_ms > 0 && console->serial && console_write_some(console, (int)left_ms)) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        left_ms = DRAIN_MS - (now.tv_sec - start.tv_sec) * 1000 - (now.tv_nsec - start.tv_nsec) / 1000000;
    }
}

/* ---- input ---- */

static void console_end_input(struct console *console)
{
    loop_remove(console->in_source);
    console->in_source = NULL;
    console->polls_input = false;
}

/* Drops Ctrl-] and what is behind it. */
static bool console_find_escape(struct console *console)
{
    const uint8_t *at = console->ends.is_terminal ? memchr(console->in, ESCAPE_KEY, console->in_len) : NULL;
    if (!at)
        return false;
    console->in_len = (size_t)(at - console->in);
    return true;
}

static void console_read(struct console *console)
{
    ssize_t n = read(console->ends.in_fd, console->in, sizeof console->in);
    if (n < 0 && errno == EINTR)
        return;
    if (n < 0 && errno == EAGAIN && console->in_source)
        return;
    if (n <= 0) {
        console_end_input(console);
        return;
    }
    console->in_start = 0;
    console->in_len = (size_t)n;
    if (console_find_escape(console))
        console->quit(console->quit_arg);
}

static void console_feed(struct console *console)
{
    do {
        if (!console->in_len && console->polls_input)
            console_read(console);
        size_t n = serial_receive(console->serial, console->in + console->in_start, console->in_len);
        console->in_start += n;
        console->in_len -= n;
    } while (!console->in_len && console->polls_input);
    if (console->in_source)
        loop_source_set_events(console->in_source, console->in_len ? 0 : EPOLLIN);
}

static void console_on_input(void *arg, int fd, uint32_t events)
{
    (void)fd;
    struct console *console = arg;
    if (console->in_len && (events & (EPOLLHUP | EPOLLERR))) {
        /* Reported although not asked for: stop watching, the rest is read as the port takes it. */
        loop_remove(console->in_source);
        console->in_source = NULL;
        console->polls_input = true;
        return;
    }
    if (!console->in_len)
        console_read(console);
    console_feed(console);
}

static void console_on_wake(void *arg, int fd, uint32_t events)
{
    (void)events;
    struct console *console = arg;
    uint64_t count;
    ssize_t ignored = read(fd, &count, sizeof count);
    (void)ignored;
    if (!console->out_source)
        loop_timer_set(console->flush_timer, FLUSH_DELAY_NS);
    console_feed(console);
}

static void console_on_flush_timer(void *arg)
{
    console_flush(arg);
}

/* ---- making and ending ---- */

int console_create(const struct vm_console *config, struct loop *loop, void (*quit)(void *arg), void *quit_arg,
                   struct console **ret_console, struct err *err)
{
    struct console *console = calloc(1, sizeof *console);
    if (!console)
        return err_set(err, ENOMEM, "console");
    *console = (struct console){
        .loop = loop, .quit = quit, .quit_arg = quit_arg, .ends = {.in_fd = -1, .out_fd = -1, .pty_slave = -1}};
    console->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = console->wake_fd < 0 ? err_set(err, errno, "console") : console_ends_open(config, loop, &console->ends, err);
    if (r == 0) {
        console->wake_source = loop_add_fd(loop, console->wake_fd, EPOLLIN, console_on_wake, console);
        console->flush_timer = loop_add_timer(loop, console_on_flush_timer, console);
        if (!console->wake_source || !console->flush_timer)
            r = err_set(err, ENOMEM, "console");
    }
    if (r < 0) {
        console_free(console);
        return r;
    }
    *ret_console = console;
    return 0;
}

void console_attach(struct console *console, struct serial *serial)
{
    console->serial = serial;
    if (console->ends.in_fd >= 0) {
        console->in_source = loop_add_fd(console->loop, console->ends.in_fd, EPOLLIN, console_on_input, console);
        console->polls_input = !console->in_source;
    }
    console_wake(console);
}

void console_free(struct console *console)
{
    if (!console)
        return;
    loop_remove(console->in_source);
    loop_remove(console->out_source);
    loop_remove(console->wake_source);
    loop_remove(console->flush_timer);
    if (console->wake_fd >= 0)
        close(console->wake_fd);
    console_ends_close(&console->ends);
    free(console);
}

const char *console_pty_path(const struct console *console)
{
    return *console->ends.pty_path ? console->ends.pty_path : NULL;
}
