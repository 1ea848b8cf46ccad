/* Stacks of far transfers and exceptions: pushed to and popped from ahead of the commit, current or taken from the TSS.
 * Invariant: nothing of the vCPU changes before stack_commit(). */
#include "cpu/jit/segment_impl.h"

struct stack stack_current(const struct jit_vcpu *cpu)
{
    unsigned bits = vcpu_stack_bits(cpu);
    return (struct stack){
        .ss = cpu->seg[SEG_SS],
        .sp = cpu->gpr[RSP],
        .mask = bits == 64 ? UINT64_MAX : bits == 32 ? 0xffffffff : 0xffff,
        .flat = bits == 64,
    };
}

static uint64_t stack_linear(struct jit_vcpu *cpu, const struct stack *stack, unsigned size)
{
    uint64_t offset = stack->sp & stack->mask;
    if (stack->flat)
        return offset;
    if (!segment_in_limit(&stack->ss, offset, size))
        vcpu_raise(cpu, VEC_SS, stack->error);
    return (uint32_t)(stack->ss.base + offset);
}

void stack_skip(struct stack *stack, uint64_t bytes)
{
    stack->sp = ((stack->sp + bytes) & stack->mask) | (stack->sp & ~stack->mask);
}

void stack_push(struct jit_vcpu *cpu, struct stack *stack, uint64_t value, unsigned size)
{
    stack_skip(stack, -(uint64_t)size);
    mmu_store(cpu, stack_linear(cpu, stack, size), value, size, ACCESS_WRITE | ACCESS_STACK | stack->access);
}

uint64_t stack_pop(struct jit_vcpu *cpu, struct stack *stack, unsigned size)
{
    uint64_t value = mmu_load(cpu, stack_linear(cpu, stack, size), size, ACCESS_READ | ACCESS_STACK | stack->access);
    stack_skip(stack, size);
    return value;
}

void stack_commit(struct jit_vcpu *cpu, const struct stack *stack)
{
    uint64_t sp = stack->sp & stack->mask;
    cpu->gpr[RSP] = stack->mask == 0xffff ? (cpu->gpr[RSP] & ~UINT64_C(0xffff)) | sp : sp;
}

static struct x86_segment_state inner_stack_segment(struct jit_vcpu *cpu, uint16_t selector, unsigned cpl)
{
    if (selector_null(selector))
        vcpu_raise(cpu, VEC_TS, 0);
    struct descriptor descriptor = segment_read_descriptor(cpu, selector, VEC_TS);
    if (selector_rpl(selector) != cpl || SEG_ATTR_DPL(descriptor.attributes) != cpl ||
        !attributes_writable_data(descriptor.attributes))
        raise_selector(cpu, VEC_TS, selector);
    if (!(descriptor.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_SS, selector);
    segment_mark_accessed(cpu, &descriptor);
    return segment_from_descriptor(&descriptor, selector);
}

struct stack stack_from_tss(struct jit_vcpu *cpu, unsigned cpl)
{
    bool wide = (cpu->tr.attributes & 8) != 0;
    unsigned size = wide ? 4 : 2;
    unsigned offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
    if (!(cpu->tr.attributes & SEG_ATTR_P) || offset + size + 1 > cpu->tr.limit)
        raise_selector(cpu, VEC_TS, cpu->tr.selector);
    uint64_t linear = cpu->tr.base + offset;
    uint64_t sp = mmu_load(cpu, linear, size, ACCESS_READ | ACCESS_SYSTEM);
    uint16_t selector = (uint16_t)mmu_load(cpu, linear + size, 2, ACCESS_READ | ACCESS_SYSTEM);
    struct stack stack = {.ss = inner_stack_segment(cpu, selector, cpl), .sp = sp, .access = ACCESS_SYSTEM};
    stack.mask = stack.ss.attributes & SEG_ATTR_DB ? 0xffffffff : 0xffff;
    stack.error = selector & 0xfffcu;
    return stack;
}

uint64_t stack_from_tss64(struct jit_vcpu *cpu, unsigned offset)
{
    if (!(cpu->tr.attributes & SEG_ATTR_P) || offset + 7 > cpu->tr.limit)
        raise_selector(cpu, VEC_TS, cpu->tr.selector);
    return mmu_load(cpu, cpu->tr.base + offset, 8, ACCESS_READ | ACCESS_SYSTEM);
}
