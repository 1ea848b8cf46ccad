/* Several CPUs: start, IPIs of all kinds, locked operations, ordering, TLB shootdown, restart by INIT. */
#include "lib/guest.h"

#define VECTOR 0x70
#define VA 0x200000000000ul

static volatile unsigned received[32];
static volatile unsigned nmis[32];

static bool on_ipi(struct trap_frame *frame)
{
    (void)frame;
    received[this_cpu()->apic_id]++;
    apic_eoi();
    return true;
}

static bool on_nmi(struct trap_frame *frame)
{
    (void)frame;
    nmis[this_cpu()->apic_id]++;
    return true;
}

static volatile bool stop;

static void wait_with_interrupts(void *arg)
{
    (void)arg;
    enable_interrupts();
    while (!stop)
        pause_cpu();
    disable_interrupts();
}

static void wait_halted(void *arg)
{
    unsigned *from = arg;
    while (received[this_cpu()->apic_id] == *from)
        halt();
}

static bool wait_for(volatile unsigned *value, unsigned wanted)
{
    uint64_t end = rdtsc() + tsc_khz() * 5000;
    while (*value < wanted && rdtsc() < end)
        pause_cpu();
    return *value >= wanted;
}

static void test_ipis(void)
{
    unsigned n = cpu_count();
    trap_handlers[VECTOR] = on_ipi;
    trap_handlers[NMI] = on_nmi;
    stop = false;
    for (unsigned i = 1; i < n; i++)
        smp_call(i, wait_with_interrupts, NULL);
    for (unsigned i = 1; i < n; i++) {
        send_ipi(i, VECTOR);
        check(wait_for(&received[i], 1), "IPI to CPU %u", i);
    }
    send_ipi(0, 0xc0000 | VECTOR);
    for (unsigned i = 1; i < n; i++)
        check(wait_for(&received[i], 2), "broadcast reaches CPU %u", i);
    check_equal(received[0], 0, "and not the sender");
    for (unsigned i = 1; i < n; i++) {
        send_ipi(1u << i, 0x800 | VECTOR); /* logical, cluster 0 */
        check(wait_for(&received[i], 3), "logical IPI to CPU %u", i);
    }
    send_ipi(0, 0xc0400); /* NMI */
    for (unsigned i = 1; i < n; i++)
        check(wait_for(&nmis[i], 1), "NMI reaches CPU %u", i);
    stop = true;
    for (unsigned i = 1; i < n; i++)
        smp_wait(i);
}

static void test_wake(void)
{
    for (unsigned i = 1; i < cpu_count(); i++) {
        unsigned from = received[i];
        smp_call(i, wait_halted, &from);
        delay_us(2000);
        send_ipi(i, VECTOR);
        smp_wait(i);
        check_equal(received[i], from + 1, "IPI wakes a halted CPU");
    }
}

static volatile uint64_t counter, plain_lock, guarded;
#define ROUNDS 20000u

static void count_up(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("lock incq %0" : "+m"(counter));
        while (__atomic_exchange_n(&plain_lock, 1, __ATOMIC_ACQUIRE))
            pause_cpu();
        guarded++;
        __atomic_store_n(&plain_lock, 0, __ATOMIC_RELEASE);
    }
}

static void test_atomics(void)
{
    unsigned n = cpu_count();
    for (unsigned i = 1; i < n; i++)
        smp_call(i, count_up, NULL);
    count_up(NULL);
    for (unsigned i = 1; i < n; i++)
        smp_wait(i);
    check_equal(counter, (uint64_t)n * ROUNDS, "locked increments");
    check_equal(guarded, (uint64_t)n * ROUNDS, "increments under a lock");
}

/* Another CPU reads through a mapping while this one changes it and tells it to flush. */
static volatile uint64_t flush_request, flush_done, mismatches;

static bool on_flush(struct trap_frame *frame)
{
    (void)frame;
    invlpg(VA);
    flush_done = flush_request;
    apic_eoi();
    return true;
}

static void read_mapping(void *arg)
{
    (void)arg;
    enable_interrupts();
    while (!stop) {
        uint64_t before = flush_done, value = *(volatile uint64_t *)VA, after = flush_done;
        if (before == after && value != after && value != after + 1)
            mismatches++;
    }
    disable_interrupts();
}

static void test_shootdown(void)
{
    if (cpu_count() < 2)
        return;
    uint64_t pages[2] = {(uint64_t)alloc_pages(1), (uint64_t)alloc_pages(1)};
    trap_handlers[VECTOR + 1] = on_flush;
    map_page(VA, pages[0], 1, P_PRESENT | P_WRITE);
    stop = false;
    smp_call(1, read_mapping, NULL);
    for (uint64_t i = 1; i <= 300; i++) {
        *(volatile uint64_t *)pages[i & 1] = i;
        *page_entry(VA, 1) = pages[i & 1] | P_PRESENT | P_WRITE;
        flush_request = i;
        send_ipi(1, VECTOR + 1);
        uint64_t end = rdtsc() + tsc_khz() * 5000;
        while (flush_done != i && rdtsc() < end)
            pause_cpu();
        check_equal(flush_done, i, "flush on the other CPU");
    }
    stop = true;
    smp_wait(1);
    check_equal(mismatches, 0, "reads through a stale mapping");
}

static volatile uint32_t seen_id[32];

static void record_id(void *arg)
{
    (void)arg;
    seen_id[this_cpu()->apic_id] = (uint32_t)rdmsr(APIC_ID) + 1;
}

static void test_ids(void)
{
    for (unsigned i = 1; i < cpu_count(); i++) {
        smp_call(i, record_id, NULL);
        smp_wait(i);
        check_equal(seen_id[i], i + 1, "APIC id + 1 of the other CPU");
    }
}

void guest_main(void)
{
    smp_start();
    test_ids();
    test_ipis();
    test_wake();
    test_atomics();
    test_shootdown();
}
