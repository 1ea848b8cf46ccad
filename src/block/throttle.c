/* Every rate is a GCRA (ITU-T I.371, the virtual scheduling form of the leaky bucket): `next_ns` is when the next unit would
 * come at an even pace; a request may go while that is at most `slack_ns` ahead of the clock, and moves it by its cost. A
 * burst is a large slack, and a second GCRA for the pace within the burst.
 *
 * mClock gives each waiting request tags: the times at which its member's reservation and limit would let it go at an even
 * pace, and its place by weight. When the group's rates let something go, it is the request with the earliest reservation tag
 * that is due; without one, of those whose limit tag is due, the one with the first place. Places are start tags of
 * start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), in virtual time: that of the place that was served last. */
#include "block/throttle.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#define SECOND_NS 1000000000.0
#define SLACK_NS 1e8            /* requests are let go in lots of up to a tenth of a second's worth */
#define TURN_NS UINT64_C(10000000) /* how long a turn is kept for a member that was woken */
#define WEIGHT_DEFAULT 100

struct pace {
    double unit_ns; /* 0: no limit */
    double slack_ns, next_ns;
};

struct rate {
    struct pace even, peak;
};

struct throttle_member {
    struct throttle_group *group;
    struct throttle_member *next;
    struct throttle_share share;
    void (*wake)(void *arg);
    void *arg;
    double reservation_ns, limit_ns; /* the tags: of the request that waits, or of the last one */
    double place, next_place;        /* in virtual time, requests by weight */
    bool waits, is_write;
    uint64_t bytes;
    uint64_t offered_ns; /* when it was woken for its turn; 0: was not */
};

struct throttle_group {
    pthread_mutex_t lock;
    struct rate rates[THROTTLE_KINDS];
    double served_place;
    struct throttle_member *members;
};

static const char *const kind_names[THROTTLE_KINDS] = {"bps", "read-bps", "write-bps", "iops", "read-iops", "write-iops"};

const char *throttle_kind_name(enum throttle_kind kind)
{
    return kind_names[kind];
}

/* ---- rates ---- */

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

static void pace_set(struct pace *pace, double rate, double slack_ns, double now_ns)
{
    pace->unit_ns = rate > 0 ? SECOND_NS / rate : 0;
    pace->slack_ns = slack_ns;
    pace->next_ns = smaller(pace->next_ns, now_ns + slack_ns);
}

static void rate_set(struct rate *rate, const struct throttle_rate *limit, double now_ns)
{
    double length_s = limit->burst_s ? limit->burst_s : 1;
    double ahead = limit->burst ? (double)(limit->burst - limit->rate) * length_s / (double)limit->rate : 0;
    pace_set(&rate->even, (double)limit->rate, ahead > 0 ? ahead * SECOND_NS : SLACK_NS, now_ns);
    pace_set(&rate->peak, (double)limit->burst, SLACK_NS, now_ns);
}

/* How long until `pace` lets something go; 0: now. */
static double pace_wait(const struct pace *pace, double now_ns)
{
    double wait_ns = pace->next_ns - pace->slack_ns - now_ns;
    return pace->unit_ns > 0 && wait_ns > 0 ? wait_ns : 0;
}

static void pace_take(struct pace *pace, double units, double now_ns)
{
    if (pace->unit_ns > 0)
        pace->next_ns = (pace->next_ns > now_ns ? pace->next_ns : now_ns) + units * pace->unit_ns;
}

