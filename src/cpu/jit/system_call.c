/* Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS. They load flat segments without reading descriptors.
 *
 * What differs between vendors follows the one that CPUID shows: on AMD, SYSCALL works from compatibility mode and SYSENTER does
 * not exist in long mode; on Intel it is the other way round. SYSCALL in legacy mode is not supported (#UD).
 * Hot: general registers only, nothing is copied that does not fit in a few moves.
 * Source: Intel SDM 2 (SYSCALL, SYSRET, SYSENTER, SYSEXIT), AMD APM 3. */
#include "cpu/jit/system_impl.h"

#define FLAT_CODE32 0xc09bu /* as those in vcpu.h */

static void set_flat(struct x86_segment_state *segment, uint64_t selector, unsigned attributes, unsigned cpl)
{
    segment->base = 0;
    segment->limit = UINT32_MAX;
    segment->selector = (uint16_t)((selector & 0xfffcu) | cpl);
    segment->attributes = (uint16_t)(attributes | cpl << 5);
}

static void enter(struct jit_vcpu *cpu, uint64_t cs, unsigned code, uint64_t ss, unsigned cpl)
{
    set_flat(&cpu->seg[SEG_CS], cs, code, cpl);
    set_flat(&cpu->seg[SEG_SS], ss, FLAT_DATA, cpl);
    cpu->cpl = (uint8_t)cpl;
    vcpu_update_mode(cpu);
}

void system_syscall(struct jit_vcpu *cpu, uint64_t next_rip)
{
    bool allowed = cpu->mode == MODE_LONG || (cpu->mode == MODE_COMPAT && system_is_amd(cpu));
    if (!(cpu->efer & EFER_SCE) || !allowed)
        vcpu_raise(cpu, VEC_UD, 0);
    uint64_t target = cpu->mode == MODE_LONG ? cpu->lstar : cpu->cstar;
    uint64_t selector = cpu->star >> 32 & 0xffff;
    cpu->gpr[RCX] = next_rip;
    cpu->gpr[R11] = cpu->rflags & ~(uint64_t)FLAG_RF;
    cpu->rflags = (cpu->rflags & ~(cpu->sfmask | FLAG_RF)) | 2;
    enter(cpu, selector, FLAT_CODE64, (selector & 0xfffc) + 8, 0);
    cpu->rip = target;
}

void system_sysret(struct jit_vcpu *cpu, unsigned operand_bits)
{
    if (!(cpu->efer & EFER_SCE) || !vcpu_long_mode(cpu))
        vcpu_raise(cpu, VEC_UD, 0);
    system_require_cpl0(cpu);
    bool to_64 = operand_bits == 64;
    uint64_t rip = to_64 ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
    if (!address_canonical(rip) && !system_is_amd(cpu)) /* AMD: the fetch there raises it, in ring 3 (APM 3, SYSRET) */
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t selector = cpu->star >> 48;
    cpu->rflags = (cpu->gpr[R11] & SYSRET_FLAGS) | 2;
    enter(cpu, to_64 ? selector + 16 : selector, to_64 ? FLAT_CODE64 : FLAT_CODE32, selector + 8, 3);
    cpu->rip = rip;
    vcpu_recheck_interrupts(cpu);
}

/* What SYSENTER and SYSEXIT share. */
static void check_sysenter(struct jit_vcpu *cpu)
{
    if (vcpu_lma(cpu) && system_is_amd(cpu))
        vcpu_raise(cpu, VEC_UD, 0);
    if (cpu->mode == MODE_REAL || !(cpu->sysenter_cs & 0xfffc))
        vcpu_raise(cpu, VEC_GP, 0);
}

void system_sysenter(struct jit_vcpu *cpu)
{
    check_sysenter(cpu);
    bool lma = vcpu_lma(cpu);
    uint64_t selector = cpu->sysenter_cs & 0xfffc;
    cpu->rflags &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
    cpu->gpr[RSP] = lma ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
    enter(cpu, selector, lma ? FLAT_CODE64 : FLAT_CODE32, selector + 8, 0);
    cpu->rip = lma ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
}

void system_sysexit(struct jit_vcpu *cpu, unsigned operand_bits)
{
    check_sysenter(cpu);
    system_require_cpl0(cpu);
    bool to_64 = operand_bits == 64;
    uint64_t sp = to_64 ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
    uint64_t rip = to_64 ? cpu->gpr[RDX] : (uint32_t)cpu->gpr[RDX];
    if (!address_canonical(sp) || !address_canonical(rip))
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t selector = (cpu->sysenter_cs & 0xfffc) + (to_64 ? 32 : 16);
    enter(cpu, selector, to_64 ? FLAT_CODE64 : FLAT_CODE32, selector + 8, 3);
    cpu->gpr[RSP] = sp;
    cpu->rip = rip;
}

void system_swapgs(struct jit_vcpu *cpu)
{
    if (!vcpu_long_mode(cpu))
        vcpu_raise(cpu, VEC_UD, 0);
    system_require_cpl0(cpu);
    uint64_t base = cpu->seg[SEG_GS].base;
    cpu->seg[SEG_GS].base = cpu->kernel_gs_base;
    cpu->kernel_gs_base = base;
}
