/* Exception and interrupt delivery.
 *
 * Long mode uses 64-bit gates (from compatibility code too), protected mode 16- and 32-bit interrupt and trap gates with the
 * stack switch of 16- and 32-bit TSSs, real mode the vector table. Task gates are not supported and raise #GP(vector * 8 + 2);
 * virtual-8086 mode does not exist.
 *
 * Delivery may itself raise. excp_deliver() points cpu->unwind at its own frame to catch that, so when it returns the caller
 * sets cpu->unwind again before it calls anything that may raise. A delivery attempt changes the vCPU only at its end.
 * Compiled for general registers only, as all of this room: the guest's vector registers are live in the host's. */
#include "cpu/jit/excp.h"

#include "cpu/jit/segment_impl.h"

#define GATE_INT16 6u
#define GATE_TRAP16 7u
#define GATE_INT 14u
#define GATE_TRAP 15u
#define ERROR_EXT 1u
#define ERROR_IDT 2u
#define DR6_FIXED UINT64_C(0xffff0ff0)
#define DR6_BREAKPOINTS UINT64_C(15)
#define DR7_GD (1u << 13)

struct gate {
    uint64_t rip;
    uint16_t selector;
    unsigned type, ist, size; /* size of what is pushed: 2, 4, 8 */
};

static const uint32_t error_vectors = 1u << VEC_DF | 1u << VEC_TS | 1u << VEC_NP | 1u << VEC_SS | 1u << VEC_GP |
                                      1u << VEC_PF | 1u << VEC_AC;
/* Their saved flags have RF set, so that the instruction restarts past an instruction breakpoint. */
static const uint32_t fault_vectors = 1u << VEC_DE | 1u << VEC_BR | 1u << VEC_UD | 1u << VEC_NM | 1u << VEC_TS |
                                      1u << VEC_NP | 1u << VEC_SS | 1u << VEC_GP | 1u << VEC_PF | 1u << VEC_MF |
                                      1u << VEC_AC | 1u << VEC_XM;
static const uint32_t contributory_vectors = 1u << VEC_DE | 1u << VEC_TS | 1u << VEC_NP | 1u << VEC_SS | 1u << VEC_GP;

static bool vector_in(uint32_t set, uint8_t vector)
{
    return vector < 32 && (set >> vector & 1);
}

/* A vector that the CPU raised by itself, not INT n or an interrupt. */
static bool is_fault(const struct jit_exception *exception, bool external)
{
    return !exception->software && !external && vector_in(fault_vectors, exception->vector);
}

static _Noreturn void raise_gate(struct jit_vcpu *cpu, enum x86_vector vector, uint8_t gate)
{
    vcpu_raise(cpu, vector, (uint32_t)gate * 8 + ERROR_IDT);
}

static bool gate_type_valid(unsigned type, bool lma)
{
    if (type == GATE_INT || type == GATE_TRAP)
        return true;
    return !lma && (type == GATE_INT16 || type == GATE_TRAP16);
}

static struct gate read_gate(struct jit_vcpu *cpu, const struct jit_exception *exception)
{
    bool lma = vcpu_lma(cpu);
    uint8_t vector = exception->vector;
    unsigned size = lma ? 16 : 8;
    uint64_t raw[2] = {0};
    if (vector * size + size - 1 > cpu->idtr.limit)
        raise_gate(cpu, VEC_GP, vector);
    mmu_read(cpu, cpu->idtr.base + vector * size, raw, size, ACCESS_READ | ACCESS_SYSTEM);
    unsigned attributes = (unsigned)(raw[0] >> 40) & 0xff;
    struct gate gate = {.selector = (uint16_t)(raw[0] >> 16), .type = attributes & 0x1f, .rip = raw[0] & 0xffff};
    if (!gate_type_valid(gate.type, lma) || (exception->software && SEG_ATTR_DPL(attributes) < cpu->cpl))
        raise_gate(cpu, VEC_GP, vector);
    if (!(attributes & SEG_ATTR_P))
        raise_gate(cpu, VEC_NP, vector);
    gate.size = lma ? 8 : gate.type & 8 ? 4 : 2;
    if (gate.size != 2)
        gate.rip |= raw[0] >> 32 & 0xffff0000;
    if (lma) {
        gate.rip |= raw[1] << 32;
        gate.ist = (unsigned)(raw[0] >> 32) & 7;
    }
    return gate;
}

