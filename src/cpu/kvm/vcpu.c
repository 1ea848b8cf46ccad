/* Engine `kvm`: one vCPU's run loop and its kick.
 *
 * A kick sets `kicked`, then the shared page's immediate_exit, then signals the thread inside vcpu_run;
 * KVM_RUN then ends with EINTR after it has finished a pending port or memory access, so the vCPU is always
 * left between instructions. The signal is unblocked only within vcpu_run, and its handler is empty.
 * immediate_exit is cleared before `kicked` is taken: a kick in between is either taken now or ends the next
 * KVM_RUN, never lost. */
#include "cpu/kvm/kvm_impl.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"

static void on_kick_signal(int signal)
{
    (void)signal;
}

int kvm_kick_signal_install(struct err *err)
{
    struct sigaction action = {.sa_handler = on_kick_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGRTMIN, &action, NULL) < 0 ? err_set(err, errno, "kick signal") : 0;
}

static int vcpu_map_run(struct kvm_vcpu *vcpu, struct err *err)
{
    void *run = mmap(NULL, vcpu->engine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return err_set(err, errno, "map the shared page");
    vcpu->run = run;
    return 0;
}

int kvm_vcpu_create(struct engine *base, unsigned index, struct vcpu **ret_vcpu, struct err *err)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    if (index >= engine->vcpu_count || engine->vcpus[index])
        return err_say(err, EINVAL, "vCPU %u: no such vCPU, or it is there already", index);
    struct kvm_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return err_set(err, ENOMEM, "vCPU %u", index);
    vcpu->base.engine = base;
    vcpu->base.index = index;
    vcpu->engine = engine;
    vcpu->fd = ioctl(engine->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
    int ret = vcpu->fd < 0 ? err_set(err, errno, "KVM_CREATE_VCPU") : 0;
    if (ret == 0)
        ret = vcpu_map_run(vcpu, err);
    if (ret == 0)
        ret = kvm_cpuid_apply(vcpu, err);
    if (ret < 0) {
        kvm_vcpu_free(&vcpu->base);
        return err_ctx(err, "vCPU %u", index);
    }
    engine->vcpus[index] = vcpu;
    *ret_vcpu = &vcpu->base;
    return 0;
}

void kvm_vcpu_free(struct vcpu *base)
{
    struct kvm_vcpu *vcpu = (struct kvm_vcpu *)base;
    if (!vcpu)
        return;
    if (vcpu->engine->vcpus[base->index] == vcpu)
        vcpu->engine->vcpus[base->index] = NULL;
    if (vcpu->run)
        munmap(vcpu->run, vcpu->engine->run_size);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    free(vcpu);
}

void kvm_vcpu_kick(struct vcpu *base)
{
    struct kvm_vcpu *vcpu = (struct kvm_vcpu *)base;
    int saved_errno = errno;
    atomic_store(&vcpu->kicked, true);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    int tid = atomic_load(&vcpu->tid);
    if (tid)
        syscall(SYS_tgkill, getpid(), tid, SIGRTMIN);
    errno = saved_errno;
}

static bool vcpu_take_kick(struct kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    return atomic_exchange(&vcpu->kicked, false);
}

static void count(atomic_ullong *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* String instructions carry several elements, all for the same port. */
static void vcpu_on_port(struct kvm_vcpu *vcpu)
{
    const struct engine_machine *machine = &vcpu->engine->machine;
    const struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)vcpu->run + run->io.data_offset;
    unsigned size = run->io.size;
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, size);
            machine->port_write(machine->arg, run->io.port, value, size);
        } else {
            value = machine->port_read(machine->arg, run->io.port, size);
            memcpy(data, &value, size);
        }
    }
}

/* KVM gives an access that crosses a page in pieces of any length; the machine takes powers of two. */
static void vcpu_on_mmio(struct kvm_vcpu *vcpu)
{
    const struct engine_machine *machine = &vcpu->engine->machine;
    struct kvm_run *run = vcpu->run;
    uint32_t len = run->mmio.len <= sizeof run->mmio.data ? run->mmio.len : (uint32_t)sizeof run->mmio.data;
    for (uint32_t done = 0; done < len;) {
        unsigned size = 8;
        while (size > len - done)
            size /= 2;
        uint64_t value = 0;
        if (run->mmio.is_write) {
            memcpy(&value, run->mmio.data + done, size);
            machine->mmio_write(machine->arg, run->mmio.phys_addr + done, value, size);
        } else {
            value = machine->mmio_read(machine->arg, run->mmio.phys_addr + done, size);
            memcpy(run->mmio.data + done, &value, size);
        }
        done += size;
    }
}

