/* Ports and their queues: receive and send of port 0, control receive and send, then a pair for each further port.
 * All in the loop's thread but resizes. Output that the host does not take waits in the queue; input that the guest does
 * not take waits in the host's file. */
#include "virtio/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/iov.h"

#define F_SIZE 0
#define F_MULTIPORT 1
#define F_EMERG_WRITE 2

#define C_COLS 0
#define C_ROWS 2
#define C_MAX_PORTS 4
#define C_EMERG_WRITE 8
#define CONFIG_LEN 12

#define QUEUE_SIZE 128u
#define CONTROL_RX 2u
#define CONTROL_TX 3u
#define CONTROL_SIZE 8u
#define MESSAGES_MAX 64u
#define NAME_MAX_LEN 40u
#define INPUT_MAX 4096u
#define PIECES_AT_ONCE 16u /* of one chain, which may be of 4 GiB; then the loop's other work has its turn */
#define WRITE_MAX 4096u    /* a terminal that said it is writable takes about this much without blocking */

enum control {
    DEVICE_READY,
    DEVICE_ADD,
    DEVICE_REMOVE,
    PORT_READY,
    CONSOLE_PORT,
    RESIZE,
    PORT_OPEN,
    PORT_NAME,
};

/* To the guest: header, then for RESIZE and PORT_NAME something more. */
struct message {
    uint8_t data[CONTROL_SIZE + NAME_MAX_LEN];
    unsigned len;
};

struct port {
    struct virtio_console *con;
    unsigned index;
    int in_fd, out_fd;
    bool console, guest_open, in_ended;
    char name[NAME_MAX_LEN];
    uint16_t cols, rows;
    struct loop_source *source;  /* in_fd, for input; and output when both are one fd */
    struct loop_source *out_source;
    int out_dup;                 /* epoll takes a file once: output waits on a duplicate */
    bool out_blocked;
    size_t out_done; /* bytes of the first waiting chain that were written */
};

struct virtio_console {
    struct virtio_device dev; /* first */
    unsigned port_count;
    struct port ports[VIRTIO_CONSOLE_MAX_PORTS];
    struct message messages[MESSAGES_MAX]; /* ring */
    unsigned first_message, message_count;
    size_t (*filter)(void *arg, uint8_t *data, size_t len);
    void *filter_arg;

    uint64_t rx_bytes, tx_bytes, tx_dropped_bytes, control_in_count, control_out_count, control_dropped;
};

static unsigned rx_queue(unsigned port)
{
    return port ? 2 + 2 * port : 0;
}

static unsigned tx_queue(unsigned port)
{
    return rx_queue(port) + 1;
}

/* The port of a data queue; there are exactly as many queues as ports need. */
static struct port *port_of(struct virtio_console *con, unsigned queue)
{
    return &con->ports[queue < 4 ? 0 : queue / 2 - 1];
}

static bool multiport(const struct virtio_console *con)
{
    return virtio_has(&con->dev, F_MULTIPORT);
}

/* ---- control messages ---- */

static void send_messages(struct virtio_console *con)
{
    struct iovec iov[QUEUE_SIZE];
    struct virtq_chain chain;
    struct virtq *q = &con->dev.queues[CONTROL_RX];
    while (con->message_count) {
        if (!virtio_pop(&con->dev, CONTROL_RX, &chain, iov, QUEUE_SIZE)) {
            if (!virtio_live(&con->dev) || !virtq_listen(q))
                break;
            continue;
        }
        const struct message *m = &con->messages[con->first_message];
        virtq_push(q, &chain, (uint32_t)iov_write(chain.in, chain.in_count, 0, m->data, m->len));
        con->first_message = (con->first_message + 1) % MESSAGES_MAX;
        con->message_count--;
        stat_add(&con->control_out_count, 1);
    }
    virtio_signal(&con->dev, CONTROL_RX);
}

static void post(struct virtio_console *con, unsigned port, enum control event, uint16_t value, const void *more,
                 unsigned more_len)
{
    if (con->message_count == MESSAGES_MAX) { /* the guest does not read: nothing is lost that it asked for twice */
        stat_add(&con->control_dropped, 1);
        return;
    }
    struct message *m = &con->messages[(con->first_message + con->message_count++) % MESSAGES_MAX];
    store_le32(m->data, port);
    store_le16(m->data + 4, (uint16_t)event);
    store_le16(m->data + 6, value);
    memcpy(m->data + CONTROL_SIZE, more, more_len);
    m->len = CONTROL_SIZE + more_len;
}

