/* Vector instructions that touch memory element by element: masked moves, where elements that are masked off must not fault,
 * and gathers, which keep what they have done when one element faults (the mask says how far they came).
 * Works on cpu->xsave. Source: Intel SDM 2 (VMASKMOV, VPMASKMOV, MASKMOVDQU, VGATHER). */
#include "base/bytes.h"
#include "cpu/jit/decode_vector.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

#define IMAGE_ST 32
#define IMAGE_XMM 160
#define IMAGE_YMM_HIGH 576

struct vector {
    uint8_t bytes[32];
};

static struct vector read_vector(const struct jit_vcpu *cpu, unsigned number)
{
    struct vector v;
    copy_general(v.bytes, cpu->xsave + IMAGE_XMM + 16 * number, 16);
    copy_general(v.bytes + 16, cpu->xsave + IMAGE_YMM_HIGH + 16 * number, 16);
    return v;
}

/* VEX semantics: everything above the `bytes` that are written becomes zero. */
static void write_vector(struct jit_vcpu *cpu, unsigned number, const struct vector *v, unsigned bytes)
{
    struct vector full = *v;
    if (bytes < 32)
        zero_general(full.bytes + bytes, 32 - bytes);
    copy_general(cpu->xsave + IMAGE_XMM + 16 * number, full.bytes, 16);
    copy_general(cpu->xsave + IMAGE_YMM_HIGH + 16 * number, full.bytes + 16, 16);
    interp_state_changed(cpu, XCR0_SSE | XCR0_AVX);
}

static unsigned rm_number(const struct insn *insn)
{
    bool high = insn->vex_length == 3 ? insn->code_bits == 64 && !(insn->bytes[insn->vex_offset + 1] & 0x20)
                                      : insn->rex & 1;
    return (insn->modrm & 7u) | (high ? 8 : 0);
}

static bool element_selected(const struct vector *mask, unsigned element, unsigned size)
{
    return mask->bytes[(element + 1) * size - 1] & 0x80;
}

static uint64_t element_value(const struct vector *v, unsigned element, unsigned size)
{
    return size == 8 ? load_le64(v->bytes + 8 * element) : load_le32(v->bytes + 4 * element);
}

static void set_element(struct vector *v, unsigned element, unsigned size, uint64_t value)
{
    if (size == 8)
        store_le64(v->bytes + 8 * element, value);
    else
        store_le32(v->bytes + 4 * element, (uint32_t)value);
}

/* A store of `count` elements at consecutive offsets: all that are selected are checked first, so that a fault leaves
 * memory as it was. */
static void store_selected(struct jit_vcpu *cpu, const struct insn *insn, uint64_t offset, const struct vector *data,
                           const struct vector *mask, unsigned bytes, unsigned size)
{
    unsigned access = ACCESS_WRITE | ACCESS_UNALIGNED | stack_access(insn->mem_segment);
    uint64_t linear[32] = {0};
    for (unsigned i = 0; i < bytes / size; i++) {
        if (!element_selected(mask, i, size))
            continue;
        linear[i] = segment_linear(cpu, insn->mem_segment, truncate_to(offset + i * size, insn->address_bits), size,
                                   ACCESS_WRITE);
        interp_probe(cpu, linear[i], size, access);
    }
    for (unsigned i = 0; i < bytes / size; i++) {
        uint64_t value = 0;
        copy_general(&value, data->bytes + i * size, size);
        if (element_selected(mask, i, size))
            mmu_store(cpu, linear[i], value, size, access);
    }
}

static void load_selected(struct jit_vcpu *cpu, const struct insn *insn, struct vector *data, const struct vector *mask,
                          unsigned bytes, unsigned size)
{
    uint64_t offset = interp_offset(cpu, insn);
    unsigned access = ACCESS_READ | ACCESS_UNALIGNED | stack_access(insn->mem_segment);
    zero_general(data, sizeof *data);
    for (unsigned i = 0; i < bytes / size; i++) {
        if (!element_selected(mask, i, size))
            continue;
        uint64_t at = truncate_to(offset + i * size, insn->address_bits);
        uint64_t linear = segment_linear(cpu, insn->mem_segment, at, size, ACCESS_READ);
        set_element(data, i, size, mmu_load(cpu, linear, size, access));
    }
}

/* vmaskmovps/pd (0f38 2c-2f) and vpmaskmovd/q (0f38 8c, 8e). */
static void masked_move(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    interp_take_state(cpu);
    bool store = insn->opcode == 0x2e || insn->opcode == 0x2f || insn->opcode == 0x8e;
    bool wide = insn->opcode & 0x80 ? insn_vex_w(insn) : insn->opcode & 1;
    unsigned bytes = insn_vector_bytes(insn), size = wide ? 8 : 4;
    struct vector mask = read_vector(cpu, insn_vex_vvvv(insn)), data;
    if (store) {
        data = read_vector(cpu, insn_vector_reg(insn));
        store_selected(cpu, insn, interp_offset(cpu, insn), &data, &mask, bytes, size);
    } else {
        load_selected(cpu, insn, &data, &mask, bytes, size);
        write_vector(cpu, insn_vector_reg(insn), &data, bytes);
    }
}

