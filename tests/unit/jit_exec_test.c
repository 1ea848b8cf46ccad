/* Native execution of single instructions, and what the decoder says about them, against the CPU this runs on:
 *  - flags: an input flag that is not in flags_read changes nothing but itself, and not even itself when in flags_write;
 *    flags outside of flags_write and flags_undefined stay;
 *  - registers: those not in gpr_read change nothing, those not in gpr_write stay;
 *  - memory: nothing beyond mem_bytes is touched (the operand ends at an unmapped page), all of it is reached (it starts one
 *    byte into one). */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "cpu/jit/decode.h"
#include "cpu/jit/exec.h"
#include "cpu/jit/vcpu.h"

#include <Zydis/Zydis.h>

#define PAGE 4096u
#define FAULTED (-2)

static uint64_t random_state = 0x123456789abcdef;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * UINT64_C(0x2545f4914f6cdd1d);
}

static struct jit_vcpu *cpu;
static struct exec *exec;
static uint8_t *page; /* unmapped pages before and after */
static sigjmp_buf escape;
static volatile bool guarded;

static void on_signal(int signal, siginfo_t *info, void *context)
{
    if (exec_handle_signal(info, context))
        return;
    if (guarded)
        siglongjmp(escape, 1);
    fprintf(stderr, "signal %d outside of a stub\n", signal);
    abort();
}

