/* kvmclock: ((tsc - tsc_timestamp) << shift) * mul >> 32 + system_time is nanoseconds since the clock began.
 *
 * Here the clock is the guest's TSC in nanoseconds: tsc_timestamp is what the guest itself added to its TSC (TSC_ADJUST) and
 * system_time is 0. So it needs no base of its own, all vCPUs agree as long as their TSCs do, and it goes on from a saved
 * TSC on any host. Compiled for general registers only: fpu_save() comes before other code is called. */
#include "cpu/jit/kvmclock.h"

#include <stdint.h>
#include <time.h>

#include "base/bytes.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/vcpu.h"
#include "mem/mem.h"

#define NS_PER_S UINT64_C(1000000000)
#define KVMCLOCK_ENABLE UINT64_C(1)
#define TSC_STABLE 1u
#define TIME_INFO_SIZE 32
#define WALL_CLOCK_SIZE 12

/* ns = (tsc << shift) * mul >> 32; a negative shift goes right. */
struct scale {
    uint32_t mul;
    int shift;
};

/* With mul's top bit set, for precision. */
static struct scale tsc_scale(void)
{
    uint64_t hz = host_tsc_khz() * 1000;
    int shift = 0;
    for (; hz > 2 * NS_PER_S; shift--)
        hz >>= 1;
    for (; hz && hz <= NS_PER_S; shift++)
        hz <<= 1;
    /* 1e9 < hz <= 2e9, so the quotient fits in 32 bits. */
    return (struct scale){.mul = hz ? (uint32_t)((NS_PER_S << 32) / hz) : 0, .shift = shift};
}

/* What the guest computes from its structure. */
static uint64_t guest_clock_ns(const struct jit_vcpu *cpu)
{
    struct scale scale = tsc_scale();
    uint64_t delta = vcpu_read_tsc(cpu) - cpu->tsc_adjust;
    delta = scale.shift < 0 ? delta >> -scale.shift : delta << scale.shift;
    return (uint64_t)((unsigned __int128)delta * scale.mul >> 32);
}

/* The guest takes an odd version for "being written". */
static void put_structure(struct jit_vcpu *cpu, uint64_t gpa, uint8_t *bytes, size_t len)
{
    uint8_t version_bytes[4] = {0};
    if (mem_read(cpu->mem, gpa, version_bytes, sizeof version_bytes) < 0)
        return;
    uint32_t version = (load_le32(version_bytes) | 1) + 2;
    store_le32(bytes, version);
    store_le32(version_bytes, version + 1);
    if (mem_write(cpu->mem, gpa, bytes, len) < 0)
        return;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    if (mem_write(cpu->mem, gpa, version_bytes, sizeof version_bytes) < 0)
        return; /* cannot be: it is part of the range just written */
}

void kvmclock_update(struct jit_vcpu *cpu)
{
    if (!(cpu->kvm_system_time & KVMCLOCK_ENABLE))
        return;
    fpu_save(cpu);
    struct scale scale = tsc_scale();
    /* struct pvclock_vcpu_time_info: version, pad, tsc_timestamp, system_time, mul, shift, flags, pad */
    uint8_t info[TIME_INFO_SIZE] = {0};
    store_le64(info + 8, cpu->tsc_adjust);
    store_le32(info + 24, scale.mul);
    info[28] = (uint8_t)scale.shift;
    info[29] = TSC_STABLE;
    put_structure(cpu, cpu->kvm_system_time & ~KVMCLOCK_ENABLE, info, sizeof info);
}

void kvmclock_enable(struct jit_vcpu *cpu)
{
    kvmclock_update(cpu);
}

void kvmclock_write_wall_clock(struct jit_vcpu *cpu)
{
    fpu_save(cpu);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t real_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
    /* struct pvclock_wall_clock: version, sec, nsec: the real time at which the clock was 0. */
    uint64_t epoch = real_ns - guest_clock_ns(cpu);
    uint8_t wall[WALL_CLOCK_SIZE] = {0};
    store_le32(wall + 4, (uint32_t)(epoch / NS_PER_S));
    store_le32(wall + 8, (uint32_t)(epoch % NS_PER_S));
    put_structure(cpu, cpu->kvm_wall_clock, wall, sizeof wall);
}
