/* Decoder and re-encoder over real code (every executable section of a few libraries, swept linearly) and over random
 * bytes in all three code sizes: what is re-emitted must decode to the same instruction with the operands asked for. */
#include <elf.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/own.h"
#include "cpu/jit/decode.h"
#include "cpu/jit/decode_known.h"
#include "cpu/x86.h"

#include <Zydis/Mnemonic.h>

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void fail_insn(const struct insn *insn, const uint8_t *out, unsigned length, const char *what)
{
    fprintf(stderr, "%s: %s (%u-bit):", what, ZydisMnemonicGetString(insn->mnemonic), insn->code_bits);
    for (unsigned i = 0; i < insn->length; i++)
        fprintf(stderr, " %02x", insn->bytes[i]);
    fprintf(stderr, " ->");
    for (unsigned i = 0; i < length; i++)
        fprintf(stderr, " %02x", out[i]);
    fprintf(stderr, "\n");
    fail();
}

/* Random one-to-one mapping that leaves implicit registers alone; base and index are registers the mapping of the
 * instruction's own registers does not use. */
static struct insn_remap random_remap(const struct insn *insn)
{
    struct insn_remap remap = insn_remap_identity;
    for (unsigned i = 0; i < 16; i++) {
        unsigned j = (unsigned)random_u64() % 16;
        if ((insn->gpr_implicit >> i & 1) || (insn->gpr_implicit >> j & 1))
            continue;
        uint8_t swap = remap.gpr[i];
        remap.gpr[i] = remap.gpr[j];
        remap.gpr[j] = swap;
    }
    remap.mem_base = (uint8_t)(random_u64() % 16);
    remap.mem_index = random_u64() % 2 ? INSN_NO_REG : (uint8_t)(random_u64() % 16);
    if (remap.mem_index == RSP)
        remap.mem_index = INSN_NO_REG;
    static const int32_t displacements[] = {0, 0, 1, -128, 127, 128, -129, 0x12345678};
    remap.mem_disp = displacements[random_u64() % 8];
    remap.drop_lock = random_u64() % 2;
    return remap;
}

static uint8_t mapped(const struct insn_remap *remap, uint8_t gpr)
{
    return gpr == INSN_NO_REG ? INSN_NO_REG : remap->gpr[gpr];
}

/* The short inc and dec, exchanges and moffs change their form. */
static bool changes_form(const struct insn *insn)
{
    bool moffs = insn->has_mem && !insn->has_modrm;
    return moffs || (insn->map == 0 && !insn->vex_length && (insn->opcode & 0xf0) == 0x40);
}

static bool same_registers(const struct insn *a, const struct insn *b, const struct insn_remap *remap)
{
    if (changes_form(a))
        return (a->opcode_gpr == INSN_NO_REG || mapped(remap, a->opcode_gpr) == b->rm_gpr) &&
               (a->reg_gpr == INSN_NO_REG || mapped(remap, a->reg_gpr) == b->reg_gpr);
    return mapped(remap, a->reg_gpr) == b->reg_gpr && mapped(remap, a->rm_gpr) == b->rm_gpr &&
           mapped(remap, a->vvvv_gpr) == b->vvvv_gpr && mapped(remap, a->opcode_gpr) == b->opcode_gpr &&
           a->reg_bits == b->reg_bits && a->rm_bits == b->rm_bits && a->reg_high == b->reg_high &&
           a->rm_high == b->rm_high;
}

static bool same_memory(const struct insn *a, const struct insn *b, const struct insn_remap *remap)
{
    if (a->has_mem != b->has_mem)
        return false;
    return !a->has_mem || (b->mem_base == remap->mem_base && b->mem_index == remap->mem_index && b->mem_scale == 1 &&
                           b->mem_disp == remap->mem_disp && a->mem_bytes == b->mem_bytes &&
                           a->mem_read == b->mem_read && a->mem_write == b->mem_write &&
                           a->mem_is_agen == b->mem_is_agen && !b->mem_rip);
}

