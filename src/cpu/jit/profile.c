#include "cpu/jit/profile.h"

#include <stdio.h>

#include "cpu/jit/translate.h"

static const char *const names[PROFILE_PARTS] = {
    [PROFILE_CODE] = "translated code", [PROFILE_LOOP] = "run loop",   [PROFILE_SLEEP] = "asleep",
    [PROFILE_TRANSLATE] = "translation", [PROFILE_EVICT] = "eviction", [PROFILE_MISS] = "TLB misses",
    [PROFILE_INTERP] = "interpreted",   [PROFILE_LINK] = "links",      [PROFILE_JUMP] = "jump lookups",
    [PROFILE_POLL] = "interrupts seen", [PROFILE_DEAD] = "dead blocks",
};

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void print_time(const struct profile *profile, unsigned index, int fd)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < PROFILE_PARTS; i++)
        all += profile->ticks[i];
    double ticks_per_ms = (double)host_tsc_khz();
    dprintf(fd, "vcpu%u time: %.1f ms\n", index, (double)all / ticks_per_ms);
    for (unsigned i = 0; i < PROFILE_PARTS; i++) {
        uint64_t ticks = profile->ticks[i], count = profile->count[i];
        dprintf(fd, "vcpu%u time: %5.1f %% %s", index, percent(ticks, all), names[i]);
        if (count)
            dprintf(fd, ", %lu times, %.0f ns each", count, (double)ticks / ticks_per_ms * 1e6 / (double)count);
        dprintf(fd, "\n");
    }
}

void profile_print(const struct jit_vcpu *cpu, unsigned index, int fd)
{
    const struct profile *profile = &cpu->profile;
    const struct translator *tr = cpu->translator;
    /* without a second level, misses of the first are those of both */
    uint64_t misses = profile->count[PROFILE_MISS], jump_misses = tr->stat_jumps;
    uint64_t refills = profile->refills > misses ? profile->refills : misses;
    uint64_t second_jumps = profile->jump_misses > jump_misses ? profile->jump_misses - jump_misses : 0;
    dprintf(fd, "vcpu%u blocks run %lu, %.0f times each that was made\n", index, profile->blocks,
            tr->stat_blocks ? (double)profile->blocks / (double)tr->stat_blocks : 0);
    dprintf(fd, "vcpu%u TLB: accesses %lu, first level %.3f %%, second level %.3f %%, neither %.3f %%\n", index, profile->accesses,
            100 - percent(refills, profile->accesses), percent(refills - misses, profile->accesses),
            percent(misses, profile->accesses));
    dprintf(fd, "vcpu%u jump cache: jumps %lu, first level %.3f %%, second level %.3f %%, neither %.3f %%\n", index, profile->jumps,
            100 - percent(jump_misses + second_jumps, profile->jumps), percent(second_jumps, profile->jumps),
            percent(jump_misses, profile->jumps));
    print_time(profile, index, fd);
}