static void post_size(struct virtio_console *con, const struct port *port)
{
    uint8_t size[4]; /* as specified; Linux took rows first until 2025, and stable kernels have the correction */
    store_le16(size, port->cols);
    store_le16(size + 2, port->rows);
    post(con, port->index, RESIZE, 0, size, sizeof size);
}

static void describe_port(struct virtio_console *con, const struct port *port)
{
    if (port->console)
        post(con, port->index, CONSOLE_PORT, 1, "", 0);
    if (*port->name)
        post(con, port->index, PORT_NAME, 1, port->name, (unsigned)strlen(port->name) + 1);
    if (port->console && port->cols)
        post_size(con, port);
    post(con, port->index, PORT_OPEN, 1, "", 0);
}

static void watch_input(struct port *port);

static void hear(struct virtio_console *con, uint32_t id, uint16_t event, uint16_t value)
{
    if (event == DEVICE_READY && value) {
        for (unsigned i = 0; i < con->port_count; i++)
            post(con, i, DEVICE_ADD, 1, "", 0);
        return;
    }
    if (id >= con->port_count)
        return;
    struct port *port = &con->ports[id];
    if (event == PORT_READY && value) {
        describe_port(con, port);
    } else if (event == PORT_OPEN) {
        port->guest_open = value;
        watch_input(port);
    }
}

static bool take_control(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    uint8_t raw[CONTROL_SIZE];
    if (iov_read(chain->out, chain->out_count, 0, raw, sizeof raw) == sizeof raw) {
        stat_add(&con->control_in_count, 1);
        hear(con, load_le32(raw), load_le16(raw + 4), load_le16(raw + 6));
    }
    virtq_push(&dev->queues[index], chain, 0);
    return true;
}

/* ---- input ---- */

static bool wants_input(const struct port *port)
{
    const struct virtio_console *con = port->con;
    return virtio_live(&con->dev) && !port->in_ended && (!multiport(con) || port->guest_open) &&
           virtq_pending(&port->con->dev.queues[rx_queue(port->index)]);
}

static void on_input(void *arg, int fd, uint32_t events);

static void watch_input(struct port *port)
{
    bool wanted = port->in_fd >= 0 && wants_input(port);
    if (wanted && !port->source)
        port->source = loop_add_fd(port->con->dev.host.loop, port->in_fd, EPOLLIN, on_input, port);
    if (!wanted) {
        loop_remove(port->source);
        port->source = NULL;
    }
}

/* Reads as much as one buffer of the guest's takes. False when that was nothing. */
static bool read_into(struct port *port, int fd, uint32_t events, struct virtq_chain *chain)
{
    struct virtio_console *con = port->con;
    uint8_t data[INPUT_MAX];
    ssize_t n = read(fd, data, chain->in_len < sizeof data ? chain->in_len : sizeof data);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || (n < 0 && (events & EPOLLHUP)))
        port->in_ended = true;
    size_t len = n > 0 ? (size_t)n : 0;
    if (len && port->console && con->filter)
        len = con->filter(con->filter_arg, data, len);
    if (!len)
        return false;
    iov_write(chain->in, chain->in_count, 0, data, len);
    virtq_push(&con->dev.queues[rx_queue(port->index)], chain, (uint32_t)len);
    stat_add(&con->rx_bytes, len);
    return true;
}

static void on_input(void *arg, int fd, uint32_t events)
{
    struct port *port = arg;
    struct virtio_console *con = port->con;
    unsigned index = rx_queue(port->index);
    struct iovec iov[QUEUE_SIZE];
    struct virtq_chain chain;
    pthread_mutex_lock(&con->dev.lock);
    if (wants_input(port) && virtio_pop(&con->dev, index, &chain, iov, QUEUE_SIZE)) {
        if (!chain.in_len)
            virtq_push(&con->dev.queues[index], &chain, 0); /* of no use to anyone */
        else if (!read_into(port, fd, events, &chain))
            virtq_unpop(&con->dev.queues[index], 1);
        virtq_listen(&con->dev.queues[index]);
        virtio_signal(&con->dev, index);
    }
    watch_input(port);
    pthread_mutex_unlock(&con->dev.lock);
}

