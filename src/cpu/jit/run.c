/* The vCPU loop: takes events, then runs translated code or interprets, until something ends it.
 * Compiled without vector registers; the guest's may be live all through (fpu.h). */
#include "cpu/jit/run.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/log.h"
#include "cpu/jit/cache_impl.h"
#include "cpu/jit/crash.h"
#include "cpu/jit/enter.h"
#include "cpu/jit/excp.h"
#include "cpu/jit/exec.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp.h"
#include "cpu/jit/profile.h"
#include "cpu/jit/system.h"
#include "cpu/jit/vcpu.h"
#include "cpu/jit/watch.h"

#define ALT_STACK_SIZE ((size_t)64 << 10)
#define TIMER_SIGNAL SIGRTMIN
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

enum unwind { UNWIND_RAISED = 1, UNWIND_RESUMED };

static __thread struct jit_vcpu *this_vcpu;

/* ---- raising ---- */

static bool has_error_code(unsigned vector)
{
    return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

void vcpu_raise_exception(struct jit_vcpu *cpu, struct jit_exception exception)
{
    cpu->exception = exception;
    _longjmp(cpu->unwind, UNWIND_RAISED);
}

void vcpu_resume(struct jit_vcpu *cpu)
{
    _longjmp(cpu->unwind, UNWIND_RESUMED);
}

void vcpu_raise(struct jit_vcpu *cpu, enum x86_vector vector, uint32_t error)
{
    vcpu_raise_exception(cpu, (struct jit_exception){
                                  .vector = (uint8_t)vector, .has_error = has_error_code(vector), .error = error});
}

void vcpu_raise_page_fault(struct jit_vcpu *cpu, uint64_t linear, uint32_t error)
{
    vcpu_raise_exception(
        cpu, (struct jit_exception){.vector = VEC_PF, .has_error = true, .error = error, .cr2 = linear});
}

/* ---- notification and sleep ---- */

static long futex(uint32_t *word, int op, uint32_t value)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

void vcpu_notify(struct jit_vcpu *cpu)
{
    __atomic_store_n(&cpu->poll, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&cpu->sleeping, __ATOMIC_SEQ_CST)) {
        int saved = errno;
        futex(&cpu->poll, FUTEX_WAKE, 1);
        errno = saved;
    }
}

void run_kick(struct vcpu *vcpu)
{
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    __atomic_store_n(&cpu->kick_pending, 1, __ATOMIC_SEQ_CST);
    vcpu_notify(cpu);
}

/* Until notified; the timer's signal notifies too. */
static void sleep_until_notified(struct jit_vcpu *cpu)
{
    fpu_save(cpu);
    requests_go_offline(cpu);
    profile_begin(cpu, PROFILE_SLEEP);
    __atomic_store_n(&cpu->sleeping, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&cpu->poll, __ATOMIC_SEQ_CST))
        futex(&cpu->poll, FUTEX_WAIT, 0);
    __atomic_store_n(&cpu->sleeping, 0, __ATOMIC_SEQ_CST);
    profile_switch(cpu, PROFILE_LOOP);
    requests_go_online(cpu);
}

/* ---- time ---- */

uint64_t vcpu_read_tsc(const struct jit_vcpu *cpu)
{
    return __rdtsc() + cpu->tsc_offset;
}

void vcpu_timer_arm(struct jit_vcpu *cpu, uint64_t deadline)
{
    struct itimerspec when = {0};
    if (deadline) {
        int64_t ticks = (int64_t)(deadline - vcpu_read_tsc(cpu));
        if (ticks <= 0) {
            __atomic_store_n(&cpu->poll, 1, __ATOMIC_SEQ_CST);
            return;
        }
        uint64_t ns = (uint64_t)((unsigned __int128)(uint64_t)ticks * 1000000u / host_tsc_khz()) + 1;
        if (ns > UINT64_C(3600000000000))
            ns = UINT64_C(3600000000000);
        when.it_value.tv_sec = (time_t)(ns / 1000000000u);
        when.it_value.tv_nsec = (long)(ns % 1000000000u);
    }
    if (cpu->timer_made && (deadline || cpu->timer_armed))
        timer_settime(cpu->timer, 0, &when, NULL);
    cpu->timer_armed = deadline != 0;
}

/* ---- signals ---- */

static void on_timer_signal(int signal)
{
    (void)signal;
    struct jit_vcpu *cpu = this_vcpu;
    if (!cpu)
        return;
    cpu->timer_fired = true;
    __atomic_store_n(&cpu->poll, 1, __ATOMIC_SEQ_CST);
}

static const int fault_signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL};
#define FAULT_SIGNALS (sizeof fault_signals / sizeof fault_signals[0])
static struct sigaction before[FAULT_SIGNALS]; /* what the program does about them, set before any vCPU */

