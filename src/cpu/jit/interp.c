/* The interpreter's loop body: fetch, decode through a cache, dispatch by kind; and PLAIN instructions, which run natively.
 *
 * The cache is direct-mapped by linear address and code size and compares the bytes in memory on every hit, so that
 * nothing ever has to invalidate it. Compiled for general registers only; the decoder is not, so fpu_save() comes first. */
#include "cpu/jit/interp.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "cpu/jit/exec.h"
#include "cpu/jit/fpu.h"
#include "cpu/jit/interp_impl.h"
#include "cpu/jit/watch.h"

#define CACHE_BITS 11
#define CACHE_SIZE (1u << CACHE_BITS)
#define PAGE_OFFSET ((uint64_t)MEM_PAGE_SIZE - 1)

struct cache_entry {
    uint64_t linear;
    struct insn insn; /* length 0: empty */
};

struct insn_cache {
    struct exec *exec;
    struct cache_entry entries[CACHE_SIZE];
};

int interp_init(struct jit_vcpu *cpu)
{
    struct insn_cache *cache = calloc(1, sizeof *cache);
    struct err err;
    if (!cache)
        return -ENOMEM;
    if (exec_create(&cache->exec, &err) < 0) {
        free(cache);
        return -ENOMEM;
    }
    cpu->insn_cache = cache;
    return 0;
}

void interp_free(struct jit_vcpu *cpu)
{
    if (!cpu->insn_cache)
        return;
    exec_free(cpu->insn_cache->exec);
    free(cpu->insn_cache);
    cpu->insn_cache = NULL;
}

uint64_t interp_offset(const struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t offset = (uint64_t)insn->mem_disp;
    if (insn->mem_rip)
        offset += cpu->rip + insn->length;
    if (insn->mem_base != INSN_NO_REG)
        offset += cpu->gpr[insn->mem_base];
    if (insn->mem_index != INSN_NO_REG)
        offset += cpu->gpr[insn->mem_index] * insn->mem_scale;
    return truncate_to(offset, insn->address_bits);
}

uint64_t interp_linear(struct jit_vcpu *cpu, const struct insn *insn, unsigned size, unsigned access)
{
    return segment_linear(cpu, insn->mem_segment, interp_offset(cpu, insn), size, access);
}

void interp_require_alignment(struct jit_vcpu *cpu, const struct insn *insn, unsigned alignment)
{
    if (alignment == 1)
        return;
    bool based = cpu->mode != MODE_LONG || insn->mem_segment >= SEG_FS;
    uint64_t linear = interp_offset(cpu, insn) + (based ? cpu->seg[insn->mem_segment].base : 0);
    if (linear & (alignment - 1u))
        vcpu_raise(cpu, VEC_GP, 0);
}

void interp_probe(struct jit_vcpu *cpu, uint64_t linear, unsigned size, unsigned access)
{
    uint64_t last = linear + size - 1;
    watch_alignment(cpu, linear, watch_natural(size), access);
    mmu_page_ptr(cpu, linear, access);
    if ((linear ^ last) & ~PAGE_OFFSET)
        mmu_page_ptr(cpu, last & ~PAGE_OFFSET, access);
}

uint64_t interp_read_rm(struct jit_vcpu *cpu, const struct insn *insn, unsigned bytes)
{
    if (!insn->has_mem)
        return truncate_to(cpu->gpr[insn->rm_gpr], bytes * 8);
    uint64_t linear = interp_linear(cpu, insn, bytes, ACCESS_READ);
    return mmu_load(cpu, linear, bytes, ACCESS_READ | stack_access(insn->mem_segment));
}

