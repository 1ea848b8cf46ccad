/* Registers of the bootstrap processor at the kernel's entry. */
#include "vmm/boot/boot_impl.h"

#define ATTR_CODE 0x9b /* present, code, execute/read, accessed */
#define ATTR_DATA 0x93 /* present, data, read/write, accessed */
#define ATTR_TSS 0x8b  /* present, busy 32- or 64-bit TSS */

static void set_segments(struct x86_state *state, uint16_t code_size)
{
    const struct x86_segment_state code = {
        .limit = UINT32_MAX, .selector = BOOT_CODE_SELECTOR, .attributes = ATTR_CODE | SEG_ATTR_G | code_size};
    const struct x86_segment_state data = {
        .limit = UINT32_MAX, .selector = BOOT_DATA_SELECTOR, .attributes = ATTR_DATA | SEG_ATTR_G | SEG_ATTR_DB};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = data;
    state->segment[SEG_CS] = code;
    state->tr = (struct x86_segment_state){.limit = 0x67, .selector = BOOT_TSS_SELECTOR, .attributes = ATTR_TSS};
    state->gdtr = (struct x86_table_state){.base = BOOT_GDT, .limit = 6 * 8 - 1};
    state->idtr = (struct x86_table_state){.base = 0, .limit = 0};
}

void boot_set_state(const struct boot_start *start, struct x86_state *state)
{
    state->rip = start->entry;
    state->rflags = 2;
    state->gpr[RSP] = BOOT_STACK_TOP;
    state->cr0 = CR0_PE | CR0_ET;
    switch (start->protocol) {
    case BOOT_LINUX64:
        set_segments(state, SEG_ATTR_L);
        state->cr0 |= CR0_PG | CR0_NE | CR0_MP;
        state->cr3 = BOOT_PAGE_TABLES;
        state->cr4 = CR4_PAE;
        state->efer = EFER_LME | EFER_LMA;
        state->gpr[RSI] = BOOT_ZERO_PAGE;
        break;
    case BOOT_LINUX32:
        set_segments(state, SEG_ATTR_DB);
        state->gpr[RSI] = BOOT_ZERO_PAGE;
        break;
    case BOOT_PVH:
        set_segments(state, SEG_ATTR_DB);
        state->gpr[RBX] = BOOT_PVH_INFO;
        break;
    }
    state->run_state = X86_RUNNABLE;
}
