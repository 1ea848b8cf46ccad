/* Engine `kvm`: the architectural state in the engine-neutral form, to and from KVM's many ioctls.
 *
 * Caller's thread, with the vCPU outside of vcpu_run. KVM may hold an interrupt that it took from the local
 * APIC and could not deliver yet; saving puts it back into the APIC page (request instead of in-service), so
 * the form needs no field for it. An exception in that place is dropped: its instruction runs again and
 * raises it again. */
#include "cpu/kvm/kvm_impl.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/bytes.h"
#include "base/log.h"

#define APIC_ISR 0x100u
#define APIC_IRR 0x200u
#define XSAVE_XSTATE_BV 512
#define XSAVE_XCOMP_BV 520

/* What is saved beside the registers: all that Linux and its peers set and that KVM keeps for a guest. The
 * TSC is first, the deadline that counts in it last. Those that a host lacks are left out. */
static const uint32_t saved_msrs[] = {
    MSR_TSC,
    MSR_TSC_ADJUST,
    MSR_SYSENTER_CS,
    MSR_SYSENTER_ESP,
    MSR_SYSENTER_EIP,
    MSR_STAR,
    MSR_LSTAR,
    MSR_CSTAR,
    MSR_SFMASK,
    MSR_KERNEL_GS_BASE,
    MSR_TSC_AUX,
    MSR_PAT,
    MSR_MISC_ENABLE,
    MSR_SPEC_CTRL,
    MSR_MCG_STATUS,
    MSR_MTRR_DEF_TYPE,
    MSR_MTRR_FIX_64K,
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    MSR_KVM_WALL_CLOCK_NEW,
    MSR_KVM_SYSTEM_TIME_NEW,
    0x4b564d02 /* async page fault */,
    0x4b564d03 /* steal time */,
    0x4b564d04 /* paravirtual EOI */,
    0x4b564d05 /* poll control */,
    MSR_TSC_DEADLINE,
};
_Static_assert(sizeof saved_msrs / sizeof saved_msrs[0] <= X86_STATE_MSRS, "x86_state holds all saved MSRs");

/* ---- MSRs ---- */

/* A kvm_msrs with room for all. */
struct msr_buffer {
    _Alignas(8) uint8_t bytes[sizeof(struct kvm_msrs) + X86_STATE_MSRS * sizeof(struct kvm_msr_entry)];
};

/* Hands `entries` to KVM, which stops at the first that it does not take: that one is skipped. Reading fills
 * in the values of `entries` and moves the ones that worked to the front. Returns how many worked. */
static uint32_t msrs_transfer(const struct kvm_vcpu *vcpu, unsigned long request,
                              struct kvm_msr_entry *entries, uint32_t count)
{
    uint32_t good = 0;
    for (uint32_t at = 0; at < count;) {
        struct msr_buffer buffer = {{0}};
        struct kvm_msrs *msrs = (void *)buffer.bytes;
        struct kvm_msr_entry *list = (void *)(buffer.bytes + sizeof *msrs);
        msrs->nmsrs = count - at;
        memcpy(list, entries + at, (count - at) * sizeof *list);
        int done = ioctl(vcpu->fd, request, msrs);
        uint32_t taken = done < 0 ? 0 : (uint32_t)done;
        memcpy(entries + good, list, taken * sizeof *list);
        good += taken;
        at += taken;
        if (at < count) {
            log_debug("vCPU %u: this host has no MSR %#x", vcpu->base.index, entries[at].index);
            at++;
        }
    }
    return good;
}

static void msrs_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_msr_entry entries[X86_STATE_MSRS] = {{0}};
    uint32_t count = 0;
    for (; count < sizeof saved_msrs / sizeof saved_msrs[0]; count++)
        entries[count].index = saved_msrs[count];
    state->msr_count = msrs_transfer(vcpu, KVM_GET_MSRS, entries, count);
    for (uint32_t i = 0; i < state->msr_count; i++)
        state->msrs[i] = (struct x86_msr){.index = entries[i].index, .value = entries[i].data};
}

static bool msr_has_own_field(uint32_t index)
{
    return index == MSR_EFER || index == MSR_APIC_BASE || index == MSR_FS_BASE || index == MSR_GS_BASE;
}

