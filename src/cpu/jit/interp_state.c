/* Saving and restoring x87, SSE and AVX state: fxsave, the xsave family, fnsave, fnstenv, ldmxcsr.
 *
 * Works on cpu->xsave, a standard-format image with XSTATE_BV as the CPU left it; guest images are read whole, checked, then taken
 * over, so that a fault changes nothing. The x87 instruction and data pointers of the image would be host
 * addresses: guests always see zeros there, as on a CPU that keeps them for unmasked exceptions only.
 * Source: Intel SDM 1 chapter 13, 2 (FXSAVE, XSAVE, ...). */
#include "base/bytes.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

#define IMAGE_MXCSR 24
#define IMAGE_MXCSR_MASK 28
#define IMAGE_X87 32
#define IMAGE_XMM 160
#define IMAGE_LEGACY_END 416
#define IMAGE_BV 512
#define IMAGE_XCOMP 520
#define IMAGE_AVX 576
#define IMAGE_END 832
#define XMM_BYTES 256
#define AVX_BYTES 256
#define X87_POINTERS 6 /* FOP, FIP, FDP: to MXCSR */
#define COMPACT (UINT64_C(1) << 63)
#define MXCSR_INIT 0x1f80u
#define FCW_INIT 0x37fu

static void require_no_ts(struct jit_vcpu *cpu, uint64_t bits)
{
    if (cpu->cr0 & bits)
        vcpu_raise(cpu, VEC_NM, 0);
}

/* The state must have been taken: the CPU then left its mask in the image. */
static void require_mxcsr(struct jit_vcpu *cpu, uint32_t value)
{
    if (value & ~load_le32(cpu->xsave + IMAGE_MXCSR_MASK))
        vcpu_raise(cpu, VEC_GP, 0);
}

/* How many XMM registers the current mode can name, in bytes of the image. */
static unsigned visible_bytes(const struct jit_vcpu *cpu)
{
    return cpu->mode == MODE_LONG ? 256 : 128;
}

/* Brings the state into cpu->xsave and fills in what XSTATE_BV says is initial. */
void interp_take_state(struct jit_vcpu *cpu)
{
    if (load_le32(cpu->xsave + IMAGE_MXCSR_MASK) == 0)
        fpu_load(cpu); /* a fresh image: has the CPU fill in its mask */
    fpu_save(cpu);
    uint64_t in_use = load_le64(cpu->xsave + IMAGE_BV);
    if (!(in_use & XCR0_X87)) {
        zero_general(cpu->xsave, IMAGE_MXCSR);
        zero_general(cpu->xsave + IMAGE_X87, IMAGE_XMM - IMAGE_X87);
        store_le16(cpu->xsave, FCW_INIT);
    }
    if (!(in_use & XCR0_SSE))
        zero_general(cpu->xsave + IMAGE_XMM, XMM_BYTES);
    if (!(in_use & XCR0_AVX))
        zero_general(cpu->xsave + IMAGE_AVX, AVX_BYTES);
    zero_general(cpu->xsave + X87_POINTERS, IMAGE_MXCSR - X87_POINTERS);
}

void interp_state_changed(struct jit_vcpu *cpu, uint64_t components)
{
    store_le64(cpu->xsave + IMAGE_BV, load_le64(cpu->xsave + IMAGE_BV) | components);
    store_le64(cpu->xsave + IMAGE_XCOMP, 0);
}

static unsigned operand_access(const struct insn *insn, unsigned access)
{
    return access | stack_access(insn->mem_segment);
}

/* XSTATE_BV as a save sees it; MXCSR belongs to SSE. */
static uint64_t components_in_use(const struct jit_vcpu *cpu)
{
    return load_le64(cpu->xsave + IMAGE_BV) & FPU_MASK;
}

/* The operand of a save or restore: its alignment is checked after canonical form, but before a segment limit. */
static uint64_t area_linear(struct jit_vcpu *cpu, const struct insn *insn, unsigned bytes, unsigned alignment, unsigned access)
{
    if (cpu->mode != MODE_LONG)
        interp_require_alignment(cpu, insn, alignment);
    uint64_t linear = interp_linear(cpu, insn, bytes, access);
    if (alignment == 16) /* fxsave: words that are not aligned come first when alignment is checked */
        watch_alignment(cpu, linear, 4, access);
    interp_require_alignment(cpu, insn, alignment);
    return linear;
}

