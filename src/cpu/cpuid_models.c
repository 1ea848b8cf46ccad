/* Named CPU models as feature bits.
 *
 * x86-64-v2 and x86-64-v3 are the psABI's levels for programs, and of system features what every CPU of that level has.
 * `host` is what the host has of a list: in no model are AVX-512, AMX, MPX, CET, protection keys, 5-level paging, XSAVES, MONITOR,
 * virtualization, SMX, performance monitoring, TSX, WAITPKG, ENQCMD, SGX, PTWRITE, virtual-8086 extensions, and AMD's SSE4A, XOP,
 * FMA4, TBM, 3DNow!, LWP. Pure; thread-safe. */
#include "cpu/cpuid_models.h"

#include <stddef.h>

#include <cpuid.h>

#define BIT(n) (UINT32_C(1) << (n))

enum {
    /* 1.ecx */
    SSE3 = 0, PCLMUL = 1, SSSE3 = 9, FMA = 12, CX16 = 13, PCID = 17, SSE41 = 19, SSE42 = 20, X2APIC = 21, MOVBE = 22, POPCNT = 23,
    TSC_DEADLINE = 24, AES = 25, XSAVE = 26, OSXSAVE = 27, AVX = 28, F16C = 29, RDRAND = 30, HYPERVISOR = 31,
    /* 1.edx */
    FPU = 0, DE = 2, PSE = 3, TSC = 4, MSR = 5, PAE = 6, MCE = 7, CX8 = 8, APIC = 9, SEP = 11, MTRR = 12, PGE = 13, MCA = 14,
    CMOV = 15, PAT = 16, PSE36 = 17, CLFLUSH = 19, MMX = 23, FXSR = 24, SSE = 25, SSE2 = 26,
    /* 7.ebx */
    FSGSBASE = 0, TSC_ADJUST = 1, BMI1 = 3, AVX2 = 5, FDP_EXCPTN = 6, SMEP = 7, BMI2 = 8, ERMS = 9, INVPCID = 10,
    ZERO_FCS_FDS = 13, RDSEED = 18, ADX = 19, SMAP = 20, CLFLUSHOPT = 23, CLWB = 24, SHA = 29,
    /* 7.ecx, 7.edx, 7.1.eax */
    UMIP = 2, GFNI = 8, VAES = 9, VPCLMUL = 10, RDPID = 22, FSRM = 4, AVX_VNNI = 4,
    /* d.1.eax */
    XSAVEOPT = 0, XSAVEC = 1, XGETBV1 = 2,
    /* 80000001.ecx, 80000001.edx, 80000008.ebx */
    LAHF = 0, LZCNT = 5, PREFETCHW = 8, SYSCALL = 11, NX = 20, PDPE1GB = 26, RDTSCP = 27, LM = 29, XSAVEERPTR = 2,
};

#define V2_1_ECX                                                                                             \
    (BIT(SSE3) | BIT(SSSE3) | BIT(CX16) | BIT(SSE41) | BIT(SSE42) | BIT(POPCNT) | BIT(X2APIC) |              \
     BIT(TSC_DEADLINE) | BIT(HYPERVISOR))
#define V3_1_ECX (V2_1_ECX | BIT(FMA) | BIT(MOVBE) | BIT(XSAVE) | BIT(AVX) | BIT(F16C))
#define HOST_1_ECX (V3_1_ECX | BIT(PCLMUL) | BIT(PCID) | BIT(AES) | BIT(RDRAND))
#define SYSTEM_1_EDX                                                                                         \
    (BIT(DE) | BIT(PSE) | BIT(MSR) | BIT(PAE) | BIT(MCE) | BIT(APIC) | BIT(SEP) | BIT(MTRR) | BIT(PGE) |     \
     BIT(MCA) | BIT(PAT) | BIT(PSE36))
