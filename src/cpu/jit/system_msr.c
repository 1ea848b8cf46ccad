/* Model-specific registers. Plain storage is found by msr_slot(), what has rules of its own is in the switches, and MSRs that
 * kernels probe without need read as zero or as below and ignore writes (ignored_msrs); the rest raises #GP.
 * The memory type registers are in system_mtrr.c, those of the local APIC in lapic*.c.
 * Source: Intel SDM 4, AMD PPR. */
#include "cpu/jit/system_impl.h"

#include "cpu/jit/kvmclock.h"
#include "cpu/jit/lapic_impl.h"
#include "cpu/jit/system_mtrr.h"

#define MSR_FLUSH_CMD 0x10bu
#define MSR_DEBUGCTL 0x1d9u
#define SPEC_CTRL_BITS UINT64_C(0x407)  /* IBRS, STIBP, SSBD, BHI_DIS_S: accepted, without effect */
#define PRED_CMD_BITS UINT64_C(0x81)    /* IBPB, SBPB */
#define FEATURE_CONTROL_LOCKED UINT64_C(1)

/* What the guest is told about speculation. Its own mitigations would be of no use here: it runs translated, with its
 * indirect branches resolved by the translator, and in one host process. Isolation of guests is the host's task.
 * RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO,
 * GDS_NO, RFDS_NO, ITS_NO. */
#define ARCH_CAPABILITIES                                                                                    \
    (1u << 0 | 1u << 1 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 8 | 1u << 13 | 1u << 14 | 1u << 15 |  \
     1u << 20 | 1u << 24 | 1u << 26 | 1u << 27 | UINT64_C(1) << 62)

/* Read as `value`, writes ignored. */
static const struct ignored_msr {
    uint32_t index;
    uint64_t value;
} ignored_msrs[] = {
    {0x17, 0},                    /* PLATFORM_ID */
    {0x2a, 0},                    /* EBL_CR_POWERON */
    {0x34, 0},                    /* SMI_COUNT */
    {0xcd, 3},                    /* FSB_FREQ */
    {0xce, 0},                    /* PLATFORM_INFO */
    {0xe2, 0},                    /* PKG_CST_CONFIG_CONTROL */
    {0x11e, 0xbe702111},          /* BBL_CR_CTL3: no L2 cache of its own to configure */
    {0x140, 0},                   /* MISC_FEATURE_ENABLES */
    {MSR_MCG_CAP, 0},             /* no machine-check banks */
    {0x198, UINT64_C(0x40000000000) | 1000}, /* PERF_STATUS */
    {0x19b, 0},                   /* THERM_INTERRUPT */
    {0x1a2, 0},                   /* TEMPERATURE_TARGET */
    {0x1ad, 0},                   /* TURBO_RATIO_LIMIT */
    {MSR_DEBUGCTL, 0},
    {0x1db, 0}, {0x1dc, 0}, {0x1dd, 0}, {0x1de, 0}, /* LASTBRANCH, LASTINT */
    {0x1fc, 0},                   /* POWER_CTL */
    {0xc0010010, 0},              /* SYSCFG */
    {0xc0010015, 1u << 24},       /* HWCR: the TSC counts at P0 frequency */
    {0xc001001a, 0}, {0xc001001d, 0}, /* TOP_MEM, TOM2 */
    {0xc001001f, 0},              /* NB_CFG1 */
    {0xc0010020, 0},              /* PATCH_LOADER */
    {0xc0010055, 0},              /* INT_PENDING */
    {0xc0010058, 0},              /* MMIO_CFG_BASE */
    {0xc0010114, 1u << 4},        /* VM_CR: SVM disabled */
    {0xc0010117, 0},              /* VM_HSAVE_PA */
    {0xc0010140, 0}, {0xc0010141, 0}, /* OSVW */
    {0xc0011004, 0}, {0xc0011005, 0}, /* CPUID feature overrides */
    {0xc001100c, 0},              /* NODE_ID */
    {0xc0011020, 0}, {0xc0011021, 0}, {0xc0011022, 0}, {0xc0011023, 0}, /* LS, IC, DC, TW configuration */
    {0xc0011029, 1u << 1},        /* DE_CFG: LFENCE serializes */
    {0xc001102a, 0}, {0xc001102c, 0}, {0xc001102d, 0}, {0xc00110e3, 0},
    {0x4b564d02, 0}, {0x4b564d03, 0}, {0x4b564d04, 0}, {0x4b564d05, 0}, /* KVM features not offered */
};

