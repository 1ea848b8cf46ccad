/* Start of the guest, the local APIC, other CPUs, time. */
#include "guest.h"

#define AP_START 0x8000ul
#define CPUS 32

extern uint8_t ap_trampoline[], ap_trampoline_end[];
extern uint64_t pvh_info, ap_stack;
void cpu_set_up(unsigned index);
void guest_start(void);
void guest_ap_start(void);

static struct work {
    void (*volatile fn)(void *arg);
    void *arg;
    volatile bool up;
} work[CPUS];
static volatile unsigned starting;

const char *command_line(void)
{
    return (const char *)*(uint64_t *)(pvh_info + 24);
}

unsigned cpu_count(void)
{
    for (const char *at = command_line(); *at; at++)
        if (!memcmp(at, "cpus=", 5))
            return (unsigned)(at[5] - '0') * (at[6] >= '0' && at[6] <= '9' ? 10 : 1) +
                   (at[6] >= '0' && at[6] <= '9' ? (unsigned)(at[6] - '0') : 0);
    return 1;
}

void guest_start(void)
{
    cpu_set_up(0);
    guest_main();
    finish();
}

void apic_enable(void)
{
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(APIC_SPURIOUS, 0x1ff);
}

void send_ipi(uint32_t apic_id, uint32_t command)
{
    wrmsr(APIC_ICR, (uint64_t)apic_id << 32 | command);
}

void guest_ap_start(void)
{
    unsigned index = starting;
    cpu_set_up(index);
    apic_enable();
    work[index].up = true;
    for (;;) {
        void (*fn)(void *arg) = work[index].fn;
        if (fn) {
            fn(work[index].arg);
            __atomic_store_n(&work[index].fn, NULL, __ATOMIC_RELEASE);
        }
        pause_cpu();
    }
}

static void start_cpu(unsigned index)
{
    starting = index;
    ap_stack = (uint64_t)alloc_pages(4) + 4 * PAGE;
    send_ipi(index, 0x4500); /* INIT */
    delay_us(200);
    send_ipi(index, 0x4600 | AP_START >> 12);
    uint64_t end = rdtsc() + tsc_khz() * 20000;
    while (!work[index].up && rdtsc() < end)
        pause_cpu();
    if (!work[index].up) {
        check(false, "CPU %u does not start", index);
        finish();
    }
}

void smp_start(void)
{
    apic_enable();
    memcpy((void *)AP_START, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    for (unsigned i = 1; i < cpu_count(); i++)
        start_cpu(i);
}

void smp_call(unsigned cpu, void (*fn)(void *arg), void *arg)
{
    work[cpu].arg = arg;
    __atomic_store_n(&work[cpu].fn, fn, __ATOMIC_RELEASE);
}

void smp_wait(unsigned cpu)
{
    while (__atomic_load_n(&work[cpu].fn, __ATOMIC_ACQUIRE))
        pause_cpu();
}

/* The hypervisor's timing leaf, or 1 GHz: delays may then be wrong, but nothing else is. */
uint64_t tsc_khz(void)
{
    struct cpuid top = cpuid(0x40000000, 0);
    uint32_t khz = top.eax >= 0x40000010 && top.eax < 0x40010000 ? cpuid(0x40000010, 0).eax : 0;
    return khz ? khz : 1000000;
}

void delay_us(uint64_t us)
{
    uint64_t end = rdtsc() + tsc_khz() * us / 1000;
    while (rdtsc() < end)
        pause_cpu();
}
