/* System instructions that kernels run all the time, inline: cli, sti, pushf, stac, clac, swapgs, for supervisor code; cld, std,
 * rdtsc, FS and GS bases, segment selectors for all. translate_call.c has system calls. The rest goes to the interpreter. */
#include <Zydis/Mnemonic.h>
#include <stddef.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

#define TMP R14
#define ADDR R15
#define GPR_OFFSET(r) (offsetof(struct jit_vcpu, gpr) + 8 * (size_t)(r))

/* op dword gs:[rflags], imm32; clobbers flags. group: GROUP_OR, GROUP_AND. */
static void change_rflags(struct emit *e, unsigned group, uint32_t value)
{
    emit_bytes(e, "\x65\x81", 2);
    emit_u8(e, 0x04 | group << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, rflags));
    emit_u32(e, value);
}

const uint8_t *translate_leave(struct translation *t)
{
    struct emit *c = &t->cold;
    const uint8_t *at = c->at;
    emit_mov_imm(c, TMP, translate_new_interp_site(t));
    emit_jmp(c, t->tr->to.interp);
    return at;
}

void translate_leave_unless(struct translation *t, unsigned condition)
{
    emit_jcc(&t->hot, condition ^ 1, translate_leave(t));
}

static bool inline_cli(struct translation *t)
{
    translate_park_flags(t);
    change_rflags(&t->hot, GROUP_AND, ~(uint32_t)FLAG_IF);
    return true;
}

static bool inline_direction(struct translation *t, bool set)
{
    translate_park_flags(t);
    change_rflags(&t->hot, set ? GROUP_OR : GROUP_AND, set ? FLAG_DF : ~(uint32_t)FLAG_DF);
    return true;
}

/* With an interrupt waiting, or something that came since the block was entered, C code does it, with the one-instruction shadow.
 * Without one the shadow cannot be seen, as long as the next instruction runs before anybody looks for interrupts: it must be in
 * this block. */
static bool inline_sti(struct translation *t)
{
    struct emit *e = &t->hot;
    if (!t->ahead)
        return false;
    translate_park_flags(t);
    emit_gs_test8(e, offsetof(struct jit_vcpu, interrupt_waiting), 0xff);
    translate_leave_unless(t, CONDITION_E);
    emit_gs_test8(e, offsetof(struct jit_vcpu, poll), 0xff);
    translate_leave_unless(t, CONDITION_E);
    change_rflags(e, GROUP_OR, FLAG_IF);
    return true;
}

/* Code that another vCPU changed is known by a request, which sets `poll` before the change can be seen. */
static bool inline_serialize(struct translation *t)
{
    translate_park_flags(t);
    emit_gs_test8(&t->hot, offsetof(struct jit_vcpu, poll), 0xff);
    translate_leave_unless(t, CONDITION_E);
    return true;
}

