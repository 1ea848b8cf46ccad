/* Builds the CPUID table of a model: feature words from cpuid_models.c, and around them vendor, family, caches, topology (one
 * socket, one thread a core), XSAVE layout, timing, and KVM's paravirtual leaves. Entry 0 is leaf 0.
 *
 * Vendor-specific leaves follow the host's vendor, because system instructions differ (SYSCALL, SYSENTER).
 * Speculation: the bits say that the guest need not defend itself against what the engine's host defends it from: they
 * choose the cheapest path of Linux (enhanced or automatic IBRS, nothing for the rest). That is right for `jit`, whose guests
 * gain nothing from retpolines or flushes of their own; `kvm` shows only those of these bits that the host's KVM supports.
 * Pure; thread-safe. */
#include "cpu/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cpu/cpuid_models.h"

#define BIT(n) (UINT32_C(1) << (n))
#define APIC_BUS_KHZ 1000000u
#define APIC_BUS_HZ 1000000000u
#define XSAVE_AVX_OFFSET 576u
#define XSAVE_AVX_SIZE 256u
#define BRAND_SIZE 48
#define LINEAR_BITS 48u
#define PHYSICAL_BITS_NAMED 40u

/* KVM_FEATURE_NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT */
#define KVM_FEATURES (BIT(1) | BIT(3) | BIT(24))
/* IBPB, IBRS, STIBP, IBRS same-mode protection, SSB_NO, BTC_NO */
#define AMD_SPECULATION (BIT(12) | BIT(14) | BIT(15) | BIT(19) | BIT(26) | BIT(29))
/* IBRS and IBPB, STIBP, ARCH_CAPABILITIES */
#define INTEL_SPECULATION (BIT(26) | BIT(27) | BIT(29))
/* 0x80000021: LFENCE serializes, null selectors clear bases, automatic IBRS, SRSO_NO */
#define AMD_EXT21_EAX (BIT(2) | BIT(6) | BIT(8) | BIT(29))
#define AMD_EXT21_ECX (BIT(1) | BIT(2)) /* TSA_SQ_NO, TSA_L1_NO */
/* Bits of 1.edx that AMD repeats in 0x80000001.edx. */
#define AMD_REPEATED_EDX 0x0183f3ffu

struct regs {
    uint32_t eax, ebx, ecx, edx;
};

/* What the table is built from. */
struct build {
    const struct cpuid_config *config;
    const struct cpuid_model *model;
    struct cpuid_table *table;
    uint32_t apic_id;
    uint32_t words[CPUID_WORDS];
    bool amd;
    unsigned core_bits; /* width of the core number in an APIC id */
};

static struct regs host_cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct regs r = {0};
    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx))
        return (struct regs){0};
    return r;
}

static void add_entry(struct build *b, uint32_t leaf, bool has_subleaf, uint32_t subleaf, struct regs r)
{
    if (b->table->count == CPUID_MAX_ENTRIES)
        return;
    b->table->entries[b->table->count++] = (struct cpuid_entry){
        .leaf = leaf, .subleaf = subleaf, .has_subleaf = has_subleaf,
        .eax = r.eax, .ebx = r.ebx, .ecx = r.ecx, .edx = r.edx,
    };
}

static void add(struct build *b, uint32_t leaf, struct regs r)
{
    add_entry(b, leaf, false, 0, r);
}

static void add_sub(struct build *b, uint32_t leaf, uint32_t subleaf, struct regs r)
{
    add_entry(b, leaf, true, subleaf, r);
}

/* ---- identity ---- */

/* Family, model, stepping: the host's, or for named models a CPU without errata that kernels work around. */
static uint32_t signature(const struct build *b)
{
    uint32_t host = host_cpuid(1, 0).eax;
    if (b->model->follows_host)
        return host;
    return b->amd ? 0x00a00f11 : 0x000806f4;
}

