/* Private to cpuid*.c: the feature bits that guests may see. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };
/* The lowest model that has a feature. */
enum cpuid_level { LEVEL_1, LEVEL_2, LEVEL_3, LEVEL_HOST };

struct cpuid_feature {
    const char *name;
    uint32_t leaf, subleaf;
    enum cpuid_register reg;
    unsigned bit;
    enum cpuid_level level;
    bool native; /* needs the host's CPU; the others are the engines' own work */
};

extern const struct cpuid_feature cpuid_features[];
extern const unsigned cpuid_feature_count;
