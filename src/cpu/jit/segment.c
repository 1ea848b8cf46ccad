/* Segment registers: descriptors, loads with their checks, linear addresses, and the instructions that only ask.
 *
 * A segment register without SEG_ATTR_P holds a null selector. A null SS (64-bit mode, CPL 0-2) keeps the CPL in its DPL field.
 * In real mode a load changes selector and base only, so limits set in protected mode stay ("unreal" mode).
 * Virtual-8086 mode and hardware task switching do not exist here: IRET to VM86, task gates and jumps to a TSS raise #GP. */
#include "cpu/jit/segment.h"

#include "cpu/jit/segment_impl.h"

#define REAL_ATTRIBUTES (SEG_ATTR_P | SEG_ATTR_S | SEG_TYPE_WRITABLE | SEG_TYPE_ACCESSED)

static uint32_t descriptor_limit(uint64_t raw)
{
    uint32_t limit = (uint32_t)((raw & 0xffff) | (raw >> 32 & 0xf0000));
    return raw >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

static uint32_t descriptor_base(uint64_t raw)
{
    return (uint32_t)((raw >> 16 & 0xffffff) | (raw >> 32 & 0xff000000));
}

struct x86_segment_state segment_from_descriptor(const struct descriptor *descriptor, uint16_t selector)
{
    return (struct x86_segment_state){
        .base = descriptor_base(descriptor->raw),
        .limit = descriptor_limit(descriptor->raw),
        .selector = selector,
        .attributes = descriptor->attributes,
    };
}

/* Finds [index, index+size) of the selector in its table; false beyond the limit or without an LDT. */
static bool descriptor_locate(const struct jit_vcpu *cpu, uint16_t selector, unsigned size, uint64_t *ret_linear)
{
    uint32_t index = selector & 0xfff8u;
    bool in_ldt = (selector & SELECTOR_LDT) != 0;
    if (in_ldt && !(cpu->ldtr.attributes & SEG_ATTR_P))
        return false;
    uint32_t limit = in_ldt ? cpu->ldtr.limit : cpu->gdtr.limit;
    if (index + size - 1 > limit)
        return false;
    *ret_linear = (in_ldt ? cpu->ldtr.base : cpu->gdtr.base) + index;
    return true;
}

static struct descriptor descriptor_load(struct jit_vcpu *cpu, uint64_t linear)
{
    struct descriptor descriptor = {.linear = linear};
    descriptor.raw = mmu_load(cpu, linear, 8, ACCESS_READ | ACCESS_SYSTEM);
    descriptor.attributes = (uint16_t)(descriptor.raw >> 40 & 0xf0ff);
    return descriptor;
}

struct descriptor segment_read_descriptor(struct jit_vcpu *cpu, uint16_t selector, enum x86_vector vector)
{
    uint64_t linear;
    if (!descriptor_locate(cpu, selector, 8, &linear))
        raise_selector(cpu, vector, selector);
    return descriptor_load(cpu, linear);
}

uint64_t segment_read_upper(struct jit_vcpu *cpu, uint16_t selector, const struct descriptor *descriptor)
{
    uint64_t linear;
    if (!descriptor_locate(cpu, selector, 16, &linear))
        raise_selector(cpu, VEC_GP, selector);
    return mmu_load(cpu, descriptor->linear + 8, 8, ACCESS_READ | ACCESS_SYSTEM);
}

void segment_mark_accessed(struct jit_vcpu *cpu, struct descriptor *descriptor)
{
    if (descriptor->attributes & SEG_TYPE_ACCESSED)
        return;
    descriptor->attributes = (uint16_t)(descriptor->attributes | SEG_TYPE_ACCESSED);
    mmu_store(cpu, descriptor->linear + 5, descriptor->attributes & 0xffu, 1, ACCESS_WRITE | ACCESS_SYSTEM);
}

void segment_set_null(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector)
{
    cpu->seg[segment] = (struct x86_segment_state){
        .selector = selector,
        .attributes = segment == SEG_SS ? (uint16_t)(cpu->cpl << 5) : 0,
    };
}

void segment_set_code(struct jit_vcpu *cpu, const struct descriptor *descriptor, uint16_t selector, unsigned cpl)
{
    cpu->seg[SEG_CS] = segment_from_descriptor(descriptor, (uint16_t)((selector & 0xfffcu) | cpl));
    cpu->cpl = (uint8_t)cpl;
    vcpu_update_mode(cpu);
}

void segment_check_rip(struct jit_vcpu *cpu, const struct descriptor *descriptor, uint64_t rip)
{
    bool to_64 = vcpu_lma(cpu) && (descriptor->attributes & SEG_ATTR_L);
    if (to_64 ? !address_canonical(rip) : rip > descriptor_limit(descriptor->raw))
        vcpu_raise(cpu, VEC_GP, 0);
}

bool segment_in_limit(const struct x86_segment_state *segment, uint64_t offset, unsigned size)
{
    uint64_t last = offset + (size ? size - 1 : 0);
    if (attributes_code(segment->attributes) || !(segment->attributes & SEG_TYPE_EXPAND_DOWN))
        return last <= segment->limit && offset <= last;
    uint64_t top = segment->attributes & SEG_ATTR_DB ? 0xffffffff : 0xffff;
    return offset > segment->limit && last <= top;
}

static bool segment_permits(const struct x86_segment_state *segment, unsigned access)
{
    uint16_t attributes = segment->attributes;
    if (!(attributes & SEG_ATTR_P))
        return false;
    if (access & ACCESS_FETCH)
        return true;
    if (access & ACCESS_WRITE)
        return attributes_writable_data(attributes);
    return !(attributes & SEG_TYPE_CODE) || (attributes & SEG_TYPE_READABLE);
}

/* Canonical form is the sum's, as the manuals have it. Some CPUs (seen: Zen) refuse an offset that is not canonical too, though the
 * sum with the base is; translated code could not tell without another check on each access. */
static uint64_t segment_linear_long(struct jit_vcpu *cpu, enum x86_segment segment, uint64_t offset, unsigned size)
{
    uint64_t linear = offset;
    if (segment == SEG_FS || segment == SEG_GS)
        linear += cpu->seg[segment].base;
    if (!address_canonical(linear) || !address_canonical(linear + (size ? size - 1 : 0)))
        vcpu_raise(cpu, segment == SEG_SS ? VEC_SS : VEC_GP, 0);
    return linear;
}

uint64_t segment_linear(struct jit_vcpu *cpu, enum x86_segment segment, uint64_t offset, unsigned size, unsigned access)
{
    if (vcpu_long_mode(cpu))
        return segment_linear_long(cpu, segment, offset, size);
    const struct x86_segment_state *s = &cpu->seg[segment];
    bool permitted = cpu->mode == MODE_REAL || segment_permits(s, access);
    if (!permitted || !segment_in_limit(s, offset, size))
        vcpu_raise(cpu, segment == SEG_SS ? VEC_SS : VEC_GP, 0);
    return (uint32_t)(s->base + offset);
}

static void segment_load_real(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector)
{
    struct x86_segment_state *s = &cpu->seg[segment];
    if (!(s->attributes & SEG_ATTR_P)) {
        s->limit = 0xffff;
        s->attributes = REAL_ATTRIBUTES;
    }
    s->selector = selector;
    s->base = (uint64_t)selector << 4;
}

static void segment_load_null(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector)
{
    bool allowed = segment != SEG_SS || (vcpu_long_mode(cpu) && cpu->cpl < 3 && selector_rpl(selector) == cpu->cpl);
    if (!allowed)
        vcpu_raise(cpu, VEC_GP, 0);
    segment_set_null(cpu, segment, selector);
}

static void check_stack_segment(struct jit_vcpu *cpu, uint16_t selector, uint16_t attributes)
{
    if (selector_rpl(selector) != cpu->cpl || !attributes_writable_data(attributes) ||
        SEG_ATTR_DPL(attributes) != cpu->cpl)
        raise_selector(cpu, VEC_GP, selector);
    if (!(attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_SS, selector);
}

/* Whether CPL and RPL reach the segment: conforming code is open to all. */
static bool privilege_reaches(const struct jit_vcpu *cpu, uint16_t selector, uint16_t attributes)
{
    unsigned dpl = SEG_ATTR_DPL(attributes);
    return attributes_conforming_code(attributes) || (cpu->cpl <= dpl && selector_rpl(selector) <= dpl);
}

static void check_data_segment(struct jit_vcpu *cpu, uint16_t selector, uint16_t attributes)
{
    bool readable = (attributes & SEG_ATTR_S) && (!(attributes & SEG_TYPE_CODE) || (attributes & SEG_TYPE_READABLE));
    if (!readable || !privilege_reaches(cpu, selector, attributes))
        raise_selector(cpu, VEC_GP, selector);
    if (!(attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
}

void segment_load(struct jit_vcpu *cpu, enum x86_segment segment, uint16_t selector)
{
    if (cpu->mode == MODE_REAL) {
        segment_load_real(cpu, segment, selector);
        return;
    }
    if (selector_null(selector)) {
        segment_load_null(cpu, segment, selector);
        return;
    }
    struct descriptor descriptor = segment_read_descriptor(cpu, selector, VEC_GP);
    if (segment == SEG_SS)
        check_stack_segment(cpu, selector, descriptor.attributes);
    else
        check_data_segment(cpu, selector, descriptor.attributes);
    segment_mark_accessed(cpu, &descriptor);
    cpu->seg[segment] = segment_from_descriptor(&descriptor, selector);
}

/* Reads an LDT or TSS descriptor from the GDT for LLDT and LTR, with the upper half of its base in long mode. */
static struct descriptor load_system(struct jit_vcpu *cpu, uint16_t selector, uint64_t *ret_base)
{
    if (selector & SELECTOR_LDT)
        raise_selector(cpu, VEC_GP, selector);
    struct descriptor descriptor = segment_read_descriptor(cpu, selector, VEC_GP);
    *ret_base = descriptor_base(descriptor.raw);
    if (vcpu_lma(cpu)) {
        uint64_t upper = segment_read_upper(cpu, selector, &descriptor);
        *ret_base |= upper << 32;
        if ((upper >> 40 & 0x1f) || !address_canonical(*ret_base))
            raise_selector(cpu, VEC_GP, selector);
    }
    return descriptor;
}

static void check_system_load(struct jit_vcpu *cpu)
{
    if (cpu->mode == MODE_REAL)
        vcpu_raise(cpu, VEC_UD, 0);
    if (cpu->cpl)
        vcpu_raise(cpu, VEC_GP, 0);
}

void segment_load_ldtr(struct jit_vcpu *cpu, uint16_t selector)
{
    check_system_load(cpu);
    if (selector_null(selector)) {
        cpu->ldtr = (struct x86_segment_state){.selector = selector};
        return;
    }
    uint64_t base;
    struct descriptor descriptor = load_system(cpu, selector, &base);
    if ((descriptor.attributes & (SEG_ATTR_S | 0xf)) != SYS_TYPE_LDT)
        raise_selector(cpu, VEC_GP, selector);
    if (!(descriptor.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
    cpu->ldtr = segment_from_descriptor(&descriptor, selector);
    cpu->ldtr.base = base;
}

void segment_load_tr(struct jit_vcpu *cpu, uint16_t selector)
{
    check_system_load(cpu);
    if (selector_null(selector))
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t base;
    struct descriptor descriptor = load_system(cpu, selector, &base);
    unsigned type = descriptor.attributes & (SEG_ATTR_S | 0xf);
    if (type != SYS_TYPE_TSS && (type != SYS_TYPE_TSS16 || vcpu_lma(cpu)))
        raise_selector(cpu, VEC_GP, selector);
    if (!(descriptor.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
    descriptor.attributes = (uint16_t)(descriptor.attributes | SYS_TYPE_BUSY);
    mmu_store(cpu, descriptor.linear + 5, descriptor.attributes & 0xffu, 1, ACCESS_WRITE | ACCESS_SYSTEM);
    cpu->tr = segment_from_descriptor(&descriptor, selector);
    cpu->tr.base = base;
}

/* The descriptor for LAR, LSL, VERR, VERW: false where those clear ZF. */
static bool descriptor_probe(struct jit_vcpu *cpu, uint16_t selector, struct descriptor *ret_descriptor)
{
    uint64_t linear;
    if (selector_null(selector) || !descriptor_locate(cpu, selector, 8, &linear))
        return false;
    *ret_descriptor = descriptor_load(cpu, linear);
    return privilege_reaches(cpu, selector, ret_descriptor->attributes);
}

/* Bit n: system type n is valid for the instruction, in legacy and in long mode. */
#define LAR_TYPES_LEGACY 0x1a3eu
#define LAR_TYPES_LONG 0x1a04u
#define LSL_TYPES_LEGACY 0x0a0eu
#define LSL_TYPES_LONG 0x0a04u

static bool type_valid(const struct jit_vcpu *cpu, uint16_t attributes, unsigned legacy, unsigned in_long)
{
    if (attributes & SEG_ATTR_S)
        return true;
    return (vcpu_lma(cpu) ? in_long : legacy) >> (attributes & 0xf) & 1;
}

bool segment_lar(struct jit_vcpu *cpu, uint16_t selector, uint32_t *ret_rights)
{
    struct descriptor descriptor;
    if (!descriptor_probe(cpu, selector, &descriptor) ||
        !type_valid(cpu, descriptor.attributes, LAR_TYPES_LEGACY, LAR_TYPES_LONG))
        return false;
    *ret_rights = (uint32_t)(descriptor.raw >> 32) & 0x00f0ff00;
    return true;
}

bool segment_lsl(struct jit_vcpu *cpu, uint16_t selector, uint32_t *ret_limit)
{
    struct descriptor descriptor;
    if (!descriptor_probe(cpu, selector, &descriptor) ||
        !type_valid(cpu, descriptor.attributes, LSL_TYPES_LEGACY, LSL_TYPES_LONG))
        return false;
    *ret_limit = descriptor_limit(descriptor.raw);
    return true;
}

bool segment_verify(struct jit_vcpu *cpu, uint16_t selector, bool write)
{
    struct descriptor descriptor;
    if (!descriptor_probe(cpu, selector, &descriptor) || !(descriptor.attributes & SEG_ATTR_S))
        return false;
    if (write)
        return attributes_writable_data(descriptor.attributes);
    return !(descriptor.attributes & SEG_TYPE_CODE) || (descriptor.attributes & SEG_TYPE_READABLE);
}