/* A fault in translated code or in a native stub is the guest's; any other is a bug of ours and dies as the program has it
 * (restoring the terminal): the instruction faults again, or, sent by kill, the signal is raised again. */
static void on_fault(int signal, siginfo_t *info, void *context)
{
    if ((this_vcpu && enter_handle_signal(this_vcpu, context)) || exec_handle_signal(info, context))
        return;
    crash_report(this_vcpu, signal, info, context);
    for (unsigned i = 0; i < FAULT_SIGNALS; i++)
        if (fault_signals[i] == signal)
            sigaction(signal, &before[i], NULL);
    if (info->si_code <= 0)
        raise(signal);
}

int run_install_signals(struct err *err)
{
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction timer = {.sa_handler = on_timer_signal, .sa_flags = SA_ONSTACK};
    sigemptyset(&fault.sa_mask);
    sigemptyset(&timer.sa_mask);
    for (unsigned i = 0; i < FAULT_SIGNALS; i++) {
        struct sigaction old;
        if (sigaction(fault_signals[i], &fault, &old))
            return err_set(err, errno, "jit: signal handlers");
        if (old.sa_sigaction != on_fault) /* a second engine in this process */
            before[i] = old;
    }
    return sigaction(TIMER_SIGNAL, &timer, NULL) ? err_set(err, errno, "jit: signal handlers") : 0;
}

/* Signals must not land on the guest's stack, whatever its rsp looks like: without a stack for them nothing runs. */
static bool set_up_thread(struct jit_vcpu *cpu)
{
    void *stack = mmap(NULL, ALT_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t alt = {.ss_sp = stack, .ss_size = ALT_STACK_SIZE, .ss_flags = (int)SS_AUTODISARM};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = TIMER_SIGNAL};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (stack == MAP_FAILED || sigaltstack(&alt, NULL)) {
        log_error("jit: signal stack: %s", strerror(errno));
        return false;
    }
    if (timer_create(CLOCK_MONOTONIC, &event, &cpu->timer)) {
        log_error("jit: vCPU timer: %s", strerror(errno));
        return false;
    }
    cpu->timer_made = true;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, TIMER_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    vcpu_timer_arm(cpu, cpu->lapic.timer_deadline_tsc);
    this_vcpu = cpu;
    return true;
}

/* ---- the loop ---- */

enum step { STEP_ON, STEP_KICKED, STEP_SHUTDOWN };

void vcpu_update_mode(struct jit_vcpu *cpu)
{
    uint16_t cs = cpu->seg[SEG_CS].attributes;
    if (!(cpu->cr0 & CR0_PE))
        cpu->mode = MODE_REAL;
    else if (!(cpu->efer & EFER_LMA))
        cpu->mode = MODE_PROTECTED;
    else
        cpu->mode = cs & SEG_ATTR_L ? MODE_LONG : MODE_COMPAT;
}

/* The host timer may fire early: it counts in another clock, and at most an hour at once. */
static void check_timer(struct jit_vcpu *cpu)
{
    bool fired = __atomic_exchange_n(&cpu->timer_fired, false, __ATOMIC_RELAXED);
    uint64_t deadline = cpu->lapic.timer_deadline_tsc;
    lapic_timer_check(cpu);
    if (fired && deadline && cpu->lapic.timer_deadline_tsc == deadline)
        vcpu_timer_arm(cpu, deadline);
}

static bool take(uint8_t *flag)
{
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE) && __atomic_exchange_n(flag, 0, __ATOMIC_ACQ_REL);
}

void run_take_init_and_sipi(struct jit_vcpu *cpu)
{
    if (take(&cpu->init_pending)) {
        fpu_save(cpu);
        system_reset(cpu, false);
    }
    if (take(&cpu->sipi_pending) && cpu->run_state == X86_WAIT_FOR_SIPI)
        system_start_ap(cpu, __atomic_load_n(&cpu->sipi_vector, __ATOMIC_RELAXED));
}

static void look_again_if_due(struct jit_vcpu *cpu)
{
    if (cpu->rflags & FLAG_IF && lapic_pending_vector(cpu) >= 0)
        __atomic_store_n(&cpu->poll, 1, __ATOMIC_RELEASE);
}

