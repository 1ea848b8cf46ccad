/* The jail from outside: a stand-in for polder-vmm (jail_probe.c) is started in it once for each thing that it must not do. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "sandbox/cgroup.h"
#include "sandbox/sandbox.h"

static const char *probe;

/* What it said, NUL-terminated. */
static char said[512];

static pid_t start(const char *kind, const char *word, int log, const int *fds)
{
    char *argv[] = {(char *)(uintptr_t)probe, (char *)(uintptr_t)kind, (char *)(uintptr_t)word, NULL};
    struct sandbox_spec spec = {
        .program = probe, .argv = argv, .log_fd = log, .own_ids = geteuid() == 0, .uid = 1234567, .gid = 1234567};
    if (strcmp(kind, "unpack") == 0) {
        spec.own_ids = false;
        spec.all_ids = spec.host_root = true;
        spec.capabilities = 1u << CAP_CHOWN | 1u << CAP_SYS_CHROOT;
        spec.fds = fds;
        spec.fd_count = fds[1] >= 0 ? 2 : 1;
    }
    struct err err = {0};
    pid_t pid = -1;
    if (sandbox_spawn(&spec, &pid, NULL, &err) < 0)
        fail_msg("%s", err.message);
    return pid;
}

/* `fds`: what the kind "unpack" has as 3 and, unless it is -1, as 4. */
static int run_with(const char *kind, const char *word, const int *fds, bool *ret_refused)
{
    int log = memfd_create("log", MFD_CLOEXEC), status = 0;
    pid_t pid = start(kind, word, log, fds);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    ssize_t len = pread(log, said, sizeof said - 1, 0);
    said[len > 0 ? len : 0] = '\0';
    close(log);
    *ret_refused = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
    char text[160];
    sandbox_describe_end(status, text, sizeof text);
    if (*ret_refused) {
        assert_non_null(strstr(text, "system call that its jail forbids"));
        assert_non_null(strstr(said, "jail_probe: " SANDBOX_VIOLATION));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int run(const char *kind, const char *word, bool *ret_refused)
{
    const int fds[] = {open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), -1};
    int status = run_with(kind, word, fds, ret_refused);
    close(fds[0]);
    return status;
}

static void skip_without_namespaces(void)
{
    struct sandbox_host host;
    sandbox_host_check(&host);
    if (!host.namespaces || !host.seccomp) {
        print_message("[  SKIP  ] %s\n", host.message);
        skip();
    }
}

static void test_the_root_is_empty_and_nothing_is_inherited(void **state)
{
    (void)state;
    bool refused;
    skip_without_namespaces();
    assert_int_equal(run("jit", "paths", &refused), 0);
}

/* A socket of the host that listens; *ret_port when it is of TCP. */
static int listen_at(const void *address, socklen_t len, unsigned *ret_port)
{
    struct sockaddr_in bound;
    socklen_t size = sizeof bound;
    int fd = socket(*(const sa_family_t *)address, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, address, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    if (ret_port) {
        assert_int_equal(getsockname(fd, (struct sockaddr *)&bound, &size), 0);
        *ret_port = ntohs(bound.sin_port);
    }
    return fd;
}

static void test_siblings_and_sockets_are_out_of_reach(void **state)
{
    (void)state;
    skip_without_namespaces();
    pid_t sibling = start("jit", "wait", -1, NULL);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    unsigned port;
    bool refused;
    char word[32];
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "polder-jail-%d", sibling);
    int fds[] = {listen_at(&name, sizeof name, NULL), listen_at(&address, sizeof address, &port)};
    snprintf(word, sizeof word, "others %d %u", sibling, port);
    int status = run("jit", word, &refused);
    assert_int_equal(waitpid(sibling, NULL, WNOHANG), 0); /* it was there */
    kill(sibling, SIGKILL);
    waitpid(sibling, NULL, 0);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(status, 0);
}

static void try_all(const char *kind)
{
    bool refused;
    char text[128];
    assert_int_equal(run(kind, "calls", &refused), 0); /* else which one in jail_probe.c, counted from 1 */
    run(kind, "open", &refused);
    assert_true(refused);
    snprintf(text, sizeof text, SANDBOX_VIOLATION "%d\n", SYS_open);
    assert_non_null(strstr(said, text));
}

/* Of the programs and of each kind of their threads; what one may do and another may not is among it. */
static void test_each_forbidden_call_kills(void **state)
{
    static const char *const kinds[] = {"jit", "kvm", "vcpu", "loop", "disk", "api", "unpack"};
    (void)state;
    skip_without_namespaces();
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        try_all(kinds[i]);
}

static void test_unpacking_is_shut_into_its_folder(void **state)
{
    (void)state;
    bool refused;
    char outer[] = "/tmp/jail-test-XXXXXX";
    skip_without_namespaces();
    assert_non_null(mkdtemp(outer));
    int fds[] = {-1, open(outer, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    close(openat(fds[1], "secret", O_WRONLY | O_CREAT, 0644));
    assert_int_equal(mkdirat(fds[1], "folder", 0755), 0);
    fds[0] = openat(fds[1], "folder", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = run_with("unpack", "paths", fds, &refused);
    unlinkat(fds[0], "file", 0);
    unlinkat(fds[0], "pipe", 0);
    unlinkat(fds[1], "secret", 0);
    unlinkat(fds[1], "folder", AT_REMOVEDIR);
    assert_int_equal(rmdir(outer), 0);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(status, 0);
}

static void test_what_cannot_start_is_said(void **state)
{
    (void)state;
    char *argv[] = {"nothing", NULL};
    struct err err = {0};
    pid_t pid;
    struct sandbox_spec spec = {.program = "/nonexistent", .argv = argv, .log_fd = -1};
    assert_int_equal(sandbox_spawn(&spec, &pid, NULL, &err), -ENOENT);
    spec.program = "/etc/passwd"; /* not executable */
    assert_true(sandbox_spawn(&spec, &pid, NULL, &err) < 0);
    assert_non_null(strstr(err.message, "/etc/passwd"));
}

/* As far as this host has groups; what is missing is said. */
static void test_a_group_is_made_read_and_removed(void **state)
{
    (void)state;
    struct cgroup_host host;
    struct cgroup_limits limits = {.cpu_weight = 50, .memory_max = 64u << 20, .pids_max = 10};
    struct cgroup_usage usage;
    struct err err = {0};
    char *path = NULL;
    cgroup_host_init("polder-test", &host);
    assert_true(host.available == CGROUP_ALL || *host.message);
    print_message("cgroup: %s\n", *host.message ? host.message : "all controllers");
    if (cgroup_create(&host, "one", &limits, &path, &err) < 0)
        fail_msg("%s", err.message);
    if (path) {
        assert_int_equal(cgroup_read(path, &usage, &err), 0);
        assert_int_equal(cgroup_remove(path, &err), 0);
        assert_int_equal(cgroup_remove(path, &err), 0);
        rmdir(host.parent);
    }
    free(path);
    cgroup_host_free(&host);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_root_is_empty_and_nothing_is_inherited),
        cmocka_unit_test(test_siblings_and_sockets_are_out_of_reach),
        cmocka_unit_test(test_each_forbidden_call_kills),
        cmocka_unit_test(test_unpacking_is_shut_into_its_folder),
        cmocka_unit_test(test_what_cannot_start_is_said),
        cmocka_unit_test(test_a_group_is_made_read_and_removed),
    };
    probe = argc > 1 ? argv[1] : "";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
