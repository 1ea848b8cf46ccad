/* String operations: movs, stos, lods, scas, cmps, ins, outs, with and without rep, in all address sizes and both directions.
 *
 * A repeat runs in chunks that stay within one page on each side (and do not wrap or pass a segment limit), on host pointers with the
 * CPU's own string instruction: overlap, element order and flags are then right by construction. Registers are brought up to
 * date after every chunk, so a fault in the next one shows exactly the progress made. What is not plain RAM goes element by
 * element. One call does a bounded amount and leaves rip alone while work remains, for interrupts to be taken.
 * Compiled for general registers only. Source: Intel SDM 2 (REP, MOVS, ...). */
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

#define PAGE_OFFSET ((uint64_t)MEM_PAGE_SIZE - 1)
#define BYTES_PER_CALL (64u << 10)
#define SLOW_PER_CALL 64u

enum string_op { OP_MOVS, OP_STOS, OP_LODS, OP_SCAS, OP_CMPS, OP_INS, OP_OUTS };

struct string {
    const struct insn *insn;
    enum string_op op;
    unsigned size;
    bool down, repeat, compares;
    bool repeat_while_equal;
};

/* One side of the operation. */
struct side {
    bool used, destination;
    enum x86_segment segment;
    unsigned gpr, access;
    uint8_t *host;
    uint64_t linear;
};

static enum string_op string_op_of(const struct insn *insn)
{
    switch (insn->opcode & 0xfe) {
    case 0xa4: return OP_MOVS;
    case 0xa6: return OP_CMPS;
    case 0xaa: return OP_STOS;
    case 0xac: return OP_LODS;
    case 0xae: return OP_SCAS;
    case 0x6c: return OP_INS;
    default: return OP_OUTS;
    }
}

static struct string string_of(const struct jit_vcpu *cpu, const struct insn *insn)
{
    struct string s = {.insn = insn, .op = string_op_of(insn), .size = 1};
    bool port = s.op == OP_INS || s.op == OP_OUTS;
    if (insn->opcode & 1)
        s.size = port && insn->operand_bits == 64 ? 4 : insn->operand_bits / 8u;
    s.down = cpu->rflags & FLAG_DF;
    s.repeat = insn->has_rep || insn->has_repne;
    s.compares = s.op == OP_SCAS || s.op == OP_CMPS;
    s.repeat_while_equal = insn->has_rep;
    return s;
}

static struct side source_side(const struct string *s)
{
    struct side side = {.segment = s->insn->mem_segment, .gpr = RSI, .access = ACCESS_READ};
    side.used = s->op == OP_MOVS || s->op == OP_CMPS || s->op == OP_LODS || s->op == OP_OUTS;
    return side;
}

static struct side destination_side(const struct string *s)
{
    struct side side = {.segment = SEG_ES, .gpr = RDI, .destination = true};
    side.used = s->op != OP_LODS && s->op != OP_OUTS;
    side.access = s->compares ? ACCESS_READ : ACCESS_WRITE;
    return side;
}

static uint64_t count_left(const struct jit_vcpu *cpu, const struct string *s)
{
    return s->repeat ? read_address_gpr(cpu, RCX, s->insn) : 1;
}

/* Moves the registers on by `done` elements. */
static void advance(struct jit_vcpu *cpu, const struct string *s, uint64_t done)
{
    uint64_t delta = done * s->size;
    if (s->down)
        delta = -delta;
    if (source_side(s).used)
        write_address_gpr(cpu, RSI, cpu->gpr[RSI] + delta, s->insn);
    if (destination_side(s).used)
        write_address_gpr(cpu, RDI, cpu->gpr[RDI] + delta, s->insn);
    if (s->repeat)
        write_address_gpr(cpu, RCX, cpu->gpr[RCX] - done, s->insn);
}

/* How many elements from `linear` on lie wholly within its page; 0 when the first one crosses. */
static uint64_t elements_in_page(const struct string *s, uint64_t linear)
{
    uint64_t offset = linear & PAGE_OFFSET, room = MEM_PAGE_SIZE - offset;
    if (room < s->size)
        return 0;
    return s->down ? offset / s->size + 1 : room / s->size;
}