static bool kind_counts(enum throttle_kind kind, bool is_write)
{
    switch (kind) {
    case THROTTLE_BPS:
    case THROTTLE_IOPS: return true;
    case THROTTLE_READ_BPS:
    case THROTTLE_READ_IOPS: return !is_write;
    case THROTTLE_WRITE_BPS:
    case THROTTLE_WRITE_IOPS: return is_write;
    case THROTTLE_KINDS: break;
    }
    return false;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static double group_wait(const struct throttle_group *group, const struct throttle_member *m, double now_ns)
{
    double wait_ns = 0;
    for (enum throttle_kind kind = 0; kind < THROTTLE_KINDS; kind++) {
        if (!kind_counts(kind, m->is_write))
            continue;
        const struct rate *rate = &group->rates[kind];
        wait_ns = larger(wait_ns, larger(pace_wait(&rate->even, now_ns), pace_wait(&rate->peak, now_ns)));
    }
    return wait_ns;
}

static void group_take(struct throttle_group *group, const struct throttle_member *m, double now_ns)
{
    for (enum throttle_kind kind = 0; kind < THROTTLE_KINDS; kind++) {
        if (!kind_counts(kind, m->is_write))
            continue;
        double units = kind < THROTTLE_IOPS ? (double)m->bytes : 1;
        pace_take(&group->rates[kind].even, units, now_ns);
        pace_take(&group->rates[kind].peak, units, now_ns);
    }
}

/* ---- tags ---- */

static double cost(uint64_t bytes)
{
    return bytes > THROTTLE_REQUEST_BYTES ? (double)bytes / THROTTLE_REQUEST_BYTES : 1;
}

static double tag(double last_ns, double rate, double units, double now_ns)
{
    return larger(last_ns + units * SECOND_NS / rate, now_ns);
}

static void take_place(struct throttle_member *m, double units)
{
    m->place = larger(m->next_place, m->group->served_place); /* what it did not ask for is not owed to it */
    m->next_place = m->place + units / m->share.weight;
}

static void begin_waiting(struct throttle_member *m, uint64_t bytes, double now_ns)
{
    double units = cost(bytes);
    m->waits = true;
    m->offered_ns = 0;
    take_place(m, units);
    if (m->share.reservation)
        m->reservation_ns = tag(m->reservation_ns, (double)m->share.reservation, units, now_ns);
    if (m->share.limit)
        m->limit_ns = tag(m->limit_ns, (double)m->share.limit, units, now_ns);
}

/* It goes by its weight: what it has reserved is still its own. */
static void go_by_weight(struct throttle_member *m)
{
    m->group->served_place = m->place;
    if (m->share.reservation)
        m->reservation_ns -= cost(m->bytes) * SECOND_NS / (double)m->share.reservation;
}

static bool missed_its_turn(const struct throttle_member *m, uint64_t now_ns)
{
    return m->offered_ns && now_ns - m->offered_ns > TURN_NS;
}

/* Whose turn it is; NULL: nobody's before *ret_wait_ns from now. */
static struct throttle_member *choose(struct throttle_group *group, uint64_t now_ns, bool *ret_by_weight, double *ret_wait_ns)
{
    struct throttle_member *reserved = NULL, *weighed = NULL;
    double now = (double)now_ns, wait_ns = SECOND_NS;
    for (struct throttle_member *m = group->members; m; m = m->next) {
        if (m->waits && missed_its_turn(m, now_ns))
            m->waits = false;
        if (!m->waits)
            continue;
        double group_ns = group_wait(group, m, now), limit_ns = m->share.limit ? larger(m->limit_ns - now, 0) : 0;
        bool due = m->share.reservation && m->reservation_ns <= now;
        double own_ns = larger(group_ns, due ? 0 : limit_ns);
        if (own_ns > 0)
            wait_ns = smaller(wait_ns, own_ns);
        else if (due && (!reserved || m->reservation_ns < reserved->reservation_ns))
            reserved = m;
        else if (!due && (!weighed || m->place < weighed->place))
            weighed = m;
    }
    *ret_by_weight = !reserved;
    *ret_wait_ns = wait_ns;
    return reserved ? reserved : weighed;
}

/* Tells the member whose turn it is, unless it is `self`, which is asking. */
static void offer(struct throttle_member *m, const struct throttle_member *self, uint64_t now_ns)
{
    if (!m || m == self || m->offered_ns)
        return;
    m->offered_ns = now_ns;
    m->wake(m->arg);
}

uint64_t throttle_take(struct throttle_member *m, bool is_write, uint64_t bytes, uint64_t now_ns)
{
    struct throttle_group *group = m->group;
    bool by_weight;
    double wait_ns;
    pthread_mutex_lock(&group->lock);
    if (!m->waits)
        begin_waiting(m, bytes, (double)now_ns);
    else if (missed_its_turn(m, now_ns))
        m->offered_ns = now_ns; /* here it is, after all */
    m->is_write = is_write; /* of several queues, another one may ask this time */
    m->bytes = bytes;
    struct throttle_member *chosen = choose(group, now_ns, &by_weight, &wait_ns);
    if (chosen == m) {
        if (by_weight)
            go_by_weight(m);
        group_take(group, m, (double)now_ns);
        m->waits = false;
        m->offered_ns = 0;
        chosen = choose(group, now_ns, &by_weight, &wait_ns);
        wait_ns = 0;
    } else if (chosen) {
        wait_ns = (double)TURN_NS; /* it lets us know sooner, unless it is gone */
    }
    offer(chosen, m, now_ns);
    pthread_mutex_unlock(&group->lock);
    return wait_ns > 0 && wait_ns < 1 ? 1 : (uint64_t)wait_ns;
}

/* ---- groups and members ---- */

static int check_rate(enum throttle_kind kind, const struct throttle_rate *rate, struct err *err)
{
    const char *name = kind_names[kind];
    if (rate->burst && !rate->rate)
        return err_say(err, EINVAL, "a burst of %s needs a rate: %s=NUMBER", name, name);
    if (rate->burst && rate->burst <= rate->rate)
        return err_say(err, EINVAL, "a burst of %llu %s must be above the rate, %llu", (unsigned long long)rate->burst, name,
                       (unsigned long long)rate->rate);
    if (rate->rate > UINT64_C(1) << 50 || rate->burst > UINT64_C(1) << 50 || rate->burst_s > 3600)
        return err_say(err, EINVAL, "%s: give a rate of at most 2^50 a second and a burst of at most 3600 seconds", name);
    return 0;
}

int throttle_check(const struct throttle_limits *limits, const struct throttle_share *shares, unsigned count, struct err *err)
{
    uint64_t reserved = 0, iops = limits->rates[THROTTLE_IOPS].rate;
    for (enum throttle_kind kind = 0; kind < THROTTLE_KINDS; kind++) {
        int r = check_rate(kind, &limits->rates[kind], err);
        if (r < 0)
            return r;
    }
    for (unsigned i = 0; i < count; i++) {
        if (shares[i].weight > 10000)
            return err_say(err, EINVAL, "a weight of %u: give 1 to 10000", shares[i].weight);
        if (shares[i].limit && shares[i].limit < shares[i].reservation)
            return err_say(err, EINVAL, "a limit of %llu requests a second is below the reservation, %llu",
                           (unsigned long long)shares[i].limit, (unsigned long long)shares[i].reservation);
        reserved += shares[i].reservation;
    }
    if (iops && reserved > iops)
        return err_say(err, EINVAL, "%llu requests a second are reserved, the group has %llu", (unsigned long long)reserved,
                       (unsigned long long)iops);
    return 0;
}

static void set_rates(struct throttle_group *group, const struct throttle_limits *limits, uint64_t now_ns)
{
    for (enum throttle_kind kind = 0; kind < THROTTLE_KINDS; kind++)
        rate_set(&group->rates[kind], &limits->rates[kind], (double)now_ns);
}

static void ask_again(struct throttle_group *group)
{
    for (struct throttle_member *m = group->members; m; m = m->next) {
        if (m->waits)
            m->wake(m->arg);
    }
}

struct throttle_group *throttle_group_new(const struct throttle_limits *limits)
{
    struct throttle_group *group = calloc(1, sizeof *group);
    if (!group)
        return NULL;
    pthread_mutex_init(&group->lock, NULL);
    set_rates(group, limits, 0);
    return group;
}

void throttle_group_free(struct throttle_group *group)
{
    if (!group)
        return;
    pthread_mutex_destroy(&group->lock);
    free(group);
}

void throttle_group_set(struct throttle_group *group, const struct throttle_limits *limits, uint64_t now_ns)
{
    pthread_mutex_lock(&group->lock);
    set_rates(group, limits, now_ns);
    ask_again(group);
    pthread_mutex_unlock(&group->lock);
}

static void share_set(struct throttle_member *m, const struct throttle_share *share)
{
    m->share = *share;
    if (!m->share.weight)
        m->share.weight = WEIGHT_DEFAULT;
}

void throttle_set_share(struct throttle_member *m, const struct throttle_share *share, uint64_t now_ns)
{
    pthread_mutex_lock(&m->group->lock);
    share_set(m, share);
    m->next_place = m->group->served_place; /* as one that is new: nothing owed, nothing due */
    if (m->waits)
        take_place(m, cost(m->bytes));
    m->reservation_ns = smaller(m->reservation_ns, (double)now_ns);
    m->limit_ns = smaller(m->limit_ns, (double)now_ns);
    ask_again(m->group);
    pthread_mutex_unlock(&m->group->lock);
}

struct throttle_member *throttle_join(struct throttle_group *group, const struct throttle_share *share, void (*wake)(void *arg),
                                      void *arg)
{
    struct throttle_member *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    *m = (struct throttle_member){.group = group, .wake = wake, .arg = arg};
    share_set(m, share);
    pthread_mutex_lock(&group->lock);
    m->next = group->members;
    group->members = m;
    pthread_mutex_unlock(&group->lock);
    return m;
}

void throttle_leave(struct throttle_member *member)
{
    if (!member)
        return;
    struct throttle_group *group = member->group;
    pthread_mutex_lock(&group->lock);
    struct throttle_member **at = &group->members;
    while (*at != member)
        at = &(*at)->next;
    *at = member->next;
    ask_again(group);
    pthread_mutex_unlock(&group->lock);
    free(member);
}