static void add_brand(struct build *b)
{
    char host[BRAND_SIZE + 1] = "", brand[2 * BRAND_SIZE] = "";
    for (uint32_t i = 0; i < 3; i++) {
        struct regs r = host_cpuid(0x80000002 + i, 0);
        memcpy(host + i * sizeof r, &r, sizeof r);
    }
    const char *name = b->model->follows_host ? host + strspn(host, " ") : b->model->name;
    snprintf(brand, sizeof brand, "Polder %s", name);
    memset(brand + strlen(brand), 0, sizeof brand - strlen(brand));
    brand[BRAND_SIZE - 1] = '\0';
    for (uint32_t i = 0; i < 3; i++) {
        struct regs r;
        memcpy(&r, brand + i * sizeof r, sizeof r);
        add(b, 0x80000002 + i, r);
    }
}

static void add_vendor(struct build *b, uint32_t leaf, uint32_t max_leaf)
{
    struct regs host = host_cpuid(0, 0);
    add(b, leaf, (struct regs){.eax = max_leaf, .ebx = host.ebx, .ecx = host.ecx, .edx = host.edx});
}

static void add_leaf_1(struct build *b)
{
    uint32_t several = b->config->vcpus > 1 ? BIT(28) : 0;
    uint32_t logical = 1u << b->core_bits;
    add(b, 1, (struct regs){
                  .eax = signature(b),
                  .ebx = b->apic_id << 24 | (logical & 0xff) << 16 | 8u << 8, /* CLFLUSH lines of 8 * 8 bytes */
                  .ecx = b->words[W_1_ECX],
                  .edx = b->words[W_1_EDX] | several,
              });
}

/* ---- caches: leaf 4 of Intel and 0x8000001d of AMD have one format ---- */

struct cache {
    uint32_t type, level, ways, sets; /* type 1: data, 2: instructions, 3: both; 64-byte lines */
};

static const struct cache named_caches[] = {{1, 1, 8, 64}, {2, 1, 8, 64}, {3, 2, 8, 1024}, {3, 3, 16, 16384}};
#define CACHES_MAX 8u

static struct regs cache_regs(const struct cache *cache)
{
    return (struct regs){
        .eax = cache->type | cache->level << 5 | BIT(8),
        .ebx = 63 | (cache->ways - 1) << 22,
        .ecx = cache->sets - 1,
    };
}

/* Cache `index` of the model; eax 0 ends the list. */
static struct regs model_cache(const struct build *b, uint32_t leaf, uint32_t index)
{
    struct regs host = host_cpuid(leaf, 0);
    if (b->model->follows_host && (host.eax & 0x1f))
        return host_cpuid(leaf, index);
    if (index < sizeof named_caches / sizeof named_caches[0])
        return cache_regs(&named_caches[index]);
    return (struct regs){0};
}

static void add_caches(struct build *b)
{
    uint32_t leaf = b->amd ? 0x8000001d : 4;
    uint32_t cores = 1u << b->core_bits;
    for (uint32_t i = 0; i < CACHES_MAX; i++) {
        struct regs r = model_cache(b, leaf, i);
        if (!(r.eax & 0x1f))
            break;
        uint32_t level = r.eax >> 5 & 7;
        r.eax &= 0x3fff;
        r.eax |= (level >= 3 ? cores - 1 : 0) << 14;
        r.eax |= b->amd ? 0 : (cores - 1) << 26;
        add_sub(b, leaf, i, r);
    }
}

/* 0x80000005 and 0x80000006: caches as AMD told of them first; of these Intel has the L2 only. */
static void add_legacy_caches(struct build *b)
{
    if (b->model->follows_host) {
        add(b, 0x80000005, host_cpuid(0x80000005, 0));
        add(b, 0x80000006, host_cpuid(0x80000006, 0));
    } else if (b->amd) {
        add(b, 0x80000005, (struct regs){.ecx = 0x20080140, .edx = 0x20080140});
        add(b, 0x80000006, (struct regs){.ecx = 0x02006140, .edx = 0x00808140});
    } else {
        add(b, 0x80000006, (struct regs){.ecx = 0x02006040});
    }
}

/* ---- topology ---- */

static void add_topology(struct build *b)
{
    add_sub(b, 0xb, 0, (struct regs){.eax = 0, .ebx = 1, .ecx = 1u << 8, .edx = b->apic_id});
    add_sub(b, 0xb, 1,
            (struct regs){.eax = b->core_bits, .ebx = b->config->vcpus, .ecx = 1 | 2u << 8, .edx = b->apic_id});
    if (b->amd)
        add(b, 0x8000001e, (struct regs){.eax = b->apic_id, .ebx = b->apic_id & 0xff});
}

