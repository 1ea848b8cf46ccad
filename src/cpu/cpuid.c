/* CPUID tables of the named models. Feature bits come from one table; the rest (topology, caches, clocks, what is said about
 * speculation) is made here. The vendor is the host's: guests choose vendor-specific code by it. */
#include "cpu/cpuid.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cpu/cpuid_features.h"

#define MAX_BASIC 0x16u
#define MAX_HYPERVISOR 0x40000010u
#define MAX_EXTENDED 0x80000021u
#define SIGNATURE_INTEL 0x000506e3u /* a Skylake */
#define SIGNATURE_AMD 0x00a20f10u   /* a Zen 3 */
#define PHYSICAL_BITS 40u
#define LINEAR_BITS 48u
#define LAPIC_TIMER_KHZ 1000000u /* both engines' local APIC timers count nanoseconds */
#define XSAVE_LEGACY_SIZE 576u
#define XSAVE_AVX_SIZE 256u

#define KVM_FEATURE_NOP_IO_DELAY (1u << 1)
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)
#define KVM_FEATURE_CLOCKSOURCE_STABLE (1u << 24)

struct builder {
    struct cpuid_table *table;
    const struct cpuid_config *config;
    enum cpuid_level level;
    bool amd;
};

static const char *const models[] = {"host", "x86-64-v2", "x86-64-v3", NULL};

const char *const *cpuid_models(void)
{
    return models;
}

static int level_of(const char *model, enum cpuid_level *ret_level)
{
    static const struct {
        const char *name;
        enum cpuid_level level;
    } levels[] = {{"host", LEVEL_HOST}, {"x86-64-v2", LEVEL_2}, {"x86-64-v3", LEVEL_3}};
    for (unsigned i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (!strcmp(model, levels[i].name)) {
            *ret_level = levels[i].level;
            return 0;
        }
    }
    return -EINVAL;
}

/* ---- the host ---- */

static void execute_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
    __asm__("cpuid" : "=a"(regs[0]), "=b"(regs[1]), "=c"(regs[2]), "=d"(regs[3]) : "a"(leaf), "c"(subleaf));
}

/* Zeroes for leaves that the host does not have: Intel's CPUs would answer with another one. */
static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
    execute_cpuid(leaf & 0x80000000, 0, regs);
    if (regs[0] < leaf)
        memset(regs, 0, 4 * sizeof regs[0]);
    else
        execute_cpuid(leaf, subleaf, regs);
}

static bool host_has(const struct cpuid_feature *feature)
{
    uint32_t regs[4];
    host_cpuid(feature->leaf, feature->subleaf, regs);
    return regs[feature->reg] >> feature->bit & 1;
}

static bool host_is_amd(void)
{
    uint32_t regs[4];
    host_cpuid(0, 0, regs);
    return regs[1] == 0x68747541 || regs[1] == 0x6f677948; /* "Auth"enticAMD, "Hygo"nGenuine */
}

/* ---- filling the table ---- */

/* The entry of a leaf, added when it is new; its registers. CPUID_MAX_ENTRIES has room for all that is made here. */
static struct cpuid_entry *entry(const struct builder *b, uint32_t leaf, uint32_t subleaf, bool has_subleaf)
{
    for (unsigned i = 0; i < b->table->count; i++) {
        struct cpuid_entry *e = &b->table->entries[i];
        if (e->leaf == leaf && e->subleaf == subleaf)
            return e;
    }
    struct cpuid_entry *e = &b->table->entries[b->table->count++];
    *e = (struct cpuid_entry){.leaf = leaf, .subleaf = subleaf, .has_subleaf = has_subleaf};
    return e;
}

static void put(const struct builder *b, uint32_t leaf, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx)
{
    struct cpuid_entry *e = entry(b, leaf, 0, false);
    e->eax = eax, e->ebx = ebx, e->ecx = ecx, e->edx = edx;
}

static void put_sub(const struct builder *b, uint32_t leaf, uint32_t subleaf, const uint32_t regs[4])
{
    struct cpuid_entry *e = entry(b, leaf, subleaf, true);
    e->eax = regs[0], e->ebx = regs[1], e->ecx = regs[2], e->edx = regs[3];
}

static uint32_t *entry_register(struct cpuid_entry *e, enum cpuid_register reg)
{
    uint32_t *const regs[4] = {&e->eax, &e->ebx, &e->ecx, &e->edx};
    return regs[reg];
}

