/* Where a vCPU's time goes, and how often translated code finds what it looks up: --engine jit,profile=on, printed with the
 * engine's statistics. Without the option translated code is as ever. */
#pragma once

#include <x86intrin.h>

#include "cpu/jit/vcpu.h"

/* What the vCPU's thread is doing; one at a time, from its time-stamp counter. */
static inline enum profile_part profile_switch(struct jit_vcpu *cpu, enum profile_part part)
{
    struct profile *profile = &cpu->profile;
    enum profile_part before = profile->part;
    if (!profile->on)
        return before;
    uint64_t now = __rdtsc();
    profile->ticks[before] += now - profile->since;
    profile->since = now;
    profile->part = part;
    return before;
}

/* The same for a part that begins, and is counted. */
static inline enum profile_part profile_begin(struct jit_vcpu *cpu, enum profile_part part)
{
    cpu->profile.count[part]++;
    return profile_switch(cpu, part);
}

/* Lines for people: vCPU `index`, to `fd`. */
void profile_print(const struct jit_vcpu *cpu, unsigned index, int fd);