static bool same_meaning(const struct insn *a, const struct insn *b, bool drop_lock)
{
    /* 16-bit code's operand size without meaning for the instruction need not be kept. */
    bool same_size = a->operand_bits == b->operand_bits || a->fpu != INSN_FPU_NONE || a->code_bits == 16;
    return a->mnemonic == b->mnemonic && a->kind == b->kind && a->fpu == b->fpu && same_size && a->imm == b->imm &&
           a->flags_read == b->flags_read && a->flags_write == b->flags_write && (a->has_lock && !drop_lock) == b->has_lock;
}

static uint64_t counts[8], reencoded, refused;

static void check_reencode(const struct insn *insn)
{
    struct insn_remap remap = random_remap(insn);
    uint8_t out[INSN_MAX_BYTES];
    unsigned length = insn_reencode(insn, &remap, out);
    if (length == 0) {
        refused++;
        if (!insn->high_byte && insn->opcode_gpr == INSN_NO_REG)
            fail_insn(insn, out, 0, "refused");
        return;
    }
    struct insn again;
    if (insn_decode(out, length, 64, &again) != INSN_OK || again.length != length)
        fail_insn(insn, out, length, "does not decode");
    if (!same_meaning(insn, &again, remap.drop_lock))
        fail_insn(insn, out, length, "meaning differs");
    if (!same_registers(insn, &again, &remap))
        fail_insn(insn, out, length, "registers differ");
    if (!same_memory(insn, &again, &remap))
        fail_insn(insn, out, length, "memory differs");
    reencoded++;
}

static struct insn_known known;

static void check_known(const uint8_t bytes[INSN_MAX_BYTES])
{
    struct insn insn, quick;
    enum insn_status status = insn_decode(bytes, INSN_MAX_BYTES, 64, &insn);
    if (insn_known_decode(&known, bytes, INSN_MAX_BYTES, &quick) != status || memcmp(&insn, &quick, sizeof insn) != 0)
        fail_insn(&insn, quick.bytes, quick.length, "differs when known");
}

/* As it is, and with other displacements and immediates. */
static void check_known_variants(const uint8_t *code, const struct insn *insn)
{
    uint8_t bytes[INSN_MAX_BYTES];
    memcpy(bytes, code, sizeof bytes);
    check_known(bytes);
    for (unsigned n = 0; n < 3; n++) {
        uint64_t noise = random_u64();
        for (unsigned i = 0; i < insn->disp_bytes + insn->imm_bytes; i++, noise >>= 8)
            bytes[insn->length - i - 1] = (uint8_t)noise;
        check_known(bytes);
    }
}

static void sweep(const uint8_t *code, size_t size)
{
    struct insn insn;
    for (size_t at = 0; at < size;) {
        enum insn_status status = insn_decode(code + at, (unsigned)(size - at < 15 ? size - at : 15), 64, &insn);
        counts[insn.kind]++;
        if (status == INSN_OK && size - at >= INSN_MAX_BYTES)
            check_known_variants(code + at, &insn);
        at += status == INSN_OK ? insn.length : 1;
        if (status == INSN_OK && insn.kind == INSN_PLAIN)
            check_reencode(&insn);
    }
}

static void sweep_file(const char *path)
{
    own_fd int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        printf("SKIP %s: not there\n", path);
        return;
    }
    const uint8_t *file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(file != MAP_FAILED);
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff);
    for (unsigned i = 0; i < header->e_shnum; i++)
        if ((sections[i].sh_flags & SHF_EXECINSTR) && sections[i].sh_type == SHT_PROGBITS)
            sweep(file + sections[i].sh_offset, sections[i].sh_size);
    munmap((void *)(uintptr_t)file, (size_t)st.st_size);
}

static void test_real_code(void **state)
{
    (void)state;
    memset(counts, 0, sizeof counts);
    reencoded = refused = 0;
    sweep_file("/bin/bash");
    sweep_file("/lib/x86_64-linux-gnu/libc.so.6");
    sweep_file("/usr/lib/x86_64-linux-gnu/libcrypto.so.3");
    sweep_file("/lib/x86_64-linux-gnu/libm.so.6");
    printf("plain %lu nop %lu branch %lu stack %lu string %lu system %lu illegal %lu; reencoded %lu refused %lu\n",
           counts[INSN_PLAIN], counts[INSN_NOP], counts[INSN_BRANCH], counts[INSN_STACK], counts[INSN_STRING],
           counts[INSN_SYSTEM], counts[INSN_ILLEGAL], reencoded, refused);
    assert_true(reencoded > 0);
    assert_true(refused * 20 < reencoded);
}

