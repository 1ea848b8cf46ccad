/* The engine's side: one vCPU in long mode whose user code is the case. Every exception lands in a handler of the guest that writes its
 * vector to a port; the port callback kicks the vCPU, and the result is read from the vCPU and the exception frame.
 * State is set in the vCPU directly between runs, so that TLB and translations stay warm, as they are in real use. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/engine.h"
#include "cpu/jit/vcpu.h"
#include "diff.h"
#include "mem/mem.h"

/* Guest physical layout. */
#define GPA_PML4 0x1000u
#define GPA_PDPT 0x2000u
#define GPA_PD_USER 0x3000u
#define GPA_PD_KERNEL 0x4000u
#define GPA_PT_CODE 0x5000u
#define GPA_PT_DATA 0x6000u
#define GPA_GDT 0x7000u
#define GPA_IDT 0x8000u
#define GPA_HANDLERS 0x9000u
#define GPA_TSS 0xa000u
#define GPA_STACK_TOP 0xc000u
#define GPA_PDPT_KERNEL 0xd000u
#define GPA_CODE 0x100000u
#define GPA_DATA 0x110000u
#define KERNEL UINT64_C(0xffffff8000000000)

#define SELECTOR_KERNEL_CODE 0x10u
#define SELECTOR_USER_CODE32 0x23u
#define SELECTOR_CODE16 0x07u /* as in the child's LDT; only their values are seen */
#define SELECTOR_DATA16 0x0fu
#define SELECTOR_USER_DATA 0x2bu
#define SELECTOR_USER_CODE 0x33u
#define SELECTOR_TSS 0x40u

static struct {
    struct mem *mem;
    struct engine *engine;
    struct vcpu *vcpu;
    uint32_t vector;
} guest;

static uint8_t *phys(uint64_t gpa)
{
    return mem_ptr(guest.mem, gpa, 1);
}

static void port_write(void *arg, uint16_t port, uint64_t value, unsigned size)
{
    (void)arg, (void)value, (void)size;
    guest.vector = port;
    engine_jit.vcpu_kick(guest.vcpu);
}

static uint64_t port_read(void *arg, uint16_t port, unsigned size)
{
    (void)arg, (void)port, (void)size;
    return 0;
}

static uint64_t mmio_read(void *arg, uint64_t gpa, unsigned size)
{
    (void)arg, (void)gpa, (void)size;
    return 0;
}

static void mmio_write(void *arg, uint64_t gpa, uint64_t value, unsigned size)
{
    (void)arg, (void)gpa, (void)value, (void)size;
}

static void eoi(void *arg, uint8_t vector)
{
    (void)arg, (void)vector;
}

static void make_page_tables(void)
{
    store_le64(phys(GPA_PML4), GPA_PDPT | PTE_P | PTE_W | PTE_U);
    store_le64(phys(GPA_PDPT), GPA_PD_USER | PTE_P | PTE_W | PTE_U);
    store_le64(phys(GPA_PML4 + 8 * 511), GPA_PDPT_KERNEL | PTE_P | PTE_W);
    store_le64(phys(GPA_PDPT_KERNEL), GPA_PD_KERNEL | PTE_P | PTE_W);
    store_le64(phys(GPA_PD_KERNEL), PTE_P | PTE_W | PTE_PS);
    store_le64(phys(GPA_PD_USER + 8 * (DIFF_CODE >> 21)), GPA_PT_CODE | PTE_P | PTE_W | PTE_U);
    store_le64(phys(GPA_PD_USER + 8 * (DIFF_DATA >> 21)), GPA_PT_DATA | PTE_P | PTE_W | PTE_U);
    for (unsigned i = 0; i < DIFF_BATCH * DIFF_SLOT / DIFF_PAGE; i++)
        store_le64(phys(GPA_PT_CODE + 8 * i), (GPA_CODE + i * DIFF_PAGE) | PTE_P | PTE_U);
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] != DIFF_HOLE)
            store_le64(phys(GPA_PT_DATA + 8 * i), (GPA_DATA + i * DIFF_PAGE) | PTE_P | PTE_U | PTE_NX |
                                                      (diff_pages[i] == DIFF_WRITE ? PTE_W : 0));
}

