/* Control and debug registers, EFER, and the instructions that drop translations.
 *
 * Every CR3 load drops the non-global translations, with or without the PCID no-flush bit: tagging by PCID would be
 * an optimisation of the soft TLB. PAE page-directory pointers are not cached: walks read them from memory.
 * Source: Intel SDM 3A 2.5, 4.10, 9.8.5; volume 3B 17.2. */
#include "cpu/jit/system_impl.h"

#define CR0_DEFINED                                                                                          \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR4_ALWAYS                                                                                           \
    (CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT)
#define CR4_TRANSLATION (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP)
#define CR3_NO_FLUSH (UINT64_C(1) << 63)
#define CR3_PCID UINT64_C(0xfff)
#define DR6_WRITABLE UINT64_C(0xe00f)
#define DR6_BD (1u << 13)
#define DR7_WRITABLE UINT64_C(0xffff23ff)
#define DR7_GD (1u << 13)

/* Checks that PG may be switched on under EFER.LME: 64-bit structures only. */
static void check_long_mode_entry(struct jit_vcpu *cpu)
{
    unsigned tss_type = cpu->tr.attributes & 0xf & ~SYS_TYPE_BUSY;
    if (!(cpu->cr4 & CR4_PAE) || (cpu->seg[SEG_CS].attributes & SEG_ATTR_L) || tss_type == SYS_TYPE_TSS16)
        vcpu_raise(cpu, VEC_GP, 0);
}

void system_set_cr0(struct jit_vcpu *cpu, uint64_t value)
{
    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        vcpu_raise(cpu, VEC_GP, 0);
    value = (value & CR0_DEFINED) | CR0_ET;
    uint64_t changed = value ^ cpu->cr0;
    if ((changed & CR0_PG) && (value & CR0_PG) && (cpu->efer & EFER_LME)) {
        check_long_mode_entry(cpu);
        cpu->efer |= EFER_LMA;
    }
    if ((changed & CR0_PG) && !(value & CR0_PG)) {
        if (vcpu_long_mode(cpu) || (cpu->cr4 & CR4_PCIDE))
            vcpu_raise(cpu, VEC_GP, 0);
        cpu->efer &= ~(uint64_t)EFER_LMA;
    }
    cpu->cr0 = value;
    if (changed & (CR0_PG | CR0_WP | CR0_PE))
        mmu_flush_all(cpu);
    vcpu_update_mode(cpu);
}

static void write_cr3(struct jit_vcpu *cpu, uint64_t value)
{
    if (vcpu_lma(cpu)) {
        if (cpu->cr4 & CR4_PCIDE)
            value &= ~CR3_NO_FLUSH;
        if (value >> cpu->phys_bits)
            vcpu_raise(cpu, VEC_GP, 0);
    } else {
        value = (uint32_t)value;
    }
    cpu->cr3 = value;
    mmu_flush_local(cpu);
}

/* CR4 bits that the CPU model has. */
static uint64_t cr4_allowed(struct jit_vcpu *cpu)
{
    uint32_t leaf1 = system_cpuid_register(cpu, 1, 0, CPUID_ECX);
    uint32_t leaf7_ebx = system_cpuid_register(cpu, 7, 0, CPUID_EBX);
    uint32_t leaf7_ecx = system_cpuid_register(cpu, 7, 0, CPUID_ECX);
    uint64_t allowed = CR4_ALWAYS;
    allowed |= leaf1 >> 17 & 1 ? CR4_PCIDE : 0;
    allowed |= leaf1 >> 26 & 1 ? CR4_OSXSAVE : 0;
    allowed |= leaf7_ebx & 1 ? CR4_FSGSBASE : 0;
    allowed |= leaf7_ebx >> 7 & 1 ? CR4_SMEP : 0;
    allowed |= leaf7_ebx >> 20 & 1 ? CR4_SMAP : 0;
    allowed |= leaf7_ecx >> 2 & 1 ? CR4_UMIP : 0;
    return allowed;
}

static void write_cr4(struct jit_vcpu *cpu, uint64_t value)
{
    uint64_t changed = value ^ cpu->cr4;
    if (changed && (value & ~cr4_allowed(cpu)))
        vcpu_raise(cpu, VEC_GP, 0);
    if (vcpu_lma(cpu) && !(value & CR4_PAE))
        vcpu_raise(cpu, VEC_GP, 0);
    bool pcid_on = (changed & CR4_PCIDE) && (value & CR4_PCIDE);
    if (pcid_on && (!vcpu_lma(cpu) || (cpu->cr3 & CR3_PCID)))
        vcpu_raise(cpu, VEC_GP, 0);
    cpu->cr4 = value;
    if (changed & CR4_TRANSLATION)
        mmu_flush_all(cpu);
}

static void write_cr8(struct jit_vcpu *cpu, uint64_t value)
{
    if (value >> 4)
        vcpu_raise(cpu, VEC_GP, 0);
    lapic_set_cr8(cpu, value);
}

