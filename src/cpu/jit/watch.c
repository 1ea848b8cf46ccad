/* Compiled for general registers only (fpu.h). */
#include "cpu/jit/watch.h"

#include "cpu/jit/mmu.h"

#define BREAKPOINTS 4u

/* What DR7 has a breakpoint wait for. */
enum breakpoint_kind { BREAK_EXECUTE, BREAK_WRITE, BREAK_PORT, BREAK_ACCESS };

static bool breakpoint_enabled(const struct jit_vcpu *cpu, unsigned i)
{
    return cpu->dr7 >> (2 * i) & 3;
}

static enum breakpoint_kind breakpoint_kind(const struct jit_vcpu *cpu, unsigned i)
{
    return cpu->dr7 >> (16 + 4 * i) & 3;
}

static uint64_t breakpoint_bytes(const struct jit_vcpu *cpu, unsigned i)
{
    static const uint8_t bytes[] = {1, 2, 8, 4};
    return bytes[cpu->dr7 >> (18 + 4 * i) & 3];
}

/* Does [start, start + size) touch the breakpoint's bytes? They start at a multiple of their number. */
static bool breakpoint_touches(const struct jit_vcpu *cpu, unsigned i, uint64_t start, uint64_t size)
{
    uint64_t bytes = breakpoint_bytes(cpu, i), first = cpu->dr[i] & ~(bytes - 1);
    return start - first < bytes || first - start < size;
}

void watch_alignment(struct jit_vcpu *cpu, uint64_t linear, unsigned alignment, unsigned access)
{
    bool checked = (cpu->cr0 & cpu->rflags & FLAG_AC) && cpu->cpl == 3 && !(access & (ACCESS_SYSTEM | ACCESS_UNALIGNED));
    if (checked && (linear & (alignment - 1)))
        vcpu_raise(cpu, VEC_AC, 0);
}

void watch_access(struct jit_vcpu *cpu, uint64_t linear, uint64_t size, unsigned access)
{
    watch_alignment(cpu, linear, watch_natural(size), access);
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        enum breakpoint_kind kind = breakpoint_kind(cpu, i);
        bool waits = kind == BREAK_ACCESS || (kind == BREAK_WRITE && (access & ACCESS_WRITE));
        if (waits && breakpoint_enabled(cpu, i) && breakpoint_touches(cpu, i, linear, size))
            cpu->debug_pending |= (uint16_t)(1u << i);
    }
}

void watch_port(struct jit_vcpu *cpu, uint16_t port, unsigned size)
{
    if (!(cpu->cr4 & CR4_DE))
        return;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (breakpoint_kind(cpu, i) == BREAK_PORT && breakpoint_enabled(cpu, i) && breakpoint_touches(cpu, i, port, size))
            cpu->debug_pending |= (uint16_t)(1u << i);
}

static _Noreturn void raise_pending(struct jit_vcpu *cpu)
{
    struct jit_exception exception = {.vector = VEC_DB, .dr6 = cpu->debug_pending};
    cpu->debug_pending = 0;
    vcpu_raise_exception(cpu, exception);
}

void watch_fetch(struct jit_vcpu *cpu, uint64_t linear)
{
    if (cpu->debug_shadow)
        return;
    if (cpu->debug_pending)
        raise_pending(cpu);
    if (!(cpu->dr7 & DR7_ENABLED) || (cpu->rflags & FLAG_RF))
        return;
    uint64_t met = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (breakpoint_kind(cpu, i) == BREAK_EXECUTE && breakpoint_enabled(cpu, i) && cpu->dr[i] == linear)
            met |= UINT64_C(1) << i;
    if (met)
        vcpu_raise_exception(cpu, (struct jit_exception){.vector = VEC_DB, .dr6 = met});
}

void watch_retired(struct jit_vcpu *cpu)
{
    if (cpu->debug_pending && !cpu->debug_shadow)
        raise_pending(cpu);
}