#define ALL_1_EDX                                                                                            \
    (SYSTEM_1_EDX | BIT(FPU) | BIT(TSC) | BIT(CX8) | BIT(CMOV) | BIT(CLFLUSH) | BIT(MMX) | BIT(FXSR) |       \
     BIT(SSE) | BIT(SSE2))
#define V3_7_EBX (BIT(FSGSBASE) | BIT(TSC_ADJUST) | BIT(BMI1) | BIT(AVX2) | BIT(SMEP) | BIT(BMI2))
#define HOST_7_EBX                                                                                           \
    (V3_7_EBX | BIT(FDP_EXCPTN) | BIT(ERMS) | BIT(INVPCID) | BIT(ZERO_FCS_FDS) | BIT(RDSEED) | BIT(ADX) |    \
     BIT(SMAP) | BIT(CLFLUSHOPT) | BIT(CLWB) | BIT(SHA))
#define V2_EXT1_EDX (BIT(SYSCALL) | BIT(NX) | BIT(RDTSCP) | BIT(LM))

const struct cpuid_model cpuid_model_list[] = {
    {.name = "host",
     .follows_host = true,
     .words = {
         [W_1_ECX] = HOST_1_ECX,
         [W_1_EDX] = ALL_1_EDX,
         [W_7_EBX] = HOST_7_EBX,
         [W_7_ECX] = BIT(UMIP) | BIT(GFNI) | BIT(VAES) | BIT(VPCLMUL) | BIT(RDPID),
         [W_7_EDX] = BIT(FSRM),
         [W_7_1_EAX] = BIT(AVX_VNNI),
         [W_D_1_EAX] = BIT(XSAVEOPT) | BIT(XSAVEC) | BIT(XGETBV1),
         [W_EXT1_ECX] = BIT(LAHF) | BIT(LZCNT) | BIT(PREFETCHW),
         [W_EXT1_EDX] = V2_EXT1_EDX | BIT(PDPE1GB),
         [W_EXT8_EBX] = BIT(XSAVEERPTR),
     }},
    {.name = "x86-64-v2",
     .words = {
         [W_1_ECX] = V2_1_ECX,
         [W_1_EDX] = ALL_1_EDX,
         [W_7_EBX] = BIT(TSC_ADJUST),
         [W_EXT1_ECX] = BIT(LAHF),
         [W_EXT1_EDX] = V2_EXT1_EDX,
     }},
    {.name = "x86-64-v3",
     .words = {
         [W_1_ECX] = V3_1_ECX,
         [W_1_EDX] = ALL_1_EDX,
         [W_7_EBX] = V3_7_EBX,
         [W_D_1_EAX] = BIT(XSAVEOPT),
         [W_EXT1_ECX] = BIT(LAHF) | BIT(LZCNT),
         [W_EXT1_EDX] = V2_EXT1_EDX | BIT(PDPE1GB),
     }},
    {.name = NULL},
};

const uint32_t cpuid_emulated[CPUID_WORDS] = {
    [W_1_ECX] = BIT(X2APIC) | BIT(TSC_DEADLINE) | BIT(HYPERVISOR),
    [W_1_EDX] = SYSTEM_1_EDX,
    [W_7_EBX] = BIT(TSC_ADJUST),
    [W_EXT1_EDX] = BIT(SYSCALL) | BIT(NX) | BIT(LM), /* Intel shows SYSCALL to 64-bit code only */
};