static int add_features(const struct builder *b, struct err *err)
{
    char missing[120] = "";
    for (unsigned i = 0; i < cpuid_feature_count; i++) {
        const struct cpuid_feature *f = &cpuid_features[i];
        if (f->level > b->level)
            continue;
        if (!f->native || host_has(f)) {
            bool has_subleaf = f->leaf == 7 || f->leaf == 0xd;
            *entry_register(entry(b, f->leaf, f->subleaf, has_subleaf), f->reg) |= 1u << f->bit;
        } else if (b->level != LEVEL_HOST && strlen(missing) + strlen(f->name) + 2 < sizeof missing) {
            strcat(strcat(missing, " "), f->name);
        }
    }
    if (*missing)
        return err_say(err, ENOTSUP, "this host's CPU lacks what CPU model %s promises:%s", b->config->model, missing);
    return 0;
}

static bool has_feature(const struct builder *b, uint32_t leaf, enum cpuid_register reg, unsigned bit)
{
    return *entry_register(entry(b, leaf, 0, leaf == 7), reg) >> bit & 1;
}

static void add_identity(const struct builder *b)
{
    uint32_t host[4];
    host_cpuid(0, 0, host);
    put(b, 0, MAX_BASIC, host[1], host[2], host[3]);
    put(b, 0x80000000, MAX_EXTENDED, b->amd ? host[1] : 0, b->amd ? host[2] : 0, b->amd ? host[3] : 0);
    host_cpuid(1, 0, host);
    uint32_t signature = b->level == LEVEL_HOST ? host[0] : b->amd ? SIGNATURE_AMD : SIGNATURE_INTEL;
    entry(b, 1, 0, false)->eax = signature;
    entry(b, 0x80000001, 0, false)->eax = b->amd ? signature : 0;
}

static void add_brand(const struct builder *b)
{
    char brand[48] = {0};
    snprintf(brand, sizeof brand, "Polder %s", b->config->model);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t regs[4];
        if (b->level == LEVEL_HOST)
            host_cpuid(0x80000002 + i, 0, regs);
        else
            memcpy(regs, brand + i * 16, sizeof regs);
        put(b, 0x80000002 + i, regs[0], regs[1], regs[2], regs[3]);
    }
}

static unsigned topology_bits(unsigned vcpus)
{
    unsigned bits = 0;
    while (1u << bits < vcpus)
        bits++;
    return bits;
}

static void add_topology(const struct builder *b, uint32_t apic_id)
{
    unsigned vcpus = b->config->vcpus, bits = topology_bits(vcpus);
    struct cpuid_entry *e = entry(b, 1, 0, false);
    e->ebx = apic_id << 24 | vcpus << 16 | 8u << 8; /* CLFLUSH line of 64 bytes */
    e->edx |= vcpus > 1 ? 1u << 28 : 0;
    put_sub(b, 0xb, 0, (const uint32_t[4]){0, 1, 1u << 8, apic_id});
    put_sub(b, 0xb, 1, (const uint32_t[4]){bits, vcpus, 2u << 8 | 1, apic_id});
    put_sub(b, 0xb, 2, (const uint32_t[4]){0, 0, 2, apic_id});
    if (!b->amd)
        return;
    entry(b, 0x80000001, 0, false)->ecx |= (vcpus > 1 ? 1u << 1 : 0) | 1u << 22; /* CmpLegacy, TopologyExtensions */
    put(b, 0x8000001e, apic_id, apic_id, 0, 0);
}

/* 32 KiB L1 twice, 512 KiB L2 a core, 16 MiB L3 for all: Intel's leaf 4, which AMD has as 0x8000001D. */
static void add_caches(const struct builder *b)
{
    static const struct {
        uint32_t type, level, ways, sets;
        bool shared;
    } caches[] = {{1, 1, 8, 64, false}, {2, 1, 8, 64, false}, {3, 2, 8, 1024, false}, {3, 3, 16, 16384, true}};
    uint32_t leaf = b->amd ? 0x8000001d : 4, cores = b->config->vcpus - 1;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t eax = caches[i].type | caches[i].level << 5 | 1u << 8 | (caches[i].shared ? cores << 14 : 0) |
                       (b->amd ? 0 : cores << 26);
        put_sub(b, leaf, i, (const uint32_t[4]){eax, 63 | (caches[i].ways - 1) << 22, caches[i].sets - 1, 0});
    }
    put_sub(b, leaf, 4, (const uint32_t[4]){0});
    if (b->amd)
        put(b, 0x80000005, 0, 0, 32u << 24 | 8u << 16 | 1u << 8 | 64, 32u << 24 | 8u << 16 | 1u << 8 | 64);
    put(b, 0x80000006, 0, 0, 512u << 16 | 6u << 12 | 1u << 8 | 64, b->amd ? 32u << 18 | 8u << 12 | 1u << 8 | 64 : 0);
}