static void test_random_bytes(void **state)
{
    (void)state;
    static const unsigned sizes[] = {16, 32, 64};
    reencoded = refused = 0;
    for (unsigned n = 0; n < 3000000; n++) {
        uint8_t bytes[16];
        uint64_t words[2] = {random_u64(), random_u64()};
        memcpy(bytes, words, 16);
        static const uint8_t starts[][2] = {{0x0f, 0}, {0x66, 0x0f}, {0xf3, 0x0f}, {0xc5, 0xf8}, {0xf2, 0x0f}, {0xc4, 0xe2}};
        unsigned start = (unsigned)(random_u64() % 16);
        if (start < 6)
            memcpy(bytes, starts[start], starts[start][1] ? 2 : 1);
        struct insn insn;
        if (insn_decode(bytes, 15, sizes[n % 3], &insn) == INSN_OK && insn.kind == INSN_PLAIN)
            check_reencode(&insn);
        if (insn_decode(bytes, 15, 64, &insn) == INSN_OK)
            check_known_variants(bytes, &insn);
    }
    printf("random: reencoded %lu refused %lu\n", reencoded, refused);
}

static struct insn decode_hex(const char *hex, unsigned code_bits)
{
    uint8_t bytes[15];
    unsigned length = 0;
    for (; hex[0] && length < 15; hex += 2)
        sscanf(hex, "%2hhx", &bytes[length++]);
    struct insn insn;
    insn_decode(bytes, length, code_bits, &insn);
    return insn;
}

static void test_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *hex;
        enum insn_kind kind;
    } cases[] = {
        {"90", INSN_NOP}, {"f30f1efa", INSN_NOP}, {"f30f1ec8", INSN_NOP}, {"0f0d08", INSN_NOP}, {"f390", INSN_PLAIN},
        {"0faee8", INSN_PLAIN}, {"c3", INSN_BRANCH}, {"cb", INSN_SYSTEM}, {"48cf", INSN_SYSTEM}, {"50", INSN_STACK},
        {"0fa0", INSN_SYSTEM}, {"0fab08", INSN_SYSTEM}, {"0fabc8", INSN_PLAIN}, {"0fba2801", INSN_PLAIN},
        {"fc", INSN_SYSTEM}, {"f8", INSN_PLAIN}, {"0f0b", INSN_ILLEGAL}, {"0f01c1", INSN_SYSTEM},
        {"0f01d9", INSN_SYSTEM}, {"0f01c8", INSN_ILLEGAL}, {"62f17c4858c1", INSN_ILLEGAL}, {"0f0fc10d", INSN_ILLEGAL},
        {"f30faee8", INSN_ILLEGAL}, {"dd30", INSN_SYSTEM}, {"dd20", INSN_PLAIN}, {"c4e26d9004c9", INSN_SYSTEM},
        {"f3a4", INSN_STRING}, {"6c", INSN_STRING}, {"e800000000", INSN_BRANCH}, {"ff18", INSN_SYSTEM},
        {"0f01f8", INSN_SYSTEM}, {"c7f800000000", INSN_ILLEGAL}, {"0fc7f0", INSN_PLAIN}, {"f30fc7f8", INSN_SYSTEM},
        {"0f05", INSN_SYSTEM}, {"0f34", INSN_SYSTEM}, {"ec", INSN_SYSTEM}, {"f4", INSN_SYSTEM}, {"c9", INSN_STACK},
        {"0fae10", INSN_SYSTEM}, {"0fae18", INSN_PLAIN}, {"660fae38", INSN_SYSTEM}, {"d7", INSN_SYSTEM},
        {"f20f79c1", INSN_ILLEGAL}, {"0f0107", INSN_SYSTEM}, {"8cd8", INSN_SYSTEM}, {"0f20c0", INSN_SYSTEM},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct insn insn = decode_hex(cases[i].hex, 64);
        if (insn.kind != cases[i].kind)
            fail_msg("%s: kind %u, not %u", cases[i].hex, insn.kind, cases[i].kind);
    }
}

