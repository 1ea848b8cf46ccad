/* Frames and JSON of the agent's protocol, and the host's client against guests that lie, stall and flood. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/protocol.h"
#include "base/bytes.h"
#include "base/own.h"
#include "control/agent.h"

#define SOON_MS 100
#define LONG_MS 20000

static void test_frames_come_out_as_they_went_in(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    static uint8_t payload[AGENT_PAYLOAD_MAX];
    memset(payload, 'x', sizeof payload);
    struct agent_header header;
    static struct agent_reader reader;
    struct agent_frame frame;
    const size_t sizes[] = {0, 1, 40000};
    for (unsigned i = 0; i < 3; i++) {
        agent_header_encode(&header, AGENT_DATA_OUT, sizes[i]);
        assert_int_equal(write(fds[1], &header, sizeof header), sizeof header);
        assert_int_equal(write(fds[1], payload, sizes[i]), (ssize_t)sizes[i]);
    }
    close(fds[1]);
    for (unsigned i = 0; i < 3;) {
        int r = agent_reader_next(&reader, &frame, NULL);
        assert_true(r >= 0);
        if (r == 0) {
            assert_true(agent_reader_fill(&reader, fds[0]) > 0);
            continue;
        }
        assert_int_equal(frame.len_bytes, sizes[i]);
        assert_int_equal(frame.type, AGENT_DATA_OUT);
        assert_memory_equal(frame.data, payload, sizes[i]);
        i++;
    }
    assert_int_equal(agent_reader_next(&reader, &frame, NULL), 0);
    assert_int_equal(agent_reader_fill(&reader, fds[0]), 0);
    close(fds[0]);
}

static int next_of(const void *bytes, size_t len, struct err *err)
{
    static struct agent_reader reader;
    reader.start = 0;
    reader.end = len;
    memcpy(reader.bytes, bytes, len);
    struct agent_frame frame;
    return agent_reader_next(&reader, &frame, err);
}

static void test_bad_headers_are_refused(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(next_of("\1\0\1\0\3", 5, &err), -EPROTO); /* 65537 bytes */
    assert_non_null(strstr(err.message, "65537"));
    assert_int_equal(next_of("\0\0\0\0\0", 5, &err), -EPROTO);
    assert_int_equal(next_of("\0\0\0\0\12", 5, &err), -EPROTO);
    assert_int_equal(next_of("\0\0\0\0\11", 5, &err), 1);
    assert_int_equal(next_of("\0\0\1\0\3", 5, &err), 0); /* the most that is allowed; its payload is to come */
}

static json_t *load(const char *text)
{
    struct agent_frame frame = {AGENT_REPLY, (uint32_t)strlen(text), (const uint8_t *)text};
    return agent_json_load(&frame, NULL);
}

static void test_json_is_bounded(void **state)
{
    (void)state;
    json_t *json = load("{\"a\":[[[{\"b\":\"]]]{{{{[[[[[[[[[[[[[[[[[[[[\\\"[\"}]]]}");
    assert_non_null(json);
    json_decref(json);
    assert_null(load("[1]"));
    assert_null(load("{\"a\":1,\"a\":2}"));
    assert_null(load("{\"a\":1} x"));
    assert_null(load(""));
    assert_null(load("{\"a\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}")); /* 17 deep */
}

/* A guest played by the test: `say` is sent at once, as it is. */
static struct agent_session *session_with(int *ret_guest, const void *say, size_t len)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(write(fds[1], say, len), (ssize_t)len);
    struct agent_session *session = NULL;
    assert_int_equal(agent_adopt(fds[0], &session, NULL), 0);
    *ret_guest = fds[1];
    return session;
}

static int request_against(const char *frame_text, uint8_t type, struct err *err)
{
    uint8_t bytes[512] = {(uint8_t)strlen(frame_text), 0, 0, 0, type};
    memcpy(bytes + 5, frame_text, strlen(frame_text));
    int guest;
    struct agent_session *session = session_with(&guest, bytes, 5 + strlen(frame_text));
    json_t *reply = NULL;
    int r = agent_request(session, "ping", NULL, LONG_MS, &reply, err);
    assert_true(!reply == (r != 0 && r != -EREMOTEIO));
    json_decref(reply);
    agent_close(session);
    close(guest);
    return r;
}

