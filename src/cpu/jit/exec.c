/* Stubs: uint64_t stub(uint64_t *gpr, uint64_t operand, uint64_t flags) -> flags.
 *
 *     push callee-saved registers that are used
 *     push rdx; popfq                 only when the instruction reads flags
 *     mov  frame, rdi; mov mem, rsi
 *     mov  reg, [frame + 8*reg]       for each register operand
 *     <instruction>
 *     mov  [frame + 8*reg], reg       for each register that it writes
 *     pushfq; pop rax                 only when it writes flags
 *   exit:
 *     pop ...; ret
 *
 * Guest registers sit in the host registers of the same number, but rsp, which gets a free one. A fault at the instruction
 * goes on at `exit`. Compiled for general registers only: the guest's vector registers may be live. */
#include "cpu/jit/exec.h"

#include <errno.h>
#include <stdlib.h>
#include <ucontext.h>

#include "base/bytes.h"
#include "cpu/jit/decode.h"
#include "cpu/jit/emit.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/mcode.h"
#include "cpu/jit/vcpu.h"

#define SLOT_BITS 10
#define SLOTS (1u << SLOT_BITS)
#define SLOT_BYTES 192u

typedef uint64_t stub_fn(uint64_t *gpr, uint64_t operand, uint64_t flags);

struct slot {
    uint64_t key[2]; /* instruction bytes; length and code size in the last byte; 0 when empty */
    uint8_t fault_offset, exit_offset;
};

struct exec {
    struct mcode code;
    int fault_vector; /* set by the signal handler */
    struct slot slots[SLOTS];
};

/* The context whose stub this thread may be in. */
static _Thread_local struct exec *volatile active;

int exec_create(struct exec **ret_exec, struct err *err)
{
    struct exec *exec = calloc(1, sizeof *exec);
    if (!exec)
        return err_set(err, ENOMEM, "interpreter");
    int r = mcode_create(&exec->code, (size_t)SLOTS * SLOT_BYTES, err);
    if (r < 0) {
        free(exec);
        return r;
    }
    *ret_exec = exec;
    return 0;
}

void exec_free(struct exec *exec)
{
    if (!exec)
        return;
    mcode_free(&exec->code);
    free(exec);
}

/* Which host register plays which part. */
struct plan {
    uint16_t used; /* host registers with a meaning */
    uint8_t frame, mem;
    struct insn_remap remap;
};

static uint16_t field_bit(uint8_t gpr)
{
    return (uint16_t)(gpr == INSN_NO_REG ? 0 : 1u << gpr);
}

/* Guest registers that are operands by themselves, not through the address. */
static uint16_t operand_registers(const struct insn *insn)
{
    return (uint16_t)(field_bit(insn->reg_gpr) | field_bit(insn->rm_gpr) | field_bit(insn->vvvv_gpr) |
                      field_bit(insn->opcode_gpr) | insn->gpr_implicit);
}

/* A free host register, low numbers first: those need no REX, which high-byte operands forbid. */
static uint8_t take_free(struct plan *plan, uint8_t preferred)
{
    static const uint8_t order[] = {RDI, RSI, RCX, RDX, RAX, RBX, RBP, R8, R9, R10, R11, R12, R13, R14, R15};
    uint8_t chosen = preferred;
    for (unsigned i = 0; (plan->used >> chosen & 1) && i < sizeof order; i++)
        chosen = order[i];
    plan->used |= (uint16_t)(1u << chosen);
    return chosen;
}

static struct plan make_plan(const struct insn *insn)
{
    struct plan plan = {.used = operand_registers(insn), .remap = insn_remap_identity};
    bool uses_rsp = plan.used >> RSP & 1;
    plan.used |= 1u << RSP;
    bool rsi_free = !(plan.used >> RSI & 1);
    plan.used |= 1u << RSI; /* holds the operand until it is moved */
    plan.frame = take_free(&plan, RDI);
    plan.mem = rsi_free ? RSI : take_free(&plan, RCX);
    if (uses_rsp)
        plan.remap.gpr[RSP] = take_free(&plan, RCX);
    plan.remap.mem_base = plan.mem;
    return plan;
}

#define CALLEE_SAVED (1u << RBX | 1u << RBP | 1u << R12 | 1u << R13 | 1u << R14 | 1u << R15)

static void emit_push_reg(struct emit *e, unsigned reg)
{
    if (reg >= 8)
        emit_u8(e, 0x41);
    emit_u8(e, 0x50 | (reg & 7));
}

static void emit_pop_reg(struct emit *e, unsigned reg)
{
    if (reg >= 8)
        emit_u8(e, 0x41);
    emit_u8(e, 0x58 | (reg & 7));
}

static void emit_prologue(struct emit *e, const struct insn *insn, const struct plan *plan)
{
    for (unsigned reg = 0; reg < GPR_COUNT; reg++)
        if (plan->used & CALLEE_SAVED & 1u << reg)
            emit_push_reg(e, reg);
    if (insn->flags_read) {
        emit_push_reg(e, RDX);
        emit_u8(e, 0x9d); /* popfq */
    }
    if (plan->frame != RDI)
        emit_mov(e, plan->frame, RDI);
    if (plan->mem != RSI)
        emit_mov(e, plan->mem, RSI);
    uint16_t registers = operand_registers(insn);
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++)
        if (registers >> gpr & 1)
            emit_mem(e, OP_MOV_LOAD, plan->remap.gpr[gpr], plan->frame, 0xff, 1, (int32_t)gpr * 8);
}

