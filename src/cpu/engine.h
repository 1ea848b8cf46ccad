/* The engine contract: vCPUs that run guest code on guest memory until something leaves the CPU.
 *
 * An engine calls the machine for port and memory-mapped accesses and nothing else; devices, interrupts as MSI, memory
 * slots, dirty tracking, and saving and loading architectural state are the same for every engine.
 * Threads: one thread a vCPU calls vcpu_run; vcpu_get_state/vcpu_set_state only while that vCPU is not in vcpu_run.
 * vcpu_kick, send_msi, ioeventfd calls: any thread. The local APIC is the engine's, the IOAPIC the machine's. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "dev/irq.h"

struct mem;
struct engine;
struct vcpu;

/* What the machine offers; called from vCPU threads, several at once. */
struct engine_machine {
    void *arg;
    uint64_t (*port_read)(void *arg, uint16_t port, unsigned size);
    void (*port_write)(void *arg, uint16_t port, uint64_t value, unsigned size);
    uint64_t (*mmio_read)(void *arg, uint64_t gpa, unsigned size);
    void (*mmio_write)(void *arg, uint64_t gpa, uint64_t value, unsigned size);
    /* A level-triggered vector was acknowledged (IOAPIC end of interrupt). */
    void (*eoi)(void *arg, uint8_t vector);
};

enum vcpu_exit {
    VCPU_EXIT_KICKED,       /* vcpu_kick was called, at an instruction boundary */
    VCPU_EXIT_TRIPLE_FAULT, /* shutdown state */
    VCPU_EXIT_ERROR,        /* the engine cannot go on; logged by the engine */
};

struct engine_config {
    struct mem *mem;
    struct engine_machine machine;
    unsigned vcpus; /* 1..32; APIC id = index */
    const char *cpu_model;
    const char *options; /* engine's own options, "name=value,..."; NULL for none */
    const char *jit_opt; /* of the jit engine, "no-NAME,...": optimisations to do without; NULL for none */
    const char *kvm_device; /* of the kvm engine: as engine_class.probe's */
};

struct engine_class {
    const char *name;
    /* 0 when this host can run it, or why not. `kvm_device`: a path or "fd:N" (base/fdname.h), NULL for /dev/kvm. */
    int (*probe)(const char *kvm_device, struct err *err);
    int (*create)(const struct engine_config *config, struct engine **ret_engine, struct err *err);
    void (*free)(struct engine *engine);
    int (*vcpu_create)(struct engine *engine, unsigned index, struct vcpu **ret_vcpu, struct err *err);
    void (*vcpu_free)(struct vcpu *vcpu);
    /* Runs, waits while halted or before SIPI, and returns when something ends it. */
    enum vcpu_exit (*vcpu_run)(struct vcpu *vcpu);
    /* Makes vcpu_run return VCPU_EXIT_KICKED soon; a kick before vcpu_run counts for the next one. Signal-safe. */
    void (*vcpu_kick)(struct vcpu *vcpu);
    void (*vcpu_get_state)(struct vcpu *vcpu, struct x86_state *ret_state);
    int (*vcpu_set_state)(struct vcpu *vcpu, const struct x86_state *state, struct err *err);
    void (*send_msi)(struct engine *engine, struct msi msi);
    /* A guest write of `size` bytes at `gpa` signals `fd` without leaving to the machine. -ENOTSUP: the caller's bus
     * handles the write itself. */
    int (*ioeventfd)(struct engine *engine, uint64_t gpa, unsigned size, int fd, bool add);
    /* Dirty log of guest writes; NULL when not there. `bitmap` gets one bit a page of memory slot `slot`. */
    int (*dirty_log)(struct engine *engine, unsigned slot, bool start, uint64_t *bitmap, struct err *err);
    /* Writes counters as text lines "name value\n" to fd (--jit-stats, metrics); may be NULL. */
    void (*print_stats)(struct engine *engine, int fd);
};

/* Every engine starts its struct with these, so that callers can go through the class. */
struct engine {
    const struct engine_class *class;
};
struct vcpu {
    struct engine *engine;
    unsigned index;
};

extern const struct engine_class engine_kvm, engine_jit;
/* NULL-terminated. */
extern const struct engine_class *const engine_classes[];
/* By name, or "auto": calibrates the KVM device (as engine_class.probe's) with a long-mode loop for a few ms and takes it only when
 * it runs guest code at hardware speed, else jit. The choice and its figures are logged at info level. */
must_check int engine_select(const char *name, const char *kvm_device, const struct engine_class **ret_class, struct err *err);
#define ENGINE_REASON_SIZE 320
/* What "auto" takes, and one line that says why. */
must_check int engine_choose(const char *kvm_device, const struct engine_class **ret_class, char ret_reason[ENGINE_REASON_SIZE],
                             struct err *err);