static void test_flags(void **state)
{
    (void)state;
    struct insn insn = decode_hex("c1e005", 64); /* shl eax, 5 */
    assert_int_equal(insn.flags_write, FLAG_CF | FLAG_PF | FLAG_ZF | FLAG_SF);
    insn = decode_hex("c1e020", 64); /* by 32: nothing */
    assert_int_equal(insn.flags_write | insn.flags_read, 0);
    insn = decode_hex("48c1e020", 64); /* but rax has 64 bits */
    assert_true(insn.flags_write & FLAG_CF);
    insn = decode_hex("d3e0", 64);
    assert_int_equal(insn.flags_write, 0);
    assert_int_equal(insn.flags_read, FLAGS_ARITHMETIC);
    insn = decode_hex("21c0", 64);
    assert_int_equal(insn.flags_write, FLAGS_ARITHMETIC);
    assert_int_equal(insn.flags_read, 0);
    insn = decode_hex("ffc0", 64);
    assert_int_equal(insn.flags_write, FLAGS_ARITHMETIC & ~FLAG_CF);
    insn = decode_hex("11c0", 64);
    assert_int_equal(insn.flags_read, FLAG_CF);
}

static void test_registers(void **state)
{
    (void)state;
    struct insn insn = decode_hex("0fbcc1", 64); /* bsf eax, ecx keeps eax */
    assert_int_equal(insn.gpr_read, 1 << RAX | 1 << RCX);
    insn = decode_hex("88c8", 64);
    assert_int_equal(insn.gpr_read, 1 << RAX | 1 << RCX);
    insn = decode_hex("89c8", 64);
    assert_int_equal(insn.gpr_read, 1 << RCX);
    assert_int_equal(insn.gpr_write, 1 << RAX);
    insn = decode_hex("0f44c1", 64); /* cmovz */
    assert_int_equal(insn.gpr_read, 1 << RAX | 1 << RCX);
    insn = decode_hex("88e0", 64); /* mov al, ah */
    assert_true(insn.high_byte);
    insn = decode_hex("480fc708", 64); /* cmpxchg16b [rax] */
    assert_int_equal(insn.gpr_implicit, 1 << RAX | 1 << RDX | 1 << RCX | 1 << RBX);
    assert_int_equal(insn.mem_bytes, 16);
    insn = decode_hex("8b0500100000", 64);
    assert_true(insn.mem_rip);
    assert_int_equal(insn.mem_disp, 0x1000);
    insn = decode_hex("658b042510000000", 64);
    assert_int_equal(insn.mem_segment, SEG_GS);
    insn = decode_hex("8b4500", 64);
    assert_int_equal(insn.mem_segment, SEG_SS);
    insn = decode_hex("8b4600", 16);
    assert_int_equal(insn.mem_segment, SEG_SS);
    assert_int_equal(insn.operand_bits, 16);
    assert_int_equal(insn.mem_base, RBP);
}

static void test_lengths(void **state)
{
    (void)state;
    struct insn insn;
    uint8_t bytes[15];
    memset(bytes, 0x66, 15);
    assert_int_equal(insn_decode(bytes, 15, 64, &insn), INSN_INVALID);
    assert_true(insn.too_long);
    assert_int_equal(insn_decode(bytes, 3, 64, &insn), INSN_TRUNCATED);
    assert_int_equal(insn_decode((const uint8_t *)"\x48", 1, 64, &insn), INSN_TRUNCATED);
    assert_int_equal(insn_decode((const uint8_t *)"\x06", 1, 64, &insn), INSN_INVALID);
    assert_false(insn.too_long);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),     cmocka_unit_test(test_flags),        cmocka_unit_test(test_registers),
        cmocka_unit_test(test_lengths),   cmocka_unit_test(test_real_code),    cmocka_unit_test(test_random_bytes),
    };
    known.remembers = true;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
