/* The vCPU loop and what it needs of the host: signals, timer, sleeping. */
#pragma once

#include "cpu/engine.h"

struct jit_vcpu;

/* Installs the process's signal handlers once. */
must_check int run_install_signals(struct err *err);
/* Carries out INIT and SIPI that are pending; the vCPU does not run. */
void run_take_init_and_sipi(struct jit_vcpu *cpu);
/* engine_class.vcpu_run and vcpu_kick. */
enum vcpu_exit run_vcpu(struct vcpu *vcpu);
void run_kick(struct vcpu *vcpu);
