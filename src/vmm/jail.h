/* --sandbox: how polder-vmm confines itself. In two steps: it gives up all that can be opened before it reads a foreign byte,
 * and most system calls before the guest runs. */
#pragma once

#include "cpu/engine.h"
#include "vmm/config.h"

/* Single-threaded, right after the command line was read. Nothing when it is off. Of the configuration it names the KVM device anew,
 * as a descriptor. */
must_check int jail_enter(struct vm_config *config, struct err *err);
/* With the machine built; again after each start. For all threads. */
must_check int jail_close(const struct vm_config *config, const struct engine *engine, struct err *err);
/* In a vCPU's thread, behind jail_close; ends the program when it fails. */
void jail_close_vcpu(const struct vm_config *config);
