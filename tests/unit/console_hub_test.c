/* The console of a socket: who sees what, who is dropped, what the log keeps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "vmm/console_hub.h"
#include "vmm/console_log.h"

struct fixture {
    struct loop *loop;
    struct loop_source *timer;
    struct console_hub *hub;
    char folder[64], socket[96], log[96];
    int end;
};

static void stop(void *arg)
{
    loop_stop(((struct fixture *)arg)->loop);
}

/* Lets the loop run for a while. */
static void spin(struct fixture *f, unsigned ms)
{
    loop_timer_set(f->timer, ms * UINT64_C(1000000));
    loop_run(f->loop);
}

static int set_up(void **state)
{
    static struct fixture f;
    struct err err = {0};
    f = (struct fixture){.folder = "/tmp/polder-hub-XXXXXX"};
    assert_non_null(mkdtemp(f.folder));
    snprintf(f.socket, sizeof f.socket, "%s/socket", f.folder);
    snprintf(f.log, sizeof f.log, "%s/log", f.folder);
    assert_int_equal(loop_create(&f.loop, &err), 0);
    f.timer = loop_add_timer(f.loop, stop, &f);
    assert_int_equal(console_hub_create(f.socket, f.log, f.loop, &f.hub, &f.end, &err), 0);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    if (f->end >= 0)
        close(f->end);
    console_hub_free(f->hub);
    loop_free(f->loop);
    assert_int_equal(access(f->socket, F_OK), -1);
    unlink(f->log);
    rmdir(f->folder);
    return 0;
}

static int join_hub(struct fixture *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", f->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    spin(f, 5);
    return fd;
}

static void expect(int fd, const char *text)
{
    char there[64] = "";
    assert_int_equal(recv(fd, there, sizeof there - 1, 0), strlen(text));
    assert_string_equal(there, text);
}

static void test_clients_see_what_comes_and_type(void **state)
{
    struct fixture *f = *state;
    int first = join_hub(f);
    assert_int_equal(write(f->end, "one", 3), 3);
    spin(f, 5);
    int second = join_hub(f);
    assert_int_equal(write(f->end, "two", 3), 3);
    spin(f, 5);
    expect(first, "onetwo");
    expect(second, "two");
    assert_int_equal(send(first, "a", 1, 0), 1);
    assert_int_equal(send(second, "b", 1, 0), 1);
    shutdown(second, SHUT_WR);
    spin(f, 20);
    char typed[4] = "";
    assert_int_equal(read(f->end, typed, sizeof typed), 2);
    assert_true(strcmp(typed, "ab") == 0 || strcmp(typed, "ba") == 0);
    assert_int_equal(write(f->end, "three", 5), 5);
    spin(f, 5);
    expect(second, "three"); /* who has typed all may still listen */
    close(first);
    close(second);
}

static void test_one_too_many_is_dropped(void **state)
{
    struct fixture *f = *state;
    int fds[CONSOLE_CLIENTS_MAX + 1];
    char byte;
    for (unsigned i = 0; i <= CONSOLE_CLIENTS_MAX; i++)
        fds[i] = join_hub(f);
    assert_int_equal(recv(fds[CONSOLE_CLIENTS_MAX], &byte, 1, 0), 0);
    assert_int_equal(recv(fds[0], &byte, 1, 0), -1);
    close(fds[0]);
    spin(f, 5);
    close(fds[CONSOLE_CLIENTS_MAX]);
    fds[0] = join_hub(f); /* there is room again */
    fds[CONSOLE_CLIENTS_MAX] = -1;
    assert_int_equal(recv(fds[0], &byte, 1, 0), -1);
    for (unsigned i = 0; i < CONSOLE_CLIENTS_MAX; i++)
        close(fds[i]);
}

/* More than the sockets between hold; all of it is in the log. */
static void test_who_does_not_read_is_dropped(void **state)
{
    struct fixture *f = *state;
    enum { TOTAL = 4 << 20 };
    int lazy = join_hub(f);
    static char block[4096];
    struct stat st;
    memset(block, 'x', sizeof block);
    for (size_t sent = 0; sent < TOTAL;) {
        ssize_t n = write(f->end, block, sizeof block);
        sent += n > 0 ? (size_t)n : 0;
        if (n < 0)
            spin(f, 5);
    }
    close(f->end);
    f->end = -1;
    spin(f, CONSOLE_PATIENCE_MS + 50);
    assert_int_equal(stat(f->log, &st), 0);
    assert_int_equal(st.st_size, TOTAL);
    ssize_t n, got = 0;
    while ((n = recv(lazy, block, sizeof block, 0)) > 0)
        got += n;
    assert_int_equal(n, 0);
    assert_true(got < TOTAL);
    close(lazy);
}

static void test_a_full_log_loses_its_older_half(void **state)
{
    struct fixture *f = *state;
    struct console_log log;
    struct err err = {0};
    char path[96], line[32], all[2048] = "";
    snprintf(path, sizeof path, "%s/small", f->folder);
    assert_int_equal(console_log_open(&log, path, 1024, &err), 0);
    for (unsigned i = 0; i < 200; i++)
        console_log_write(&log, line, (size_t)snprintf(line, sizeof line, "line %u\n", i));
    assert_true(pread(log.fd, all, sizeof all - 1, 0) <= 1024);
    console_log_close(&log);
    unlink(path);
    assert_int_equal(strncmp(all, "line ", 5), 0);
    assert_non_null(strstr(all, "line 150\n"));
    assert_string_equal(all + strlen(all) - 9, "line 199\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_clients_see_what_comes_and_type, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_too_many_is_dropped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_who_does_not_read_is_dropped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_full_log_loses_its_older_half, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