/* How many before the index wraps at the address size; 0 when the first one does. */
static uint64_t elements_before_wrap(const struct string *s, uint64_t offset)
{
    unsigned bits = s->insn->address_bits;
    if (bits == 64)
        return UINT64_MAX;
    uint64_t room = (UINT64_C(1) << bits) - offset;
    if (room < s->size)
        return 0;
    return s->down ? offset / s->size + 1 : room / s->size;
}

/* Segment limits outside of 64-bit mode: a chunk that passes one is cut to single elements. */
static uint64_t elements_in_segment(const struct jit_vcpu *cpu, const struct string *s, const struct side *side,
                                    uint64_t offset, uint64_t elements)
{
    if (cpu->mode == MODE_LONG || elements <= 1)
        return elements;
    uint64_t bytes = elements * s->size, first = s->down ? offset + s->size - bytes : offset;
    return segment_in_limit(&cpu->seg[side->segment], first, (unsigned)bytes) ? elements : 1;
}

/* Finds where one side is, raising its faults, and returns how many of `elements` may be done there at once: 0 when
 * only the slow way works. */
static uint64_t map_side(struct jit_vcpu *cpu, const struct string *s, struct side *side, uint64_t elements)
{
    if (!side->used)
        return elements;
    uint64_t offset = read_address_gpr(cpu, side->gpr, s->insn);
    side->linear = segment_linear(cpu, side->segment, offset, s->size, side->access);
    uint64_t in_page = elements_in_page(s, side->linear), unwrapped = elements_before_wrap(s, offset);
    unsigned access = side->access | stack_access(side->segment);
    side->host = mmu_page_ptr(cpu, side->linear, access);
    if (in_page == 0)
        mmu_page_ptr(cpu, (side->linear + s->size - 1) & ~PAGE_OFFSET, access); /* its faults come before the other side's */
    if (in_page == 0 || unwrapped == 0)
        return 0;
    if (!side->host)
        return 0;
    elements = elements < in_page ? elements : in_page;
    elements = elements < unwrapped ? elements : unwrapped;
    return elements_in_segment(cpu, s, side, offset, elements);
}

/* A repeated string instruction by element size and direction. */
#define REPEAT_BY_SIZE(prefix, name)                                                                         \
    "testb %b[down], %b[down]\n\t"                                                                           \
    "jz 1f\n\t"                                                                                              \
    "std\n"                                                                                                  \
    "1:\tcmpl $2, %k[size]\n\t"                                                                              \
    "je 2f\n\t"                                                                                              \
    "ja 3f\n\t" prefix " " name "b\n\t"                                                                      \
    "jmp 5f\n"                                                                                               \
    "2:\t" prefix " " name "w\n\t"                                                                           \
    "jmp 5f\n"                                                                                               \
    "3:\tcmpl $4, %k[size]\n\t"                                                                              \
    "je 4f\n\t" prefix " " name "q\n\t"                                                                      \
    "jmp 5f\n"                                                                                               \
    "4:\t" prefix " " name "l\n"                                                                             \
    "5:\tcld\n\t"

static void native_movs(const struct string *s, uint8_t *to, const uint8_t *from, uint64_t count)
{
    __asm__ volatile(REPEAT_BY_SIZE("rep", "movs")
                     : "+D"(to), "+S"(from), "+c"(count)
                     : [down] "r"(s->down), [size] "r"(s->size)
                     : "memory", "cc");
}

static void native_stos(const struct string *s, uint8_t *to, uint64_t value, uint64_t count)
{
    __asm__ volatile(REPEAT_BY_SIZE("rep", "stos")
                     : "+D"(to), "+c"(count)
                     : "a"(value), [down] "r"(s->down), [size] "r"(s->size)
                     : "memory", "cc");
}

struct comparison {
    uint64_t done;
    uint16_t flags; /* ah: SF ZF AF PF CF as lahf gives them; al: OF */
};

