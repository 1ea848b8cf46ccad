/* The border between C and translated code: ways in, ways out, and host faults inside. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;

/* Translated code for rip, in long mode, that the jump cache has; NULL if none. What it holds may be dead and then goes through
 * C code that looks for a block of its own. */
const uint8_t *enter_known(struct jit_vcpu *cpu);
/* Runs translated code from `entry` (executable view) until it leaves to the run loop; guest state is then in *cpu.
 * The thread's gs base must point to cpu. */
void enter_run(struct jit_vcpu *cpu, const uint8_t *entry);

/* For SIGFPE and SIGSEGV: when the fault happened in this vCPU's translated code it is the guest's (#DE, #MF, #XM, or #GP for
 * a misaligned SSE operand): makes the thread go on in C code that raises it. False: not translated code. */
bool enter_handle_signal(struct jit_vcpu *cpu, void *context);
