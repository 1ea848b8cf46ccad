/* Far transfers: jumps, calls through call gates, returns and IRET, in real, protected, compatibility and 64-bit mode.
 *
 * Each function reads and checks everything first and changes the vCPU last, so that a fault leaves it as it was. Task gates,
 * TSS targets, nested-task returns and returns to virtual-8086 mode are not supported and raise #GP.
 * Source: Intel SDM 3A 5.8, volume 2 (CALL, JMP, RET, IRET). */
#include "cpu/jit/segment.h"

#include "cpu/jit/segment_impl.h"

struct call_gate {
    uint64_t rip;
    uint16_t selector;
    unsigned params;
    unsigned size; /* of what is pushed: 2, 4, 8 */
};

/* Where a return goes. */
struct far_target {
    uint64_t rip, sp;
    uint16_t cs, ss;
};

static uint64_t truncate_offset(uint64_t offset, unsigned operand_bits)
{
    return operand_bits == 16 ? (uint16_t)offset : operand_bits == 32 ? (uint32_t)offset : offset;
}

/* In long mode L and D together are reserved. */
static bool code_bits_valid(const struct jit_vcpu *cpu, uint16_t attributes)
{
    return !vcpu_lma(cpu) || (attributes & (SEG_ATTR_L | SEG_ATTR_DB)) != (SEG_ATTR_L | SEG_ATTR_DB);
}