static void add_xsave(const struct builder *b)
{
    if (!has_feature(b, 1, CPUID_ECX, 26))
        return;
    bool avx = has_feature(b, 1, CPUID_ECX, 28);
    uint32_t size = XSAVE_LEGACY_SIZE + (avx ? XSAVE_AVX_SIZE : 0);
    put_sub(b, 0xd, 0, (const uint32_t[4]){avx ? 7 : 3, size, size, 0});
    if (avx)
        put_sub(b, 0xd, 2, (const uint32_t[4]){XSAVE_AVX_SIZE, XSAVE_LEGACY_SIZE, 0, 0});
}

/* Crystal of the local APIC timer's rate, so that TSC = crystal * ebx / eax comes out exactly. */
static void add_clocks(const struct builder *b)
{
    uint32_t khz = (uint32_t)b->config->tsc_khz;
    if (khz) {
        put(b, 0x15, LAPIC_TIMER_KHZ, khz, LAPIC_TIMER_KHZ * 1000, 0);
        put(b, 0x16, khz / 1000, khz / 1000, 100, 0);
    }
    if (!b->config->kvm_clock)
        return;
    put(b, 0x40000000, MAX_HYPERVISOR, 0x4b4d564b, 0x564b4d56, 0x4d); /* KVMKVMKVM */
    put(b, 0x40000001, KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE, 0, 0, 0);
    put(b, 0x40000010, khz, LAPIC_TIMER_KHZ, 0, 0);
}

/* What keeps guests from slow defences that the engines make needless: on Intel IBRS_ALL by ARCH_CAPABILITIES, on AMD
 * automatic IBRS and the NO bits. The kvm engine leaves out what its host does not say itself. */
static void add_speculation(const struct builder *b)
{
    if (!b->amd) {
        entry(b, 7, 0, true)->edx |= 1u << 26 | 1u << 29;
        return;
    }
    put(b, 0x80000021, 1u << 2 | 1u << 6 | 1u << 8 | 1u << 29 | 1u << 30, 0, 1u << 1 | 1u << 2, 0);
    entry(b, 0x80000008, 0, false)->ebx |= 1u << 26; /* SSB_NO */
}

static void add_sizes(const struct builder *b)
{
    struct cpuid_entry *e = entry(b, 0x80000008, 0, false);
    e->eax = PHYSICAL_BITS | LINEAR_BITS << 8;
    if (b->amd)
        e->ecx = (b->config->vcpus - 1) | topology_bits(b->config->vcpus) << 12;
}

/* AMD repeats leaf 1's old bits here. */
static void add_amd_duplicates(const struct builder *b)
{
    if (b->amd)
        entry(b, 0x80000001, 0, false)->edx |= entry(b, 1, 0, false)->edx & 0x0183f3ffu;
}

int cpuid_table_build(const struct cpuid_config *config, uint32_t apic_id, struct cpuid_table *ret_table, struct err *err)
{
    memset(ret_table, 0, sizeof *ret_table);
    struct builder b = {.table = ret_table, .config = config, .amd = host_is_amd()};
    if (level_of(config->model, &b.level) < 0)
        return err_say(err, EINVAL, "unknown CPU model '%s', give host, x86-64-v2 or x86-64-v3", config->model);
    int r = add_features(&b, err);
    if (r < 0)
        return r;
    add_identity(&b);
    add_brand(&b);
    add_topology(&b, apic_id);
    add_caches(&b);
    add_xsave(&b);
    add_clocks(&b);
    add_sizes(&b);
    add_speculation(&b);
    add_amd_duplicates(&b);
    return 0;
}

void cpuid_lookup(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4])
{
    memset(ret_regs, 0, 4 * sizeof ret_regs[0]);
    for (unsigned i = 0; i < table->count; i++) {
        const struct cpuid_entry *e = &table->entries[i];
        if (e->leaf != leaf || (e->has_subleaf && e->subleaf != subleaf))
            continue;
        ret_regs[0] = e->eax, ret_regs[1] = e->ebx, ret_regs[2] = e->ecx, ret_regs[3] = e->edx;
        return;
    }
}
