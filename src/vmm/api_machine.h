/* A struct machine behind the API's vtable: requests come in the HTTP thread, the machine lives in the loop's
 * thread, and this hands them over.
 *
 * Order of a program's end: loop_run has returned, api_machine_close, api_free, then api_machine_free. */
#pragma once

#include "vmm/api.h"
#include "vmm/machine.h"

struct api_machine;

/* `arg` of these is the struct api_machine. */
extern const struct api_vm_ops api_machine_ops;

/* `host.loop` is the loop of the machine to come. */
must_check int api_machine_create(struct machine_host host, struct api_machine **ret_binding,
                                  struct err *err);
/* In the loop's thread: builds the machine and lets it run. What InstanceStart does, for a program whose
 * machine is all there on the command line. */
must_check int api_machine_start(struct api_machine *binding, const struct vm_config *config,
                                 struct err *err);
/* NULL before the start. Any thread. */
struct machine *api_machine_get(struct api_machine *binding);
/* In the loop's thread, when the loop does not run any more: requests that wait for it, and all later ones,
 * fail. */
void api_machine_close(struct api_machine *binding);
/* Frees the machine too. NULL is fine. */
void api_machine_free(struct api_machine *binding);
