/* Privileged and system instructions, by what they do; the interpreter decodes operands and calls these. Each checks privilege and
 * raises by itself, and leaves rip alone except where it says that it sets it. Source: Intel SDM 2, AMD APM 3. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;

uint64_t system_read_cr(struct jit_vcpu *cpu, unsigned index);
void system_write_cr(struct jit_vcpu *cpu, unsigned index, uint64_t value);
uint64_t system_read_dr(struct jit_vcpu *cpu, unsigned index);
void system_write_dr(struct jit_vcpu *cpu, unsigned index, uint64_t value);
void system_clts(struct jit_vcpu *cpu);
void system_lmsw(struct jit_vcpu *cpu, uint16_t value);
/* CPL or privilege-independent MSR access by ECX; #GP for unknown ones that hardware would refuse; those that kernels probe without
 * need read as zero. */
uint64_t system_read_msr(struct jit_vcpu *cpu, uint32_t index);
void system_write_msr(struct jit_vcpu *cpu, uint32_t index, uint64_t value);
/* Loads a saved MSR: as a write, but TSC and TSC_ADJUST are set without moving each other, and the TSCs of vCPUs that were saved
 * within a second of each other come out equal. */
void system_load_msr(struct jit_vcpu *cpu, uint32_t index, uint64_t value);
void system_rdmsr(struct jit_vcpu *cpu);
void system_wrmsr(struct jit_vcpu *cpu);
void system_cpuid(struct jit_vcpu *cpu);
void system_rdtsc(struct jit_vcpu *cpu, bool with_aux);
void system_rdpid(struct jit_vcpu *cpu, unsigned gpr);
void system_rdpmc(struct jit_vcpu *cpu);
void system_xgetbv(struct jit_vcpu *cpu);
void system_xsetbv(struct jit_vcpu *cpu);
/* These set rip. */
void system_syscall(struct jit_vcpu *cpu, uint64_t next_rip);
void system_sysret(struct jit_vcpu *cpu, unsigned operand_bits);
void system_sysenter(struct jit_vcpu *cpu);
void system_sysexit(struct jit_vcpu *cpu, unsigned operand_bits);
void system_swapgs(struct jit_vcpu *cpu);
/* CLI, STI (sets interrupt_shadow), POPF by privilege; `operand_bits` 16, 32, 64. */
void system_cli(struct jit_vcpu *cpu);
void system_sti(struct jit_vcpu *cpu);
void system_clac(struct jit_vcpu *cpu);
void system_stac(struct jit_vcpu *cpu);
void system_popf(struct jit_vcpu *cpu, uint64_t value, unsigned operand_bits);
uint64_t system_pushf(struct jit_vcpu *cpu);
void system_hlt(struct jit_vcpu *cpu);
void system_invlpg(struct jit_vcpu *cpu, uint64_t linear);
/* `descriptor` is the 16-byte operand. */
void system_invpcid(struct jit_vcpu *cpu, uint64_t type, const uint64_t descriptor[2]);
void system_wbinvd(struct jit_vcpu *cpu);
void system_lgdt(struct jit_vcpu *cpu, uint16_t limit, uint64_t base);
void system_lidt(struct jit_vcpu *cpu, uint16_t limit, uint64_t base);
/* FS/GS base instructions (CR4.FSGSBASE, else #UD); is_gs selects. */
uint64_t system_rd_segment_base(struct jit_vcpu *cpu, bool is_gs);
void system_wr_segment_base(struct jit_vcpu *cpu, bool is_gs, uint64_t value);
/* Raises #GP unless CPL <= IOPL or the TSS permission bitmap allows the ports. */
void system_check_io(struct jit_vcpu *cpu, uint16_t port, unsigned size);
void system_vmcall(struct jit_vcpu *cpu);
/* Raises #UD/#GP when UMIP forbids SGDT, SIDT, SLDT, STR, SMSW in user mode. */
void system_check_umip(struct jit_vcpu *cpu);
/* INIT, power-on and SIPI states of the vCPU itself. */
void system_reset(struct jit_vcpu *cpu, bool power_on);
void system_start_ap(struct jit_vcpu *cpu, uint8_t sipi_vector);
