/* Engine `kvm`: what CPUID shows. The named model's table, less the feature bits that this host's KVM cannot
 * give: a bit that is shown must work. Bits that describe the machine and not the CPU (hypervisor present,
 * topology) stay. */
#include "cpu/kvm/kvm_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "base/own.h"

#define SUPPORTED_MAX 256u

enum cpuid_reg { EAX, EBX, ECX, EDX };

/* Registers that hold feature bits, and the bits in them that are ours to show whatever KVM reports. */
static const struct feature_register {
    uint32_t leaf, subleaf;
    enum cpuid_reg reg;
    uint32_t keep;
} feature_registers[] = {
    {0x1, 0, ECX, 1u << 31}, /* hypervisor present */
    {0x1, 0, EDX, 1u << 28}, /* several logical processors */
    {0x6, 0, EAX, 1u << 2},  /* the APIC timer never stops */
    {0x7, 0, EBX, 0},
    {0x7, 0, ECX, 0},
    {0x7, 0, EDX, 0},
    {0x7, 1, EAX, 0},
    {0x7, 1, EBX, 0},
    {0x7, 1, ECX, 0},
    {0x7, 1, EDX, 0},
    {0xd, 0, EAX, 0},
    {0xd, 0, EDX, 0},
    {0xd, 1, EAX, 0},
    {0x40000001, 0, EAX, 0},
    {0x80000001, 0, ECX, 1u << 1}, /* several cores */
    {0x80000001, 0, EDX, 0},
    {0x80000007, 0, EDX, 1u << 8}, /* invariant TSC: what KVM gives where the host's is */
    {0x80000008, 0, EBX, 0},
    {0x80000021, 0, EAX, 0},
    {0x80000021, 0, ECX, 0},
};

int kvm_cpuid_load(struct kvm_engine *engine, struct err *err)
{
    own_free struct kvm_cpuid2 *supported =
        calloc(1, sizeof *supported + SUPPORTED_MAX * sizeof(struct kvm_cpuid_entry2));
    if (!supported)
        return err_set(err, ENOMEM, "CPUID of KVM");
    supported->nent = SUPPORTED_MAX;
    if (ioctl(engine->kvm_fd, KVM_GET_SUPPORTED_CPUID, supported) < 0)
        return err_set(err, errno, "KVM_GET_SUPPORTED_CPUID");
    engine->xcr0_supported = 3; /* x87 and SSE: there on every host */
    for (uint32_t i = 0; i < supported->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &supported->entries[i];
        if (entry->function == 0xd && entry->index == 0)
            engine->xcr0_supported = entry->eax | (uint64_t)entry->edx << 32 | 3;
    }
    engine->supported = TAKE(supported);
    return 0;
}

static uint32_t entry_reg(const struct kvm_cpuid_entry2 *entry, enum cpuid_reg reg)
{
    const uint32_t regs[4] = {entry->eax, entry->ebx, entry->ecx, entry->edx};
    return regs[reg];
}

static uint32_t *entry_reg_ptr(struct kvm_cpuid_entry2 *entry, enum cpuid_reg reg)
{
    uint32_t *const regs[4] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};
    return regs[reg];
}

static uint32_t supported_reg(const struct kvm_engine *engine, uint32_t leaf, uint32_t subleaf,
                              enum cpuid_reg reg)
{
    for (uint32_t i = 0; i < engine->supported->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &engine->supported->entries[i];
        bool subleaf_counts = entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        if (entry->function == leaf && (!subleaf_counts || entry->index == subleaf))
            return entry_reg(entry, reg);
    }
    return 0;
}

static void entry_filter(const struct kvm_engine *engine, struct kvm_cpuid_entry2 *entry)
{
    for (size_t i = 0; i < sizeof feature_registers / sizeof feature_registers[0]; i++) {
        const struct feature_register *f = &feature_registers[i];
        if (f->leaf != entry->function || f->subleaf != entry->index)
            continue;
        uint32_t allowed = supported_reg(engine, f->leaf, f->subleaf, f->reg) | f->keep;
        /* KVM tells of its TSC deadline timer by a capability, on most kernels not by CPUID. */
        if (f->leaf == 1 && f->reg == ECX &&
            ioctl(engine->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
            allowed |= 1u << 24;
        uint32_t *value = entry_reg_ptr(entry, f->reg);
        if (*value & ~allowed)
            log_debug("CPUID %#x.%u register %d: KVM lacks %#x", f->leaf, f->subleaf, (int)f->reg,
                      *value & ~allowed);
        *value &= allowed;
    }
    if (entry->function == 0x80000008) {
        uint32_t host_bits = supported_reg(engine, 0x80000008, 0, EAX) & 0xff;
        if (host_bits && (entry->eax & 0xff) > host_bits)
            entry->eax = (entry->eax & ~0xffu) | host_bits;
    }
}

static uint64_t vcpu_tsc_khz(const struct kvm_vcpu *vcpu)
{
    int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
    return khz > 0 ? (uint64_t)khz : 0;
}

int kvm_cpuid_apply(struct kvm_vcpu *vcpu, struct err *err)
{
    const struct kvm_engine *engine = vcpu->engine;
    const struct cpuid_config config = {
        .model = engine->cpu_model,
        .vcpus = engine->vcpu_count,
        .tsc_khz = vcpu_tsc_khz(vcpu),
        .kvm_clock = true,
    };
    own_free struct cpuid_table *table = calloc(1, sizeof *table);
    own_free struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof *cpuid + CPUID_MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2));
    if (!table || !cpuid)
        return err_set(err, ENOMEM, "CPUID");
    int ret = cpuid_table_build(&config, vcpu->base.index, table, err);
    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < table->count; i++) {
        const struct cpuid_entry *from = &table->entries[i];
        struct kvm_cpuid_entry2 *to = &cpuid->entries[cpuid->nent++];
        *to = (struct kvm_cpuid_entry2){
            .function = from->leaf,
            .index = from->has_subleaf ? from->subleaf : 0,
            .flags = from->has_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
            .eax = from->eax,
            .ebx = from->ebx,
            .ecx = from->ecx,
            .edx = from->edx,
        };
        entry_filter(engine, to);
    }
    return ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0 ? err_set(err, errno, "KVM_SET_CPUID2") : 0;
}
