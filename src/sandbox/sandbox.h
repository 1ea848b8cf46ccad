/* The jail: starts a program that has descriptors and nothing else.
 *
 * The child runs in its own user, mount, pid, ipc, net, uts and cgroup namespaces, as its own uid and gid, in a session of
 * its own, with no capability on the host, no new privileges, an empty environment and only the descriptors that were
 * given: 0 is /dev/null, 1 and 2 are the log, `fds` follow as 3, 4, ... It outlives its parent.
 *
 * Its root is emptied by the program itself, once the dynamic loader is done and before it reads any foreign byte:
 * sandbox_empty_root(), for which alone the child keeps CAP_SYS_ADMIN over its own namespaces. An empty root that the
 * parent makes would need every library of the program in it.
 *
 * Sources: namespaces(7), user_namespaces(7), capabilities(7), pivot_root(2). Thread-safe. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

#define SANDBOX_MAX_FDS 320

struct sandbox_spec {
    const char *program; /* a path; the caller finds it */
    char *const *argv;   /* NULL-terminated, argv[0] included; nothing secret, all users see it */
    const int *fds;      /* the child's 3, 4, ...; stay the caller's */
    unsigned fd_count;
    int log_fd;   /* the child's 1 and 2; -1: /dev/null */
    bool own_ids; /* run as uid and gid (needs privilege); otherwise as the caller */
    uid_t uid;
    gid_t gid;
    bool all_ids; /* for who makes files of any owner: knows all ids of the caller; if that is not root, it alone, as root */
    uint64_t capabilities; /* kept over its namespaces: bits by the numbers of linux/capability.h */
    const char *cgroup; /* folder of a cgroup v2 that the child is in from its first instruction; NULL: the caller's */
    int nice;           /* 0 to 19: where there is no cpu.weight */
    uint64_t file_size_max;     /* RLIMIT_FSIZE in bytes; 0: no limit */
    uint64_t locked_memory_max; /* RLIMIT_MEMLOCK in bytes, for keys; 0: 64 KiB */
    unsigned open_files_max;    /* RLIMIT_NOFILE; 0: 1024 */
    bool host_network;          /* stays in the caller's network namespace: for passt, never for a guest */
    bool host_root;             /* no CAP_SYS_ADMIN: the program does not call sandbox_empty_root() */
    bool may_weaken;            /* where the host refuses namespaces: run without them (sandbox_host_check says so) */
};

/* Starts the program. `ret_pidfd` may be NULL; it is close-on-exec and the caller's, as the child is to be waited for. An
 * error of exec in the child is reported here. */
must_check int sandbox_spawn(const struct sandbox_spec *spec, pid_t *ret_pid, int *ret_pidfd, struct err *err);

/* In the child, single-threaded: replaces the root by an empty read-only one and gives up every capability. Where the
 * program was started otherwise, it first makes a user and mount namespace of its own. With `keep_fd_names` the root
 * holds /proc/self/fd, for libraries that know files only by name. */
must_check int sandbox_empty_root(bool keep_fd_names, struct err *err);

/* Leaves the process the capabilities of `mask`, as in sandbox_spec, in all sets. -errno. */
must_check int sandbox_keep_capabilities(uint64_t mask);

/* What this host can do, for `polder system doctor`; `message` has one line about what is missing, or is empty. */
struct sandbox_host {
    bool namespaces, seccomp;
    int landlock_abi; /* 0: none */
    char message[ERR_MESSAGE_SIZE];
};
void sandbox_host_check(struct sandbox_host *ret_host);

/* What a program in a jail says last on standard error when its filter ends it; the call's number follows. */
#define SANDBOX_VIOLATION "killed for a system call that its jail forbids, number "

/* One line on how the child ended, of a wait status; a violation of its system call filter is named as such. */
void sandbox_describe_end(int wait_status, char *ret_text, unsigned size);