static void do_fxsave(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t image[IMAGE_LEGACY_END];
    require_no_ts(cpu, CR0_EM | CR0_TS);
    uint64_t linear = area_linear(cpu, insn, 512, 16, ACCESS_WRITE);
    interp_probe(cpu, linear, 512, operand_access(insn, ACCESS_WRITE)); /* all of it, though not all is written */
    interp_take_state(cpu);
    copy_general(image, cpu->xsave, sizeof image);
    mmu_write(cpu, linear, image, IMAGE_XMM + visible_bytes(cpu), operand_access(insn, ACCESS_WRITE));
}

static void do_fxrstor(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t image[512];
    require_no_ts(cpu, CR0_EM | CR0_TS);
    uint64_t linear = area_linear(cpu, insn, 512, 16, ACCESS_READ);
    mmu_read(cpu, linear, image, sizeof image, operand_access(insn, ACCESS_READ));
    interp_take_state(cpu);
    require_mxcsr(cpu, load_le32(image + IMAGE_MXCSR));
    copy_general(cpu->xsave, image, X87_POINTERS);
    copy_general(cpu->xsave + IMAGE_MXCSR, image + IMAGE_MXCSR, 4);
    copy_general(cpu->xsave + IMAGE_X87, image + IMAGE_X87, IMAGE_XMM - IMAGE_X87 + visible_bytes(cpu));
    interp_state_changed(cpu, XCR0_X87 | XCR0_SSE);
    fpu_load(cpu); /* the CPU sorts out reserved bits of the control and status words */
    fpu_leave_live(cpu);
}

static void check_xsave(struct jit_vcpu *cpu, const struct insn *insn, bool supervisor)
{
    (void)insn;
    if (!(cpu->cr4 & CR4_OSXSAVE))
        vcpu_raise(cpu, VEC_UD, 0);
    if (supervisor && cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
    require_no_ts(cpu, CR0_TS);
}

static uint64_t requested(const struct jit_vcpu *cpu)
{
    return (cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX]) & cpu->xcr0;
}

/* Copies the components of `mask` from one image to another. */
static void copy_components(const struct jit_vcpu *cpu, uint8_t *to, const uint8_t *from, uint64_t mask)
{
    if (mask & XCR0_X87) {
        copy_general(to, from, IMAGE_MXCSR);
        copy_general(to + IMAGE_X87, from + IMAGE_X87, IMAGE_XMM - IMAGE_X87);
    }
    if (mask & XCR0_SSE)
        copy_general(to + IMAGE_XMM, from + IMAGE_XMM, visible_bytes(cpu));
    if (mask & XCR0_AVX)
        copy_general(to + IMAGE_AVX, from + IMAGE_AVX, visible_bytes(cpu));
}

static void copy_mxcsr(uint8_t *to, const uint8_t *from)
{
    copy_general(to + IMAGE_MXCSR, from + IMAGE_MXCSR, 8);
}

static unsigned image_bytes(uint64_t mask)
{
    return mask & XCR0_AVX ? IMAGE_END : IMAGE_AVX;
}

/* Old content of the area that a save is about to change in part; faults are those of the write. */
static uint64_t read_area(struct jit_vcpu *cpu, const struct insn *insn, uint8_t *image, unsigned bytes)
{
    unsigned access = operand_access(insn, ACCESS_WRITE);
    uint64_t linear = area_linear(cpu, insn, bytes, 64, ACCESS_WRITE);
    interp_probe(cpu, linear, bytes, access);
    mmu_read(cpu, linear, image, bytes, access & ~ACCESS_WRITE);
    return linear;
}

/* xsave and xsaveopt: standard format; what is not asked for keeps its old content. */
static void save_standard(struct jit_vcpu *cpu, const struct insn *insn, bool skip_initial)
{
    uint8_t image[IMAGE_END];
    uint64_t mask = requested(cpu);
    unsigned bytes = image_bytes(mask);
    uint64_t linear = read_area(cpu, insn, image, bytes);
    interp_take_state(cpu);
    uint64_t in_use = components_in_use(cpu);
    copy_components(cpu, image, cpu->xsave, skip_initial ? mask & in_use : mask);
    if (mask & (XCR0_SSE | XCR0_AVX))
        copy_mxcsr(image, cpu->xsave);
    store_le64(image + IMAGE_BV, (load_le64(image + IMAGE_BV) & ~mask) | (in_use & mask));
    mmu_write(cpu, linear, image, bytes, operand_access(insn, ACCESS_WRITE));
}