static struct comparison native_scas(const struct string *s, const uint8_t *at, uint64_t value, uint64_t count)
{
    uint64_t left = count;
    if (s->repeat_while_equal)
        __asm__ volatile(REPEAT_BY_SIZE("repe", "scas") "lahf\n\tseto %%al"
                         : "+D"(at), "+c"(left), "+a"(value)
                         : [down] "r"(s->down), [size] "r"(s->size)
                         : "memory", "cc");
    else
        __asm__ volatile(REPEAT_BY_SIZE("repne", "scas") "lahf\n\tseto %%al"
                         : "+D"(at), "+c"(left), "+a"(value)
                         : [down] "r"(s->down), [size] "r"(s->size)
                         : "memory", "cc");
    return (struct comparison){count - left, (uint16_t)value};
}

static struct comparison native_cmps(const struct string *s, const uint8_t *source, const uint8_t *destination,
                                     uint64_t count)
{
    uint64_t left = count, flags = 0;
    if (s->repeat_while_equal)
        __asm__ volatile(REPEAT_BY_SIZE("repe", "cmps") "lahf\n\tseto %%al"
                         : "+D"(destination), "+S"(source), "+c"(left), "+a"(flags)
                         : [down] "r"(s->down), [size] "r"(s->size)
                         : "memory", "cc");
    else
        __asm__ volatile(REPEAT_BY_SIZE("repne", "cmps") "lahf\n\tseto %%al"
                         : "+D"(destination), "+S"(source), "+c"(left), "+a"(flags)
                         : [down] "r"(s->down), [size] "r"(s->size)
                         : "memory", "cc");
    return (struct comparison){count - left, (uint16_t)flags};
}

static void take_flags(struct jit_vcpu *cpu, uint16_t flags)
{
    uint64_t low = flags >> 8 & (FLAGS_ARITHMETIC & 0xff);
    cpu->rflags = (cpu->rflags & ~(uint64_t)FLAGS_ARITHMETIC) | low | (flags & 1 ? FLAG_OF : 0);
}

/* A chunk on host pointers; returns how many elements it did. */
static uint64_t run_chunk(struct jit_vcpu *cpu, const struct string *s, struct side *source, struct side *destination,
                          uint64_t elements)
{
    struct comparison comparison;
    uint64_t last = (elements - 1) * s->size, value = 0;
    switch ((unsigned)s->op) {
    case OP_MOVS: native_movs(s, destination->host, source->host, elements); return elements;
    case OP_STOS: native_stos(s, destination->host, cpu->gpr[RAX], elements); return elements;
    case OP_LODS:
        copy_general(&value, s->down ? source->host - last : source->host + last, s->size);
        write_gpr(cpu, RAX, value, s->size * 8);
        return elements;
    case OP_SCAS: comparison = native_scas(s, destination->host, cpu->gpr[RAX], elements); break;
    default: comparison = native_cmps(s, source->host, destination->host, elements); break;
    }
    take_flags(cpu, comparison.flags);
    return comparison.done;
}

static uint64_t load_side(struct jit_vcpu *cpu, const struct string *s, const struct side *side)
{
    return mmu_load(cpu, side->linear, s->size, ACCESS_READ | stack_access(side->segment));
}

static uint16_t port_of(const struct jit_vcpu *cpu)
{
    return (uint16_t)cpu->gpr[RDX];
}

/* The element must be storable before the port is read, which may have side effects. */
static void input_element(struct jit_vcpu *cpu, const struct string *s, const struct side *destination)
{
    interp_probe(cpu, destination->linear, s->size, ACCESS_WRITE);
    fpu_save(cpu);
    uint64_t value = cpu->engine->machine.port_read(cpu->engine->machine.arg, port_of(cpu), s->size);
    mmu_store(cpu, destination->linear, value, s->size, ACCESS_WRITE);
}

static void output_element(struct jit_vcpu *cpu, const struct string *s, const struct side *source)
{
    uint64_t value = load_side(cpu, s, source);
    fpu_save(cpu);
    cpu->engine->machine.port_write(cpu->engine->machine.arg, port_of(cpu), value, s->size);
}

