/* Time: the TSC and kvmclock never step back, over all CPUs, and agree with each other and the RTC. */
#include "lib/guest.h"

#define KVM_WALL_CLOCK 0x4b564d00u
#define KVM_SYSTEM_TIME 0x4b564d01u
#define TSC_STABLE 1u
#define ROUNDS 3000u

struct kvm_time {
    volatile uint32_t version;
    uint32_t pad0;
    volatile uint64_t tsc_timestamp, system_time;
    volatile uint32_t tsc_to_system_mul;
    volatile int8_t tsc_shift;
    volatile uint8_t flags;
    uint8_t pad[2];
} __attribute__((packed, aligned(32)));

static struct kvm_time times[32];
static volatile uint32_t lock;
static volatile uint64_t last_tsc, last_ns, own_last_ns[32], backwards, torn;
static bool has_kvmclock;

static uint64_t read_clock(const struct kvm_time *t)
{
    for (unsigned tries = 0;; tries++) {
        uint32_t version = t->version;
        __asm__ volatile("lfence" ::: "memory");
        uint64_t delta = rdtsc() - t->tsc_timestamp;
        delta = t->tsc_shift >= 0 ? delta << t->tsc_shift : delta >> -t->tsc_shift;
        uint64_t ns = t->system_time + (uint64_t)(((unsigned __int128)delta * t->tsc_to_system_mul) >> 32);
        __asm__ volatile("lfence" ::: "memory");
        if (!(version & 1) && version == t->version)
            return ns;
        if (tries > 1000000) {
            torn++;
            return ns;
        }
    }
}

static void enter(void)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        pause_cpu();
}

static void leave(void)
{
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

/* Without TSC_STABLE the clock is monotonic on each CPU alone. */
static void watch(void *arg)
{
    struct kvm_time *mine = &times[(uint64_t)arg];
    if (has_kvmclock)
        wrmsr(KVM_SYSTEM_TIME, (uint64_t)mine | 1);
    volatile uint64_t *last = mine->flags & TSC_STABLE ? &last_ns : &own_last_ns[(uint64_t)arg];
    for (unsigned i = 0; i < ROUNDS; i++) {
        enter();
        uint64_t tsc = rdtsc(), ns = has_kvmclock ? read_clock(mine) : 0;
        backwards += tsc < last_tsc || ns < *last;
        last_tsc = tsc;
        *last = ns;
        leave();
    }
}

static void test_monotonic(void)
{
    for (unsigned i = 1; i < cpu_count(); i++)
        smp_call(i, watch, (void *)(uint64_t)i);
    watch(NULL);
    for (unsigned i = 1; i < cpu_count(); i++)
        smp_wait(i);
    check_equal(backwards, 0, "steps back");
    check_equal(torn, 0, "clock pages that never settled");
    if (has_kvmclock && !(times[0].flags & TSC_STABLE))
        skip("kvmclock over CPUs: the host's TSC is not stable");
}

static uint64_t tsc_ns(uint64_t ticks)
{
    return ticks * 1000 / tsc_khz() * 1000;
}

/* The vCPU may lose its CPU between any two reads, so the TSC only bounds the time from both sides. */
static void test_rate(const struct kvm_time *t)
{
    uint64_t before0 = rdtsc(), ns0 = read_clock(t), after0 = rdtsc();
    delay_us(50000);
    uint64_t before1 = rdtsc(), ns1 = read_clock(t), after1 = rdtsc();
    uint64_t least = tsc_ns(before1 - after0), most = tsc_ns(after1 - before0), by_clock = ns1 - ns0, slack = by_clock / 50 + 100000;
    check(by_clock + slack > least && by_clock < most + slack, "kvmclock says %lu ns, the TSC %lu to %lu ns", by_clock, least, most);
}

static void test_kvmclock(void)
{
    struct kvm_time *t = &times[0];
    check(!(t->version & 1), "version is even");
    check(t->tsc_to_system_mul, "a multiplier");
    test_rate(t);
    static struct {
        volatile uint32_t version, seconds, nanoseconds;
    } wall;
    wrmsr(KVM_WALL_CLOCK, (uint64_t)&wall);
    check(!(wall.version & 1) && wall.seconds > 1700000000u && wall.nanoseconds < 1000000000u, "wall clock at boot: %u s",
          wall.seconds);
    wrmsr(KVM_SYSTEM_TIME, 0);
    uint32_t version = t->version;
    delay_us(20000);
    check_equal(t->version, version, "a page switched off is not written any more");
}

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static unsigned from_bcd(uint8_t value)
{
    return (value >> 4) * 10u + (value & 15u);
}

static void test_rtc(void)
{
    uint64_t end = rdtsc() + tsc_khz() * 3000;
    uint8_t start = cmos(0);
    while (cmos(0) == start && rdtsc() < end)
        pause_cpu();
    uint8_t next = cmos(0);
    check(next != start, "the RTC's seconds move");
    check(from_bcd(cmos(7)) >= 1 && from_bcd(cmos(7)) <= 31 && from_bcd(cmos(8)) >= 1 && from_bcd(cmos(8)) <= 12,
          "RTC date: day %x month %x", cmos(7), cmos(8));
    check_equal(cmos(0x32), 0x20, "century");
    check(cmos(0xd) & 0x80, "RTC valid");
}

void guest_main(void)
{
    smp_start();
    struct cpuid top = cpuid(0x40000000, 0);
    has_kvmclock = top.ebx == 0x4b4d564b && cpuid(0x40000001, 0).eax & 1u << 3;
    test_monotonic();
    if (has_kvmclock)
        test_kvmclock();
    else
        skip("no kvmclock");
    test_rtc();
}