/* xsavec and xsaves: compacted format (with at most AVX beyond the legacy part, it lies where the standard one has it). */
static void save_compact(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t image[IMAGE_END];
    uint64_t mask = requested(cpu);
    unsigned bytes = image_bytes(mask);
    uint64_t linear = read_area(cpu, insn, image, bytes);
    interp_take_state(cpu);
    uint64_t saved = components_in_use(cpu) & mask;
    if (load_le32(cpu->xsave + IMAGE_MXCSR) != MXCSR_INIT)
        saved |= XCR0_SSE & mask;
    copy_components(cpu, image, cpu->xsave, saved);
    if (saved & XCR0_SSE)
        copy_mxcsr(image, cpu->xsave);
    store_le64(image + IMAGE_BV, saved);
    store_le64(image + IMAGE_XCOMP, mask | COMPACT);
    mmu_write(cpu, linear, image, bytes, operand_access(insn, ACCESS_WRITE));
}

static void do_xsave(struct jit_vcpu *cpu, const struct insn *insn)
{
    check_xsave(cpu, insn, false);
    save_standard(cpu, insn, insn->mnemonic == ZYDIS_MNEMONIC_XSAVEOPT || insn->mnemonic == ZYDIS_MNEMONIC_XSAVEOPT64);
}

static void do_xsave_compact(struct jit_vcpu *cpu, const struct insn *insn)
{
    check_xsave(cpu, insn, insn->mnemonic == ZYDIS_MNEMONIC_XSAVES || insn->mnemonic == ZYDIS_MNEMONIC_XSAVES64);
    save_compact(cpu, insn);
}

/* The header of a guest image; raises #GP where the CPU does. `compact_only` for xrstors. */
static void check_header(struct jit_vcpu *cpu, const uint8_t *image, bool compact_only)
{
    uint64_t in_image = load_le64(image + IMAGE_BV), layout = load_le64(image + IMAGE_XCOMP);
    bool compact = layout & COMPACT, valid = compact || !compact_only;
    uint64_t allowed = compact ? layout & ~COMPACT : cpu->xcr0;
    valid = valid && !(in_image & ~allowed) && !(allowed & ~cpu->xcr0);
    uint64_t reserved = compact ? 0 : layout;
    for (unsigned at = IMAGE_XCOMP + 8; at < (compact ? IMAGE_AVX : IMAGE_XCOMP + 16u); at += 8)
        reserved |= load_le64(image + at);
    if (!valid || reserved)
        vcpu_raise(cpu, VEC_GP, 0);
}

/* Does the image bring its own MXCSR? Else it stays (standard format without SSE and AVX) or becomes initial. */
static bool image_has_mxcsr(const uint8_t *image, uint64_t mask)
{
    if (load_le64(image + IMAGE_XCOMP) & COMPACT)
        return mask & load_le64(image + IMAGE_BV) & XCR0_SSE;
    return mask & (XCR0_SSE | XCR0_AVX);
}

static void initialise_components(struct jit_vcpu *cpu, uint64_t mask)
{
    if (mask & XCR0_X87) {
        zero_general(cpu->xsave, IMAGE_MXCSR);
        zero_general(cpu->xsave + IMAGE_X87, IMAGE_XMM - IMAGE_X87);
        store_le16(cpu->xsave, FCW_INIT);
    }
    if (mask & XCR0_SSE)
        zero_general(cpu->xsave + IMAGE_XMM, visible_bytes(cpu));
    if (mask & XCR0_AVX)
        zero_general(cpu->xsave + IMAGE_AVX, visible_bytes(cpu));
}

