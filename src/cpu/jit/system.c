/* System instructions that fit in a few lines: CPUID, time stamps, extended control registers, flags, halt, descriptor table
 * registers, segment bases, port permission, hypercalls. Source: Intel SDM 2, AMD APM 3. */
#include "cpu/jit/system_impl.h"

#include "cpu/jit/fpu.h"

#define XSAVE_LEGACY_BYTES 576u
#define XSAVE_AVX_BYTES 256u
#define KVM_ENOSYS 1000
#define KVM_EPERM 1
#define TSS_IO_BASE 102u

uint32_t system_cpuid_register(struct jit_vcpu *cpu, uint32_t leaf, uint32_t subleaf, enum cpuid_register reg)
{
    uint32_t regs[4];
    fpu_save(cpu);
    cpuid_lookup(&cpu->cpuid, leaf, subleaf, regs);
    return regs[reg];
}

static void replace_bit(uint32_t *word, unsigned bit, bool value)
{
    *word = (*word & ~(1u << bit)) | (uint32_t)value << bit;
}

/* Bits of CPUID that follow the state of the vCPU. */
static void cpuid_follow_state(const struct jit_vcpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
    if (leaf == 1) {
        replace_bit(&regs[CPUID_ECX], 27, (cpu->cr4 & CR4_OSXSAVE) != 0);
        replace_bit(&regs[CPUID_EDX], 9, (cpu->lapic.apic_base >> 11 & 1) != 0);
    }
    if (leaf == 0xd && subleaf <= 1 && regs[CPUID_EAX])
        regs[CPUID_EBX] = XSAVE_LEGACY_BYTES + (cpu->xcr0 & XCR0_AVX ? XSAVE_AVX_BYTES : 0);
}

void system_cpuid(struct jit_vcpu *cpu)
{
    uint32_t leaf = (uint32_t)cpu->gpr[RAX], subleaf = (uint32_t)cpu->gpr[RCX], regs[4];
    fpu_save(cpu);
    cpuid_lookup(&cpu->cpuid, leaf, subleaf, regs);
    cpuid_follow_state(cpu, leaf, subleaf, regs);
    cpu->gpr[RAX] = regs[CPUID_EAX];
    cpu->gpr[RBX] = regs[CPUID_EBX];
    cpu->gpr[RCX] = regs[CPUID_ECX];
    cpu->gpr[RDX] = regs[CPUID_EDX];
}

static void set_edx_eax(struct jit_vcpu *cpu, uint64_t value)
{
    cpu->gpr[RAX] = (uint32_t)value;
    cpu->gpr[RDX] = value >> 32;
}

void system_rdtsc(struct jit_vcpu *cpu, bool with_aux)
{
    if ((cpu->cr4 & CR4_TSD) && cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
    set_edx_eax(cpu, vcpu_read_tsc(cpu));
    if (with_aux)
        cpu->gpr[RCX] = (uint32_t)cpu->tsc_aux;
}

void system_rdpid(struct jit_vcpu *cpu, unsigned gpr)
{
    cpu->gpr[gpr] = cpu->tsc_aux;
}

/* No performance counters are shown, so that there is none to read. */
void system_rdpmc(struct jit_vcpu *cpu)
{
    vcpu_raise(cpu, VEC_GP, 0);
}

void system_xgetbv(struct jit_vcpu *cpu)
{
    if (!(cpu->cr4 & CR4_OSXSAVE))
        vcpu_raise(cpu, VEC_UD, 0);
    uint32_t index = (uint32_t)cpu->gpr[RCX];
    bool in_use = index == 1 && (system_cpuid_register(cpu, 0xd, 1, CPUID_EAX) >> 2 & 1);
    if (index != 0 && !in_use)
        vcpu_raise(cpu, VEC_GP, 0);
    /* XINUSE may say "in use" of a component in its initial state. */
    set_edx_eax(cpu, cpu->xcr0);
}

void system_xsetbv(struct jit_vcpu *cpu)
{
    if (!(cpu->cr4 & CR4_OSXSAVE))
        vcpu_raise(cpu, VEC_UD, 0);
    system_require_cpl0(cpu);
    uint64_t value = cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
    uint32_t supported = system_cpuid_register(cpu, 0xd, 0, CPUID_EAX);
    bool avx_alone = (value & XCR0_AVX) && !(value & XCR0_SSE);
    if ((uint32_t)cpu->gpr[RCX] || !(value & XCR0_X87) || (value & ~(uint64_t)supported) || avx_alone)
        vcpu_raise(cpu, VEC_GP, 0);
    cpu->xcr0 = value;
}

static unsigned iopl(const struct jit_vcpu *cpu)
{
    return (unsigned)(cpu->rflags & FLAG_IOPL) >> 12;
}

void system_cli(struct jit_vcpu *cpu)
{
    if (cpu->cpl > iopl(cpu))
        vcpu_raise(cpu, VEC_GP, 0);
    cpu->rflags &= ~(uint64_t)FLAG_IF;
}

void system_sti(struct jit_vcpu *cpu)
{
    if (cpu->cpl > iopl(cpu))
        vcpu_raise(cpu, VEC_GP, 0);
    if (cpu->rflags & FLAG_IF)
        return;
    cpu->rflags |= FLAG_IF;
    cpu->interrupt_shadow = true;
    vcpu_recheck_interrupts(cpu);
}

/* CLAC and STAC exist at CPL 0 of CPUs with SMAP. */
static void set_ac(struct jit_vcpu *cpu, bool on)
{
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_UD, 0);
    cpu->rflags = on ? cpu->rflags | FLAG_AC : cpu->rflags & ~(uint64_t)FLAG_AC;
}

