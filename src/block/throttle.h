/* How a group of disks shares a limit: mClock (Gulati, Merchant, Varman: "mClock: Handling Throughput Variability for
 * Hypervisor IO Scheduling", OSDI 2010). docs/algorithms/io-scheduling.md has the formulas.
 *
 * A group has limits on bytes and requests a second, for reads, writes and both together, each with a burst of a stated
 * length. Its members, one a disk, each have a reservation (requests a second that it gets before anybody else gets more),
 * a weight (its part of what the group has left) and a limit of its own. The disk's thread asks before each request; a
 * request that must wait stays with the disk, which is woken when its turn has come.
 * Time is the caller's: nanoseconds of CLOCK_MONOTONIC, so that tests can make their own. Threads: any; one lock a group. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct throttle_group;
struct throttle_member;

/* What is limited; the names that options have for it, in this order: bps, read-bps, write-bps, iops, read-iops, write-iops. */
enum throttle_kind {
    THROTTLE_BPS,
    THROTTLE_READ_BPS,
    THROTTLE_WRITE_BPS,
    THROTTLE_IOPS,
    THROTTLE_READ_IOPS,
    THROTTLE_WRITE_IOPS,
    THROTTLE_KINDS
};

/* `rate` a second, for ever; up to `burst` a second for `burst_s` seconds when little was used before. */
struct throttle_rate {
    uint64_t rate;     /* 0: no limit */
    uint64_t burst;    /* 0: none; else above rate */
    unsigned burst_s;  /* 0: one second */
};

struct throttle_limits {
    struct throttle_rate rates[THROTTLE_KINDS];
};

/* In requests of up to THROTTLE_REQUEST_BYTES; a longer one counts as several. */
#define THROTTLE_REQUEST_BYTES 65536u

struct throttle_share {
    uint64_t reservation; /* requests a second; 0: none */
    uint64_t limit;       /* requests a second; 0: none */
    unsigned weight;      /* 1 to 10000; 0: 100 */
};

const char *throttle_kind_name(enum throttle_kind kind);
/* One line about what cannot be: a burst below its rate, reservations of `count` shares above the group's iops, ... */
must_check int throttle_check(const struct throttle_limits *limits, const struct throttle_share *shares, unsigned count,
                              struct err *err);

/* NULL when memory is out. */
struct throttle_group *throttle_group_new(const struct throttle_limits *limits);
/* Without members. NULL is fine. */
void throttle_group_free(struct throttle_group *group);
/* At any time: what waits is asked again, and what was used beyond the new slack is forgiven, so that a new pace holds at once. */
void throttle_group_set(struct throttle_group *group, const struct throttle_limits *limits, uint64_t now_ns);

/* `wake(arg)`: from any thread, with the group's lock held: asks again soon. NULL when memory is out. */
struct throttle_member *throttle_join(struct throttle_group *group, const struct throttle_share *share,
                                      void (*wake)(void *arg), void *arg);
/* As throttle_group_set, for the part of one member. */
void throttle_set_share(struct throttle_member *member, const struct throttle_share *share, uint64_t now_ns);
void throttle_leave(struct throttle_member *member); /* NULL is fine */

/* One request of `bytes`, the first that the member has: 0 when it may go, and is accounted for. Otherwise it waits: the time
 * in ns after which to ask again, at the latest; earlier when woken. A member has one request waiting at a time; one that it
 * does not ask for again within 10 ms of its turn gives its turn up. */
uint64_t throttle_take(struct throttle_member *member, bool is_write, uint64_t bytes, uint64_t now_ns);
