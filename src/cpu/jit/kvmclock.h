/* kvmclock: the paravirtual clock of KVM's interface, in guest memory, read by the guest without leaving it.
 * The same formula over the same TSC on every vCPU, so that it is monotonic over all of them (TSC_STABLE).
 * Source: Linux Documentation/virt/kvm/x86/msr.rst, cpuid.rst. Own thread of the vCPU, or while it is not running. */
#pragma once

struct jit_vcpu;

/* MSR_KVM_SYSTEM_TIME_NEW was written: bit 0 enables, the rest is the address of the vCPU's time structure. */
void kvmclock_enable(struct jit_vcpu *cpu);
/* Writes the time structure again, after TSC_ADJUST changed or the vCPU's state was loaded. Nothing when disabled. */
void kvmclock_update(struct jit_vcpu *cpu);
/* MSR_KVM_WALL_CLOCK_NEW was written: fills the wall clock structure at that address. */
void kvmclock_write_wall_clock(struct jit_vcpu *cpu);