/* ---- output ---- */

static void on_writable(void *arg, int fd, uint32_t events)
{
    (void)fd;
    (void)events;
    struct port *port = arg;
    pthread_mutex_lock(&port->con->dev.lock);
    port->out_blocked = false;
    loop_remove(port->out_source);
    port->out_source = NULL;
    pthread_mutex_unlock(&port->con->dev.lock);
    virtio_kick(&port->con->dev, tx_queue(port->index));
}

static void wait_writable(struct port *port)
{
    if (port->out_dup < 0)
        port->out_dup = fcntl(port->out_fd, F_DUPFD_CLOEXEC, 0);
    port->out_source = loop_add_fd(port->con->dev.host.loop, port->out_dup, EPOLLOUT, on_writable, port);
    port->out_blocked = port->out_source != NULL;
    if (!port->out_blocked) /* a plain file cannot be waited for, and does not block */
        virtio_kick(&port->con->dev, tx_queue(port->index));
}

/* Writes what the host takes without blocking; -1 when there is no point in trying again. */
static ssize_t write_some(struct port *port, const struct iovec *iov, unsigned count, size_t skip)
{
    uint8_t data[WRITE_MAX];
    struct pollfd ready = {.fd = port->out_fd, .events = POLLOUT};
    if (poll(&ready, 1, 0) == 0)
        return 0;
    size_t len = iov_read(iov, count, skip, data, sizeof data);
    ssize_t n = write(port->out_fd, data, len);
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : n;
}

/* A chain that is only partly written goes back into the queue; `out_done` says how far it got. */
static bool take_output(struct virtio_device *dev, unsigned index, struct virtq_chain *chain)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    struct port *port = port_of(con, index);
    for (unsigned pieces = 0; port->out_fd >= 0 && port->out_done < chain->out_len; pieces++) {
        if (pieces == PIECES_AT_ONCE) {
            virtq_unpop(&dev->queues[index], 1);
            virtio_kick(dev, index);
            return false;
        }
        ssize_t n = write_some(port, chain->out, chain->out_count, port->out_done);
        if (n < 0) {
            stat_add(&con->tx_dropped_bytes, chain->out_len - port->out_done);
            break;
        }
        if (n == 0) {
            virtq_unpop(&dev->queues[index], 1);
            wait_writable(port);
            return false;
        }
        port->out_done += (size_t)n;
        stat_add(&con->tx_bytes, (uint64_t)n);
    }
    port->out_done = 0;
    virtq_push(&dev->queues[index], chain, 0);
    return true;
}

/* ---- class ---- */

static void console_kicked(struct virtio_device *dev, unsigned index)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    if (index == CONTROL_TX) {
        virtio_serve(dev, index, take_control);
        send_messages(con);
        return;
    }
    if (index == CONTROL_RX) {
        send_messages(con);
        return;
    }
    struct port *port = port_of(con, index);
    if (index % 2 == 0)
        watch_input(port);
    else if (!port->out_blocked)
        virtio_serve(dev, index, take_output);
}

/* Linux looks at the size only when told of a change. */
static void console_start(struct virtio_device *dev)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    if (!multiport(con) && con->ports[0].cols)
        virtio_config_changed(dev);
}

static void console_reset(struct virtio_device *dev)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    con->message_count = 0;
    for (unsigned i = 0; i < con->port_count; i++) {
        con->ports[i].guest_open = false;
        con->ports[i].out_done = 0;
    }
}

/* Early output of a guest without a driver: the one character of emerg_wr. */
static void console_config_write(struct virtio_device *dev, unsigned offset, const void *data, unsigned len)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    struct iovec iov = {(void *)(uintptr_t)data, 1};
    if (offset == C_EMERG_WRITE && len && con->ports[0].out_fd >= 0 && write_some(&con->ports[0], &iov, 1, 0) <= 0)
        stat_add(&con->tx_dropped_bytes, 1);
}

