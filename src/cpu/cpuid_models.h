/* Feature words of the named CPU models: which bits of which CPUID registers a guest may see. Private to cpuid*.c. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Registers that hold feature bits. */
enum cpuid_word {
    W_1_ECX, W_1_EDX, W_7_EBX, W_7_ECX, W_7_EDX, W_7_1_EAX, W_D_1_EAX, W_EXT1_ECX, W_EXT1_EDX, W_EXT8_EBX, CPUID_WORDS
};

struct cpuid_model {
    const char *name;
    bool follows_host; /* what the host has of `words`; otherwise all of `words` or nothing */
    uint32_t words[CPUID_WORDS];
};

/* Ends with an entry without a name. */
extern const struct cpuid_model cpuid_model_list[];
/* Bits that every engine gives whatever the host has. */
extern const uint32_t cpuid_emulated[CPUID_WORDS];

/* What the host's CPU and kernel offer, in the same words; AVX only when the kernel has switched it on. */
void cpuid_host_words(uint32_t ret_words[CPUID_WORDS]);
/* Name of a feature bit as /proc/cpuinfo has it; "?" for bits that no named model needs. */
const char *cpuid_feature_name(enum cpuid_word word, unsigned bit);