/* With the deadline: that MSR only, to be set after the local APIC; otherwise all the rest. */
static void msrs_set(const struct kvm_vcpu *vcpu, const struct x86_state *state, bool deadline)
{
    struct kvm_msr_entry entries[X86_STATE_MSRS] = {{0}};
    uint32_t count = 0;
    for (uint32_t i = 0; i < state->msr_count && i < X86_STATE_MSRS; i++) {
        const struct x86_msr *msr = &state->msrs[i];
        if (!msr_has_own_field(msr->index) && (msr->index == MSR_TSC_DEADLINE) == deadline)
            entries[count++] = (struct kvm_msr_entry){.index = msr->index, .data = msr->value};
    }
    msrs_transfer(vcpu, KVM_SET_MSRS, entries, count);
}

/* ---- Registers ---- */

static void regs_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_regs regs = {0};
    int ret = ioctl(vcpu->fd, KVM_GET_REGS, &regs);
    assert(ret == 0);
    const uint64_t gpr[GPR_COUNT] = {
        [RAX] = regs.rax, [RCX] = regs.rcx, [RDX] = regs.rdx, [RBX] = regs.rbx,
        [RSP] = regs.rsp, [RBP] = regs.rbp, [RSI] = regs.rsi, [RDI] = regs.rdi,
        [R8] = regs.r8,   [R9] = regs.r9,   [R10] = regs.r10, [R11] = regs.r11,
        [R12] = regs.r12, [R13] = regs.r13, [R14] = regs.r14, [R15] = regs.r15,
    };
    memcpy(state->gpr, gpr, sizeof gpr);
    state->rip = regs.rip;
    state->rflags = regs.rflags;
}

static int regs_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    const uint64_t *gpr = state->gpr;
    struct kvm_regs regs = {
        .rax = gpr[RAX],
        .rcx = gpr[RCX],
        .rdx = gpr[RDX],
        .rbx = gpr[RBX],
        .rsp = gpr[RSP],
        .rbp = gpr[RBP],
        .rsi = gpr[RSI],
        .rdi = gpr[RDI],
        .r8 = gpr[R8],
        .r9 = gpr[R9],
        .r10 = gpr[R10],
        .r11 = gpr[R11],
        .r12 = gpr[R12],
        .r13 = gpr[R13],
        .r14 = gpr[R14],
        .r15 = gpr[R15],
        .rip = state->rip,
        .rflags = state->rflags | 2, /* bit 1 is always set */
    };
    return ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0 ? -errno : 0;
}

static struct x86_segment_state segment_from_kvm(const struct kvm_segment *s)
{
    unsigned present = s->present && !s->unusable;
    return (struct x86_segment_state){
        .base = s->base,
        .limit = s->limit,
        .selector = s->selector,
        .attributes =
            (uint16_t)((s->type & 15u) | (s->s & 1u) << 4 | (s->dpl & 3u) << 5 | present << 7 |
                       (s->avl & 1u) << 12 | (s->l & 1u) << 13 | (s->db & 1u) << 14 | (s->g & 1u) << 15),
    };
}

static struct kvm_segment segment_to_kvm(const struct x86_segment_state *s)
{
    unsigned a = s->attributes;
    return (struct kvm_segment){
        .base = s->base,
        .limit = s->limit,
        .selector = s->selector,
        .type = a & 15u,
        .s = (a >> 4) & 1u,
        .dpl = (a >> 5) & 3u,
        .present = (a >> 7) & 1u,
        .avl = (a >> 12) & 1u,
        .l = (a >> 13) & 1u,
        .db = (a >> 14) & 1u,
        .g = (a >> 15) & 1u,
        .unusable = !(a & SEG_ATTR_P),
    };
}

/* The CPU's VM entry takes a busy TSS only; a task register that was never loaded may say otherwise. */
static struct kvm_segment tr_to_kvm(const struct x86_segment_state *s)
{
    struct kvm_segment tr = segment_to_kvm(s);
    tr.type = tr.type == 1 || tr.type == 3 ? 3 : 11;
    tr.present = 1;
    tr.unusable = 0;
    tr.s = 0;
    return tr;
}

static void sregs_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_sregs sregs = {0};
    int ret = ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
    assert(ret == 0);
    state->segment[SEG_ES] = segment_from_kvm(&sregs.es);
    state->segment[SEG_CS] = segment_from_kvm(&sregs.cs);
    state->segment[SEG_SS] = segment_from_kvm(&sregs.ss);
    state->segment[SEG_DS] = segment_from_kvm(&sregs.ds);
    state->segment[SEG_FS] = segment_from_kvm(&sregs.fs);
    state->segment[SEG_GS] = segment_from_kvm(&sregs.gs);
    state->tr = segment_from_kvm(&sregs.tr);
    state->ldtr = segment_from_kvm(&sregs.ldt);
    state->gdtr = (struct x86_table_state){.base = sregs.gdt.base, .limit = sregs.gdt.limit};
    state->idtr = (struct x86_table_state){.base = sregs.idt.base, .limit = sregs.idt.limit};
    state->cr0 = sregs.cr0;
    state->cr2 = sregs.cr2;
    state->cr3 = sregs.cr3;
    state->cr4 = sregs.cr4;
    state->cr8 = sregs.cr8;
    state->efer = sregs.efer;
    state->apic_base = sregs.apic_base;
}