static struct descriptor read_handler_code(struct jit_vcpu *cpu, const struct gate *gate)
{
    if (selector_null(gate->selector))
        vcpu_raise(cpu, VEC_GP, 0);
    struct descriptor code = segment_read_descriptor(cpu, gate->selector, VEC_GP);
    bool bits_valid = !vcpu_lma(cpu) || (code.attributes & (SEG_ATTR_L | SEG_ATTR_DB)) == SEG_ATTR_L;
    if (!attributes_code(code.attributes) || SEG_ATTR_DPL(code.attributes) > cpu->cpl || !bits_valid)
        raise_selector(cpu, VEC_GP, gate->selector);
    if (!(code.attributes & SEG_ATTR_P))
        raise_selector(cpu, VEC_NP, gate->selector);
    segment_check_rip(cpu, &code, gate->rip);
    segment_mark_accessed(cpu, &code);
    return code;
}

/* CPL of the handler: that of nonconforming code; conforming code keeps the current one. */
static unsigned handler_cpl(const struct jit_vcpu *cpu, const struct descriptor *code)
{
    return attributes_conforming_code(code->attributes) ? cpu->cpl : SEG_ATTR_DPL(code->attributes);
}

static void finish(struct jit_vcpu *cpu, const struct gate *gate, const struct descriptor *code, unsigned cpl)
{
    segment_set_code(cpu, code, gate->selector, cpl);
    cpu->rip = gate->rip;
    uint64_t cleared = FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM;
    if (!(gate->type & 1))
        cleared |= FLAG_IF;
    cpu->rflags &= ~cleared;
}

static void deliver_long(struct jit_vcpu *cpu, const struct jit_exception *exception, uint64_t saved_flags)
{
    struct gate gate = read_gate(cpu, exception);
    struct descriptor code = read_handler_code(cpu, &gate);
    unsigned cpl = handler_cpl(cpu, &code);
    uint64_t sp = cpu->gpr[RSP];
    if (gate.ist)
        sp = stack_from_tss64(cpu, 36 + 8 * (gate.ist - 1));
    else if (cpl < cpu->cpl)
        sp = stack_from_tss64(cpu, 4 + 8 * cpl);
    uint64_t frame[6] = {
        exception->error, cpu->rip, cpu->seg[SEG_CS].selector, saved_flags, cpu->gpr[RSP], cpu->seg[SEG_SS].selector,
    };
    unsigned first = exception->has_error ? 0 : 1;
    size_t len = (6 - first) * sizeof frame[0];
    sp = (sp & ~UINT64_C(15)) - len;
    unsigned access = cpl < 3 ? ACCESS_SYSTEM : 0;
    mmu_write(cpu, sp, frame + first, len, ACCESS_WRITE | ACCESS_STACK | access);
    bool inner = cpl < cpu->cpl;
    finish(cpu, &gate, &code, cpl);
    cpu->gpr[RSP] = sp;
    if (inner)
        segment_set_null(cpu, SEG_SS, (uint16_t)cpl);
}

static void deliver_protected(struct jit_vcpu *cpu, const struct jit_exception *exception, uint64_t saved_flags)
{
    struct gate gate = read_gate(cpu, exception);
    struct descriptor code = read_handler_code(cpu, &gate);
    unsigned cpl = handler_cpl(cpu, &code);
    bool inner = cpl < cpu->cpl;
    struct stack stack = inner ? stack_from_tss(cpu, cpl) : stack_current(cpu);
    stack.access = cpl < 3 ? ACCESS_SYSTEM : 0;
    if (inner) {
        stack_push(cpu, &stack, cpu->seg[SEG_SS].selector, gate.size);
        stack_push(cpu, &stack, cpu->gpr[RSP], gate.size);
    }
    stack_push(cpu, &stack, saved_flags, gate.size);
    stack_push(cpu, &stack, cpu->seg[SEG_CS].selector, gate.size);
    stack_push(cpu, &stack, cpu->rip, gate.size);
    if (exception->has_error)
        stack_push(cpu, &stack, exception->error, gate.size);
    finish(cpu, &gate, &code, cpl);
    if (inner)
        cpu->seg[SEG_SS] = stack.ss;
    stack_commit(cpu, &stack);
}

