/* Fuzz target: any bytes as guest code. They are decoded at every offset in every code size, translated from several
 * offsets, and interpreted for some instructions in real, protected, compatibility and long mode. Nothing that a guest executes may
 * crash the engine. The first bytes choose the mode and seed the registers. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/engine.h"
#include "cpu/jit/cache_impl.h"
#include "cpu/jit/decode.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp.h"
#include "cpu/jit/vcpu.h"
#include "mem/mem.h"

#define CODE UINT64_C(0x100000)
#define MEMORY (UINT64_C(4) << 20)
#define STEPS 48u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* The engine handles the faults of natively run instructions itself; its structs lie in mappings that the leak check does not see. */
const char *__asan_default_options(void)
{
    return "handle_segv=0:handle_sigfpe=0:handle_sigill=0:handle_sigbus=0:use_sigaltstack=0:detect_leaks=0";
}

static struct mem *mem;
static struct jit_vcpu *cpu;

static uint64_t no_read(void *arg, uint64_t address, unsigned size)
{
    (void)arg, (void)address, (void)size;
    return 0;
}

static void no_write(void *arg, uint64_t address, uint64_t value, unsigned size)
{
    (void)arg, (void)address, (void)value, (void)size;
}

static uint64_t no_port_read(void *arg, uint16_t port, unsigned size)
{
    return no_read(arg, port, size);
}

static void no_port_write(void *arg, uint16_t port, uint64_t value, unsigned size)
{
    no_write(arg, port, value, size);
}

static void no_eoi(void *arg, uint8_t vector)
{
    (void)arg, (void)vector;
}

static _Noreturn void give_up(const struct err *err)
{
    fprintf(stderr, "jit_code: %s\n", err->message);
    abort();
}

static void make_machine(void)
{
    struct engine_config config = {
        .machine = {NULL, no_port_read, no_port_write, no_read, no_write, no_eoi}, .vcpus = 1, .cpu_model = "host"};
    struct engine *engine;
    struct vcpu *vcpu;
    struct err err = {0};
    if (mem_create(MEMORY, false, &mem, &err))
        give_up(&err);
    config.mem = mem;
    config.options = "cache=1M";
    if (engine_jit.create(&config, &engine, &err) || engine_jit.vcpu_create(engine, 0, &vcpu, &err))
        give_up(&err);
    cpu = (struct jit_vcpu *)vcpu;
}

/* The first 2 MiB at address 0 for all, the next for the supervisor alone. */
static void make_tables(void)
{
    uint64_t *tables = mem_ptr(mem, 0x1000, 0x3000);
    memset(tables, 0, 0x3000);
    tables[0] = 0x2007;
    tables[512] = 0x3007;
    tables[1024] = 0x87;
    tables[1025] = 0x200083;
}

static void set_segments(struct x86_state *state, uint16_t code, uint16_t stack, uint32_t limit)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->segment[i] = (struct x86_segment_state){.limit = limit, .selector = 0x10, .attributes = stack};
    state->segment[SEG_CS].attributes = code;
}

static void set_state(const uint8_t *data, size_t size, unsigned mode)
{
    static struct x86_state state;
    struct err err;
    x86_state_reset(&state, 0);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        state.gpr[i] = i < size ? (uint64_t)data[i] * UINT64_C(0x2010804021) >> (data[i] & 31) : i;
    state.gpr[RSP] = 0x8000 + (size ? data[0] : 0u);
    state.rip = mode == MODE_REAL ? 0 : CODE;
    state.rflags = 2 | (size > 1 && data[1] & 1 ? FLAG_IF : 0);
    state.xcr0 = 7;
    state.cr4 = CR4_OSFXSR | CR4_OSXSAVE | CR4_PAE;
    if (mode == MODE_REAL) {
        state.segment[SEG_CS].base = CODE;
        state.segment[SEG_CS].selector = (uint16_t)(CODE >> 4);
        state.segment[SEG_CS].limit = 0xffff;
    } else {
        unsigned user = size > 2 && data[2] & 1 ? 3u << 5 : 0;
        bool is_long = mode == MODE_LONG, is_compat = mode == MODE_COMPAT;
        state.cr0 = CR0_PE | CR0_ET | CR0_WP | (is_long || is_compat ? CR0_PG : 0);
        state.cr3 = 0x1000;
        state.efer = is_long || is_compat ? EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE : 0;
        set_segments(&state, (uint16_t)((is_long ? 0xa09b : 0xc09b) | user), (uint16_t)(0xc093 | user), UINT32_MAX);
    }
    if (engine_jit.vcpu_set_state(&cpu->base, &state, &err))
        abort();
}

static void decode_everywhere(const uint8_t *data, size_t size)
{
    struct insn insn;
    for (size_t at = 0; at < size; at++)
        for (unsigned bits = 16; bits <= 64; bits *= 2)
            (void)insn_decode(data + at, (unsigned)(size - at < 15 ? size - at : 15), bits, &insn);
}

static void translate_from(uint64_t rip)
{
    cpu->rip = rip;
    if (_setjmp(cpu->unwind))
        return;
    (void)cache_lookup(cpu);
}

static void interpret(void)
{
    volatile unsigned steps = 0;
    if (_setjmp(cpu->unwind))
        return;
    while (steps++ < STEPS && !cpu->halted && !cpu->shutdown)
        interp_step(cpu);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!cpu)
        make_machine();
    if (size < 4 || size > 2048)
        return 0;
    unsigned mode = data[3] & 3;
    decode_everywhere(data + 4, size - 4);
    make_tables();
    if (mem_write(mem, CODE, data + 4, size - 4))
        abort();
    set_state(data, size, mode);
    if (mode == MODE_LONG)
        for (unsigned offset = 0; offset < 32 && offset < size; offset += 3)
            translate_from(CODE + offset);
    set_state(data, size, mode);
    interpret();
    fpu_save(cpu);
    cpu->halted = cpu->shutdown = false;
    return 0;
}