static int sregs_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_sregs sregs = {
        .es = segment_to_kvm(&state->segment[SEG_ES]),
        .cs = segment_to_kvm(&state->segment[SEG_CS]),
        .ss = segment_to_kvm(&state->segment[SEG_SS]),
        .ds = segment_to_kvm(&state->segment[SEG_DS]),
        .fs = segment_to_kvm(&state->segment[SEG_FS]),
        .gs = segment_to_kvm(&state->segment[SEG_GS]),
        .tr = tr_to_kvm(&state->tr),
        .ldt = segment_to_kvm(&state->ldtr),
        .gdt = {.base = state->gdtr.base, .limit = state->gdtr.limit},
        .idt = {.base = state->idtr.base, .limit = state->idtr.limit},
        .cr0 = state->cr0,
        .cr2 = state->cr2,
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .cr8 = state->cr8,
        .efer = state->efer,
        .apic_base = state->apic_base,
    };
    return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 ? -errno : 0;
}

static void debugregs_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_debugregs regs = {0};
    int ret = ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &regs);
    assert(ret == 0);
    for (int i = 0; i < 4; i++)
        state->dr[i] = regs.db[i];
    state->dr6 = regs.dr6;
    state->dr7 = regs.dr7;
}

static int debugregs_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_debugregs regs = {
        .db = {state->dr[0], state->dr[1], state->dr[2], state->dr[3]}, .dr6 = state->dr6, .dr7 = state->dr7};
    return ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &regs) < 0 ? -errno : 0;
}

/* ---- Floating point and vectors ---- */

static void xsave_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_xsave xsave = {0};
    _Static_assert(sizeof xsave.region >= X86_XSAVE_SIZE, "KVM's area holds ours");
    int ret = ioctl(vcpu->fd, KVM_GET_XSAVE, &xsave);
    assert(ret == 0);
    memcpy(state->xsave, xsave.region, X86_XSAVE_SIZE);
    state->xcr0 = 1;
    struct kvm_xcrs xcrs = {0};
    if (!vcpu->engine->has_xcrs || ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs) < 0)
        return;
    for (uint32_t i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        if (xcrs.xcrs[i].xcr == 0)
            state->xcr0 = xcrs.xcrs[i].value;
    }
}

static int xcr0_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    if (!vcpu->engine->has_xcrs)
        return 0;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0 | 1}}};
    return ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) < 0 ? -errno : 0;
}

/* Components that this host cannot hold are left in their initial state instead of failing the whole. */
static int xsave_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_xsave xsave = {0};
    uint8_t *area = (uint8_t *)xsave.region;
    memcpy(area, state->xsave, X86_XSAVE_SIZE);
    store_le64(area + XSAVE_XSTATE_BV, load_le64(area + XSAVE_XSTATE_BV) & vcpu->engine->xcr0_supported);
    store_le64(area + XSAVE_XCOMP_BV, 0);
    return ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave) < 0 ? -errno : 0;
}

/* ---- Interrupts ---- */

/* Takes `vector` out of service and requests it again, in an APIC page. */
static void apic_page_take_back(uint8_t page[1024], uint8_t vector)
{
    uint32_t bit = 1u << (vector % 32);
    uint8_t *isr = page + APIC_ISR + vector / 32 * 16u;
    uint8_t *irr = page + APIC_IRR + vector / 32 * 16u;
    store_le32(isr, load_le32(isr) & ~bit);
    store_le32(irr, load_le32(irr) | bit);
}

static enum x86_run_state run_state_from_kvm(uint32_t mp_state)
{
    switch (mp_state) {
    case KVM_MP_STATE_UNINITIALIZED:
        return X86_WAIT_FOR_INIT;
    case KVM_MP_STATE_INIT_RECEIVED:
        return X86_WAIT_FOR_SIPI;
    case KVM_MP_STATE_HALTED:
        return X86_HALTED;
    default:
        return X86_RUNNABLE;
    }
}

