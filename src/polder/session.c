#include "polder/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/own.h"
#include "polder/cli.h"
#include "polder/terminal.h"
#include "polder/websocket.h"

#define QUEUE_MAX (1u << 20) /* bytes on their way, above which no more input is taken */
#define INPUT_MAX 32768

struct running {
    const struct session *session;
    struct websocket *websocket;
    struct terminal_escape escape;
    bool raw, input_open, ended, left;
    int status;
    int killed_by; /* a signal that ends polder itself */
    int refused;   /* -errno, with `refusal`: polderd or the instance would not */
    struct err refusal;
};

/* ---- from the server ---- */

static void write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd wait = {fd, POLLOUT, 0};
            poll(&wait, 1, -1);
        } else if (n < 0 && errno != EINTR) {
            return; /* nobody reads any more: the command need not know */
        }
        data += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
}

static void take_control(struct running *running, const char *data, size_t len)
{
    json_t *message = json_loadb(data, len, 0, NULL);
    const json_t *status = json_object_get(message, "exit");
    if (json_object_get(message, "error"))
        running->refused = client_refused(0, data, len, &running->refusal);
    if (json_is_integer(status)) {
        running->status = (int)(json_integer_value(status) & 0xff);
        running->ended = true;
    }
    json_decref(message);
}

static void on_message(void *arg, enum websocket_stream stream, const char *data, size_t len)
{
    struct running *running = arg;
    switch (stream) {
    case STREAM_IN:
    case STREAM_OUT: write_all(STDOUT_FILENO, data, len); break;
    case STREAM_ERR: write_all(STDERR_FILENO, data, len); break;
    case STREAM_CONTROL: take_control(running, data, len); break;
    }
}

/* ---- to the server ---- */

static int send_control(struct running *running, json_t *message, struct err *err)
{
    own_free char *text = json_dumps(message, JSON_COMPACT);
    json_decref(message);
    return text ? websocket_send(running->websocket, STREAM_CONTROL, text, strlen(text), err) : err_set(err, ENOMEM, "message");
}

static int send_size(struct running *running, struct err *err)
{
    int rows, columns;
    if (!running->session->tty || !terminal_size(&rows, &columns))
        return 0;
    return send_control(running, json_pack("{s:{s:i, s:i}}", "resize", "rows", rows, "cols", columns), err);
}

static int take_input(struct running *running, struct err *err)
{
    char in[INPUT_MAX], out[INPUT_MAX + 8];
    ssize_t n = read(STDIN_FILENO, in, sizeof in);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        running->input_open = false;
        return websocket_send(running->websocket, STREAM_IN, NULL, 0, err);
    }
    size_t len = terminal_filter(&running->escape, in, (size_t)n, out, &running->left);
    return len ? websocket_send(running->websocket, STREAM_IN, out, len, err) : 0;
}

/* With a terminal, keys are for the command and signals for polder; without, signals are for the command. */
static int take_signal(struct running *running, int fd, struct err *err)
{
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof info) != sizeof info)
        return 0;
    int signal = (int)info.ssi_signo;
    if (signal == SIGWINCH)
        return send_size(running, err);
    if (running->raw || running->session->console) {
        running->killed_by = signal;
        return 0;
    }
    return send_control(running, json_pack("{s:s}", "signal", sigabbrev_np(signal)), err);
}

/* ---- the loop ---- */

static int turn(struct running *running, int signals, struct err *err)
{
    struct websocket *websocket = running->websocket;
    bool take = running->input_open && websocket_queued(websocket) < QUEUE_MAX;
    struct pollfd fds[] = {{websocket_fd(websocket), websocket_events(websocket), 0},
                           {signals, POLLIN, 0},
                           {take ? STDIN_FILENO : -1, POLLIN, 0}};
    if (poll(fds, 3, -1) < 0)
        return errno == EINTR ? 0 : err_set(err, errno, "poll");
    int r = 0;
    if (fds[1].revents)
        r = take_signal(running, signals, err);
    if (r == 0 && fds[2].revents)
        r = take_input(running, err);
    return r < 0 ? r : websocket_step(websocket, err);
}

static int loop(struct running *running, int signals, struct err *err)
{
    int r = running->session->first ? send_control(running, json_incref(running->session->first), err) : 0;
    if (r == 0 && !running->session->first)
        r = send_size(running, err);
    if (r == 0 && !running->input_open && !running->session->console)
        r = websocket_send(running->websocket, STREAM_IN, NULL, 0, err);
    if (r == 0)
        r = websocket_step(running->websocket, err); /* what came with the handshake */
    while (r == 0 && !running->ended && !running->refused && !running->left && !running->killed_by && websocket_events(running->websocket))
        r = turn(running, signals, err);
    if (running->refused)
        *err = running->refusal;
    if (running->refused || running->ended || running->left || running->killed_by)
        return running->refused;
    if (running->session->console)
        return 0; /* the machine went off */
    return r < 0 ? r : err_say(err, EPIPE, "polderd ended the session without saying how the command ended");
}

static int block_signals(sigset_t *old, struct err *err)
{
    static const int numbers[] = {SIGWINCH, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    sigset_t set;
    sigemptyset(&set);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, old);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? err_set(err, errno, "signalfd") : fd;
}

int session_run(struct cli *cli, const struct session *session, int *ret_status, struct err *err)
{
    struct running running = {.session = session, .input_open = session->use_stdin, .status = CLI_STATUS_LOST};
    sigset_t old;
    int r = cli_open(cli, err);
    if (r == 0)
        r = websocket_open(cli->client, session->path, on_message, &running, &running.websocket, err);
    if (r < 0)
        return r;
    fflush(stdout);
    own_fd int signals = block_signals(&old, err);
    r = signals < 0 ? signals : 0;
    running.raw = r == 0 && session->tty && session->use_stdin && terminal_set_raw();
    running.escape.keys = running.raw && session->leave ? session->leave : "";
    if (r == 0)
        r = loop(&running, signals, err);
    terminal_restore();
    websocket_close(running.websocket);
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (running.killed_by)
        raise(running.killed_by);
    if (r == 0)
        *ret_status = running.left ? SESSION_DETACHED : running.ended ? running.status : 0;
    return r;
}