static const struct ignored_msr *ignored_find(uint32_t index)
{
    for (unsigned i = 0; i < sizeof ignored_msrs / sizeof ignored_msrs[0]; i++)
        if (ignored_msrs[i].index == index)
            return &ignored_msrs[i];
    return NULL;
}

static bool is_lapic_msr(uint32_t index)
{
    return (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST) || index == MSR_TSC_DEADLINE || index == MSR_APIC_BASE;
}

/* MSRs that are storage; `ret_address` says that only canonical addresses may be written. NULL for others. */
static uint64_t *msr_slot(struct jit_vcpu *cpu, uint32_t index, bool *ret_address)
{
    *ret_address = true;
    switch (index) {
    case MSR_FS_BASE: return &cpu->seg[SEG_FS].base;
    case MSR_GS_BASE: return &cpu->seg[SEG_GS].base;
    case MSR_KERNEL_GS_BASE: return &cpu->kernel_gs_base;
    case MSR_LSTAR: return &cpu->lstar;
    case MSR_CSTAR: return &cpu->cstar;
    case MSR_SYSENTER_ESP: return &cpu->sysenter_esp;
    case MSR_SYSENTER_EIP: return &cpu->sysenter_eip;
    default: break;
    }
    *ret_address = false;
    switch (index) {
    case MSR_STAR: return &cpu->star;
    case MSR_SFMASK: return &cpu->sfmask;
    case MSR_TSC_AUX: return &cpu->tsc_aux;
    case MSR_SYSENTER_CS: return &cpu->sysenter_cs;
    case MSR_MISC_ENABLE: return &cpu->misc_enable;
    case MSR_MCG_STATUS: return &cpu->mcg_status;
    case MSR_SPEC_CTRL: return &cpu->spec_ctrl;
    case MSR_PAT: return &cpu->pat;
    case MSR_KVM_SYSTEM_TIME_NEW: return &cpu->kvm_system_time;
    case MSR_KVM_WALL_CLOCK_NEW: return &cpu->kvm_wall_clock;
    default: return NULL;
    }
}

static uint64_t microcode_revision(const struct jit_vcpu *cpu)
{
    return system_is_amd(cpu) ? 0x01000065 : UINT64_C(1) << 32;
}

static uint64_t read_other(struct jit_vcpu *cpu, uint32_t index)
{
    switch (index) {
    case MSR_TSC: return vcpu_read_tsc(cpu);
    case MSR_TSC_ADJUST: return cpu->tsc_adjust;
    case MSR_EFER: return cpu->efer;
    case MSR_BIOS_SIGN_ID: return microcode_revision(cpu);
    case MSR_FEATURE_CONTROL: return FEATURE_CONTROL_LOCKED;
    case MSR_ARCH_CAPABILITIES: return ARCH_CAPABILITIES;
    default: break;
    }
    const struct ignored_msr *ignored = ignored_find(index);
    if (!ignored)
        vcpu_raise(cpu, VEC_GP, 0);
    return ignored->value;
}

uint64_t system_read_msr(struct jit_vcpu *cpu, uint32_t index)
{
    uint64_t value;
    if (is_lapic_msr(index)) {
        if (!lapic_msr_read(cpu, index, &value))
            vcpu_raise(cpu, VEC_GP, 0);
        return value;
    }
    bool is_address;
    const uint64_t *slot = msr_slot(cpu, index, &is_address);
    if (slot)
        return *slot;
    if (mtrr_read(cpu, index, &value))
        return value;
    return read_other(cpu, index);
}

void system_shift_tsc(struct jit_vcpu *cpu, uint64_t delta)
{
    cpu->tsc_offset += delta;
    lapic_timer_shift(cpu, delta);
    kvmclock_update(cpu);
}

/* WRMSR to TSC moves TSC_ADJUST by as much, and the other way round (SDM 3B 17.17.3). */
static void move_tsc(struct jit_vcpu *cpu, uint64_t delta)
{
    cpu->tsc_adjust += delta;
    system_shift_tsc(cpu, delta);
}