/* ---- state and features ---- */

static void add_leaf_7(struct build *b)
{
    uint32_t edx = b->words[W_7_EDX] | (b->amd ? 0 : INTEL_SPECULATION) | (b->config->serialize ? BIT(14) : 0);
    add_sub(b, 7, 0, (struct regs){.eax = 1, .ebx = b->words[W_7_EBX], .ecx = b->words[W_7_ECX], .edx = edx});
    add_sub(b, 7, 1, (struct regs){.eax = b->words[W_7_1_EAX]});
}

static void add_xsave(struct build *b)
{
    bool avx = b->words[W_1_ECX] & BIT(28);
    uint32_t size = XSAVE_AVX_OFFSET + (avx ? XSAVE_AVX_SIZE : 0);
    if (!(b->words[W_1_ECX] & BIT(26)))
        return;
    add_sub(b, 0xd, 0, (struct regs){.eax = avx ? 7 : 3, .ebx = size, .ecx = size});
    add_sub(b, 0xd, 1, (struct regs){.eax = b->words[W_D_1_EAX], .ebx = size});
    if (avx)
        add_sub(b, 0xd, 2, (struct regs){.eax = XSAVE_AVX_SIZE, .ebx = XSAVE_AVX_OFFSET});
}

/* TSC = crystal * ebx / eax. The crystal is the APIC timer's clock, as kernels assume. */
static void add_intel_timing(struct build *b)
{
    uint32_t khz = (uint32_t)b->config->tsc_khz;
    if (b->amd || !khz)
        return;
    add(b, 0x15, (struct regs){.eax = APIC_BUS_KHZ, .ebx = khz, .ecx = APIC_BUS_HZ});
    add(b, 0x16, (struct regs){.eax = khz / 1000, .ebx = khz / 1000, .ecx = 100});
}

static void add_hypervisor(struct build *b)
{
    if (!b->config->kvm_clock)
        return;
    /* "KVMKVMKVM\0\0\0" */
    add(b, 0x40000000, (struct regs){.eax = 0x40000010, .ebx = 0x4b4d564b, .ecx = 0x564b4d56, .edx = 0x4d});
    add(b, 0x40000001, (struct regs){.eax = KVM_FEATURES});
    add(b, 0x40000010, (struct regs){.eax = (uint32_t)b->config->tsc_khz, .ebx = APIC_BUS_KHZ});
}

static uint32_t physical_bits(const struct build *b)
{
    uint32_t host = host_cpuid(0x80000008, 0).eax & 0xff;
    if (host < 36 || host > 52)
        host = PHYSICAL_BITS_NAMED;
    return !b->model->follows_host && host > PHYSICAL_BITS_NAMED ? PHYSICAL_BITS_NAMED : host;
}

static void add_extended(struct build *b)
{
    uint32_t ecx = b->words[W_EXT1_ECX], edx = b->words[W_EXT1_EDX];
    uint32_t last_core = b->config->vcpus - 1;
    if (b->amd) {
        ecx |= BIT(22) | (b->config->vcpus > 1 ? BIT(1) : 0); /* topology extensions, several cores */
        edx |= b->words[W_1_EDX] & AMD_REPEATED_EDX;
    }
    add_vendor(b, 0x80000000, b->amd ? 0x80000021 : 0x80000008);
    add(b, 0x80000001, (struct regs){.eax = b->amd ? signature(b) : 0, .ecx = ecx, .edx = edx});
    add_brand(b);
    add_legacy_caches(b);
    add(b, 0x80000007, (struct regs){.edx = BIT(8)}); /* invariant TSC */
    add(b, 0x80000008, (struct regs){
                           .eax = physical_bits(b) | LINEAR_BITS << 8,
                           .ebx = b->words[W_EXT8_EBX] | (b->amd ? AMD_SPECULATION : 0),
                           .ecx = b->amd ? last_core | b->core_bits << 12 : 0,
                       });
    if (b->amd)
        add(b, 0x80000021, (struct regs){.eax = AMD_EXT21_EAX, .ecx = AMD_EXT21_ECX});
}