static void test_replies_are_checked(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(request_against("{\"ok\":true}", AGENT_REPLY, &err), 0);
    assert_int_equal(request_against("{\"error\":\"disk\\nfull\\u001b\"}", AGENT_REPLY, &err), -EREMOTEIO);
    assert_string_equal(err.message, "disk?full?");
    assert_int_equal(request_against("{\"ok\":1}", AGENT_REPLY, &err), -EPROTO);
    assert_int_equal(request_against("{\"ok\":tru", AGENT_REPLY, &err), -EPROTO);
    assert_int_equal(request_against("{\"ok\":true}", AGENT_DATA_OUT, &err), -EPROTO);
    assert_int_equal(request_against("{\"ok\":true}", AGENT_REQUEST, &err), -EPROTO);
    assert_int_equal(request_against("", 0, &err), -EPROTO);
}

static void test_silence_ends_at_the_deadline(void **state)
{
    (void)state;
    int guest;
    struct agent_session *session = session_with(&guest, "\1\0\0\0", 4); /* a header that never ends */
    struct agent_frame frame;
    struct err err;
    assert_int_equal(agent_receive(session, &frame, 0, &err), -EAGAIN);
    assert_int_equal(agent_receive(session, &frame, SOON_MS, &err), -ETIMEDOUT);
    assert_int_equal(agent_request(session, "ping", NULL, SOON_MS, NULL, &err), -ETIMEDOUT);
    static const uint8_t much[AGENT_PAYLOAD_MAX];
    int r = 0;
    for (int i = 0; r == 0 && i < 1000; i++) /* nobody reads */
        r = agent_send(session, AGENT_DATA_IN, much, sizeof much, SOON_MS, &err);
    assert_int_equal(r, -ETIMEDOUT);
    assert_int_equal(agent_send(session, AGENT_DATA_IN, much, sizeof much + 1, SOON_MS, &err), -EMSGSIZE);
    close(guest);
    agent_close(session);
}

static void test_a_guest_that_is_gone_is_an_end(void **state)
{
    (void)state;
    int guest;
    struct agent_session *session = session_with(&guest, "\2\0\0\0\4ab", 7);
    close(guest);
    struct agent_frame frame;
    int code;
    assert_int_equal(agent_receive(session, &frame, LONG_MS, NULL), 1);
    assert_int_equal(frame.len_bytes, 2);
    assert_int_equal(agent_receive(session, &frame, LONG_MS, NULL), 0);
    assert_int_equal(agent_wait(session, LONG_MS, &code, NULL), -ECONNRESET);
    agent_close(session);
}

static int exit_of(const char *text, int *ret_code)
{
    struct agent_frame frame = {AGENT_EXIT, (uint32_t)strlen(text), (const uint8_t *)text};
    return agent_exit_code(&frame, ret_code, NULL);
}

static void test_exit_codes_are_checked(void **state)
{
    (void)state;
    int code = -1;
    assert_int_equal(exit_of("{\"code\":255}", &code), 0);
    assert_int_equal(code, 255);
    assert_int_equal(exit_of("{\"code\":256}", &code), -EPROTO);
    assert_int_equal(exit_of("{\"code\":-1}", &code), -EPROTO);
    assert_int_equal(exit_of("{\"code\":\"1\"}", &code), -EPROTO);
    assert_int_equal(exit_of("{}", &code), -EPROTO);
}

/* A guest that sends frames of one kind until the host has enough of it. */
struct flood {
    int fd;
    uint8_t type;
    uint32_t len;
};

static void *send_flood(void *arg)
{
    const struct flood *f = arg;
    static const uint8_t zeroes[1000];
    struct agent_header header;
    agent_header_encode(&header, (enum agent_frame_type)f->type, f->len);
    while (send(f->fd, &header, sizeof header, MSG_NOSIGNAL) > 0 &&
           (!f->len || send(f->fd, zeroes, f->len, MSG_NOSIGNAL) > 0))
        ;
    return NULL;
}