static const struct {
    enum cpuid_word word;
    unsigned bit;
    const char *name;
} feature_names[] = {
    {W_1_ECX, SSE3, "sse3"},       {W_1_ECX, SSSE3, "ssse3"},     {W_1_ECX, CX16, "cx16"},      {W_1_ECX, SSE41, "sse4_1"},
    {W_1_ECX, SSE42, "sse4_2"},    {W_1_ECX, POPCNT, "popcnt"},   {W_1_ECX, FMA, "fma"},        {W_1_ECX, MOVBE, "movbe"},
    {W_1_ECX, XSAVE, "xsave"},     {W_1_ECX, AVX, "avx"},         {W_1_ECX, F16C, "f16c"},      {W_1_EDX, FPU, "fpu"},
    {W_1_EDX, TSC, "tsc"},         {W_1_EDX, CX8, "cx8"},         {W_1_EDX, CMOV, "cmov"},      {W_1_EDX, CLFLUSH, "clflush"},
    {W_1_EDX, MMX, "mmx"},         {W_1_EDX, FXSR, "fxsr"},       {W_1_EDX, SSE, "sse"},        {W_1_EDX, SSE2, "sse2"},
    {W_7_EBX, FSGSBASE, "fsgsbase"}, {W_7_EBX, BMI1, "bmi1"},     {W_7_EBX, AVX2, "avx2"},      {W_7_EBX, SMEP, "smep"},
    {W_7_EBX, BMI2, "bmi2"},       {W_D_1_EAX, XSAVEOPT, "xsaveopt"}, {W_EXT1_ECX, LAHF, "lahf_lm"},
    {W_EXT1_ECX, LZCNT, "lzcnt"},  {W_EXT1_EDX, PDPE1GB, "pdpe1gb"}, {W_EXT1_EDX, RDTSCP, "rdtscp"},
};

const char *cpuid_feature_name(enum cpuid_word word, unsigned bit)
{
    for (unsigned i = 0; i < sizeof feature_names / sizeof feature_names[0]; i++)
        if (feature_names[i].word == word && feature_names[i].bit == bit)
            return feature_names[i].name;
    return "?";
}

static uint32_t read_xcr0(void)
{
    uint32_t eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

/* Without the kernel's leave to use XSAVE or AVX state, what needs it is not there. */
static void drop_unusable(uint32_t words[CPUID_WORDS])
{
    bool xsave = words[W_1_ECX] & BIT(OSXSAVE);
    bool avx = xsave && (read_xcr0() & 6) == 6;
    if (!xsave) {
        words[W_1_ECX] &= ~BIT(XSAVE);
        words[W_D_1_EAX] = 0;
    }
    if (!avx) {
        words[W_1_ECX] &= ~(BIT(AVX) | BIT(FMA) | BIT(F16C));
        words[W_7_EBX] &= ~BIT(AVX2);
        words[W_7_ECX] &= ~(BIT(VAES) | BIT(VPCLMUL));
        words[W_7_1_EAX] &= ~BIT(AVX_VNNI);
    }
}

void cpuid_host_words(uint32_t ret_words[CPUID_WORDS])
{
    uint32_t r[4] = {0};
    for (unsigned i = 0; i < CPUID_WORDS; i++)
        ret_words[i] = 0;
    if (__get_cpuid_count(1, 0, &r[0], &r[1], &r[2], &r[3])) {
        ret_words[W_1_ECX] = r[2];
        ret_words[W_1_EDX] = r[3];
    }
    if (__get_cpuid_count(7, 0, &r[0], &r[1], &r[2], &r[3])) {
        uint32_t subleaves = r[0];
        ret_words[W_7_EBX] = r[1];
        ret_words[W_7_ECX] = r[2];
        ret_words[W_7_EDX] = r[3];
        if (subleaves >= 1 && __get_cpuid_count(7, 1, &r[0], &r[1], &r[2], &r[3]))
            ret_words[W_7_1_EAX] = r[0];
    }
    if (__get_cpuid_count(0xd, 1, &r[0], &r[1], &r[2], &r[3]))
        ret_words[W_D_1_EAX] = r[0];
    if (__get_cpuid_count(0x80000001, 0, &r[0], &r[1], &r[2], &r[3])) {
        ret_words[W_EXT1_ECX] = r[2];
        ret_words[W_EXT1_EDX] = r[3];
    }
    if (__get_cpuid_count(0x80000008, 0, &r[0], &r[1], &r[2], &r[3]))
        ret_words[W_EXT8_EBX] = r[1];
    drop_unusable(ret_words);
}
