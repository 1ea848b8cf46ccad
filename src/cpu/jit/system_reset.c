/* Power-on, INIT and start-up states of the vCPU. Source: Intel SDM 3A tables 9-1 and 11-1, 8.4.
 * INIT keeps the vector state, the MSRs but EFER, the TSC, and CR0.CD and NW. */
#include "cpu/jit/system_impl.h"

#include "cpu/jit/fpu.h"
#include "cpu/jit/lapic_impl.h"

#define ATTRIBUTES_CODE 0x9bu
#define ATTRIBUTES_DATA 0x93u
#define ATTRIBUTES_LDT 0x82u
#define ATTRIBUTES_TSS 0x8bu

static struct x86_segment_state reset_segment(uint64_t base, uint16_t selector, uint16_t attributes)
{
    return (struct x86_segment_state){.base = base, .limit = 0xffff, .selector = selector, .attributes = attributes};
}

static void reset_segments(struct jit_vcpu *cpu)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = reset_segment(0, 0, ATTRIBUTES_DATA);
    cpu->seg[SEG_CS] = reset_segment(0xffff0000, 0xf000, ATTRIBUTES_CODE);
    cpu->ldtr = reset_segment(0, 0, ATTRIBUTES_LDT);
    cpu->tr = reset_segment(0, 0, ATTRIBUTES_TSS);
    cpu->gdtr = (struct x86_table_state){.limit = 0xffff};
    cpu->idtr = (struct x86_table_state){.limit = 0xffff};
}

static void reset_registers(struct jit_vcpu *cpu, bool power_on)
{
    for (unsigned i = 0; i < GPR_COUNT; i++)
        cpu->gpr[i] = 0;
    cpu->gpr[RDX] = system_cpuid_register(cpu, 1, 0, CPUID_EAX);
    cpu->rip = 0xfff0;
    cpu->rflags = 2;
    uint64_t cache_bits = power_on ? CR0_CD | CR0_NW : cpu->cr0 & (CR0_CD | CR0_NW);
    cpu->cr0 = CR0_ET | cache_bits;
    cpu->cr2 = cpu->cr3 = cpu->cr4 = cpu->efer = 0;
    for (unsigned i = 0; i < 4; i++)
        cpu->dr[i] = 0;
    cpu->dr6 = DR6_FIXED;
    cpu->dr7 = DR7_FIXED;
    cpu->cpl = 0;
}

/* Vector state as after FNINIT with MXCSR at its default: what KVM starts a vCPU with too. */
static void reset_vectors(struct jit_vcpu *cpu)
{
    for (unsigned i = 0; i < X86_XSAVE_SIZE; i++)
        cpu->xsave[i] = 0;
    cpu->xsave[0] = 0x7f; /* FCW 0x37f */
    cpu->xsave[1] = 0x03;
    cpu->xsave[24] = 0x80; /* MXCSR 0x1f80 */
    cpu->xsave[25] = 0x1f;
    cpu->xcr0 = XCR0_X87;
}

static void reset_msrs(struct jit_vcpu *cpu)
{
    cpu->star = cpu->lstar = cpu->cstar = cpu->sfmask = cpu->kernel_gs_base = cpu->tsc_aux = 0;
    cpu->sysenter_cs = cpu->sysenter_esp = cpu->sysenter_eip = 0;
    cpu->pat = PAT_RESET;
    cpu->mtrr_def_type = MTRR_DEF_TYPE_RESET;
    for (unsigned i = 0; i < 11; i++)
        cpu->mtrr_fix[i] = 0;
    for (unsigned i = 0; i < 16; i++)
        cpu->mtrr_var[i] = 0;
    cpu->misc_enable = MISC_ENABLE_RESET;
    cpu->spec_ctrl = cpu->mcg_status = 0;
    cpu->tsc_offset -= cpu->tsc_adjust; /* the TSC runs on, without what the guest added */
    cpu->tsc_adjust = 0;
    cpu->kvm_system_time = cpu->kvm_wall_clock = cpu->kvm_async_pf = 0;
}

void system_reset(struct jit_vcpu *cpu, bool power_on)
{
    bool boots = cpu->base.index == 0;
    fpu_save(cpu);
    reset_registers(cpu, power_on);
    reset_segments(cpu);
    if (power_on) {
        reset_vectors(cpu);
        reset_msrs(cpu);
        lapic_reset(cpu, cpu->base.index);
        __atomic_store_n(&cpu->init_pending, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&cpu->sipi_pending, 0, __ATOMIC_RELAXED);
    } else {
        lapic_init(cpu);
    }
    cpu->halted = cpu->interrupt_shadow = cpu->debug_shadow = cpu->nmi_blocked = cpu->shutdown = false;
    cpu->debug_pending = 0;
    __atomic_store_n(&cpu->nmi_pending, 0, __ATOMIC_RELAXED);
    cpu->run_state = boots ? X86_RUNNABLE : X86_WAIT_FOR_SIPI;
    mmu_flush_all(cpu);
    vcpu_update_mode(cpu);
}

void system_start_ap(struct jit_vcpu *cpu, uint8_t sipi_vector)
{
    cpu->seg[SEG_CS].selector = (uint16_t)(sipi_vector << 8);
    cpu->seg[SEG_CS].base = (uint64_t)sipi_vector << 12;
    cpu->rip = 0;
    cpu->halted = false;
    cpu->run_state = X86_RUNNABLE;
}