void system_clac(struct jit_vcpu *cpu)
{
    set_ac(cpu, false);
}

void system_stac(struct jit_vcpu *cpu)
{
    set_ac(cpu, true);
}

void system_popf(struct jit_vcpu *cpu, uint64_t value, unsigned operand_bits)
{
    bool had_if = (cpu->rflags & FLAG_IF) != 0;
    cpu->rflags = flags_merge(cpu, value, operand_bits, 0) & ~(uint64_t)FLAG_RF;
    if (!had_if)
        vcpu_recheck_interrupts(cpu);
}

uint64_t system_pushf(struct jit_vcpu *cpu)
{
    return cpu->rflags & ~(uint64_t)(FLAG_VM | FLAG_RF);
}

void system_hlt(struct jit_vcpu *cpu)
{
    system_require_cpl0(cpu);
    cpu->halted = true;
}

static void load_table(struct jit_vcpu *cpu, struct x86_table_state *table, uint16_t limit, uint64_t base)
{
    system_require_cpl0(cpu);
    if (vcpu_long_mode(cpu) && !address_canonical(base))
        vcpu_raise(cpu, VEC_GP, 0);
    table->limit = limit;
    table->base = base;
}

void system_lgdt(struct jit_vcpu *cpu, uint16_t limit, uint64_t base)
{
    load_table(cpu, &cpu->gdtr, limit, base);
}

void system_lidt(struct jit_vcpu *cpu, uint16_t limit, uint64_t base)
{
    load_table(cpu, &cpu->idtr, limit, base);
}

static uint64_t *segment_base(struct jit_vcpu *cpu, bool is_gs)
{
    if (!vcpu_long_mode(cpu) || !(cpu->cr4 & CR4_FSGSBASE))
        vcpu_raise(cpu, VEC_UD, 0);
    return &cpu->seg[is_gs ? SEG_GS : SEG_FS].base;
}

uint64_t system_rd_segment_base(struct jit_vcpu *cpu, bool is_gs)
{
    return *segment_base(cpu, is_gs);
}

void system_wr_segment_base(struct jit_vcpu *cpu, bool is_gs, uint64_t value)
{
    uint64_t *base = segment_base(cpu, is_gs);
    if (!address_canonical(value))
        vcpu_raise(cpu, VEC_GP, 0);
    *base = value;
}

void system_check_io(struct jit_vcpu *cpu, uint16_t port, unsigned size)
{
    if (cpu->cpl <= iopl(cpu))
        return;
    bool has_map = (cpu->tr.attributes & SEG_ATTR_P) && (cpu->tr.attributes & 8);
    if (!has_map || cpu->tr.limit < TSS_IO_BASE + 1)
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t base = mmu_load(cpu, cpu->tr.base + TSS_IO_BASE, 2, ACCESS_READ | ACCESS_SYSTEM);
    uint64_t offset = base + port / 8;
    if (offset + 1 > cpu->tr.limit) /* the CPU always reads two bytes */
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t bits = mmu_load(cpu, cpu->tr.base + offset, 2, ACCESS_READ | ACCESS_SYSTEM);
    if (bits >> (port & 7) & ((1u << size) - 1))
        vcpu_raise(cpu, VEC_GP, 0);
}

/* KVM's hypercall convention; both VMCALL and VMMCALL come here. None is offered by the feature leaf. */
void system_vmcall(struct jit_vcpu *cpu)
{
    int64_t result = cpu->cpl ? -KVM_EPERM : -KVM_ENOSYS;
    cpu->gpr[RAX] = vcpu_long_mode(cpu) ? (uint64_t)result : (uint32_t)result;
}

void system_check_umip(struct jit_vcpu *cpu)
{
    if (cpu->cpl && (cpu->cr4 & CR4_UMIP))
        vcpu_raise(cpu, VEC_GP, 0);
}
