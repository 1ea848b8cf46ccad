/* --sandbox: how polder-vmm confines itself. In two steps: it gives up all that can be opened before it reads a foreign byte,
 * and most system calls before the guest runs. */
#pragma once

#include "sandbox/filter.h"
#include "vmm/config.h"
#include "vmm/machine.h"

/* Single-threaded, right after the command line was read. Nothing when it is off. Of the configuration it names the KVM device anew,
 * as a descriptor. */
must_check int jail_enter(struct vm_config *config, struct err *err);
/* In the loop's thread, with the machine built: first what all threads may do, then what each kind may. */
must_check int jail_close(const struct vm_config *config, struct machine *machine, struct err *err);
/* In a thread, behind jail_close: what its kind does not need goes too, for good. Ends the program when it fails. */
void jail_close_thread(const struct vm_config *config, enum sandbox_filter kind);
/* The same in each thread of the API that comes here, but not in the loop's. They may be older than the machine, so this is for the
 * beginning of each of their pieces of work. */
void jail_close_api_thread(const struct vm_config *config);