static enum vcpu_exit vcpu_fail(const struct kvm_vcpu *vcpu, const char *what, uint64_t detail)
{
    struct kvm_regs regs = {0};
    if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
        regs.rip = UINT64_MAX;
    log_error("vCPU %u: %s %#llx at rip %#llx: the kvm engine cannot go on; --engine jit may",
              vcpu->base.index, what, (unsigned long long)detail, (unsigned long long)regs.rip);
    return VCPU_EXIT_ERROR;
}

static enum vcpu_exit vcpu_internal_error(const struct kvm_vcpu *vcpu)
{
    const struct kvm_run *run = vcpu->run;
    for (uint32_t i = 0; i < run->internal.ndata && i < 4; i++)
        log_error("vCPU %u: KVM internal error %u, data[%u] = %#llx", vcpu->base.index,
                  run->internal.suberror, i, (unsigned long long)run->internal.data[i]);
    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
        return vcpu_fail(vcpu, "instruction that KVM cannot emulate, error", run->internal.suberror);
    return vcpu_fail(vcpu, "KVM internal error", run->internal.suberror);
}

/* True: the vCPU goes on. False: *ret_exit says why not. */
static bool vcpu_handle_exit(struct kvm_vcpu *vcpu, enum vcpu_exit *ret_exit)
{
    const struct kvm_run *run = vcpu->run;
    const struct engine_machine *machine = &vcpu->engine->machine;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        count(&vcpu->counters.port);
        vcpu_on_port(vcpu);
        return true;
    case KVM_EXIT_MMIO:
        count(&vcpu->counters.mmio);
        vcpu_on_mmio(vcpu);
        return true;
    case KVM_EXIT_IOAPIC_EOI:
        count(&vcpu->counters.eoi);
        machine->eoi(machine->arg, run->eoi.vector);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_HLT: /* the kernel's local APIC waits for us; only odd hosts report it */
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
        count(&vcpu->counters.other);
        return true;
    case KVM_EXIT_SHUTDOWN:
    case KVM_EXIT_SYSTEM_EVENT:
        *ret_exit = VCPU_EXIT_TRIPLE_FAULT;
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        *ret_exit = vcpu_internal_error(vcpu);
        return false;
    case KVM_EXIT_FAIL_ENTRY:
        *ret_exit = vcpu_fail(vcpu, "the CPU refused the guest's state, reason",
                              run->fail_entry.hardware_entry_failure_reason);
        return false;
    default:
        *ret_exit = vcpu_fail(vcpu, "unexpected KVM exit", run->exit_reason);
        return false;
    }
}

static enum vcpu_exit vcpu_loop(struct kvm_vcpu *vcpu)
{
    enum vcpu_exit why = VCPU_EXIT_ERROR;
    for (;;) {
        if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
            if (!vcpu_handle_exit(vcpu, &why))
                return why;
        } else if (errno == EINTR) {
            count(&vcpu->counters.kick);
            if (vcpu_take_kick(vcpu))
                return VCPU_EXIT_KICKED;
        } else if (errno != EAGAIN) {
            int code = errno;
            return vcpu_fail(vcpu, strerror(code), (uint64_t)code);
        }
    }
}

enum vcpu_exit kvm_vcpu_run(struct vcpu *base)
{
    struct kvm_vcpu *vcpu = (struct kvm_vcpu *)base;
    sigset_t kick, before;
    sigemptyset(&kick);
    sigaddset(&kick, SIGRTMIN);
    pthread_sigmask(SIG_UNBLOCK, &kick, &before);
    atomic_store(&vcpu->tid, (int)syscall(SYS_gettid));
    enum vcpu_exit why = vcpu_loop(vcpu);
    atomic_store(&vcpu->tid, 0);
    /* Whatever the caller had: the signal stays out of its way. */
    sigaddset(&before, SIGRTMIN);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return why;
}