/* One element by way of the accessors: device memory, page crossings, pages with translated code, ports. */
static void run_element(struct jit_vcpu *cpu, const struct string *s, struct side *source, struct side *destination)
{
    uint64_t value, other;
    switch (s->op) {
    case OP_MOVS:
        value = load_side(cpu, s, source);
        mmu_store(cpu, destination->linear, value, s->size, ACCESS_WRITE);
        break;
    case OP_STOS: mmu_store(cpu, destination->linear, cpu->gpr[RAX], s->size, ACCESS_WRITE); break;
    case OP_LODS: write_gpr(cpu, RAX, load_side(cpu, s, source), s->size * 8); break;
    case OP_SCAS:
        value = load_side(cpu, s, destination);
        take_flags(cpu, native_scas(s, (const uint8_t *)&value, cpu->gpr[RAX], 1).flags);
        break;
    case OP_CMPS:
        other = load_side(cpu, s, destination);
        value = load_side(cpu, s, source);
        take_flags(cpu, native_cmps(s, (const uint8_t *)&value, (const uint8_t *)&other, 1).flags);
        break;
    case OP_INS: input_element(cpu, s, destination); break;
    case OP_OUTS: output_element(cpu, s, source); break;
    default: break;
    }
}

/* Did a comparison end the repeat? */
static bool comparison_ends(const struct jit_vcpu *cpu, const struct string *s)
{
    return s->compares && s->repeat && ((cpu->rflags & FLAG_ZF) != 0) != s->repeat_while_equal;
}

/* While each access is looked at: faults of one side come before those of the other. */
static void run_watched(struct jit_vcpu *cpu, const struct string *s, struct side *source, struct side *destination)
{
    struct side *sides[] = {source, destination};
    for (unsigned i = 0; i < 2; i++)
        if (sides[i]->used)
            sides[i]->linear = segment_linear(cpu, sides[i]->segment, read_address_gpr(cpu, sides[i]->gpr, s->insn), s->size,
                                              sides[i]->access);
    run_element(cpu, s, source, destination);
    advance(cpu, s, 1);
}

/* One chunk, or one element; returns how many bytes' worth of budget it took. */
static uint64_t run_some(struct jit_vcpu *cpu, const struct string *s, uint64_t elements)
{
    struct side source = source_side(s), destination = destination_side(s);
    if (vcpu_watched(cpu)) {
        run_watched(cpu, s, &source, &destination);
        return BYTES_PER_CALL;
    }
    /* Comparisons read their destination first, as CPUs do. */
    uint64_t chunk = map_side(cpu, s, s->compares ? &destination : &source, elements);
    uint64_t other = map_side(cpu, s, s->compares ? &source : &destination, elements);
    chunk = chunk < other ? chunk : other;
    if (s->op == OP_INS || s->op == OP_OUTS)
        chunk = 0;
    if (chunk == 0) {
        run_element(cpu, s, &source, &destination);
        advance(cpu, s, 1);
        return BYTES_PER_CALL / SLOW_PER_CALL;
    }
    uint64_t done = run_chunk(cpu, s, &source, &destination, chunk);
    advance(cpu, s, done);
    return done * s->size;
}

static void check_port(struct jit_vcpu *cpu, const struct string *s)
{
    system_check_io(cpu, port_of(cpu), s->size);
    if (count_left(cpu, s))
        watch_port(cpu, port_of(cpu), s->size);
}

void interp_string(struct jit_vcpu *cpu, const struct insn *insn)
{
    struct string s = string_of(cpu, insn);
    uint64_t budget = BYTES_PER_CALL;
    if (s.op == OP_INS || s.op == OP_OUTS)
        check_port(cpu, &s);
    if (!s.repeat) {
        run_some(cpu, &s, 1);
        interp_retire(cpu, insn);
        return;
    }
    /* A single step ends after each iteration, and a breakpoint may. */
    uint64_t most = vcpu_must_interpret(cpu) ? 1 : UINT64_MAX;
    for (uint64_t left = count_left(cpu, &s); left; left = count_left(cpu, &s)) {
        uint64_t used = run_some(cpu, &s, left < most ? left : most);
        if (comparison_ends(cpu, &s))
            break;
        if (used >= budget || most == 1) {
            if (count_left(cpu, &s))
                return;
            break;
        }
        budget -= used;
    }
    interp_retire(cpu, insn);
}
