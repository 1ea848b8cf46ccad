/* Fuzz target: the NBD server's protocol. The input is what a client sends: its first byte says whether that begins with
 * the negotiation or, behind a sound one, with requests; its second in pieces of what size. Whatever it is, the server
 * answers or hangs up, and all that it holds for the client is given back. */
#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "nbd/nbd.h"
#include "nbd/protocol.h"

#define DISK_BYTES (1 << 20)
#define STEPS_MAX 100000
#define INPUT_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Flags, structured replies, base:allocation and GO, all for the default export. */
static size_t sound_negotiation(uint8_t *to)
{
    static const uint8_t context[] = "\0\0\0\0\0\0\0\1\0\0\0\17base:allocation", go[6] = {0};
    const struct {
        uint32_t number, len;
        const uint8_t *data;
    } options[] = {
        {NBD_OPT_STRUCTURED_REPLY, 0, NULL}, {NBD_OPT_SET_META_CONTEXT, sizeof context - 1, context}, {NBD_OPT_GO, sizeof go, go}};
    size_t at = 4;
    store_be32(to, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    for (unsigned i = 0; i < 3; i++) {
        store_be64(to + at, NBD_OPTION_MAGIC);
        store_be32(to + at + 8, options[i].number);
        store_be32(to + at + 12, options[i].len);
        if (options[i].len)
            memcpy(to + at + NBD_OPTION_LEN, options[i].data, options[i].len);
        at += NBD_OPTION_LEN + options[i].len;
    }
    return at;
}

static void drain(int fd)
{
    static uint8_t sink[65536];
    while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0) {
    }
}

static void talk(struct nbd_server *server, int fd, const uint8_t *data, size_t size, size_t piece)
{
    size_t at = 0;
    bool open = true;
    nbd_server_step(server);
    for (unsigned i = 0; nbd_server_busy(server); i++) {
        assert(i < STEPS_MAX);
        drain(fd);
        size_t n = size - at < piece ? size - at : piece;
        ssize_t sent = n ? send(fd, data + at, n, MSG_DONTWAIT | MSG_NOSIGNAL) : -1;
        at += sent > 0 ? (size_t)sent : 0;
        if (open && sent <= 0) {
            shutdown(fd, SHUT_WR);
            open = false;
        }
        nbd_server_step(server);
    }
}

static struct block_node *open_disk(struct block_ring *ring)
{
    struct block_node *node;
    struct block_options options = {.fd = memfd_create("disk", MFD_CLOEXEC)};
    if (options.fd < 0 || ftruncate(options.fd, DISK_BYTES) < 0 || block_open(&options, &node, NULL) < 0 ||
        block_attach(node, ring, NULL) < 0)
        abort();
    return node;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t input[INPUT_MAX + 1024];
    struct block_ring *ring;
    struct nbd_server *server;
    int fds[2];
    if (size < 2 || size > INPUT_MAX)
        return 0;
    if (block_ring_create("sync", &ring, NULL) < 0 || block_ring_start(ring, NULL) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        abort();
    struct nbd_export export = {.name = "disk", .node = open_disk(ring)};
    struct nbd_server_config config = {
        .exports = &export, .export_count = 1, .ring = ring, .listen_fd = -1, .patience_s = 60};
    if (nbd_server_create(&config, &server, NULL) < 0 || nbd_server_add(server, fds[0]) < 0)
        abort();
    size_t len = data[0] & 1 ? sound_negotiation(input) : 0;
    memcpy(input + len, data + 2, size - 2);
    talk(server, fds[1], input, len + size - 2, data[1] ? data[1] * 16u : 1);
    nbd_server_free(server);
    block_close(export.node);
    block_ring_free(ring);
    close(fds[1]);
    return 0;
}
