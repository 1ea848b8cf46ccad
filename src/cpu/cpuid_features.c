/* Feature bits by model. psABI levels name user-mode instructions; what only kernels use (PCID, SMEP, x2APIC, ...) is the
 * engines' work and the same at every level. Sources: Intel SDM 2A CPUID, AMD APM 3 appendix E, x86-64 psABI. */
#include "cpu/cpuid_features.h"

#define F1D(name, bit) {name, 1, 0, CPUID_EDX, bit, LEVEL_1, true}
#define F1C(name, bit, level, native) {name, 1, 0, CPUID_ECX, bit, level, native}
#define F7B(name, bit, level, native) {name, 7, 0, CPUID_EBX, bit, level, native}
#define F7C(name, bit, level, native) {name, 7, 0, CPUID_ECX, bit, level, native}
#define FXD(name, bit, native) {name, 0x80000001, 0, CPUID_EDX, bit, LEVEL_1, native}
#define FXC(name, bit, level, native) {name, 0x80000001, 0, CPUID_ECX, bit, level, native}

const struct cpuid_feature cpuid_features[] = {
    F1D("fpu", 0), F1D("de", 2), F1D("pse", 3), F1D("tsc", 4), F1D("msr", 5), F1D("pae", 6), F1D("mce", 7),
    F1D("cx8", 8), F1D("apic", 9), F1D("sep", 11), F1D("mtrr", 12), F1D("pge", 13), F1D("mca", 14), F1D("cmov", 15),
    F1D("pat", 16), F1D("pse36", 17), F1D("clflush", 19), F1D("mmx", 23), F1D("fxsr", 24), F1D("sse", 25),
    F1D("sse2", 26),

    F1C("sse3", 0, LEVEL_2, true), F1C("ssse3", 9, LEVEL_2, true), F1C("cx16", 13, LEVEL_2, true),
    F1C("sse4_1", 19, LEVEL_2, true), F1C("sse4_2", 20, LEVEL_2, true), F1C("popcnt", 23, LEVEL_2, true),
    F1C("fma", 12, LEVEL_3, true), F1C("movbe", 22, LEVEL_3, true), F1C("xsave", 26, LEVEL_3, true),
    F1C("avx", 28, LEVEL_3, true), F1C("f16c", 29, LEVEL_3, true),
    F1C("pclmulqdq", 1, LEVEL_HOST, true), F1C("aes", 25, LEVEL_HOST, true), F1C("rdrand", 30, LEVEL_HOST, true),
    F1C("pcid", 17, LEVEL_1, false), F1C("x2apic", 21, LEVEL_1, false), F1C("tsc_deadline", 24, LEVEL_1, false),
    F1C("hypervisor", 31, LEVEL_1, false),

    F7B("fsgsbase", 0, LEVEL_1, false), F7B("tsc_adjust", 1, LEVEL_1, false), F7B("smep", 7, LEVEL_1, false),
    F7B("invpcid", 10, LEVEL_1, false), F7B("smap", 20, LEVEL_1, false), F7B("erms", 9, LEVEL_1, false),
    F7B("bmi1", 3, LEVEL_3, true), F7B("avx2", 5, LEVEL_3, true), F7B("bmi2", 8, LEVEL_3, true),
    F7B("rdseed", 18, LEVEL_HOST, true), F7B("adx", 19, LEVEL_HOST, true), F7B("clflushopt", 23, LEVEL_HOST, true),
    F7B("clwb", 24, LEVEL_HOST, true), F7B("sha", 29, LEVEL_HOST, true),
    F7C("umip", 2, LEVEL_1, false), F7C("vaes", 9, LEVEL_HOST, true), F7C("vpclmulqdq", 10, LEVEL_HOST, true),
    F7C("rdpid", 22, LEVEL_HOST, true),
    {"fsrm", 7, 0, CPUID_EDX, 4, LEVEL_HOST, true},

    FXD("syscall", 11, false), FXD("nx", 20, false), FXD("pdpe1gb", 26, false), FXD("rdtscp", 27, false),
    FXD("lm", 29, false),
    FXC("lahf_lm", 0, LEVEL_2, true), FXC("lzcnt", 5, LEVEL_3, true), FXC("prefetchw", 8, LEVEL_HOST, true),

    {"xsaveopt", 0xd, 1, CPUID_EAX, 0, LEVEL_HOST, true},
    {"arat", 6, 0, CPUID_EAX, 2, LEVEL_1, false},
    {"invariant_tsc", 0x80000007, 0, CPUID_EDX, 8, LEVEL_1, false},
};

const unsigned cpuid_feature_count = sizeof cpuid_features / sizeof cpuid_features[0];