/* The rules of a direct jump or call to a code segment, which keeps the CPL. */
static void check_direct_code(struct jit_vcpu *cpu, uint16_t selector, uint16_t attributes)
{
    unsigned dpl = SEG_ATTR_DPL(attributes);
    bool conforming = attributes_conforming_code(attributes);
    bool allowed = conforming ? dpl <= cpu->cpl : dpl == cpu->cpl && selector_rpl(selector) <= cpu->cpl;
    if (!allowed || !attributes_code(attributes) || !code_bits_valid(cpu, attributes))
        raise_selector(cpu, VEC_GP, selector);
    if (!(attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
}

/* Takes a system descriptor as a call gate. */
static struct call_gate read_call_gate(struct jit_vcpu *cpu, uint16_t selector, const struct descriptor *descriptor)
{
    unsigned type = descriptor->attributes & 0xf;
    bool wide = type == SYS_TYPE_CALL_GATE;
    if (!wide && (type != SYS_TYPE_CALL_GATE16 || vcpu_lma(cpu)))
        raise_selector(cpu, VEC_GP, selector);
    unsigned dpl = SEG_ATTR_DPL(descriptor->attributes);
    if (dpl < cpu->cpl || dpl < selector_rpl(selector))
        raise_selector(cpu, VEC_GP, selector);
    uint64_t raw = descriptor->raw;
    struct call_gate gate = {.selector = (uint16_t)(raw >> 16), .rip = raw & 0xffff, .size = 2};
    gate.params = (unsigned)(raw >> 32) & 0x1f;
    if (wide) {
        gate.rip |= raw >> 32 & 0xffff0000;
        gate.size = 4;
    }
    if (vcpu_lma(cpu)) {
        uint64_t upper = segment_read_upper(cpu, selector, descriptor);
        if (upper >> 40 & 0x1f)
            raise_selector(cpu, VEC_GP, selector);
        gate.rip |= upper << 32;
        gate.size = 8;
    }
    if (!(descriptor->attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
    return gate;
}

/* Code segment behind a call gate: at most the CPL's privilege level number; 64-bit code in long mode. */
static struct descriptor read_gate_code(struct jit_vcpu *cpu, const struct call_gate *gate)
{
    if (selector_null(gate->selector))
        vcpu_raise(cpu, VEC_GP, 0);
    struct descriptor code = segment_read_descriptor(cpu, gate->selector, VEC_GP);
    bool bits_valid = !vcpu_lma(cpu) || (code.attributes & (SEG_ATTR_L | SEG_ATTR_DB)) == SEG_ATTR_L;
    if (!attributes_code(code.attributes) || SEG_ATTR_DPL(code.attributes) > cpu->cpl || !bits_valid)
        raise_selector(cpu, VEC_GP, gate->selector);
    if (!(code.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, gate->selector);
    return code;
}

static void set_real_code(struct jit_vcpu *cpu, uint16_t selector, uint64_t rip)
{
    cpu->seg[SEG_CS].selector = selector;
    cpu->seg[SEG_CS].base = (uint64_t)selector << 4;
    cpu->rip = rip;
}

static void check_real_rip(struct jit_vcpu *cpu, uint64_t rip)
{
    if (rip > cpu->seg[SEG_CS].limit)
        vcpu_raise(cpu, VEC_GP, 0);
}

static void enter_code(struct jit_vcpu *cpu, struct descriptor *code, uint16_t selector, unsigned cpl, uint64_t rip)
{
    segment_set_code(cpu, code, selector, cpl);
    cpu->rip = rip;
}

void segment_far_jump(struct jit_vcpu *cpu, uint16_t selector, uint64_t offset, unsigned operand_bits)
{
    uint64_t rip = truncate_offset(offset, operand_bits);
    if (cpu->mode == MODE_REAL) {
        check_real_rip(cpu, rip);
        set_real_code(cpu, selector, rip);
        return;
    }
    if (selector_null(selector))
        vcpu_raise(cpu, VEC_GP, 0);
    struct descriptor code = segment_read_descriptor(cpu, selector, VEC_GP);
    if (code.attributes & SEG_ATTR_S) {
        check_direct_code(cpu, selector, code.attributes);
    } else {
        struct call_gate gate = read_call_gate(cpu, selector, &code);
        code = read_gate_code(cpu, &gate);
        if (!attributes_conforming_code(code.attributes) && SEG_ATTR_DPL(code.attributes) != cpu->cpl)
            raise_selector(cpu, VEC_GP, gate.selector);
        selector = gate.selector;
        rip = gate.rip;
    }
    segment_check_rip(cpu, &code, rip);
    segment_mark_accessed(cpu, &code);
    enter_code(cpu, &code, selector, cpu->cpl, rip);
}

static void call_real(struct jit_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned size, uint64_t next_rip)
{
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, cpu->seg[SEG_CS].selector, size);
    stack_push(cpu, &stack, next_rip, size);
    check_real_rip(cpu, rip);
    stack_commit(cpu, &stack);
    set_real_code(cpu, selector, rip);
}

/* A call that keeps the privilege level and the stack. */
static void call_same_level(struct jit_vcpu *cpu, struct descriptor *code, uint16_t selector, uint64_t rip,
                            unsigned size, uint64_t next_rip)
{
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, cpu->seg[SEG_CS].selector, size);
    stack_push(cpu, &stack, next_rip, size);
    segment_check_rip(cpu, code, rip);
    segment_mark_accessed(cpu, code);
    stack_commit(cpu, &stack);
    enter_code(cpu, code, selector, cpu->cpl, rip);
}

static void copy_params(struct jit_vcpu *cpu, struct stack *to, const struct call_gate *gate)
{
    for (unsigned i = gate->params; i-- > 0;) {
        struct stack from = stack_current(cpu);
        stack_skip(&from, (uint64_t)i * gate->size);
        stack_push(cpu, to, stack_pop(cpu, &from, gate->size), gate->size);
    }
}

/* A call through a gate to a more privileged level, on the stack that the TSS names. */
static void call_inner_level(struct jit_vcpu *cpu, struct descriptor *code, const struct call_gate *gate, uint64_t next_rip)
{
    unsigned cpl = SEG_ATTR_DPL(code->attributes);
    struct stack stack;
    if (vcpu_lma(cpu))
        stack = (struct stack){.sp = stack_from_tss64(cpu, 4 + 8 * cpl), .mask = UINT64_MAX, .flat = true,
                               .access = ACCESS_SYSTEM};
    else
        stack = stack_from_tss(cpu, cpl);
    stack_push(cpu, &stack, cpu->seg[SEG_SS].selector, gate->size);
    stack_push(cpu, &stack, cpu->gpr[RSP], gate->size);
    if (!vcpu_lma(cpu))
        copy_params(cpu, &stack, gate);
    stack_push(cpu, &stack, cpu->seg[SEG_CS].selector, gate->size);
    stack_push(cpu, &stack, next_rip, gate->size);
    segment_check_rip(cpu, code, gate->rip);
    segment_mark_accessed(cpu, code);
    enter_code(cpu, code, gate->selector, cpl, gate->rip);
    if (vcpu_lma(cpu))
        segment_set_null(cpu, SEG_SS, (uint16_t)cpl);
    else
        cpu->seg[SEG_SS] = stack.ss;
    stack_commit(cpu, &stack);
}

static void call_gate(struct jit_vcpu *cpu, const struct call_gate *gate, uint64_t next_rip)
{
    struct descriptor code = read_gate_code(cpu, gate);
    if (!attributes_conforming_code(code.attributes) && SEG_ATTR_DPL(code.attributes) < cpu->cpl)
        call_inner_level(cpu, &code, gate, next_rip);
    else
        call_same_level(cpu, &code, gate->selector, gate->rip, gate->size, next_rip);
}

void segment_far_call(struct jit_vcpu *cpu, uint16_t selector, uint64_t offset, unsigned operand_bits, uint64_t next_rip)
{
    uint64_t rip = truncate_offset(offset, operand_bits);
    if (cpu->mode == MODE_REAL) {
        call_real(cpu, selector, rip, operand_bits / 8, next_rip);
        return;
    }
    if (selector_null(selector))
        vcpu_raise(cpu, VEC_GP, 0);
    struct descriptor code = segment_read_descriptor(cpu, selector, VEC_GP);
    if (code.attributes & SEG_ATTR_S) {
        check_direct_code(cpu, selector, code.attributes);
        call_same_level(cpu, &code, selector, rip, operand_bits / 8, next_rip);
    } else {
        struct call_gate gate = read_call_gate(cpu, selector, &code);
        call_gate(cpu, &gate, next_rip);
    }
}

/* Code segment of a return: its RPL becomes the CPL, never a more privileged one. */
static struct descriptor read_return_code(struct jit_vcpu *cpu, uint16_t selector)
{
    if (selector_null(selector))
        vcpu_raise(cpu, VEC_GP, 0);
    struct descriptor code = segment_read_descriptor(cpu, selector, VEC_GP);
    unsigned dpl = SEG_ATTR_DPL(code.attributes), rpl = selector_rpl(selector);
    bool allowed = attributes_conforming_code(code.attributes) ? dpl <= rpl : dpl == rpl;
    if (!attributes_code(code.attributes) || rpl < cpu->cpl || !allowed || !code_bits_valid(cpu, code.attributes))
        raise_selector(cpu, VEC_GP, selector);
    if (!(code.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, selector);
    segment_mark_accessed(cpu, &code);
    return code;
}

/* Stack segment of a return to `cpl`. Null is fine for 64-bit code below CPL 3; `ret_stack->flat` says that it is 64-bit code. */
static void read_return_stack(struct jit_vcpu *cpu, const struct far_target *target, bool to_64, struct stack *ret_stack)
{
    unsigned cpl = selector_rpl(target->cs);
    uint16_t selector = target->ss;
    *ret_stack = (struct stack){.sp = target->sp, .mask = UINT64_MAX, .flat = to_64};
    if (selector_null(selector)) {
        if (!to_64 || cpl == 3 || selector_rpl(selector) != cpl)
            vcpu_raise(cpu, VEC_GP, 0);
        ret_stack->ss = (struct x86_segment_state){.selector = selector, .attributes = (uint16_t)(cpl << 5)};
        return;
    }
    struct descriptor descriptor = segment_read_descriptor(cpu, selector, VEC_GP);
    if (selector_rpl(selector) != cpl || SEG_ATTR_DPL(descriptor.attributes) != cpl ||
        !attributes_writable_data(descriptor.attributes))
        raise_selector(cpu, VEC_GP, selector);
    if (!(descriptor.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_SS, selector);
    segment_mark_accessed(cpu, &descriptor);
    ret_stack->ss = segment_from_descriptor(&descriptor, selector);
    if (!to_64)
        ret_stack->mask = descriptor.attributes & SEG_ATTR_DB ? 0xffffffff : 0xffff;
}

/* After a return to an outer level: data segments that the new level may not use become null. */
static void drop_inner_segments(struct jit_vcpu *cpu)
{
    static const enum x86_segment segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < 4; i++) {
        struct x86_segment_state *s = &cpu->seg[segments[i]];
        if ((s->attributes & SEG_ATTR_P) && SEG_ATTR_DPL(s->attributes) < cpu->cpl &&
            !attributes_conforming_code(s->attributes)) {
            s->selector = 0;
            s->attributes = 0;
        }
    }
}

static bool returns_to_64(const struct jit_vcpu *cpu, const struct descriptor *code)
{
    return vcpu_lma(cpu) && (code->attributes & SEG_ATTR_L);
}

static void return_real(struct jit_vcpu *cpu, unsigned size, unsigned pop_bytes)
{
    struct stack stack = stack_current(cpu);
    uint64_t rip = stack_pop(cpu, &stack, size);
    uint16_t selector = (uint16_t)stack_pop(cpu, &stack, size);
    check_real_rip(cpu, rip);
    stack_skip(&stack, pop_bytes);
    stack_commit(cpu, &stack);
    set_real_code(cpu, selector, rip);
}

void segment_far_return(struct jit_vcpu *cpu, unsigned operand_bits, unsigned pop_bytes)
{
    unsigned size = operand_bits / 8;
    if (cpu->mode == MODE_REAL) {
        return_real(cpu, size, pop_bytes);
        return;
    }
    struct stack stack = stack_current(cpu);
    struct far_target target = {.rip = stack_pop(cpu, &stack, size)};
    target.cs = (uint16_t)stack_pop(cpu, &stack, size);
    struct descriptor code = read_return_code(cpu, target.cs);
    segment_check_rip(cpu, &code, target.rip);
    stack_skip(&stack, pop_bytes);
    unsigned cpl = selector_rpl(target.cs);
    bool outer = cpl > cpu->cpl;
    if (outer) {
        target.sp = stack_pop(cpu, &stack, size);
        target.ss = (uint16_t)stack_pop(cpu, &stack, size);
        read_return_stack(cpu, &target, returns_to_64(cpu, &code), &stack);
        stack_skip(&stack, pop_bytes);
        cpu->seg[SEG_SS] = stack.ss;
    }
    stack_commit(cpu, &stack);
    enter_code(cpu, &code, target.cs, cpl, target.rip);
    if (outer)
        drop_inner_segments(cpu);
}

static void iret_finish(struct jit_vcpu *cpu, uint64_t rflags)
{
    cpu->rflags = rflags;
    cpu->nmi_blocked = false;
    vcpu_recheck_interrupts(cpu);
}

static void iret_real(struct jit_vcpu *cpu, unsigned operand_bits)
{
    unsigned size = operand_bits / 8;
    struct stack stack = stack_current(cpu);
    uint64_t rip = stack_pop(cpu, &stack, size);
    uint16_t selector = (uint16_t)stack_pop(cpu, &stack, size);
    uint64_t flags = stack_pop(cpu, &stack, size);
    check_real_rip(cpu, rip);
    stack_commit(cpu, &stack);
    set_real_code(cpu, selector, rip);
    iret_finish(cpu, flags_merge(cpu, flags, operand_bits, FLAG_RF));
}

/* Reads the frame: rip, cs, flags, and from 64-bit mode always rsp and ss. */
static void iret_pop(struct jit_vcpu *cpu, struct stack *stack, unsigned operand_bits, uint64_t ret_frame[5])
{
    unsigned count = vcpu_long_mode(cpu) ? 5 : 3;
    if (operand_bits == 64 && stack->flat) {
        mmu_read(cpu, stack->sp, ret_frame, 5 * sizeof ret_frame[0], ACCESS_READ | ACCESS_STACK);
        stack->sp += 5 * sizeof ret_frame[0];
        return;
    }
    for (unsigned i = 0; i < count; i++)
        ret_frame[i] = stack_pop(cpu, stack, operand_bits / 8);
}

void segment_iret(struct jit_vcpu *cpu, unsigned operand_bits)
{
    if (cpu->mode == MODE_REAL) {
        iret_real(cpu, operand_bits);
        return;
    }
    if (cpu->rflags & FLAG_NT)
        vcpu_raise(cpu, VEC_GP, 0);
    bool from_64 = vcpu_long_mode(cpu);
    uint64_t frame[5] = {0};
    struct stack stack = stack_current(cpu);
    iret_pop(cpu, &stack, operand_bits, frame);
    if ((frame[2] & FLAG_VM) && cpu->cpl == 0 && !vcpu_lma(cpu) && operand_bits == 32)
        vcpu_raise(cpu, VEC_GP, 0);
    struct far_target target = {.rip = frame[0], .cs = (uint16_t)frame[1]};
    struct descriptor code = read_return_code(cpu, target.cs);
    segment_check_rip(cpu, &code, target.rip);
    unsigned cpl = selector_rpl(target.cs);
    bool outer = cpl > cpu->cpl;
    if (outer || from_64) {
        target.sp = from_64 ? frame[3] : stack_pop(cpu, &stack, operand_bits / 8);
        target.ss = from_64 ? (uint16_t)frame[4] : (uint16_t)stack_pop(cpu, &stack, operand_bits / 8);
        read_return_stack(cpu, &target, returns_to_64(cpu, &code), &stack);
        cpu->seg[SEG_SS] = stack.ss;
    }
    uint64_t rflags = flags_merge(cpu, frame[2], operand_bits, FLAG_RF);
    stack_commit(cpu, &stack);
    enter_code(cpu, &code, target.cs, cpl, target.rip);
    iret_finish(cpu, rflags);
    if (outer)
        drop_inner_segments(cpu);
}