static int run_state_set(const struct kvm_vcpu *vcpu, enum x86_run_state run_state)
{
    static const uint32_t kvm_states[] = {
        [X86_RUNNABLE] = KVM_MP_STATE_RUNNABLE,
        [X86_WAIT_FOR_INIT] = KVM_MP_STATE_UNINITIALIZED,
        [X86_HALTED] = KVM_MP_STATE_HALTED,
        [X86_WAIT_FOR_SIPI] = KVM_MP_STATE_INIT_RECEIVED,
    };
    if ((unsigned)run_state >= sizeof kvm_states / sizeof kvm_states[0])
        return -EINVAL;
    struct kvm_mp_state mp_state = {.mp_state = kvm_states[run_state]};
    return ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp_state) < 0 ? -errno : 0;
}

static void interrupts_get(const struct kvm_vcpu *vcpu, struct x86_state *state)
{
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events = {0};
    int ret = ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic);
    assert(ret == 0);
    ret = ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
    assert(ret == 0);
    memcpy(state->lapic, lapic.regs, sizeof state->lapic);
    if (events.interrupt.injected && !events.interrupt.soft)
        apic_page_take_back(state->lapic, events.interrupt.nr);
    state->interrupt_shadow = events.interrupt.shadow != 0;
    state->nmi_pending = events.nmi.pending || events.nmi.injected;
    state->nmi_blocked = events.nmi.masked && !events.nmi.injected;
}

static int lapic_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_lapic_state lapic;
    _Static_assert(sizeof lapic.regs == sizeof state->lapic, "one APIC register page");
    memcpy(lapic.regs, state->lapic, sizeof lapic.regs);
    return ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic) < 0 ? -errno : 0;
}

static int events_set(const struct kvm_vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_vcpu_events events = {
        .nmi = {.pending = state->nmi_pending != 0, .masked = state->nmi_blocked != 0},
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
    };
    /* The CPU refuses a shadow of STI while interrupts are off; a MOV SS shadow is allowed then. */
    if (state->interrupt_shadow)
        events.interrupt.shadow =
            state->rflags & FLAG_IF ? KVM_X86_SHADOW_INT_STI : KVM_X86_SHADOW_INT_MOV_SS;
    return ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0 ? -errno : 0;
}

/* ---- All together ---- */

/* First the run state: KVM settles a pending INIT or SIPI while reading it, which changes the registers. */
void kvm_vcpu_get_state(struct vcpu *base, struct x86_state *ret_state)
{
    const struct kvm_vcpu *vcpu = (const struct kvm_vcpu *)base;
    memset(ret_state, 0, sizeof *ret_state);
    struct kvm_mp_state mp_state = {0};
    int ret = ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp_state);
    assert(ret == 0);
    ret_state->run_state = run_state_from_kvm(mp_state.mp_state);
    regs_get(vcpu, ret_state);
    sregs_get(vcpu, ret_state);
    debugregs_get(vcpu, ret_state);
    xsave_get(vcpu, ret_state);
    interrupts_get(vcpu, ret_state);
    msrs_get(vcpu, ret_state);
}

/* The order matters to KVM: the APIC's mode (sregs) before its registers, its registers before the deadline,
 * the events after all that clears them, and the run state after the registers. */
int kvm_vcpu_set_state(struct vcpu *base, const struct x86_state *state, struct err *err)
{
    const struct kvm_vcpu *vcpu = (const struct kvm_vcpu *)base;
    const char *what = "registers";
    int ret = regs_set(vcpu, state);
    if (ret == 0) {
        what = "system registers";
        ret = sregs_set(vcpu, state);
    }
    if (ret == 0) {
        what = "XCR0";
        ret = xcr0_set(vcpu, state);
    }
    if (ret == 0) {
        what = "XSAVE area";
        ret = xsave_set(vcpu, state);
    }
    if (ret == 0) {
        what = "debug registers";
        ret = debugregs_set(vcpu, state);
    }
    msrs_set(vcpu, state, false);
    if (ret == 0) {
        what = "local APIC";
        ret = lapic_set(vcpu, state);
    }
    msrs_set(vcpu, state, true);
    if (ret == 0) {
        what = "pending events";
        ret = events_set(vcpu, state);
    }
    if (ret == 0) {
        what = "run state";
        ret = run_state_set(vcpu, state->run_state);
    }
    return ret < 0 ? err_set(err, -ret, "vCPU %u: KVM refused its %s", base->index, what) : 0;
}