uint64_t system_read_cr(struct jit_vcpu *cpu, unsigned index)
{
    system_require_cpl0(cpu);
    switch (index) {
    case 0: return cpu->cr0;
    case 2: return cpu->cr2;
    case 3: return cpu->cr3;
    case 4: return cpu->cr4;
    case 8: return lapic_get_cr8(cpu);
    default: vcpu_raise(cpu, VEC_UD, 0);
    }
}

void system_write_cr(struct jit_vcpu *cpu, unsigned index, uint64_t value)
{
    system_require_cpl0(cpu);
    switch (index) {
    case 0: system_set_cr0(cpu, value); break;
    case 2: cpu->cr2 = value; break;
    case 3: write_cr3(cpu, value); break;
    case 4: write_cr4(cpu, value); break;
    case 8: write_cr8(cpu, value); break;
    default: vcpu_raise(cpu, VEC_UD, 0);
    }
}

void system_clts(struct jit_vcpu *cpu)
{
    system_require_cpl0(cpu);
    system_set_cr0(cpu, cpu->cr0 & ~(uint64_t)CR0_TS);
}

void system_lmsw(struct jit_vcpu *cpu, uint16_t value)
{
    system_require_cpl0(cpu);
    /* PE can be set but not cleared. */
    system_set_cr0(cpu, (cpu->cr0 & ~(uint64_t)(CR0_MP | CR0_EM | CR0_TS)) | (value & 0xfu));
}

static uint64_t efer_allowed(struct jit_vcpu *cpu)
{
    uint64_t allowed = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    if (system_cpuid_register(cpu, 0x80000021, 0, CPUID_EAX) >> 8 & 1)
        allowed |= EFER_AUTOIBRS;
    return allowed;
}

void system_set_efer(struct jit_vcpu *cpu, uint64_t value)
{
    uint64_t changed = value ^ cpu->efer;
    if (value & ~efer_allowed(cpu))
        vcpu_raise(cpu, VEC_GP, 0);
    if ((changed & EFER_LME) && (cpu->cr0 & CR0_PG))
        vcpu_raise(cpu, VEC_GP, 0);
    cpu->efer = (value & ~(uint64_t)EFER_LMA) | (cpu->efer & EFER_LMA);
    if (changed & EFER_NXE)
        mmu_flush_all(cpu);
    vcpu_update_mode(cpu);
}

/* The register behind a number: 4 and 5 are 6 and 7 unless CR4.DE is set. Checks what guards all debug registers. */
static unsigned debug_register(struct jit_vcpu *cpu, unsigned index)
{
    if (index > 7 || ((cpu->cr4 & CR4_DE) && (index == 4 || index == 5)))
        vcpu_raise(cpu, VEC_UD, 0);
    system_require_cpl0(cpu);
    if (cpu->dr7 & DR7_GD)
        vcpu_raise_exception(cpu, (struct jit_exception){.vector = VEC_DB, .dr6 = DR6_BD});
    return index == 4 || index == 5 ? index + 2 : index;
}

uint64_t system_read_dr(struct jit_vcpu *cpu, unsigned index)
{
    index = debug_register(cpu, index);
    return index == 6 ? cpu->dr6 : index == 7 ? cpu->dr7 : cpu->dr[index];
}

void system_write_dr(struct jit_vcpu *cpu, unsigned index, uint64_t value)
{
    index = debug_register(cpu, index);
    if (index >= 6 && value >> 32)
        vcpu_raise(cpu, VEC_GP, 0);
    if (index == 6)
        cpu->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
    else if (index == 7)
        cpu->dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    else
        cpu->dr[index] = value;
}

void system_invlpg(struct jit_vcpu *cpu, uint64_t linear)
{
    system_require_cpl0(cpu);
    mmu_flush_page(cpu, linear);
}

void system_invpcid(struct jit_vcpu *cpu, uint64_t type, const uint64_t descriptor[2])
{
    system_require_cpl0(cpu);
    uint64_t pcid = descriptor[0], linear = descriptor[1];
    bool pcid_valid = pcid <= CR3_PCID && (type > 1 || !pcid || (cpu->cr4 & CR4_PCIDE));
    if (type > 3 || !pcid_valid || (type == 0 && !address_canonical(linear)))
        vcpu_raise(cpu, VEC_GP, 0);
    /* Translations of other PCIDs are gone since the CR3 load that left them. */
    uint64_t current = cpu->cr4 & CR4_PCIDE ? cpu->cr3 & CR3_PCID : 0;
    if (type == 2)
        mmu_flush_all(cpu);
    else if (type == 3 || (type == 1 && pcid == current))
        mmu_flush_local(cpu);
    else if (type == 0 && pcid == current)
        mmu_flush_page(cpu, linear);
}

void system_wbinvd(struct jit_vcpu *cpu)
{
    system_require_cpl0(cpu);
}