/* Values that a storage MSR refuses. */
static bool slot_accepts(uint32_t index, uint64_t value)
{
    switch (index) {
    case MSR_TSC_AUX: return !(value >> 32);
    case MSR_SPEC_CTRL: return !(value & ~SPEC_CTRL_BITS);
    case MSR_PAT: return mtrr_pat_valid(value);
    default: return true;
    }
}

static void write_slot(struct jit_vcpu *cpu, uint32_t index, uint64_t *slot, uint64_t value)
{
    if (!slot_accepts(index, value))
        vcpu_raise(cpu, VEC_GP, 0);
    *slot = index == MSR_SFMASK ? (uint32_t)value : value;
    if (index == MSR_KVM_SYSTEM_TIME_NEW)
        kvmclock_enable(cpu);
    if (index == MSR_KVM_WALL_CLOCK_NEW)
        kvmclock_write_wall_clock(cpu);
}

static void write_other(struct jit_vcpu *cpu, uint32_t index, uint64_t value)
{
    bool refused = false;
    switch (index) {
    case MSR_TSC: move_tsc(cpu, value - vcpu_read_tsc(cpu)); break;
    case MSR_TSC_ADJUST: move_tsc(cpu, value - cpu->tsc_adjust); break;
    case MSR_EFER: system_set_efer(cpu, value); break;
    case MSR_PRED_CMD: refused = (value & ~PRED_CMD_BITS) != 0; break;
    case MSR_FLUSH_CMD: refused = value > 1; break;
    case MSR_BIOS_SIGN_ID: break;
    case 0x79: break; /* microcode update trigger */
    default: refused = !ignored_find(index); break;
    }
    if (refused)
        vcpu_raise(cpu, VEC_GP, 0);
}

void system_write_msr(struct jit_vcpu *cpu, uint32_t index, uint64_t value)
{
    if (is_lapic_msr(index)) {
        if (!lapic_msr_write(cpu, index, value))
            vcpu_raise(cpu, VEC_GP, 0);
        return;
    }
    bool is_address;
    uint64_t *slot = msr_slot(cpu, index, &is_address);
    if (slot && is_address && !address_canonical(value))
        vcpu_raise(cpu, VEC_GP, 0);
    if (slot) {
        write_slot(cpu, index, slot, value);
        return;
    }
    switch (mtrr_write(cpu, index, value)) {
    case MTRR_DONE: return;
    case MTRR_REFUSED: vcpu_raise(cpu, VEC_GP, 0);
    case MTRR_NOT_MINE: break;
    }
    write_other(cpu, index, value);
}

/* The TSC offset of another vCPU that `offset` differs from by the time it took to save both, else `offset`. */
static uint64_t common_tsc_offset(const struct jit_vcpu *cpu, uint64_t offset)
{
    uint64_t second = host_tsc_khz() * 1000;
    for (unsigned i = 0; i < cpu->engine->vcpu_count; i++) {
        const struct jit_vcpu *other = cpu->engine->vcpus[i];
        if (!other || other == cpu)
            continue;
        uint64_t ahead = offset - other->tsc_offset, behind = other->tsc_offset - offset;
        if (ahead < second || behind < second)
            return other->tsc_offset;
    }
    return offset;
}

void system_load_msr(struct jit_vcpu *cpu, uint32_t index, uint64_t value)
{
    if (index == MSR_TSC) {
        uint64_t offset = common_tsc_offset(cpu, cpu->tsc_offset + (value - vcpu_read_tsc(cpu)));
        system_shift_tsc(cpu, offset - cpu->tsc_offset);
    } else if (index == MSR_TSC_ADJUST) {
        cpu->tsc_adjust = value;
        kvmclock_update(cpu);
    } else {
        system_write_msr(cpu, index, value);
    }
}

void system_rdmsr(struct jit_vcpu *cpu)
{
    system_require_cpl0(cpu);
    uint64_t value = system_read_msr(cpu, (uint32_t)cpu->gpr[RCX]);
    cpu->gpr[RAX] = (uint32_t)value;
    cpu->gpr[RDX] = value >> 32;
}

void system_wrmsr(struct jit_vcpu *cpu)
{
    system_require_cpl0(cpu);
    uint64_t value = cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
    system_write_msr(cpu, (uint32_t)cpu->gpr[RCX], value);
}
