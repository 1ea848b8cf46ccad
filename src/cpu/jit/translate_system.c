/* System instructions that kernels run all the time, inline: cli, sti, pushf, stac, clac, swapgs, rdtsc, for supervisor code.
 * The rest goes to the interpreter. */
#include <Zydis/Mnemonic.h>
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))

/* op dword gs:[rflags], imm32; clobbers flags. group 1: or, 4: and. */
static void change_rflags(struct emit *e, unsigned group, uint32_t value)
{
    emit_bytes(e, "\x65\x81", 2);
    emit_u8(e, 0x04 | group << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, rflags));
    emit_u32(e, value);
}

void translate_leave_unless(struct translation *t, unsigned condition)
{
    struct emit *c = &t->cold;
    emit_jcc(&t->hot, condition ^ 1, c->at);
    emit_mov_imm(c, TMP, translate_new_interp_site(t));
    emit_jmp(c, t->tr->to.interp);
}

#define GROUP_OR 1u
#define GROUP_AND 4u

static bool inline_cli(struct translation *t)
{
    translate_park_flags(t);
    change_rflags(&t->hot, GROUP_AND, ~(uint32_t)FLAG_IF);
    return true;
}

/* With an interrupt waiting, C code does it, with the one-instruction shadow. Without one the shadow cannot be seen. */
static bool inline_sti(struct translation *t)
{
    struct emit *e = &t->hot;
    translate_park_flags(t);
    emit_bytes(e, "\x65\x80\x3c\x25", 4); /* cmp byte gs:[interrupt_waiting], 0 */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, interrupt_waiting));
    emit_u8(e, 0);
    translate_leave_unless(t, CONDITION_E);
    change_rflags(e, GROUP_OR, FLAG_IF);
    return true;
}

/* Arithmetic flags are parked: they and the rest of rflags make the image. */
static bool inline_pushf(struct translation *t)
{
    if (t->insn->operand_bits != 64)
        return false;
    struct emit *e = &t->hot;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    emit_mem(e, OP_LEA, ADDR, RSP, INSN_NO_REG, 1, -8);
    translate_check(t, retry, &(struct check){.size = 8, .write = true, .stack = true});
    emit_store_gs(e, RAX, GPR_OFFSET(RAX));
    emit_bytes(e, "\x65\x0f\xb6\x04\x25", 5); /* movzx eax, byte gs:[flags_saved + 1] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, flags_saved) + 1);
    emit_bytes(e, "\x25\xd5\x00\x00\x00", 5);     /* and eax, 0xd5 */
    emit_bytes(e, "\x65\x44\x0f\xb6\x34\x25", 6); /* movzx r14d, byte gs:[flags_saved] */
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, flags_saved));
    emit_bytes(e, "\x41\xc1\xe6\x0b", 4); /* shl r14d, 11 */
    emit_bytes(e, "\x41\x09\xc6", 3);     /* or r14d, eax */
    emit_gs(e, 0, OP_MOV_LOAD, RAX, offsetof(struct jit_vcpu, rflags));
    emit_u8(e, 0x25); /* and eax, imm32 */
    emit_u32(e, ~(uint32_t)(FLAGS_ARITHMETIC | FLAG_RF | FLAG_VM));
    emit_bytes(e, "\x41\x09\xc6", 3); /* or r14d, eax */
    emit_load_gs(e, RAX, GPR_OFFSET(RAX));
    emit_mem(e, OP_MOV_STORE, TMP, ADDR, INSN_NO_REG, 1, 0);
    emit_mem(e, OP_LEA, RSP, RSP, INSN_NO_REG, 1, -8);
    return true;
}

/* STAC and CLAC change the pool of data accesses: on to the next instruction in the other mode. */
static bool inline_ac(struct translation *t, bool set)
{
    if (!(t->cpu->cr4 & CR4_SMAP))
        return false;
    translate_park_flags(t);
    change_rflags(&t->hot, set ? GROUP_OR : GROUP_AND, set ? FLAG_AC : ~(uint32_t)FLAG_AC);
    struct block_key key = t->key;
    t->key.pool = set ? TLB_SUPER_AC : TLB_SUPER;
    translate_exit_indirectly(t, &t->hot, t->next_rip);
    t->key = key;
    return true;
}