static void deliver_real(struct jit_vcpu *cpu, uint8_t vector)
{
    if (vector * 4u + 3 > cpu->idtr.limit)
        vcpu_raise(cpu, VEC_GP, 0);
    uint64_t entry = mmu_load(cpu, cpu->idtr.base + vector * 4u, 4, ACCESS_READ | ACCESS_SYSTEM);
    struct stack stack = stack_current(cpu);
    stack_push(cpu, &stack, cpu->rflags, 2);
    stack_push(cpu, &stack, cpu->seg[SEG_CS].selector, 2);
    stack_push(cpu, &stack, cpu->rip, 2);
    stack_commit(cpu, &stack);
    cpu->seg[SEG_CS].selector = (uint16_t)(entry >> 16);
    cpu->seg[SEG_CS].base = (entry >> 16 & 0xffff) << 4;
    cpu->rip = entry & 0xffff;
    cpu->rflags &= ~(uint64_t)(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
}

/* What the CPU records of an exception before it is delivered. */
static void record(struct jit_vcpu *cpu, const struct jit_exception *exception)
{
    if (exception->software)
        return;
    if (exception->vector == VEC_PF)
        cpu->cr2 = exception->cr2;
    if (exception->vector == VEC_DB) {
        uint64_t replaced = exception->dr6 ? DR6_BREAKPOINTS : 0;
        cpu->dr6 = (cpu->dr6 & ~replaced) | exception->dr6 | DR6_FIXED;
        cpu->dr7 &= ~(uint64_t)DR7_GD;
    }
}

/* True when delivered; false when the attempt raised, with what it raised in cpu->exception. */
static bool attempt(struct jit_vcpu *cpu, const struct jit_exception *exception, bool external)
{
    if (setjmp(cpu->unwind))
        return false;
    uint64_t saved_flags = cpu->rflags | (is_fault(exception, external) ? FLAG_RF : 0);
    if (exception->software) /* the instruction cleared it (SDM 3B 17.3.1.1) */
        saved_flags &= ~(uint64_t)FLAG_RF;
    if (cpu->mode == MODE_REAL)
        deliver_real(cpu, exception->vector);
    else if (vcpu_lma(cpu))
        deliver_long(cpu, exception, saved_flags);
    else
        deliver_protected(cpu, exception, saved_flags);
    return true;
}

/* SDM 3A table 6-5: what follows when `second` is raised while `first` is delivered. False: shutdown. */
static bool combine(struct jit_exception *first, bool external, const struct jit_exception *second)
{
    uint8_t old = first->vector, new = second->vector;
    bool old_counts = !first->software && !external;
    if (old_counts && (old == VEC_DF || (old == VEC_AC && new == VEC_AC))) /* the CPU would try #AC for ever (CVE-2015-5307) */
        return false;
    bool new_contributory = vector_in(contributory_vectors, new);
    bool double_fault = old_counts && ((vector_in(contributory_vectors, old) && new_contributory) ||
                                       (old == VEC_PF && (new_contributory || new == VEC_PF)));
    bool by_program = first->software;
    *first = *second;
    if (double_fault) {
        *first = (struct jit_exception){.vector = VEC_DF, .has_error = true};
        return true;
    }
    bool selector_error = new == VEC_TS || new == VEC_NP || new == VEC_SS || new == VEC_GP;
    if (selector_error && !by_program)
        first->error |= ERROR_EXT;
    return true;
}

static void deliver(struct jit_vcpu *cpu, const struct jit_exception *exception, bool external)
{
    struct jit_exception current = *exception;
    current.has_error = !external && !current.software && vector_in(error_vectors, current.vector);
    cpu->halted = false;
    cpu->interrupt_shadow = cpu->debug_shadow = false;
    if (!external)
        record(cpu, &current);
    /* Ends: each round either delivers, shuts down, or moves towards #DF: benign (of these only #AC can come of a delivery), then
     * contributory or #PF, then #DF. */
    for (;;) {
        if (attempt(cpu, &current, external))
            return;
        struct jit_exception second = cpu->exception;
        if (current.software) /* its fault is at the instruction; rip was moved behind it */
            cpu->rip = vcpu_long_mode(cpu) ? cpu->rip - current.length : (uint32_t)(cpu->rip - current.length);
        record(cpu, &second);
        if (!combine(&current, external, &second)) {
            cpu->shutdown = true;
            return;
        }
        external = false;
    }
}

void excp_deliver(struct jit_vcpu *cpu, const struct jit_exception *exception)
{
    deliver(cpu, exception, false);
}

void excp_deliver_interrupt(struct jit_vcpu *cpu, uint8_t vector)
{
    if (vector == VEC_NMI)
        cpu->nmi_blocked = true;
    struct jit_exception exception = {.vector = vector};
    deliver(cpu, &exception, true);
}