static void make_tables(void)
{
    store_le64(phys(GPA_GDT + SELECTOR_KERNEL_CODE), UINT64_C(0x00af9b000000ffff));
    store_le64(phys(GPA_GDT + SELECTOR_KERNEL_CODE + 8), UINT64_C(0x00cf93000000ffff));
    store_le64(phys(GPA_GDT + (SELECTOR_USER_DATA & ~3u)), UINT64_C(0x00cff3000000ffff));
    store_le64(phys(GPA_GDT + (SELECTOR_USER_CODE32 & ~3u)), UINT64_C(0x00cffb000000ffff));
    store_le64(phys(GPA_GDT + (SELECTOR_USER_CODE & ~3u)), UINT64_C(0x00affb000000ffff));
    store_le64(phys(GPA_TSS + 4), KERNEL + GPA_STACK_TOP);
    store_le16(phys(GPA_TSS + 102), 0x68); /* no I/O permission bitmap */
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t handler = KERNEL + GPA_HANDLERS + vector * 16;
        uint64_t dpl = vector == VEC_BP || vector == VEC_OF ? 3 : 0;
        uint8_t code[4] = {0xe6, (uint8_t)vector, 0xeb, 0xfe}; /* out vector, al; jmp . */
        memcpy(phys(GPA_HANDLERS + vector * 16), code, sizeof code);
        store_le64(phys(GPA_IDT + vector * 16), (handler & 0xffff) | SELECTOR_KERNEL_CODE << 16 |
                                                    (UINT64_C(0x8e00) | dpl << 13) << 32 | (handler >> 16 & 0xffff) << 48);
        store_le64(phys(GPA_IDT + vector * 16 + 8), handler >> 32);
    }
}

static struct x86_segment_state user_segment(uint16_t selector, uint16_t attributes)
{
    return (struct x86_segment_state){.limit = UINT32_MAX, .selector = selector, .attributes = attributes};
}

static int boot(struct err *err)
{
    struct x86_state state;
    memset(&state, 0, sizeof state);
    x86_state_reset(&state, 0);
    state.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    state.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    state.cr3 = GPA_PML4;
    state.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    state.gdtr = (struct x86_table_state){KERNEL + GPA_GDT, 0x7f};
    state.idtr = (struct x86_table_state){KERNEL + GPA_IDT, 0xfff};
    state.tr = (struct x86_segment_state){KERNEL + GPA_TSS, 0x67, SELECTOR_TSS, 0x8b};
    state.rflags = 2;
    return engine_jit.vcpu_set_state(guest.vcpu, &state, err);
}

static int create(const struct diff_runner *runner, const char *jit_opt)
{
    struct err err = {0};
    struct engine_config config = {
        .machine = {.port_read = port_read, .port_write = port_write, .mmio_read = mmio_read,
                    .mmio_write = mmio_write, .eoi = eoi},
        .vcpus = 1,
        .cpu_model = "host",
        .jit_opt = jit_opt,
    };
    int r = mem_create(4 << 20, false, &guest.mem, &err);
    config.mem = guest.mem;
    if (!r)
        r = engine_jit.create(&config, &guest.engine, &err);
    if (!r)
        r = engine_jit.vcpu_create(guest.engine, 0, &guest.vcpu, &err);
    if (!r) {
        make_page_tables();
        make_tables();
        r = boot(&err);
    }
    if (r)
        fprintf(stderr, "%s\n", err.message);
    else
        ((struct jit_vcpu *)guest.vcpu)->interpret_only = runner == &diff_runner_interp;
    return r;
}

static void load(const struct diff_batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++)
        memcpy(phys(GPA_CODE + diff_code_linear(&batch->cases[i]) - DIFF_CODE), batch->cases[i].code, DIFF_SLOT);
    mem_mark_dirty(guest.mem, GPA_CODE, DIFF_BATCH * DIFF_SLOT);
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        memcpy(phys(GPA_DATA + i * DIFF_PAGE), batch->data[i], DIFF_PAGE);
}