/* CPUs may check the whole operand of a byte-masked store, whatever the mask; so does this. */
static void check_store(struct jit_vcpu *cpu, const struct insn *insn, uint64_t offset, unsigned bytes)
{
    unsigned access = ACCESS_WRITE | stack_access(insn->mem_segment);
    uint64_t linear = segment_linear(cpu, insn->mem_segment, offset, bytes, ACCESS_WRITE);
    watch_alignment(cpu, linear, 8, access);
    interp_probe(cpu, linear, bytes, access | ACCESS_UNALIGNED);
}

/* What every MMX instruction does first: pending x87 exceptions, all registers valid, TOP 0 (so that the image holds mm0-mm7 in
 * order). */
static void enter_mmx(struct jit_vcpu *cpu)
{
    if (load_le16(cpu->xsave + 2) & 0x80)
        vcpu_raise(cpu, VEC_MF, 0);
    fpu_load(cpu);
    uint32_t unused;
    __asm__ volatile("pmovmskb %%mm0, %0" : "=r"(unused)); /* reads only, so that no register changes */
    interp_take_state(cpu);
}

/* maskmovdqu, vmaskmovdqu, maskmovq: bytes of reg to [rdi], by the top bits of the bytes of rm. */
static void masked_store_bytes(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    interp_take_state(cpu);
    bool mmx = insn->fpu == INSN_FPU_MMX;
    struct vector data = {0}, mask = {0};
    if (mmx)
        enter_mmx(cpu);
    if (mmx) {
        copy_general(data.bytes, cpu->xsave + IMAGE_ST + 16 * (insn_vector_reg(insn) & 7), 8);
        copy_general(mask.bytes, cpu->xsave + IMAGE_ST + 16 * (rm_number(insn) & 7), 8);
    } else {
        data = read_vector(cpu, insn_vector_reg(insn));
        mask = read_vector(cpu, rm_number(insn));
    }
    uint64_t offset = read_address_gpr(cpu, RDI, insn);
    check_store(cpu, insn, offset, mmx ? 8 : 16);
    store_selected(cpu, insn, offset, &data, &mask, mmx ? 8 : 16, 1);
}

static uint64_t gather_linear(struct jit_vcpu *cpu, const struct insn *insn, const struct insn_gather *g,
                              const struct vector *index, unsigned element)
{
    int64_t i = (int64_t)element_value(index, element, g->index_bytes);
    if (g->index_bytes == 4)
        i = (int32_t)i;
    uint64_t offset = (uint64_t)insn->mem_disp + (uint64_t)i * insn->mem_scale;
    if (insn->mem_base != INSN_NO_REG)
        offset += cpu->gpr[insn->mem_base];
    return segment_linear(cpu, insn->mem_segment, truncate_to(offset, insn->address_bits), g->data_bytes, ACCESS_READ);
}

/* One element: loads it when its mask says so, and takes it out of the mask. */
static void gather_element(struct jit_vcpu *cpu, const struct insn *insn, const struct insn_gather *g, unsigned element)
{
    struct vector mask = read_vector(cpu, g->mask);
    if (element_selected(&mask, element, g->data_bytes)) {
        struct vector index = read_vector(cpu, g->index), data = read_vector(cpu, g->dest);
        uint64_t linear = gather_linear(cpu, insn, g, &index, element);
        uint64_t value = mmu_load(cpu, linear, g->data_bytes,
                                  ACCESS_READ | ACCESS_UNALIGNED | stack_access(insn->mem_segment));
        interp_take_state(cpu); /* a device may have been asked */
        set_element(&data, element, g->data_bytes, value);
        write_vector(cpu, g->dest, &data, 32);
    }
    set_element(&mask, element, g->data_bytes, 0);
    write_vector(cpu, g->mask, &mask, 32);
}

/* Elements in order, each committed by itself: when one faults, the mask shows which are still to do. */
static void gather(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    interp_take_state(cpu);
    struct insn_gather g = insn_gather_shape(insn);
    for (unsigned i = 0; i < g.elements; i++)
        gather_element(cpu, insn, &g, i);
    struct vector zero = {0}, data = read_vector(cpu, g.dest);
    write_vector(cpu, g.dest, &data, g.elements * g.data_bytes);
    write_vector(cpu, g.mask, &zero, 32);
}

/* Outside of 64-bit code, where they leave registers 8-15 alone. */
static void zero_registers(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    interp_take_state(cpu);
    for (unsigned i = 0; i < 8; i++) {
        struct vector v = read_vector(cpu, i);
        write_vector(cpu, i, &v, insn->mnemonic == ZYDIS_MNEMONIC_VZEROALL ? 0 : 16);
    }
}

interp_fn *interp_vector_handler(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: return masked_move;
    case ZYDIS_MNEMONIC_VZEROALL:
    case ZYDIS_MNEMONIC_VZEROUPPER: return zero_registers;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return masked_store_bytes;
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VGATHERDPD:
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VGATHERQPD:
    case ZYDIS_MNEMONIC_VPGATHERDD:
    case ZYDIS_MNEMONIC_VPGATHERDQ:
    case ZYDIS_MNEMONIC_VPGATHERQD:
    case ZYDIS_MNEMONIC_VPGATHERQQ: return gather;
    default: return NULL;
    }
}
