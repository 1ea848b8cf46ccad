/* Native execution of one PLAIN instruction on the bare CPU: the instruction is re-emitted into a stub with its memory operand
 * replaced by a host pointer; guest registers and flags are loaded around it. Vector state is the host's live one
 * (fpu.h). Stubs are cached by instruction bytes. A host exception within the instruction (#DE, #MF, #XM, #GP of a misaligned
 * SSE operand, #UD) becomes the guest's.
 * Thread rule: a context belongs to one vCPU and its thread; exec_handle_signal() works on the calling thread's. */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct jit_vcpu;
struct insn;
struct exec;

must_check int exec_create(struct exec **ret_exec, struct err *err);
void exec_free(struct exec *exec);

#define EXEC_DONE (-1)
/* Runs `insn` with `operand` as the address of its memory operand (or, for lea, the address value itself). Updates gpr and
 * arithmetic rflags, not rip. Returns EXEC_DONE, or the vector of the exception, with nothing of the vCPU changed but
 * what the CPU changes on such a fault (MXCSR flags). */
int exec_run(struct jit_vcpu *cpu, struct exec *exec, const struct insn *insn, uint64_t operand);

/* For the handlers of SIGFPE, SIGSEGV, SIGILL and SIGBUS: true when the fault was a stub's and `ucontext` now
 * continues past it. Async-signal-safe. */
bool exec_handle_signal(const siginfo_t *info, void *ucontext);