static struct x86_segment_state code_segment(unsigned bits)
{
    if (bits == 16)
        return (struct x86_segment_state){DIFF_CODE, 0xffff, SELECTOR_CODE16, 0x00fb};
    return bits == 32 ? user_segment(SELECTOR_USER_CODE32, 0xc0fb) : user_segment(SELECTOR_USER_CODE, 0xa0fb);
}

static struct x86_segment_state data_segment(unsigned bits)
{
    if (bits == 16)
        return (struct x86_segment_state){DIFF_DATA, 0xffff, SELECTOR_DATA16, 0x00f3};
    return bits == 32 ? user_segment(SELECTOR_USER_DATA, 0xc0f3) : user_segment(0, 0);
}

static void enter_user(struct jit_vcpu *cpu, const struct diff_state *state, unsigned bits)
{
    memcpy(cpu->gpr, state->gpr, sizeof cpu->gpr);
    cpu->rip = state->rip;
    cpu->rflags = state->rflags;
    cpu->cpl = 3;
    cpu->seg[SEG_CS] = code_segment(bits);
    cpu->seg[SEG_SS] = data_segment(bits == 64 ? 32 : bits);
    cpu->seg[SEG_DS] = cpu->seg[SEG_ES] = cpu->seg[SEG_FS] = cpu->seg[SEG_GS] = data_segment(bits);
    cpu->seg[SEG_FS].base = state->fs_base;
    cpu->seg[SEG_GS].base = state->gs_base;
    cpu->halted = cpu->interrupt_shadow = false;
    vcpu_update_mode(cpu);
    memcpy(cpu->xsave, state->xsave, DIFF_XSAVE);
}

static bool has_error_code(uint32_t vector)
{
    return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

static void take_result(const struct jit_vcpu *cpu, struct diff_result *result)
{
    const uint8_t *frame = phys(cpu->gpr[RSP] - KERNEL);
    memset(&result->state, 0, sizeof result->state);
    result->vector = guest.vector;
    result->error = 0;
    if (has_error_code(guest.vector)) {
        result->error = load_le32(frame);
        frame += 8;
    }
    memcpy(result->state.gpr, cpu->gpr, sizeof cpu->gpr);
    result->state.rip = load_le64(frame);
    result->state.rflags = load_le64(frame + 16);
    result->state.gpr[RSP] = load_le64(frame + 24);
    result->cr2 = cpu->cr2;
    result->state.fs_base = cpu->seg[SEG_FS].base;
    result->state.gs_base = cpu->seg[SEG_GS].base;
    memcpy(result->state.xsave, cpu->xsave, DIFF_XSAVE);
}

static void run(const struct diff_batch *batch, unsigned index, struct diff_result *result)
{
    struct jit_vcpu *cpu = (struct jit_vcpu *)guest.vcpu;
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        if (diff_pages[i] == DIFF_WRITE)
            memcpy(phys(GPA_DATA + i * DIFF_PAGE), batch->data[i], DIFF_PAGE);
    enter_user(cpu, &batch->cases[index].state, batch->cases[index].bits);
    guest.vector = UINT32_MAX;
    enum vcpu_exit exit = engine_jit.vcpu_run(guest.vcpu);
    if (exit != VCPU_EXIT_KICKED) {
        fprintf(stderr, "seed %lu: the vCPU ended with exit %u\n", batch->cases[index].seed, exit);
        abort();
    }
    take_result(cpu, result);
    for (unsigned i = 0; i < DIFF_DATA_PAGES; i++)
        memcpy(result->data[i], phys(GPA_DATA + i * DIFF_PAGE), DIFF_PAGE);
}

const struct diff_runner diff_runner_interp = {"interp", false, create, load, run};
const struct diff_runner diff_runner_jit = {"jit", true, create, load, run};
