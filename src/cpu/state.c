/* Power-on state of a vCPU. Source: Intel SDM 3A table 9-1 and 10.4.7.1 (local APIC). */
#include "cpu/state.h"

#include <string.h>

#include "base/bytes.h"

#define APIC_BASE_DEFAULT UINT64_C(0xfee00000)
#define APIC_BASE_ENABLED (1u << 11)
#define APIC_BASE_BSP (1u << 8)
#define PAT_DEFAULT UINT64_C(0x0007040600070406)
#define FEATURES_DX_RESET 0x600u /* family 6 */

#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_DFR 0xe0
#define APIC_SPURIOUS 0xf0
#define APIC_LVT_FIRST 0x320
#define APIC_LVT_LAST 0x370
#define APIC_LVT_CMCI 0x2f0
#define APIC_VERSION_VALUE 0x00050014u /* integrated, six LVT entries */
#define LVT_MASKED 0x10000u

/* All that a previous system may have set, so that a reset also stops clocks that the hypervisor updates in memory. The
 * default memory type is write-back and enabled, as firmware leaves it. The TSC runs on. */
static const struct x86_msr reset_msrs[] = {
    {MSR_MISC_ENABLE, 1 /* fast strings: without it Linux forgets ERMS */},
    {MSR_PAT, PAT_DEFAULT},        {MSR_MTRR_DEF_TYPE, 0x806}, {MSR_STAR, 0},           {MSR_LSTAR, 0},
    {MSR_CSTAR, 0},                {MSR_SFMASK, 0},            {MSR_KERNEL_GS_BASE, 0}, {MSR_TSC_AUX, 0},
    {MSR_SYSENTER_CS, 0},          {MSR_SYSENTER_ESP, 0},      {MSR_SYSENTER_EIP, 0},   {MSR_TSC_DEADLINE, 0},
    {MSR_KVM_SYSTEM_TIME_NEW, 0}, {MSR_KVM_WALL_CLOCK_NEW, 0},
};
_Static_assert(sizeof reset_msrs / sizeof reset_msrs[0] <= X86_STATE_MSRS, "x86_state holds them");

static void reset_segments(struct x86_state *state)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = (struct x86_segment_state){.limit = 0xffff, .attributes = 0x93};
    state->segment[SEG_CS] =
        (struct x86_segment_state){.base = 0xffff0000, .limit = 0xffff, .selector = 0xf000, .attributes = 0x9b};
    state->tr = (struct x86_segment_state){.limit = 0xffff, .attributes = 0x8b};
    state->ldtr = (struct x86_segment_state){.limit = 0xffff, .attributes = 0x82};
    state->gdtr.limit = state->idtr.limit = 0xffff;
}

static void reset_lapic(uint8_t *page, uint32_t apic_id)
{
    store_le32(page + APIC_ID, apic_id << 24);
    store_le32(page + APIC_VERSION, APIC_VERSION_VALUE);
    store_le32(page + APIC_DFR, UINT32_MAX);
    store_le32(page + APIC_SPURIOUS, 0xff);
    for (unsigned reg = APIC_LVT_FIRST; reg <= APIC_LVT_LAST; reg += 0x10)
        store_le32(page + reg, LVT_MASKED);
    store_le32(page + APIC_LVT_CMCI, LVT_MASKED);
}

/* x87 control word and MXCSR in the legacy area; XSTATE_BV stays 0: all components in their initial state. */
static void reset_fpu(uint8_t *xsave)
{
    store_le16(xsave, 0x037f);
    store_le32(xsave + 24, 0x1f80);
}

void x86_state_reset(struct x86_state *state, uint32_t apic_id)
{
    memset(state, 0, sizeof *state);
    state->rip = 0xfff0;
    state->rflags = 2;
    state->gpr[RDX] = FEATURES_DX_RESET;
    state->cr0 = CR0_CD | CR0_NW | CR0_ET;
    state->xcr0 = XCR0_X87;
    state->dr6 = 0xffff0ff0;
    state->dr7 = 0x400;
    state->apic_base = APIC_BASE_DEFAULT | APIC_BASE_ENABLED | (apic_id ? 0 : APIC_BASE_BSP);
    memcpy(state->msrs, reset_msrs, sizeof reset_msrs);
    state->msr_count = sizeof reset_msrs / sizeof reset_msrs[0];
    state->run_state = apic_id ? X86_WAIT_FOR_SIPI : X86_RUNNABLE;
    reset_segments(state);
    reset_lapic(state->lapic, apic_id);
    reset_fpu(state->xsave);
}