static int copy_out_against(uint8_t type, uint32_t len)
{
    struct flood flood = {.type = type, .len = len};
    struct agent_session *session = session_with(&flood.fd, "", 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, send_flood, &flood), 0);
    own_fd int sink = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int r = agent_copy_out(session, sink, 100000, LONG_MS, NULL);
    agent_close(session);
    pthread_join(thread, NULL);
    close(flood.fd);
    return r;
}

static void test_a_flood_ends(void **state)
{
    (void)state;
    assert_int_equal(copy_out_against(AGENT_DATA_OUT, 1000), -EFBIG);
    assert_int_equal(copy_out_against(AGENT_DATA_OUT, 0), -EPROTO);
    assert_int_equal(copy_out_against(AGENT_DATA_ERR, 10), -EPROTO);
}

static void test_files_end_with_what_the_guest_said(void **state)
{
    (void)state;
    static const uint8_t say[] = "\5\0\0\0\4data!\15\0\0\0\5disk is full\n\12\0\0\0\11{\"code\":1}";
    int guest;
    struct err err;
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    struct agent_session *session = session_with(&guest, say, sizeof say - 1);
    assert_int_equal(agent_copy_out(session, pipe_fds[1], 100, LONG_MS, &err), -EREMOTEIO);
    assert_string_equal(err.message, "disk is full");
    char got[16] = "";
    assert_int_equal(read(pipe_fds[0], got, sizeof got), 5);
    assert_string_equal(got, "data!");
    agent_close(session);
    close(guest);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* The vmm's socket: answers the handshake with `line`. */
struct vmm {
    int listener;
    const char *line;
    unsigned refusals; /* connections closed without an answer before that */
};

static void *serve_handshake(void *arg)
{
    const struct vmm *v = arg;
    for (unsigned i = 0; i <= v->refusals; i++) {
        own_fd int fd = accept(v->listener, NULL, NULL);
        char request[64] = "";
        assert_true(read(fd, request, sizeof request - 1) > 0);
        assert_string_equal(request, "CONNECT 1024\n");
        if (i == v->refusals)
            assert_int_equal(write(fd, v->line, strlen(v->line)), (ssize_t)strlen(v->line));
    }
    return NULL;
}

static int connect_against(const char *line, unsigned refusals)
{
    struct vmm v = {.line = line, .refusals = refusals};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char dir[] = "/tmp/agent-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    snprintf(address.sun_path, sizeof address.sun_path, "%s/vsock", dir);
    v.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(v.listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(v.listener, 4), 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, serve_handshake, &v), 0);
    struct agent_session *session = NULL;
    int r = agent_connect(address.sun_path, LONG_MS, &session, NULL);
    pthread_join(thread, NULL);
    agent_close(session);
    close(v.listener);
    unlink(address.sun_path);
    rmdir(dir);
    return r;
}

static void test_the_handshake(void **state)
{
    (void)state;
    struct agent_session *session = NULL;
    assert_int_equal(connect_against("OK 1073741824\n", 0), 0);
    assert_int_equal(connect_against("OK 1\n", 2), 0); /* the guest was not up at first */
    assert_int_equal(connect_against("NO\n", 0), -EPROTO);
    assert_int_equal(connect_against("OK 1111111111111111111111111111111111111111111", 0), -EPROTO);
    assert_int_equal(agent_connect("/nope/vsock", SOON_MS, &session, NULL), -ENOENT);
    char long_path[200] = "/";
    memset(long_path + 1, 'x', sizeof long_path - 2);
    assert_int_equal(agent_connect(long_path, SOON_MS, &session, NULL), -ENAMETOOLONG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_come_out_as_they_went_in),
        cmocka_unit_test(test_bad_headers_are_refused),
        cmocka_unit_test(test_json_is_bounded),
        cmocka_unit_test(test_replies_are_checked),
        cmocka_unit_test(test_silence_ends_at_the_deadline),
        cmocka_unit_test(test_a_guest_that_is_gone_is_an_end),
        cmocka_unit_test(test_exit_codes_are_checked),
        cmocka_unit_test(test_a_flood_ends),
        cmocka_unit_test(test_files_end_with_what_the_guest_said),
        cmocka_unit_test(test_the_handshake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
