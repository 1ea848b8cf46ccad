/* Exception and interrupt delivery through the IDT (64-bit, 32/16-bit protected) or the real-mode vector table: stack switch by
 * TSS or IST, error codes, double and triple faults. Source: Intel SDM 3A chapter 6. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;
struct jit_exception;

/* Delivers; on faults during delivery follows the double-fault rules (SDM table 6-5). Sets cpu->shutdown on a triple fault.
 * Never unwinds: it catches what it raises itself. */
void excp_deliver(struct jit_vcpu *cpu, const struct jit_exception *exception);
/* An external interrupt or NMI. */
void excp_deliver_interrupt(struct jit_vcpu *cpu, uint8_t vector);