static void check_x87(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool wait = insn->mnemonic == ZYDIS_MNEMONIC_FWAIT;
    uint64_t trapping = wait ? 0 : CR0_EM | CR0_TS;
    if (wait && (cpu->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        vcpu_raise(cpu, VEC_NM, 0);
    if (cpu->cr0 & trapping)
        vcpu_raise(cpu, VEC_NM, 0);
}

static void check_simd(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool allowed = true;
    if (insn->fpu == INSN_FPU_AVX)
        allowed = cpu->mode != MODE_REAL && (cpu->cr4 & CR4_OSXSAVE) &&
                  (cpu->xcr0 & (XCR0_SSE | XCR0_AVX)) == (XCR0_SSE | XCR0_AVX);
    else if (insn->fpu == INSN_FPU_SSE)
        allowed = !(cpu->cr0 & CR0_EM) && (cpu->cr4 & CR4_OSFXSR);
    else
        allowed = !(cpu->cr0 & CR0_EM);
    if (!allowed)
        vcpu_raise(cpu, VEC_UD, 0);
    if (cpu->cr0 & CR0_TS)
        vcpu_raise(cpu, VEC_NM, 0);
}

void interp_check_fpu(struct jit_vcpu *cpu, const struct insn *insn)
{
    if (insn->fpu == INSN_FPU_X87)
        check_x87(cpu, insn);
    else if (insn->fpu != INSN_FPU_NONE)
        check_simd(cpu, insn);
    else if (insn->vex_length && cpu->mode == MODE_REAL)
        vcpu_raise(cpu, VEC_UD, 0);
}

/* An unmasked SSE exception is #UD when the system did not say that it handles #XM. */
static _Noreturn void raise_native(struct jit_vcpu *cpu, int vector)
{
    if (vector == VEC_XM && !(cpu->cr4 & CR4_OSXMMEXCPT))
        vector = VEC_UD;
    vcpu_raise(cpu, (enum x86_vector)vector, 0);
}

/* Runs with the operand in memory. A private copy keeps the operand's alignment, which SSE instructions check. */
static void plain_at(struct jit_vcpu *cpu, const struct insn *insn, uint64_t linear)
{
    struct mmu_operand operand;
    unsigned access = insn->mem_write ? ACCESS_WRITE | (insn->mem_read ? ACCESS_READ_WRITE : 0) : ACCESS_READ;
    mmu_operand_map(cpu, &operand, linear, insn->mem_bytes, access | stack_access(insn->mem_segment));
    unsigned shift = operand.bounced ? (unsigned)linear & 15 : 0;
    uint8_t shifted[512 + 16] __attribute__((aligned(64)));
    uint8_t *host = operand.host;
    if (shift) {
        host = shifted + shift;
        copy_general(host, operand.host, insn->mem_bytes);
    }
    int vector = exec_run(cpu, cpu->insn_cache->exec, insn, (uint64_t)(uintptr_t)host);
    if (vector != EXEC_DONE)
        raise_native(cpu, vector);
    if (shift && insn->mem_write)
        copy_general(operand.host, host, insn->mem_bytes);
    mmu_operand_done(cpu, &operand);
}

/* Bit test with a register offset into a bit string: it selects an operand-sized unit, and a bit of that. The instruction runs
 * on the unit with the offset reduced to the bit. */
static void plain_bit_string(struct jit_vcpu *cpu, const struct insn *insn)
{
    uint64_t saved = cpu->gpr[insn->reg_gpr];
    unsigned bytes = insn->operand_bits / 8u;
    unsigned shift = insn->operand_bits == 64 ? 6 : insn->operand_bits == 32 ? 5 : 4;
    uint64_t unit = (uint64_t)(sign_extend(saved, insn->operand_bits) >> shift) * bytes;
    uint64_t offset = truncate_to(interp_offset(cpu, insn) + unit, insn->address_bits);
    unsigned access = insn->mem_write ? ACCESS_WRITE | ACCESS_READ_WRITE : ACCESS_READ;
    uint64_t linear = segment_linear(cpu, insn->mem_segment, offset, bytes, access);
    struct mmu_operand operand;
    mmu_operand_map(cpu, &operand, linear, bytes, access | stack_access(insn->mem_segment));
    cpu->gpr[insn->reg_gpr] = saved & (insn->operand_bits - 1u);
    int vector = exec_run(cpu, cpu->insn_cache->exec, insn, (uint64_t)(uintptr_t)operand.host);
    cpu->gpr[insn->reg_gpr] = saved;
    if (vector != EXEC_DONE)
        raise_native(cpu, vector);
    mmu_operand_done(cpu, &operand);
}

/* Control instructions of the x87 that do not wait for pending exceptions. */
static bool is_no_wait(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNCLEX: return true;
    default: return false;
    }
}

static bool x87_exception_pending(const struct jit_vcpu *cpu)
{
    uint16_t status = load_le16(cpu->xsave + 2);
    if (cpu->fpu_live)
        __asm__ volatile("fnstsw %0" : "=a"(status));
    else if (!(load_le64(cpu->xsave + 512) & XCR0_X87))
        status = 0;
    return status & 0x80;
}

/* Faults that come before those of the access: pending x87 exceptions, misaligned vector operands. */
static void check_before_access(struct jit_vcpu *cpu, const struct insn *insn)
{
    bool waits = insn->fpu == INSN_FPU_MMX || (insn->fpu == INSN_FPU_X87 && !is_no_wait(insn->mnemonic));
    if (waits && x87_exception_pending(cpu))
        vcpu_raise(cpu, VEC_MF, 0);
    interp_require_alignment(cpu, insn, insn->mem_align);
}

void interp_plain(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_check_fpu(cpu, insn);
    if (insn->mem_bit_string) {
        plain_bit_string(cpu, insn);
    } else if (insn->has_mem && !insn->mem_is_agen) {
        check_before_access(cpu, insn);
        plain_at(cpu, insn, interp_linear(cpu, insn, insn->mem_bytes, insn->mem_write ? ACCESS_WRITE : ACCESS_READ));
    } else {
        uint64_t address = insn->has_mem ? interp_offset(cpu, insn) : 0;
        int vector = exec_run(cpu, cpu->insn_cache->exec, insn, address);
        if (vector != EXEC_DONE)
            raise_native(cpu, vector);
    }
    interp_retire(cpu, insn);
}

static void execute_illegal(struct jit_vcpu *cpu, const struct insn *insn)
{
    vcpu_raise(cpu, insn->too_long ? VEC_GP : VEC_UD, 0);
}

static void execute_nop(struct jit_vcpu *cpu, const struct insn *insn)
{
    interp_retire(cpu, insn);
}

static bool loads_resume_flag(const struct insn *insn)
{
    return insn->mnemonic == ZYDIS_MNEMONIC_IRET || insn->mnemonic == ZYDIS_MNEMONIC_IRETD ||
           insn->mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

/* A step over a system call ends with SYSRET, as if SYSCALL had just retired: these go by the TF that they leave (AMD APM 3). */
static bool steps_by_new_flags(const struct insn *insn)
{
    return insn->mnemonic == ZYDIS_MNEMONIC_SYSCALL || insn->mnemonic == ZYDIS_MNEMONIC_SYSRET;
}

void interp_execute(struct jit_vcpu *cpu, const struct insn *insn)
{
    static interp_fn *const by_kind[] = {
        [INSN_PLAIN] = interp_plain,   [INSN_NOP] = execute_nop,       [INSN_BRANCH] = interp_branch,
        [INSN_STACK] = interp_stack,   [INSN_STRING] = interp_string,  [INSN_SYSTEM] = interp_system,
        [INSN_ILLEGAL] = execute_illegal,
    };
    bool shadow = cpu->interrupt_shadow;
    cpu->interrupt_shadow = cpu->debug_shadow = false;
    uint64_t before = cpu->rflags, rip = cpu->rip;
    by_kind[insn->mem_bit_string ? INSN_PLAIN : insn->kind](cpu, insn);
    /* A shadow covers one instruction, and does not start anew within one; RF likewise. */
    if (shadow)
        cpu->interrupt_shadow = cpu->debug_shadow = false;
    if (insn->kind == INSN_STRING && cpu->rip == rip)
        cpu->rflags |= vcpu_must_interpret(cpu) ? FLAG_RF : 0; /* goes on past a breakpoint on it */
    else if ((before & FLAG_RF) && !loads_resume_flag(insn))
        cpu->rflags &= ~(uint64_t)FLAG_RF;
    if ((steps_by_new_flags(insn) ? cpu->rflags : before) & FLAG_TF)
        cpu->debug_pending |= WATCH_STEP;
}

/* Do the cached bytes stand at `host`, with `room` bytes to the end of the page? */
static bool bytes_match(const struct insn *insn, const uint8_t *host, uint64_t room)
{
    if (insn->length == 0 || insn->length > room)
        return false;
    if (room >= 16 && insn->length <= 8)
        return ((load_le64(host) ^ load_le64(insn->bytes)) << (64 - 8 * insn->length)) == 0;
    for (unsigned i = 0; i < insn->length; i++)
        if (host[i] != insn->bytes[i])
            return false;
    return true;
}

static uint64_t code_linear(struct jit_vcpu *cpu)
{
    if (cpu->mode == MODE_LONG)
        return cpu->rip;
    if (cpu->rip > cpu->seg[SEG_CS].limit)
        vcpu_raise(cpu, VEC_GP, 0);
    return (uint32_t)(cpu->seg[SEG_CS].base + cpu->rip);
}

/* Fetches and decodes at `linear`, first within the page: the next one is touched only if the instruction reaches it. */
static void decode_at(struct jit_vcpu *cpu, uint64_t linear, struct insn *insn)
{
    uint8_t bytes[INSN_MAX_BYTES];
    uint64_t room = MEM_PAGE_SIZE - (linear & PAGE_OFFSET);
    unsigned got = mmu_fetch(cpu, linear, bytes, room < sizeof bytes ? (unsigned)room : sizeof bytes);
    fpu_save(cpu);
    enum insn_status status = insn_decode(bytes, got, vcpu_code_bits(cpu), insn);
    if (status != INSN_TRUNCATED)
        return;
    unsigned all = mmu_fetch(cpu, linear, bytes, sizeof bytes);
    status = insn_decode(bytes, all, vcpu_code_bits(cpu), insn);
    if (status == INSN_TRUNCATED) {
        mmu_fetch_fault(cpu, linear + all);
        vcpu_resume(cpu); /* another vCPU has mapped the page meanwhile */
    }
}

static const struct insn *fetch_insn(struct jit_vcpu *cpu, uint64_t linear)
{
    unsigned bits = vcpu_code_bits(cpu);
    uint64_t hash = (linear ^ bits << 5) * UINT64_C(0x9e3779b97f4a7c15);
    struct cache_entry *entry = &cpu->insn_cache->entries[hash >> (64 - CACHE_BITS)];
    const struct fetch_entry *page = mmu_fetch_page(cpu, linear);
    uint64_t offset = linear & PAGE_OFFSET;
    if (entry->linear == linear && entry->insn.code_bits == bits && page->host &&
        bytes_match(&entry->insn, page->host + offset, MEM_PAGE_SIZE - offset))
        return &entry->insn;
    entry->insn.length = 0;
    decode_at(cpu, linear, &entry->insn);
    entry->linear = linear;
    return &entry->insn;
}

const struct insn *interp_fetch(struct jit_vcpu *cpu)
{
    return fetch_insn(cpu, code_linear(cpu));
}

void interp_step(struct jit_vcpu *cpu)
{
    const struct insn *insn = interp_fetch(cpu);
    if (cpu->mode != MODE_LONG && insn->length && cpu->rip + insn->length - 1 > cpu->seg[SEG_CS].limit)
        vcpu_raise(cpu, VEC_GP, 0);
    cpu->instructions++;
    interp_execute(cpu, insn);
}