static void restore(struct jit_vcpu *cpu, const uint8_t *image, uint64_t mask)
{
    uint64_t present = mask & load_le64(image + IMAGE_BV);
    bool compact = load_le64(image + IMAGE_XCOMP) & COMPACT;
    bool own_mxcsr = image_has_mxcsr(image, mask);
    if (own_mxcsr)
        require_mxcsr(cpu, load_le32(image + IMAGE_MXCSR));
    initialise_components(cpu, mask & ~present);
    copy_components(cpu, cpu->xsave, image, present);
    if (own_mxcsr)
        copy_general(cpu->xsave + IMAGE_MXCSR, image + IMAGE_MXCSR, 4);
    else if (compact && (mask & XCR0_SSE))
        store_le32(cpu->xsave + IMAGE_MXCSR, MXCSR_INIT);
    zero_general(cpu->xsave + X87_POINTERS, IMAGE_MXCSR - X87_POINTERS);
    uint64_t kept = components_in_use(cpu) & ~mask;
    if (cpu->mode != MODE_LONG)
        kept |= components_in_use(cpu) & (XCR0_SSE | XCR0_AVX); /* registers 8-15 stay */
    store_le64(cpu->xsave + IMAGE_BV, kept | present);
    store_le64(cpu->xsave + IMAGE_XCOMP, 0);
}

static void do_xrstor(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t image[IMAGE_END];
    bool supervisor = insn->mnemonic == ZYDIS_MNEMONIC_XRSTORS || insn->mnemonic == ZYDIS_MNEMONIC_XRSTORS64;
    check_xsave(cpu, insn, supervisor);
    uint64_t mask = requested(cpu);
    unsigned access = operand_access(insn, ACCESS_READ);
    uint64_t linear = area_linear(cpu, insn, IMAGE_AVX, 64, ACCESS_READ);
    mmu_read(cpu, linear, image, IMAGE_AVX, access);
    check_header(cpu, image, supervisor);
    if (mask & load_le64(image + IMAGE_BV) & XCR0_AVX)
        mmu_read(cpu, interp_linear(cpu, insn, IMAGE_END, ACCESS_READ) + IMAGE_AVX, image + IMAGE_AVX, AVX_BYTES, access);
    interp_take_state(cpu);
    restore(cpu, image, mask);
    fpu_load(cpu); /* the CPU sorts out reserved bits of the control and status words */
    fpu_leave_live(cpu);
}

static void do_ldmxcsr(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    uint32_t value = (uint32_t)interp_read_rm(cpu, insn, 4);
    interp_take_state(cpu);
    require_mxcsr(cpu, value);
    store_le32(cpu->xsave + IMAGE_MXCSR, value);
    interp_state_changed(cpu, XCR0_SSE);
}

/* Instruction and data pointers, and the opcode, of an x87 environment of 14 or 28 bytes. */
static void hide_environment(uint8_t *environment, bool wide)
{
    if (!wide) {
        zero_general(environment + 6, 8);
        return;
    }
    zero_general(environment + 12, 12);
    zero_general(environment + 24, 2);
}

/* fnsave and fnstenv change the state too, and do so once the operand is known to be writable. */
static void do_fnsave(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint8_t image[128];
    struct mmu_operand operand;
    bool wide = insn->operand_bits != 16, all = insn->mnemonic == ZYDIS_MNEMONIC_FNSAVE;
    interp_check_fpu(cpu, insn);
    uint64_t linear = interp_linear(cpu, insn, insn->mem_bytes, ACCESS_WRITE);
    mmu_operand_map(cpu, &operand, linear, insn->mem_bytes, operand_access(insn, ACCESS_WRITE));
    fpu_load(cpu);
    if (all && wide)
        __asm__ volatile("fnsave %0" : "=m"(image));
    else if (all)
        __asm__ volatile("data16 fnsave %0" : "=m"(image));
    else if (wide)
        __asm__ volatile("fnstenv %0" : "=m"(image));
    else
        __asm__ volatile("data16 fnstenv %0" : "=m"(image));
    fpu_leave_live(cpu);
    hide_environment(image, wide);
    copy_general(operand.host, image, insn->mem_bytes);
    mmu_operand_done(cpu, &operand);
}

interp_fn *interp_state_handler(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: return do_fxsave;
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: return do_fxrstor;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64: return do_xsave;
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64: return do_xsave_compact;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64: return do_xrstor;
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR: return do_ldmxcsr;
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV: return do_fnsave;
    default: return NULL;
    }
}
