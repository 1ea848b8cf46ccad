/* NBD server: peers that do not take what they asked for. What they may send is the fuzz target's and test_nbd.py's. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "nbd/nbd.h"
#include "nbd/protocol.h"

#define READS 32u
#define READ_BYTES (1u << 20)
#define GREETING_LEN 18u
#define EXPORT_LEN 10u /* size and flags, which end a negotiation by EXPORT_NAME */

struct serving {
    struct block_ring *ring;
    struct nbd_export export;
    struct nbd_server *server;
    int fd; /* the peer's */
};

static void serve(struct serving *s)
{
    int fds[2];
    struct block_options options = {.driver = "null", .path = "64M", .fd = -1};
    assert_int_equal(block_ring_create("sync", &s->ring, NULL), 0);
    assert_int_equal(block_ring_start(s->ring, NULL), 0);
    assert_int_equal(block_open(&options, &s->export.node, NULL), 0);
    assert_int_equal(block_attach(s->export.node, s->ring, NULL), 0);
    s->export.name = "disk";
    struct nbd_server_config config = {
        .exports = &s->export, .export_count = 1, .ring = s->ring, .listen_fd = -1, .patience_s = 1};
    assert_int_equal(nbd_server_create(&config, &s->server, NULL), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(nbd_server_add(s->server, fds[0]), 0);
    s->fd = fds[1];
}

static void stop(struct serving *s)
{
    nbd_server_free(s->server);
    block_close(s->export.node);
    block_ring_free(s->ring);
    close(s->fd);
}

static void say(const struct serving *s, const void *data, size_t len)
{
    assert_int_equal(send(s->fd, data, len, MSG_NOSIGNAL), len);
}

static void negotiate(const struct serving *s)
{
    uint8_t hello[4 + NBD_OPTION_LEN], sink[256];
    store_be32(hello, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    store_be64(hello + 4, NBD_OPTION_MAGIC);
    store_be32(hello + 12, NBD_OPT_EXPORT_NAME);
    store_be32(hello + 16, 0); /* the default export */
    say(s, hello, sizeof hello);
    for (size_t got = 0; got < GREETING_LEN + EXPORT_LEN;) {
        nbd_server_step(s->server);
        ssize_t n = recv(s->fd, sink, sizeof sink, MSG_DONTWAIT);
        got += n > 0 ? (size_t)n : 0;
    }
}

static void put_request(uint8_t *at, enum nbd_command command, uint64_t offset, uint32_t len)
{
    memset(at, 0, NBD_REQUEST_LEN);
    store_be32(at, NBD_REQUEST_MAGIC);
    store_be16(at + 6, (uint16_t)command);
    store_be64(at + 16, offset);
    store_be32(at + 24, len);
}

/* It holds memory that others need. */
static void test_a_peer_that_leaves_and_does_not_read_is_dropped(void **state)
{
    (void)state;
    struct serving s = {0};
    uint8_t requests[(READS + 1) * NBD_REQUEST_LEN];
    serve(&s);
    negotiate(&s);
    for (unsigned i = 0; i < READS; i++)
        put_request(requests + (size_t)i * NBD_REQUEST_LEN, NBD_CMD_READ, (uint64_t)i * READ_BYTES, READ_BYTES);
    put_request(requests + READS * NBD_REQUEST_LEN, NBD_CMD_DISC, 0, 0);
    say(&s, requests, sizeof requests);
    for (time_t limit = time(NULL) + 4; nbd_server_busy(s.server);) {
        assert_true(time(NULL) < limit);
        nbd_server_step(s.server);
    }
    stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_peer_that_leaves_and_does_not_read_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