static bool inline_swapgs(struct translation *t)
{
    struct emit *e = &t->hot;
    emit_load_gs(e, TMP, offsetof(struct jit_vcpu, seg[SEG_GS].base));
    emit_load_gs(e, ADDR, offsetof(struct jit_vcpu, kernel_gs_base));
    emit_store_gs(e, TMP, offsetof(struct jit_vcpu, kernel_gs_base));
    emit_store_gs(e, ADDR, offsetof(struct jit_vcpu, seg[SEG_GS].base));
    return true;
}

/* CR4.TSD forbids it to user code. */
static bool inline_rdtsc(struct translation *t, bool with_aux)
{
    struct emit *e = &t->hot;
    translate_park_flags(t);
    if (t->key.pool == TLB_USER) {
        emit_bytes(e, "\x65\xf6\x04\x25", 4); /* test byte gs:[cr4], CR4_TSD */
        emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, cr4));
        emit_u8(e, CR4_TSD);
        translate_leave_unless(t, CONDITION_E);
    }
    if (with_aux)
        emit_gs(e, 0, OP_MOV_LOAD, RCX, offsetof(struct jit_vcpu, tsc_aux));
    emit_bytes(e, "\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0", 9); /* rdtsc; shl rdx, 32; or rax, rdx */
    emit_gs(e, 1, OP_ADD_LOAD, RAX, offsetof(struct jit_vcpu, tsc_offset));
    emit_bytes(e, "\x48\x89\xc2\x48\xc1\xea\x20\x89\xc0", 9); /* mov rdx, rax; shr rdx, 32; mov eax, eax */
    return true;
}

/* mov reg, cr2 or cr3; no flags. */
static bool inline_read_cr(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    if (insn->map != 1 || insn->opcode != 0x20 || (insn->rex & 4))
        return false;
    unsigned cr = (insn->modrm >> 3) & 7, reg = (insn->modrm & 7) | ((insn->rex & 1u) << 3);
    if (cr != 2 && cr != 3)
        return false;
    emit_load_gs(e, reg, cr == 2 ? offsetof(struct jit_vcpu, cr2) : offsetof(struct jit_vcpu, cr3));
    if (reg == R14 || reg == R15)
        emit_store_gs(e, reg, GPR_OFFSET(reg));
    return true;
}

/* mov reg, segment; no flags. */
static bool inline_read_segment(struct translation *t)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    unsigned segment = (insn->modrm >> 3) & 7, reg = (insn->modrm & 7) | ((insn->rex & 1u) << 3);
    if (insn->map || insn->opcode != 0x8c || insn->has_mem || insn->operand_bits == 16 || segment >= SEG_COUNT)
        return false;
    emit_u8(e, 0x65); /* movzx reg, word gs:[selector] */
    emit_u8(e, emit_rex(0, reg, 0, 0));
    emit_bytes(e, "\x0f\xb7", 2);
    emit_u8(e, 0x04 | (reg & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, seg[segment].selector));
    if (reg == R14 || reg == R15)
        emit_store_gs(e, reg, GPR_OFFSET(reg));
    return true;
}

bool translate_system(struct translation *t)
{
    if (t->insn->mnemonic == ZYDIS_MNEMONIC_RDTSC || t->insn->mnemonic == ZYDIS_MNEMONIC_RDTSCP)
        return inline_rdtsc(t, t->insn->mnemonic == ZYDIS_MNEMONIC_RDTSCP);
    if (t->insn->mnemonic == ZYDIS_MNEMONIC_MOV && inline_read_segment(t))
        return true;
    if (t->key.pool == TLB_USER)
        return false;
    switch (t->insn->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return inline_read_cr(t);
    case ZYDIS_MNEMONIC_CLI:
        return inline_cli(t);
    case ZYDIS_MNEMONIC_STI:
        return inline_sti(t);
    case ZYDIS_MNEMONIC_PUSHFQ:
        return inline_pushf(t);
    case ZYDIS_MNEMONIC_STAC:
        return inline_ac(t, true);
    case ZYDIS_MNEMONIC_CLAC:
        return inline_ac(t, false);
    case ZYDIS_MNEMONIC_SWAPGS:
        return inline_swapgs(t);
    default:
        return false;
    }
}