/* True when an interrupt was delivered. */
static bool take_interrupt(struct jit_vcpu *cpu)
{
    cpu->interrupt_waiting = lapic_pending_vector(cpu) >= 0;
    if (cpu->interrupt_shadow || cpu->debug_pending) { /* look again after the next instruction */
        if (cpu->interrupt_waiting || __atomic_load_n(&cpu->nmi_pending, __ATOMIC_RELAXED))
            __atomic_store_n(&cpu->poll, 1, __ATOMIC_RELAXED);
        return false;
    }
    if (!cpu->nmi_blocked && take(&cpu->nmi_pending)) {
        cpu->halted = false;
        cpu->nmi_blocked = true;
        excp_deliver_interrupt(cpu, VEC_NMI);
        look_again_if_due(cpu); /* a trap gate leaves IF alone */
        return true;
    }
    if (!(cpu->rflags & FLAG_IF))
        return false;
    int vector = lapic_pending_vector(cpu);
    if (vector < 0)
        return false;
    cpu->halted = false;
    lapic_accept(cpu, (uint8_t)vector);
    cpu->interrupt_waiting = lapic_pending_vector(cpu) >= 0;
    excp_deliver_interrupt(cpu, (uint8_t)vector);
    return true;
}

static void interpret_one(struct jit_vcpu *cpu)
{
    watch_fetch(cpu, cpu->mode == MODE_LONG ? cpu->rip : (uint32_t)(cpu->seg[SEG_CS].base + cpu->rip));
    interp_step(cpu);
    watch_retired(cpu);
}

static bool translatable(const struct jit_vcpu *cpu)
{
    return cpu->mode == MODE_LONG && !cpu->interrupt_shadow && !cpu->interpret_only && !vcpu_middle_ring(cpu) &&
           !vcpu_must_interpret(cpu);
}

/* Runs until the state of events has to be looked at again. Raised exceptions unwind past it. */
static void run_guest(struct jit_vcpu *cpu)
{
    if (translatable(cpu)) {
        const uint8_t *host = enter_known(cpu);
        struct block *block = host ? NULL : cache_lookup(cpu);
        if (host || block) {
            profile_switch(cpu, PROFILE_CODE);
            enter_run(cpu, host ? host : block_inner(cpu->translator, block));
            profile_switch(cpu, PROFILE_LOOP);
            return;
        }
    }
    interpret_one(cpu);
}

/* Something may have happened: look. STEP_ON with *ret_rearm when an event was delivered. */
static enum step take_events(struct jit_vcpu *cpu, bool *ret_rearm)
{
    for (;;) {
        __atomic_store_n(&cpu->poll, 0, __ATOMIC_SEQ_CST);
        requests_serve(cpu);
        if (take(&cpu->kick_pending))
            return STEP_KICKED;
        run_take_init_and_sipi(cpu);
        if (cpu->run_state == X86_RUNNABLE) {
            check_timer(cpu);
            if (take_interrupt(cpu)) {
                *ret_rearm = true;
                return STEP_ON;
            }
            if (!cpu->halted)
                return STEP_ON;
        }
        sleep_until_notified(cpu);
    }
}

static enum step run_until_event(struct jit_vcpu *cpu)
{
    for (;;) {
        if (cpu->shutdown)
            return STEP_SHUTDOWN;
        if (__atomic_load_n(&cpu->poll, __ATOMIC_ACQUIRE) || cpu->halted || cpu->run_state != X86_RUNNABLE) {
            bool rearm = false;
            enum step step = take_events(cpu, &rearm);
            if (step != STEP_ON || rearm)
                return step;
        }
        run_guest(cpu);
        look_again_if_due(cpu);
    }
}

/* Delivery re-arms cpu->unwind for itself, so it is set anew after each. */
static enum step run_and_deliver(struct jit_vcpu *cpu)
{
    for (;;) {
        int unwound = _setjmp(cpu->unwind);
        profile_switch(cpu, PROFILE_LOOP);
        if (unwound == UNWIND_RAISED) {
            if (!cpu->exception.software) /* what the instruction met counts only if it retires */
                cpu->debug_pending = 0;
            excp_deliver(cpu, &cpu->exception);
            continue;
        }
        enum step step = run_until_event(cpu);
        if (step != STEP_ON)
            return step;
    }
}

enum vcpu_exit run_vcpu(struct vcpu *vcpu)
{
    struct jit_vcpu *cpu = (struct jit_vcpu *)vcpu;
    if (this_vcpu != cpu && !set_up_thread(cpu))
        return VCPU_EXIT_ERROR;
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, cpu)) { /* not wrgsbase: kernels may have it off, and lose the base then */
        log_error("jit: GS base: %s", strerror(errno));
        return VCPU_EXIT_ERROR;
    }
    requests_go_online(cpu);
    vcpu_timer_arm(cpu, cpu->lapic.timer_deadline_tsc);
    __atomic_store_n(&cpu->poll, 1, __ATOMIC_SEQ_CST);
    cpu->profile.on = cpu->engine->options.profile;
    cpu->profile.part = PROFILE_LOOP;
    cpu->profile.since = __rdtsc();
    enum step step = run_and_deliver(cpu);
    fpu_save(cpu);
    requests_go_offline(cpu);
    return step == STEP_KICKED ? VCPU_EXIT_KICKED : VCPU_EXIT_TRIPLE_FAULT;
}
