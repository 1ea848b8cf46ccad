/* Last words: a host fault that is not the guest's ends the program; one line on standard error says what it hit. */
#pragma once

#include <signal.h>

struct jit_vcpu;

/* For signal handlers; `cpu` is the thread's, or NULL. Prints nothing for a signal that a process sent. */
void crash_report(const struct jit_vcpu *cpu, int signal, const siginfo_t *info, const void *context);
