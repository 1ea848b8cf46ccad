/* Interpreter: every instruction in every mode, one at a time. What is PLAIN runs natively on the bare CPU, re-emitted with its
 * memory operand replaced (exec.c); the rest is C. The translator calls it for what it does not emit inline. */
#pragma once

struct jit_vcpu;
struct insn;

/* Fetches, decodes (through a small cache by guest physical address, checked against the bytes) and executes the instruction at
 * rip. Raises exceptions by unwinding. A rep string operation may retire in part with rip unchanged; interrupts are taken
 * between. Notes in cpu->debug_pending what the run loop has to raise as #DB. */
void interp_step(struct jit_vcpu *cpu);
/* The instruction at rip, decoded; valid until the next call. Raises fetch faults. */
const struct insn *interp_fetch(struct jit_vcpu *cpu);
/* Executes `insn`, which was decoded from rip in the current mode, and moves rip on. */
void interp_execute(struct jit_vcpu *cpu, const struct insn *insn);
/* Per-vCPU state: 0 or -ENOMEM. */
int interp_init(struct jit_vcpu *cpu);
void interp_free(struct jit_vcpu *cpu);