static int set_up(void **state)
{
    (void)state;
    struct err err;
    cpu = mmap(NULL, sizeof *cpu, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    page = mmap(NULL, (size_t)3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (cpu == MAP_FAILED || page == MAP_FAILED || exec_create(&exec, &err))
        return -1;
    page += PAGE;
    return mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

/* Within each test: cmocka puts its own handlers in before. */
static void take_signals(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    static const int signals[] = {SIGFPE, SIGSEGV, SIGILL, SIGBUS};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

struct run {
    uint64_t gpr[GPR_COUNT], flags;
    uint8_t xsave[832];
    uint8_t memory[64];
};

/* Runs `insn` with the flags of all sorts loaded and stored; EXEC_DONE, a vector, or FAULTED by the operand. */
static int run(const struct insn *insn, const struct run *in, uint8_t *operand, struct run *out)
{
    struct insn all = *insn;
    all.flags_read = all.flags_undefined = all.flags_write = FLAGS_ARITHMETIC;
    memcpy(cpu->gpr, in->gpr, sizeof cpu->gpr);
    cpu->rflags = in->flags | 2;
    memcpy(cpu->xsave, in->xsave, sizeof in->xsave);
    cpu->fpu_live = false;
    if (insn->mem_bytes <= sizeof in->memory)
        memcpy(operand, in->memory, insn->mem_bytes);
    guarded = true;
    volatile int result = FAULTED;
    if (sigsetjmp(escape, 1) == 0)
        result = exec_run(cpu, exec, &all, (uint64_t)(uintptr_t)operand);
    guarded = false;
    if (cpu->fpu_live)
        __asm__ volatile("xsave64 %0\n\tldmxcsr %1\n\tfninit"
                         : "+m"(*(uint8_t(*)[X86_XSAVE_SIZE])cpu->xsave)
                         : "m"((uint32_t){0x1f80}), "a"(7), "d"(0));
    cpu->fpu_live = false;
    memcpy(out->gpr, cpu->gpr, sizeof out->gpr);
    out->flags = cpu->rflags & FLAGS_ARITHMETIC;
    memcpy(out->xsave, cpu->xsave, sizeof out->xsave);
    if (insn->mem_bytes <= sizeof out->memory)
        memcpy(out->memory, operand, insn->mem_bytes);
    return result;
}

static void random_run(struct run *in)
{
    for (unsigned i = 0; i < GPR_COUNT; i++)
        in->gpr[i] = random_u64() >> (random_u64() % 3 ? 0 : random_u64() % 64);
    in->flags = random_u64() & FLAGS_ARITHMETIC;
    memset(in->xsave, 0, sizeof in->xsave);
    store_le16(in->xsave, 0x37f);
    store_le32(in->xsave + 24, 0x1f80);
    store_le64(in->xsave + 512, 7);
    for (unsigned at = 160; at < 416; at += 8)
        store_le64(in->xsave + at, random_u64());
    for (unsigned at = 0; at < sizeof in->memory; at += 8)
        store_le64(in->memory + at, random_u64());
}

static bool random_insn(struct insn *insn)
{
    uint8_t bytes[16];
    static const uint8_t starts[][2] = {{0x0f, 0},    {0x66, 0x0f}, {0xf3, 0x0f}, {0xc5, 0xf8},
                                        {0xf2, 0x0f}, {0xc4, 0xe2}, {0x48, 0},    {0x66, 0}};
    store_le64(bytes, random_u64());
    store_le64(bytes + 8, random_u64());
    unsigned start = (unsigned)(random_u64() % 16);
    if (start < 8)
        memcpy(bytes, starts[start], starts[start][1] ? 2 : 1);
    if (insn_decode(bytes, 15, 64, insn) != INSN_OK || insn->kind != INSN_PLAIN)
        return false;
    return insn->mnemonic != ZYDIS_MNEMONIC_RDRAND && insn->mnemonic != ZYDIS_MNEMONIC_RDSEED;
}

static void complain(const struct insn *insn, const char *what, unsigned which)
{
    fprintf(stderr, "%s %u: %s,", what, which, ZydisMnemonicGetString(insn->mnemonic));
    for (unsigned i = 0; i < insn->length; i++)
        fprintf(stderr, " %02x", insn->bytes[i]);
    fprintf(stderr, "; flags read %x written %x undefined %x, registers read %x written %x\n", insn->flags_read,
            insn->flags_write, insn->flags_undefined, insn->gpr_read, insn->gpr_write);
    fail();
}

static uint8_t *aligned_operand(void)
{
    return page + 1024;
}

/* An effective address stands for the operand of lea: the test passes it in, so its registers do not count. */
static uint16_t registers_read(const struct insn *insn)
{
    uint16_t fields = insn->gpr_implicit;
    const uint8_t gprs[] = {insn->reg_gpr, insn->rm_gpr, insn->vvvv_gpr, insn->opcode_gpr};
    for (unsigned i = 0; i < 4; i++)
        if (gprs[i] != INSN_NO_REG)
            fields |= (uint16_t)(1u << gprs[i]);
    return fields & insn->gpr_read;
}

static bool same_outcome(const struct run *a, const struct run *b, unsigned except_gpr, uint64_t except_flags)
{
    for (unsigned i = 0; i < GPR_COUNT; i++)
        if (i != except_gpr && a->gpr[i] != b->gpr[i])
            return false;
    return !((a->flags ^ b->flags) & ~except_flags) && !memcmp(a->memory, b->memory, sizeof a->memory) &&
           !memcmp(a->xsave + 24, b->xsave + 24, 392) && !memcmp(a->xsave + 576, b->xsave + 576, 256);
}

static void check_flags(const struct insn *insn, const struct run *in, const struct run *out)
{
    uint64_t kept = FLAGS_ARITHMETIC & ~(uint64_t)(insn->flags_write | insn->flags_undefined | insn->flags_read);
    if ((in->flags ^ out->flags) & kept)
        complain(insn, "changes flags it should keep", (unsigned)((in->flags ^ out->flags) & kept));
    for (unsigned bit = 0; bit < 12; bit++) {
        uint64_t flag = UINT64_C(1) << bit;
        if (!(flag & FLAGS_ARITHMETIC) || (insn->flags_read & flag))
            continue;
        struct run in2 = *in, out2 = {0};
        in2.flags ^= flag;
        if (run(insn, &in2, aligned_operand(), &out2) != EXEC_DONE ||
            !same_outcome(out, &out2, GPR_COUNT, insn->flags_write & flag ? 0 : flag))
            complain(insn, "depends on flag", (unsigned)flag);
    }
}

static void check_registers(const struct insn *insn, const struct run *in, const struct run *out)
{
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++) {
        bool written = insn->gpr_write >> gpr & 1;
        if (!written && in->gpr[gpr] != out->gpr[gpr])
            complain(insn, "changes register", gpr);
        if (!written || (registers_read(insn) >> gpr & 1))
            continue;
        struct run in2 = *in, out2 = {0};
        in2.gpr[gpr] = random_u64();
        if (run(insn, &in2, aligned_operand(), &out2) != EXEC_DONE || !same_outcome(out, &out2, GPR_COUNT, 0))
            complain(insn, "depends on register", gpr);
    }
}

static void test_masks(void **state)
{
    (void)state;
    take_signals();
    unsigned checked = 0;
    for (unsigned n = 0; n < 1500000; n++) {
        struct insn insn;
        struct run in, out = {0};
        if (!random_insn(&insn) || insn.mem_bytes > sizeof in.memory)
            continue;
        random_run(&in);
        if (run(&insn, &in, aligned_operand(), &out) != EXEC_DONE)
            continue;
        check_flags(&insn, &in, &out);
        check_registers(&insn, &in, &out);
        checked++;
    }
    printf("%u instructions checked\n", checked);
    assert_true(checked > 50000);
}

static void test_memory_sizes(void **state)
{
    (void)state;
    take_signals();
    unsigned checked = 0;
    for (unsigned n = 0; n < 600000; n++) {
        struct insn insn;
        struct run in, out;
        if (!random_insn(&insn) || !insn.has_mem || insn.mem_is_agen || insn.mem_bytes > PAGE)
            continue;
        random_run(&in);
        if (run(&insn, &in, page + PAGE - insn.mem_bytes, &out) == FAULTED)
            complain(&insn, "touches memory beyond its operand of bytes", insn.mem_bytes);
        /* Control: the size is not too large either. */
        struct insn none = insn;
        none.mem_bytes = UINT16_MAX; /* no copies by the test */
        if (insn.mem_align == 1 && run(&none, &in, page + PAGE - insn.mem_bytes + 1, &out) == EXEC_DONE)
            complain(&insn, "does not touch all of its operand of bytes", insn.mem_bytes);
        checked++;
    }
    printf("%u memory operands checked\n", checked);
    assert_true(checked > 20000);
}

static void test_exceptions(void **state)
{
    (void)state;
    take_signals();
    struct insn insn;
    struct run in, out;
    random_run(&in);
    in.gpr[RCX] = 0;
    insn_decode((const uint8_t *)"\xf7\xf1", 2, 64, &insn); /* div ecx */
    assert_int_equal(run(&insn, &in, page, &out), VEC_DE);
    assert_memory_equal(in.gpr, out.gpr, sizeof in.gpr);
    insn_decode((const uint8_t *)"\x0f\x28\x00", 3, 64, &insn); /* movaps xmm0, [rax] */
    assert_int_equal(run(&insn, &in, page + 8, &out), VEC_GP);
    store_le32(in.xsave + 24, 0x1d80); /* division by zero unmasked */
    memset(in.xsave + 176, 0, 16);
    store_le32(in.xsave + 160, 0x3f800000);
    insn_decode((const uint8_t *)"\xf3\x0f\x5e\xc1", 4, 64, &insn); /* divss xmm0, xmm1 */
    assert_int_equal(run(&insn, &in, page, &out), VEC_XM);
    assert_int_equal(load_le32(out.xsave + 24), 0x1d84);
    store_le16(in.xsave, 0x37b);
    store_le16(in.xsave + 2, 0x8084);
    insn_decode((const uint8_t *)"\xd9\xe8", 2, 64, &insn); /* fld1 with an exception pending */
    assert_int_equal(run(&insn, &in, page, &out), VEC_MF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exceptions),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_memory_sizes),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
