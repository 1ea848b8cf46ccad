/* polder-vmm's answers: a socket that says what a test wants, also what no machine should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/own.h"
#include "control/json.h"
#include "control/unix_socket.h"
#include "control/vmm_client.h"

struct server {
    int fd;
    const char *answer; /* NULL: none, the connection stays open until the client goes */
    char request[1024];
};

static void *serve(void *arg)
{
    struct server *server = arg;
    own_fd int client = accept(server->fd, NULL, NULL);
    ssize_t len = recv(client, server->request, sizeof server->request - 1, 0);
    server->request[len > 0 ? len : 0] = '\0';
    if (server->answer)
        send(client, server->answer, strlen(server->answer), MSG_NOSIGNAL);
    else
        while (recv(client, server->request, 1, 0) > 0) {
        }
    return NULL;
}

static int ask(const char *answer, struct server *server, unsigned timeout_ms, json_t **ret_answer, struct err *err)
{
    char folder[] = "/tmp/vmm_client_test.XXXXXX", path[64];
    pthread_t thread;
    own_json json_t *body = json_pack("{s:i}", "a", 1);
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/api.sock", folder);
    *server = (struct server){.answer = answer};
    assert_int_equal(unix_listen(path, &server->fd, err), 0);
    assert_int_equal(pthread_create(&thread, NULL, serve, server), 0);
    int ret = vmm_request(path, "PUT", "/x", body, timeout_ms, ret_answer, err);
    pthread_join(thread, NULL);
    close(server->fd);
    unlink(path);
    rmdir(folder);
    return ret;
}

static void sends_and_reads(void **state)
{
    (void)state;
    struct server server;
    own_json json_t *answer = NULL;
    struct err err = {0};
    assert_int_equal(ask("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"b\": 2}\n", &server, 5000, &answer, &err), 0);
    assert_int_equal(json_number(answer, "b"), 2);
    assert_non_null(strstr(server.request, "PUT /x HTTP/1.1\r\n"));
    assert_non_null(strstr(server.request, "\r\n\r\n{\"a\":1}"));
    json_decref(answer);
    answer = NULL;
    assert_int_equal(ask("HTTP/1.1 204 No Content\r\n\r\n", &server, 5000, &answer, &err), 0);
    assert_null(answer);
}

static void errors_are_told(void **state)
{
    (void)state;
    struct server server;
    struct err err = {0};
    assert_int_equal(ask("HTTP/1.1 400 Bad\r\n\r\n{\"fault_message\": \"not so\"}", &server, 5000, NULL, &err), -EREMOTEIO);
    assert_non_null(strstr(err.message, "not so"));
    assert_int_equal(ask("HTTP/1.1 400 Bad\r\n\r\n{\"fault_message\": \"a\\nb\\u001b[2J\"}", &server, 5000, NULL, &err), -EREMOTEIO);
    assert_string_equal(err.message, "the machine refused: a b [2J");
    assert_int_equal(ask("HTTP/1.1 200 OK\r\n\r\n{", &server, 5000, NULL, &err), -EPROTO);
    assert_int_equal(ask("HTTP/1.1 2x0 OK\r\n\r\n", &server, 5000, NULL, &err), -EPROTO);
    assert_int_equal(ask("garbage", &server, 5000, NULL, &err), -EPROTO);
    assert_int_equal(ask("", &server, 5000, NULL, &err), -EPROTO);
    assert_int_equal(ask(NULL, &server, 50, NULL, &err), -ETIMEDOUT);
    assert_int_equal(vmm_request("/nope/x", "GET", "/", NULL, 100, NULL, &err), -ENOENT);
}

static void traffic_is_the_sum_of_devices(void **state)
{
    struct vmm_traffic traffic;
    (void)state;
    own_json json_t *metrics = json_loads(
        "{\"block_drive0\": {\"read_bytes\": 1, \"write_bytes\": 2}, \"block_drive1\": {\"read_bytes\": 10, \"write_bytes\": -5},"
        " \"net_net0\": {\"rx_bytes_count\": 100, \"tx_bytes_count\": \"many\"}, \"net_net1\": 7, \"vsock\": {\"rx_bytes_count\": 9}}",
        0, NULL);
    vmm_read_traffic(metrics, &traffic);
    assert_int_equal(traffic.disk_read, 11);
    assert_int_equal(traffic.disk_written, 2);
    assert_int_equal(traffic.net_rx, 100);
    assert_int_equal(traffic.net_tx, 0);
    vmm_read_traffic(NULL, &traffic);
    assert_int_equal(traffic.disk_read, 0);
}

static void long_answers_are_refused(void **state)
{
    (void)state;
    struct server server;
    struct err err = {0};
    own_free char *answer = malloc(VMM_ANSWER_MAX + 2);
    memset(answer, ' ', VMM_ANSWER_MAX + 1);
    answer[VMM_ANSWER_MAX + 1] = '\0';
    memcpy(answer, "HTTP/1.1 200 OK\r\n\r\n", 19);
    assert_int_equal(ask(answer, &server, 5000, NULL, &err), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sends_and_reads),
        cmocka_unit_test(errors_are_told),
        cmocka_unit_test(traffic_is_the_sum_of_devices), cmocka_unit_test(long_answers_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
