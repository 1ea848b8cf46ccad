/* Limits of one instance: a cgroup v2 below a given parent.
 *
 * Where the host has no cgroup v2, or not with these controllers (they are bound to v1, or not delegated), what is left
 * works: a group is made with the controllers that there are, or none at all, and cgroup_host_check says what is missing.
 * Sources: Linux Documentation/admin-guide/cgroup-v2.rst. Thread-safe. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

enum cgroup_controller { CGROUP_CPU = 1, CGROUP_MEMORY = 2, CGROUP_PIDS = 4, CGROUP_ALL = 7 };

struct cgroup_host {
    char *parent;                   /* folder below which instances' groups are made; NULL: no cgroup v2 here */
    unsigned available;             /* enum cgroup_controller that groups below it have */
    char message[ERR_MESSAGE_SIZE]; /* what is missing and why, one line; empty when all is there */
    const char *cure;               /* of that, one line; NULL when all is there */
};

/* 0: a limit that is not set. */
struct cgroup_limits {
    unsigned cpu_weight;   /* 1 to 10000; the kernel's default is 100 */
    uint64_t cpu_quota_us; /* of CPU time a period of 100 ms: 100000 is one CPU */
    uint64_t memory_max;   /* bytes */
    uint64_t memory_high;  /* bytes: reclaim and slow down above */
    uint64_t pids_max;
};

struct cgroup_usage {
    uint64_t cpu_us;       /* CPU time used */
    uint64_t throttled_us; /* time that the quota held it back */
    uint64_t memory_bytes, memory_peak_bytes;
    uint64_t oom_kills;
};

/* Finds or makes the parent `name` (such as "polder") in the caller's own cgroup v2, or at its top for root, and delegates the
 * controllers to it; unless it is root, the caller moves into the group `name`-daemon beside it. Never fails: what cannot be had is in
 * the message. */
void cgroup_host_init(const char *name, struct cgroup_host *ret_host);
void cgroup_host_free(struct cgroup_host *host);

/* Makes the group `name` (or takes the one that is there) and sets the limits whose controllers are available.
 * *ret_path is the caller's, for sandbox_spec.cgroup and the functions below; NULL when the host has no groups. */
must_check int cgroup_create(const struct cgroup_host *host, const char *name, const struct cgroup_limits *limits,
                             char **ret_path, struct err *err);
must_check int cgroup_set(const struct cgroup_host *host, const char *path, const struct cgroup_limits *limits,
                          struct err *err);
/* What is not counted stays 0. */
must_check int cgroup_read(const char *path, struct cgroup_usage *ret_usage, struct err *err);
/* Ends what is left in the group and removes it; a group that is not there is fine. */
must_check int cgroup_remove(const char *path, struct err *err);
