/* The vCPU threads: each runs its vCPU or is parked.
 *
 * All functions are called from one thread (the loop's), except vcpus_request_pause, which is for any, vCPU threads
 * included. */
#pragma once

#include "cpu/engine.h"

struct vcpus;

/* Called in a vCPU's thread when it ended other than by a kick; that vCPU is then parked until the next resume. */
typedef void vcpus_ended_fn(void *arg, unsigned index, enum vcpu_exit why);

/* Called once in each vCPU's thread before it first runs guest code. */
typedef void vcpus_begin_fn(void *arg);
/* Creates vCPUs and their threads, parked. */
must_check int vcpus_create(struct engine *engine, unsigned count, vcpus_begin_fn *begin, vcpus_ended_fn *ended, void *arg,
                            struct vcpus **ret_vcpus, struct err *err);
/* Stops and joins the threads, frees the vCPUs. NULL is fine. */
void vcpus_free(struct vcpus *vcpus);

void vcpus_request_pause(struct vcpus *vcpus);
/* Returns when every vCPU is parked, between two instructions. */
void vcpus_pause(struct vcpus *vcpus);
void vcpus_resume(struct vcpus *vcpus);

/* Only while parked. */
void vcpus_get_state(struct vcpus *vcpus, unsigned index, struct x86_state *ret_state);
must_check int vcpus_set_state(struct vcpus *vcpus, unsigned index, const struct x86_state *state, struct err *err);