void translate_flags_image(struct emit *e, unsigned to, unsigned temporary)
{
    emit_gs_zx8(e, to, offsetof(struct jit_vcpu, flags_saved) + 1);
    emit_imm(e, GROUP_AND, to, FLAGS_ARITHMETIC & 0xff);
    emit_gs_zx8(e, temporary, offsetof(struct jit_vcpu, flags_saved));
    emit_shift(e, SHIFT_LEFT, temporary, 11);
    emit_or(e, to, temporary);
    emit_gs(e, 0, OP_MOV_LOAD, temporary, offsetof(struct jit_vcpu, rflags));
    emit_imm(e, GROUP_AND, temporary, ~(uint32_t)(FLAGS_ARITHMETIC | FLAG_RF | FLAG_VM));
    emit_or(e, to, temporary);
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
    translate_flags_image(e, TMP, RAX);
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

/* movzx to, word gs:[selector] */
static void load_selector(struct emit *e, unsigned to, unsigned segment)
{
    emit_u8(e, 0x65);
    emit_u8(e, emit_rex(0, to, 0, 0));
    emit_bytes(e, "\x0f\xb7", 2);
    emit_u8(e, 0x04 | (to & 7) << 3);
    emit_u8(e, 0x25);
    emit_u32(e, (uint32_t)offsetof(struct jit_vcpu, seg[segment].selector));
}

/* To the low half of a 32-bit register; the rest stays. */
static void load_selector_low(struct emit *e, unsigned reg, unsigned segment)
{
    load_selector(e, TMP, segment);
    emit_u8(e, 0x66);
    if (reg == R14 || reg == R15) {
        emit_gs(e, 0, OP_MOV_STORE, TMP, GPR_OFFSET(reg));
        return;
    }
    emit_u8(e, emit_rex(0, TMP, 0, reg)); /* mov reg16, r14w */
    emit_u8(e, OP_MOV_STORE);
    emit_u8(e, 0xc0 | (TMP & 7) << 3 | (reg & 7));
}

static bool store_segment(struct translation *t, unsigned segment)
{
    struct emit *e = &t->hot;
    translate_park_flags(t);
    const uint8_t *retry = e->at;
    if (!translate_address(t, false))
        return false;
    translate_check(t, retry, &(struct check){.size = 2, .write = true, .stack = t->insn->mem_segment == SEG_SS});
    load_selector(e, TMP, segment);
    emit_bytes(e, "\x66\x45\x89\x37", 4); /* mov [r15], r14w */
    return true;
}

/* mov from a segment register; to a register it touches no flags. */
static bool inline_read_segment(struct translation *t)
{
    const struct insn *insn = t->insn;
    unsigned segment = (insn->modrm >> 3) & 7, reg = (insn->modrm & 7) | ((insn->rex & 1u) << 3);
    if (insn->map || insn->opcode != 0x8c || segment >= SEG_COUNT)
        return false;
    if (insn->has_mem)
        return store_segment(t, segment);
    if (insn->operand_bits == 16) {
        load_selector_low(&t->hot, reg, segment);
        return true;
    }
    load_selector(&t->hot, reg, segment);
    if (reg == R14 || reg == R15)
        emit_store_gs(&t->hot, reg, GPR_OFFSET(reg));
    return true;
}

/* rdfsbase, wrfsbase, rdgsbase, wrgsbase; CR4 may forbid them, and a base must be canonical. */
static bool inline_segment_base(struct translation *t, unsigned segment, bool write)
{
    const struct insn *insn = t->insn;
    struct emit *e = &t->hot;
    size_t base = offsetof(struct jit_vcpu, seg[segment].base);
    unsigned reg = insn->rm_gpr, wide = insn->rex >> 3 & 1u;
    bool in_memory = reg == R14 || reg == R15;
    translate_park_flags(t);
    emit_gs_test8(e, offsetof(struct jit_vcpu, cr4) + 2, CR4_FSGSBASE >> 16);
    translate_leave_unless(t, CONDITION_NE);
    if (!write) {
        emit_gs(e, wide, OP_MOV_LOAD, reg, base);
        if (in_memory)
            emit_store_gs(e, reg, GPR_OFFSET(reg));
        return true;
    }
    if (in_memory)
        emit_load_gs(e, ADDR, GPR_OFFSET(reg));
    else
        emit_mov(e, ADDR, reg);
    if (!wide)
        emit_bytes(e, "\x45\x89\xff", 3); /* mov r15d, r15d */
    translate_leave_unless_canonical(t);
    emit_store_gs(e, ADDR, base);
    return true;
}

static bool supervisor_system(struct translation *t)
{
    switch (t->insn->mnemonic) {
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
    case ZYDIS_MNEMONIC_SYSRET:
        return translate_sysret(t);
    default:
        return false;
    }
}

bool translate_system(struct translation *t)
{
    bool user = t->key.pool == TLB_USER;
    bool call = t->insn->mnemonic == ZYDIS_MNEMONIC_SYSCALL || t->insn->mnemonic == ZYDIS_MNEMONIC_SYSRET;
    if (!vcpu_optimises(t->cpu, call ? JIT_OPT_SYSCALL : JIT_OPT_SYSTEM))
        return false;
    switch (t->insn->mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC:
        return inline_rdtsc(t, false);
    case ZYDIS_MNEMONIC_RDTSCP:
        return inline_rdtsc(t, true);
    case ZYDIS_MNEMONIC_SERIALIZE:
        return inline_serialize(t);
    case ZYDIS_MNEMONIC_CLD:
        return inline_direction(t, false);
    case ZYDIS_MNEMONIC_STD:
        return inline_direction(t, true);
    case ZYDIS_MNEMONIC_RDFSBASE:
        return inline_segment_base(t, SEG_FS, false);
    case ZYDIS_MNEMONIC_RDGSBASE:
        return inline_segment_base(t, SEG_GS, false);
    case ZYDIS_MNEMONIC_WRFSBASE:
        return inline_segment_base(t, SEG_FS, true);
    case ZYDIS_MNEMONIC_WRGSBASE:
        return inline_segment_base(t, SEG_GS, true);
    case ZYDIS_MNEMONIC_SYSCALL:
        return translate_syscall(t);
    case ZYDIS_MNEMONIC_MOV:
        return inline_read_segment(t) || (!user && inline_read_cr(t));
    default:
        return !user && supervisor_system(t);
    }
}