static void build_leaves(struct build *b)
{
    bool timing = !b->amd && b->config->tsc_khz;
    add_vendor(b, 0, timing ? 0x16 : 0xd);
    add_leaf_1(b);
    if (!b->amd)
        add(b, 2, (struct regs){.eax = 0x00f0ff01}); /* 64-byte prefetch; caches in leaf 4 */
    add(b, 6, (struct regs){.eax = BIT(2)});         /* the APIC timer never stops */
    add_leaf_7(b);
    add_xsave(b);
    add_intel_timing(b);
    add_hypervisor(b);
    add_extended(b);
    add_caches(b);
    add_topology(b);
}

/* ---- models ---- */

const char *const *cpuid_models(void)
{
    static const char *const names[] = {"host", "x86-64-v2", "x86-64-v3", NULL};
    return names;
}

static const struct cpuid_model *find_model(const char *name)
{
    for (const struct cpuid_model *model = cpuid_model_list; model->name; model++)
        if (!strcmp(model->name, name))
            return model;
    return NULL;
}

/* Fills words with the model's features. -ENOTSUP when the host lacks some of a named model. */
static int choose_words(struct build *b, struct err *err)
{
    uint32_t host[CPUID_WORDS];
    char missing[160] = "";
    size_t used = 0;
    cpuid_host_words(host);
    for (unsigned word = 0; word < CPUID_WORDS; word++) {
        uint32_t available = host[word] | cpuid_emulated[word], wanted = b->model->words[word];
        b->words[word] = wanted & available;
        uint32_t lacking = b->model->follows_host ? 0 : wanted & ~available;
        for (; lacking && used < sizeof missing - 24; lacking &= lacking - 1) {
            const char *name = cpuid_feature_name((enum cpuid_word)word, (unsigned)__builtin_ctz(lacking));
            used += (size_t)snprintf(missing + used, sizeof missing - used, " %s", name);
        }
    }
    if (used)
        return err_say(err, ENOTSUP, "CPU model '%s': this host lacks%s", b->model->name, missing);
    return 0;
}

static bool host_is_amd(void)
{
    uint32_t ebx = host_cpuid(0, 0).ebx;
    return ebx == 0x68747541 /* AuthenticAMD */ || ebx == 0x6f677948 /* HygonGenuine */;
}

static unsigned bits_for(unsigned count)
{
    unsigned bits = 0;
    while (1u << bits < count)
        bits++;
    return bits;
}

int cpuid_table_build(const struct cpuid_config *config, uint32_t apic_id, struct cpuid_table *ret_table,
                      struct err *err)
{
    const char *name = config->model ? config->model : "host";
    struct build b = {
        .config = config,
        .model = find_model(name),
        .table = ret_table,
        .apic_id = apic_id,
        .amd = host_is_amd(),
        .core_bits = bits_for(config->vcpus),
    };
    if (!b.model)
        return err_say(err, EINVAL, "unknown CPU model '%s': use host, x86-64-v2 or x86-64-v3", name);
    int result = choose_words(&b, err);
    if (result)
        return result;
    ret_table->count = 0;
    build_leaves(&b);
    return 0;
}

/* Topology subleaves beyond the last: no level, but their number and the APIC id. */
static void lookup_beyond_topology(const struct cpuid_table *table, uint32_t subleaf, uint32_t regs[4])
{
    for (unsigned i = 0; i < table->count; i++) {
        if (table->entries[i].leaf == 0xb) {
            regs[2] = subleaf & 0xff;
            regs[3] = table->entries[i].edx;
            return;
        }
    }
}

void cpuid_lookup(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4])
{
    for (unsigned i = 0; i < table->count; i++) {
        const struct cpuid_entry *e = &table->entries[i];
        if (e->leaf == leaf && (!e->has_subleaf || e->subleaf == subleaf)) {
            ret_regs[0] = e->eax;
            ret_regs[1] = e->ebx;
            ret_regs[2] = e->ecx;
            ret_regs[3] = e->edx;
            return;
        }
    }
    for (unsigned i = 0; i < 4; i++)
        ret_regs[i] = 0;
    if (leaf == 0xb)
        lookup_beyond_topology(table, subleaf, ret_regs);
}
