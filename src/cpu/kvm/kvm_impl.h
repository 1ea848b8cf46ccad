/* Private to the kvm engine: its two structs and the seams between its files. See kvm.c for the thread rules.
 */
#pragma once

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/engine.h"

#define KVM_VCPUS_MAX 32u
#define KVM_IOAPIC_PINS 24u

/* A level-triggered message that was sent: known to KVM as a route, so that its end of interrupt leaves to
 * us. */
struct kvm_level_route {
    struct msi msi;
    uint64_t used; /* engine's level_clock at the last sending; 0: free */
};

struct kvm_vcpu;

struct kvm_engine {
    struct engine base; /* first */
    int kvm_fd, vm_fd;
    struct mem *mem;
    struct engine_machine machine;
    unsigned vcpu_count;
    char *cpu_model;
    size_t run_size;              /* bytes of a vCPU's shared page area */
    struct kvm_cpuid2 *supported; /* what KVM can show to a guest */
    uint64_t xcr0_supported;      /* XSAVE components KVM can hold for a guest */
    bool has_xcrs;
    uint32_t logged_slots; /* a bit a memory slot whose dirty log is on; caller serialises dirty_log */

    pthread_mutex_t routes_lock;
    struct kvm_level_route routes[KVM_IOAPIC_PINS]; /* under routes_lock */
    uint64_t level_clock;                           /* under routes_lock */

    struct kvm_vcpu *vcpus[KVM_VCPUS_MAX];
};

/* Exits by kind; written by the vCPU's thread, read by any. */
struct kvm_counters {
    atomic_ullong port, mmio, eoi, kick, other;
};

struct kvm_vcpu {
    struct vcpu base; /* first */
    struct kvm_engine *engine;
    int fd;
    struct kvm_run *run;
    atomic_int tid; /* of the thread inside vcpu_run; 0 when none */
    atomic_bool kicked;
    struct kvm_counters counters;
};

int kvm_vcpu_create(struct engine *engine, unsigned index, struct vcpu **ret_vcpu, struct err *err);
void kvm_vcpu_free(struct vcpu *vcpu);
enum vcpu_exit kvm_vcpu_run(struct vcpu *vcpu);
void kvm_vcpu_kick(struct vcpu *vcpu);
/* Makes the kick signal harmless; once before the first vCPU. */
must_check int kvm_kick_signal_install(struct err *err);

void kvm_vcpu_get_state(struct vcpu *vcpu, struct x86_state *ret_state);
int kvm_vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state, struct err *err);

/* `device` as engine_class.probe's; *ret_fd is the caller's. */
must_check int kvm_device_open(const char *device, int *ret_fd, struct err *err);
/* Reads what KVM supports into engine->supported and engine->xcr0_supported. */
must_check int kvm_cpuid_load(struct kvm_engine *engine, struct err *err);
/* Shows the named CPU model to the guest, less what this host's KVM cannot do. */
must_check int kvm_cpuid_apply(struct kvm_vcpu *vcpu, struct err *err);