static void console_free(struct virtio_device *dev)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    for (unsigned i = 0; i < con->port_count; i++) {
        loop_remove(con->ports[i].source);
        loop_remove(con->ports[i].out_source);
        if (con->ports[i].out_dup >= 0)
            close(con->ports[i].out_dup);
    }
    virtio_release(dev);
    free(con);
}

#define STAT(field) {#field, offsetof(struct virtio_console, field)}
static const struct virtio_stat console_stats[] = {STAT(rx_bytes),
                                                   STAT(tx_bytes),
                                                   STAT(tx_dropped_bytes),
                                                   STAT(control_in_count),
                                                   STAT(control_out_count),
                                                   STAT(control_dropped),
                                                   {0}};

const struct virtio_class virtio_console = {
    .name = "virtio-console",
    .type = 3,
    .pci_class = 0x078000, /* communication controller, other */
    .stats = console_stats,
    .start = console_start,
    .kicked = console_kicked,
    .config_write = console_config_write,
    .reset = console_reset,
    .free = console_free,
};

static void set_up_ports(struct virtio_console *con, const struct virtio_console_config *config)
{
    con->port_count = config->port_count;
    con->filter = config->filter;
    con->filter_arg = config->filter_arg;
    for (unsigned i = 0; i < config->port_count; i++) {
        const struct virtio_console_port *from = &config->ports[i];
        con->ports[i] = (struct port){.con = con,
                                      .index = i,
                                      .in_fd = from->in_fd,
                                      .out_fd = from->out_fd,
                                      .console = from->console || i == 0,
                                      .cols = from->cols,
                                      .rows = from->rows,
                                      .out_dup = -1};
        if (from->name)
            strncpy(con->ports[i].name, from->name, NAME_MAX_LEN - 1);
    }
    store_le16(con->dev.config + C_COLS, config->ports[0].cols);
    store_le16(con->dev.config + C_ROWS, config->ports[0].rows);
    store_le32(con->dev.config + C_MAX_PORTS, config->port_count);
}

int virtio_console_create(const struct virtio_console_config *config, const struct virtio_host *host,
                          struct virtio_device **ret_dev, struct err *err)
{
    if (!config->port_count || config->port_count > VIRTIO_CONSOLE_MAX_PORTS)
        return err_say(err, EINVAL, "virtio-console: 1 to %d ports", VIRTIO_CONSOLE_MAX_PORTS);
    struct virtio_console *con = calloc(1, sizeof *con);
    if (!con)
        return err_set(err, ENOMEM, "virtio-console");
    uint16_t sizes[2 + 2 * VIRTIO_CONSOLE_MAX_PORTS];
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        sizes[i] = QUEUE_SIZE;
    /* One port goes without multiport: older Linux takes rows for columns in its control message, not in config space. */
    bool many = config->port_count > 1;
    struct virtio_setup setup = {
        .id = config->id ? config->id : "console",
        .features = VIRTIO_FEATURE(F_SIZE) | VIRTIO_FEATURE(F_EMERG_WRITE) | (many ? VIRTIO_FEATURE(F_MULTIPORT) : 0),
        .queue_count = many ? 2 + 2 * config->port_count : 2,
        .queue_sizes = sizes,
        .config_len = CONFIG_LEN};
    int r = virtio_init(&con->dev, &virtio_console, host, &setup, err);
    if (r < 0) {
        free(con);
        return r;
    }
    set_up_ports(con, config);
    r = virtio_attach(&con->dev, err);
    if (r < 0) {
        console_free(&con->dev);
        return r;
    }
    *ret_dev = &con->dev;
    return 0;
}

void virtio_console_resize(struct virtio_device *dev, unsigned port, uint16_t cols, uint16_t rows)
{
    struct virtio_console *con = (struct virtio_console *)dev;
    pthread_mutex_lock(&dev->lock);
    if (port < con->port_count) {
        con->ports[port].cols = cols;
        con->ports[port].rows = rows;
        if (port == 0) {
            store_le16(dev->config + C_COLS, cols);
            store_le16(dev->config + C_ROWS, rows);
            virtio_config_changed(dev);
        }
        if (virtio_live(dev) && multiport(con)) {
            post_size(con, &con->ports[port]);
            virtio_kick(dev, CONTROL_RX);
        }
    }
    pthread_mutex_unlock(&dev->lock);
}