static bool touches_flags(const struct insn *insn)
{
    return insn->flags_write || insn->flags_undefined || insn->flags_read;
}

static void emit_results(struct emit *e, const struct insn *insn, const struct plan *plan)
{
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++)
        if (insn->gpr_write >> gpr & 1)
            emit_mem(e, OP_MOV_STORE, plan->remap.gpr[gpr], plan->frame, 0xff, 1, (int32_t)gpr * 8);
    if (touches_flags(insn)) {
        emit_u8(e, 0x9c); /* pushfq */
        emit_pop_reg(e, RAX);
    }
}

static void emit_epilogue(struct emit *e, const struct plan *plan)
{
    for (unsigned reg = GPR_COUNT; reg-- > 0;)
        if (plan->used & CALLEE_SAVED & 1u << reg)
            emit_pop_reg(e, reg);
    emit_u8(e, 0xc3);
}

/* Builds the stub in its slot; false when the instruction has no 64-bit form. */
static bool build_stub(struct exec *exec, struct slot *slot, const struct insn *insn)
{
    struct plan plan = make_plan(insn);
    uint8_t bytes[INSN_MAX_BYTES];
    unsigned length = insn_reencode(insn, &plan.remap, bytes);
    if (length == 0)
        return false;
    uint8_t *start = exec->code.write + (size_t)(slot - exec->slots) * SLOT_BYTES;
    struct emit e = {.at = start};
    emit_prologue(&e, insn, &plan);
    slot->fault_offset = (uint8_t)(e.at - start);
    for (unsigned i = 0; i < length; i++)
        emit_u8(&e, bytes[i]);
    emit_results(&e, insn, &plan);
    slot->exit_offset = (uint8_t)(e.at - start);
    emit_epilogue(&e, &plan);
    return true;
}

static void make_key(const struct insn *insn, uint64_t key[2])
{
    key[0] = load_le64(insn->bytes);
    key[1] = (load_le64(insn->bytes + 7) & ~UINT64_C(0xff)) >> 8;
    key[1] |= (uint64_t)(insn->length | (insn->code_bits == 64 ? 0x40u : insn->code_bits == 32 ? 0x20u : 0x10u)) << 56;
}

static struct slot *find_slot(struct jit_vcpu *cpu, struct exec *exec, const struct insn *insn)
{
    uint64_t key[2];
    make_key(insn, key);
    uint64_t hash = (key[0] ^ key[1] * 3) * UINT64_C(0x9e3779b97f4a7c15);
    struct slot *slot = &exec->slots[hash >> (64 - SLOT_BITS)];
    if (slot->key[0] == key[0] && slot->key[1] == key[1])
        return slot;
    slot->key[1] = 0;
    fpu_save(cpu); /* the re-encoder is compiled like any other code */
    if (!build_stub(exec, slot, insn))
        return NULL;
    slot->key[0] = key[0];
    slot->key[1] = key[1];
    return slot;
}

int exec_run(struct jit_vcpu *cpu, struct exec *exec, const struct insn *insn, uint64_t operand)
{
    struct slot *slot = find_slot(cpu, exec, insn);
    if (!slot)
        return VEC_UD;
    if (insn->fpu != INSN_FPU_NONE)
        fpu_load(cpu);
    const uint8_t *code = exec->code.exec + (size_t)(slot - exec->slots) * SLOT_BYTES;
    stub_fn *stub = (stub_fn *)(uintptr_t)code;
    exec->fault_vector = EXEC_DONE;
    active = exec;
    uint64_t flags = stub(cpu->gpr, operand, (cpu->rflags & FLAGS_ARITHMETIC) | FLAG_IF | 2);
    fpu_leave_live(cpu);
    if (*(volatile int *)&exec->fault_vector != EXEC_DONE)
        return exec->fault_vector;
    if (touches_flags(insn)) {
        uint64_t mask = insn->flags_write | insn->flags_undefined | insn->flags_read;
        cpu->rflags = (cpu->rflags & ~mask) | (flags & mask);
    }
    return EXEC_DONE;
}

bool exec_handle_signal(const siginfo_t *info, void *ucontext)
{
    (void)info;
    struct exec *exec = active;
    greg_t *registers = ((ucontext_t *)ucontext)->uc_mcontext.gregs;
    if (!exec)
        return false;
    uint64_t offset = (uint64_t)registers[REG_RIP] - (uint64_t)(uintptr_t)exec->code.exec;
    if (offset >= (uint64_t)SLOTS * SLOT_BYTES)
        return false;
    const struct slot *slot = &exec->slots[offset / SLOT_BYTES];
    uint64_t trap = (uint64_t)registers[REG_TRAPNO];
    if (offset % SLOT_BYTES != slot->fault_offset || trap >= 32 || trap == VEC_PF)
        return false;
    exec->fault_vector = (int)trap;
    registers[REG_RIP] += slot->exit_offset - slot->fault_offset;
    return true;
}
