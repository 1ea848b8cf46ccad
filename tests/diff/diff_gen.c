/* Case generator: instructions from random but plausible encodings, kept when user code may run them on both sides with
 * the same outcome; displacements are patched so that most memory operands land in or near the data pages. */
#include <cpuid.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/x86.h"
#include "diff.h"

#include <Zydis/Zydis.h>

const enum diff_page diff_pages[DIFF_DATA_PAGES] = {DIFF_WRITE, DIFF_WRITE, DIFF_HOLE,  DIFF_WRITE,
                                                    DIFF_READ,  DIFF_WRITE, DIFF_HOLE, DIFF_WRITE};

/* Set when the CPU shows x87 pointers only where the engine's zeros are right. */
static bool pointers_comparable;

void diff_generate_init(void)
{
    unsigned eax, ebx = 0, ecx, edx;
    __get_cpuid(0, &eax, &ebx, &ecx, &edx);
    pointers_comparable = ebx == signature_AMD_ebx;
}

uint64_t diff_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static unsigned below(uint64_t *rng, unsigned limit)
{
    return (unsigned)(diff_random(rng) % limit);
}

static bool chance(uint64_t *rng, unsigned percent)
{
    return below(rng, 100) < percent;
}

static uint64_t data_pointer(uint64_t *rng)
{
    uint64_t offset = below(rng, DIFF_DATA_PAGES * DIFF_PAGE);
    if (chance(rng, 25))
        offset = (offset & ~UINT64_C(4095)) + 4096 - below(rng, 40); /* near a page's end */
    if (chance(rng, 50))
        offset &= ~UINT64_C(63);
    return DIFF_DATA + offset % (DIFF_DATA_PAGES * DIFF_PAGE);
}

static uint64_t float_bits(uint64_t *rng)
{
    uint64_t exponent = chance(rng, 80) ? 1023 - 20 + below(rng, 40) : below(rng, 2048);
    return (diff_random(rng) & UINT64_C(0x800fffffffffffff)) | exponent << 52;
}

static uint64_t single_pair(uint64_t *rng)
{
    uint64_t low = (diff_random(rng) & 0x807fffff) | (uint64_t)(chance(rng, 80) ? 127 - 10 + below(rng, 20) : below(rng, 256)) << 23;
    uint64_t high = (diff_random(rng) & 0x807fffff) | (uint64_t)(127 - 10 + below(rng, 20)) << 23;
    return high << 32 | low;
}

static uint64_t vector_word(uint64_t *rng)
{
    switch (below(rng, 6)) {
    case 0: return float_bits(rng);
    case 1: return single_pair(rng);
    case 2: return below(rng, 200);
    case 3: return 0;
    case 4: return UINT64_C(0xffffffff80000000) ^ diff_random(rng) % 3;
    default: return diff_random(rng);
    }
}

static uint64_t gpr_value(uint64_t *rng)
{
    static const uint64_t special[] = {0, 1, UINT64_MAX, UINT64_C(1) << 63, INT64_MAX, UINT32_MAX, 0x80000000, 0x7f, 0x80, 0x8000};
    switch (below(rng, 10)) {
    case 0: return below(rng, 64);
    case 1: return diff_random(rng);
    case 2: return (uint32_t)diff_random(rng);
    case 3: return special[below(rng, sizeof special / sizeof *special)];
    default: return data_pointer(rng);
    }
}

void diff_generate_data(uint8_t data[DIFF_DATA_PAGES][DIFF_PAGE], uint64_t seed)
{
    uint64_t rng = seed ^ UINT64_C(0xdada);
    for (unsigned page = 0; page < DIFF_DATA_PAGES; page++)
        for (unsigned at = 0; at < DIFF_PAGE; at += 8)
            store_le64(data[page] + at, chance(&rng, 20) ? data_pointer(&rng) : vector_word(&rng));
    memset(data[(DIFF_STATE - DIFF_DATA) / DIFF_PAGE] + 512, 0, 64); /* an XSAVE header */
}

static void generate_x87(uint8_t *xsave, uint64_t *rng)
{
    store_le16(xsave, chance(rng, 85) ? 0x37f | (uint16_t)(below(rng, 16) << 8 & 0xf00)
                                      : (uint16_t)(diff_random(rng) & 0xf7f) | 0x40);
    uint16_t status = (uint16_t)diff_random(rng) & 0x7f00;
    if (chance(rng, 10))
        status |= (uint16_t)below(rng, 0x80);
    uint16_t unmasked = status & ~load_le16(xsave) & 0x3f;
    store_le16(xsave + 2, unmasked ? status | 0x8080 : status);
    xsave[4] = chance(rng, 50) ? (uint8_t)diff_random(rng) : (uint8_t)(below(rng, 4) ? 0 : 0xff);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t exponent = chance(rng, 80) ? 16383 - 30 + below(rng, 60) : below(rng, 32768);
        store_le64(xsave + 32 + 16 * i, diff_random(rng) | (chance(rng, 90) ? UINT64_C(1) << 63 : 0));
        store_le16(xsave + 40 + 16 * i, (uint16_t)(exponent | (uint64_t)below(rng, 2) << 15));
    }
}

static void generate_vectors(uint8_t *xsave, uint64_t *rng)
{
    uint32_t mxcsr = 0x1f80;
    if (chance(rng, 40))
        mxcsr ^= (uint32_t)diff_random(rng) & 0xe07f; /* rounding, flush to zero, denormals are zero, flags */
    if (chance(rng, 10))
        mxcsr &= ~(uint32_t)(diff_random(rng) & 0x1f80);
    store_le32(xsave + 24, mxcsr);
    for (unsigned at = 160; at < 416; at += 8)
        store_le64(xsave + at, vector_word(rng));
    for (unsigned at = 576; at < 832; at += 8)
        store_le64(xsave + at, vector_word(rng));
    store_le64(xsave + 512, chance(rng, 80) ? 7 : below(rng, 8));
}

static void generate_state(struct diff_state *state, uint64_t *rng, unsigned slot)
{
    memset(state, 0, sizeof *state);
    for (unsigned i = 0; i < 16; i++)
        state->gpr[i] = gpr_value(rng);
    if (chance(rng, 90))
        state->gpr[RSP] = DIFF_DATA + (below(rng, 3) * 2 + 1) * DIFF_PAGE - 64 - 8 * (uint64_t)below(rng, 400);
    state->rip = DIFF_CODE + slot * DIFF_SLOT;
    state->rflags = (diff_random(rng) & FLAGS_ARITHMETIC) | (chance(rng, 15) ? FLAG_DF : 0) | FLAG_IF | 2;
    state->fs_base = data_pointer(rng);
    state->gs_base = data_pointer(rng);
    generate_x87(state->xsave, rng);
    generate_vectors(state->xsave, rng);
}

/* Compatibility mode: 32-bit registers; 16-bit code has offsets into its data segment, with and without noise above. */
static void narrow_state(struct diff_state *state, unsigned bits, uint64_t *rng)
{
    for (unsigned i = 0; i < 16; i++) {
        state->gpr[i] = i < 8 ? (uint32_t)state->gpr[i] : 0;
        if (bits == 16 && (i == RSP || chance(rng, 70)))
            state->gpr[i] &= 0xffff;
    }
    state->fs_base = state->gs_base = bits == 16 ? DIFF_DATA : 0;
    if (bits == 16)
        state->rip -= DIFF_CODE;
}

static unsigned random_prefixes(uint8_t *bytes, uint64_t *rng)
{
    unsigned at = 0;
    if (chance(rng, 20))
        bytes[at++] = 0x66;
    if (chance(rng, 5))
        bytes[at++] = chance(rng, 50) ? 0x64 : 0x65;
    if (chance(rng, 3))
        bytes[at++] = 0x67;
    if (chance(rng, 22))
        bytes[at++] = chance(rng, 50) ? 0xf3 : 0xf2;
    if (chance(rng, 4))
        bytes[at++] = 0xf0;
    if (chance(rng, 50))
        bytes[at++] = (uint8_t)(0x40 | below(rng, 16));
    return at;
}

static unsigned random_vex(uint8_t *bytes, uint64_t *rng)
{
    uint8_t vvvv = chance(rng, 40) ? 0x78 : (uint8_t)(below(rng, 16) << 3);
    if (chance(rng, 25)) {
        bytes[0] = 0xc5;
        bytes[1] = (uint8_t)(below(rng, 2) << 7 | vvvv | below(rng, 8));
        return 2;
    }
    bytes[0] = 0xc4;
    bytes[1] = (uint8_t)(below(rng, 8) << 5 | (1 + below(rng, 3)));
    bytes[2] = (uint8_t)(below(rng, 2) << 7 | vvvv | below(rng, 8));
    return 3;
}

static unsigned random_opcode(uint8_t *bytes, uint64_t *rng)
{
    unsigned at = 0, map = below(rng, 20);
    if (map >= 9) {
        bytes[at++] = 0x0f;
        if (map >= 15)
            bytes[at++] = map >= 18 ? 0x3a : 0x38;
    } else if (map == 8) {
        bytes[at++] = (uint8_t)(0xd8 + below(rng, 8)); /* x87 */
        return at;
    }
    bytes[at++] = (uint8_t)diff_random(rng);
    return at;
}

/* Encodings that chance finds too seldom: gathers, vldmxcsr and vstmxcsr, vbroadcasti128. */
static void take_rare_vex(uint8_t bytes[4], uint64_t *rng)
{
    static const struct {
        uint8_t map, opcode, last;
    } rare[] = {{2, 0x90, 0x01}, {2, 0x91, 0x01}, {2, 0x92, 0x01}, {2, 0x93, 0x01}, {1, 0xae, 0x78}, {2, 0x5a, 0x7d}};
    unsigned which = below(rng, sizeof rare / sizeof *rare);
    bool gather = which < 4;
    bytes[1] = (uint8_t)((bytes[1] & 0xe0) | rare[which].map);
    bytes[2] = gather ? (uint8_t)((bytes[2] & 0xfc) | 1) : rare[which].last;
    bytes[3] = rare[which].opcode;
}

static void random_bytes(uint8_t bytes[INSN_MAX_BYTES], uint64_t *rng)
{
    uint64_t tail[2] = {diff_random(rng), diff_random(rng)};
    unsigned at;
    if (chance(rng, 22)) {
        at = random_vex(bytes, rng);
        bytes[at++] = (uint8_t)diff_random(rng);
        if (at == 4 && chance(rng, 5))
            take_rare_vex(bytes, rng);
    } else {
        at = random_prefixes(bytes, rng);
        at += random_opcode(bytes + at, rng);
    }
    memcpy(bytes + at, tail, INSN_MAX_BYTES - at);
    unsigned mod = below(rng, 10);
    uint8_t top = mod < 5 ? 0xc0 : mod < 8 ? 0x80 : mod < 9 ? 0x40 : 0;
    bytes[at] = (uint8_t)((bytes[at] & 0x3f) | top);
}

/* User code may run it on both sides with the same outcome: no host state, no time, no randomness, no escapes. */
static bool mnemonic_allowed(const struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_FNSAVE:  /* show x87 pointers on all CPUs: a unit test has them */
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_SERIALIZE: /* the engine has it whatever the host */
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: return false; /* AC and TF would differ or stop the child */
    case ZYDIS_MNEMONIC_INT: return insn->imm != 0x80;
    default: return true;
    }
}

/* Images that hold x87 pointers: AMD's CPUs keep them for unmasked exceptions only, so that zeros are right elsewhere. */
static bool stores_pointers(const struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: return true;
    default: return false;
    }
}

/* Their mask is in edx:eax; append_state() makes them. */
static bool saves_components(const struct insn *insn)
{
    switch (insn->mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64: return true;
    default: return false;
    }
}

static bool touches_segment_register(const struct insn *insn)
{
    bool mov = insn->mnemonic == ZYDIS_MNEMONIC_MOV && insn->map == 0 && insn->opcode == 0x8e;
    bool pop = insn->mnemonic == ZYDIS_MNEMONIC_POP && insn->kind == INSN_SYSTEM;
    bool far = insn->kind == INSN_SYSTEM && (insn->mnemonic == ZYDIS_MNEMONIC_JMP || insn->mnemonic == ZYDIS_MNEMONIC_CALL ||
                                             insn->mnemonic == ZYDIS_MNEMONIC_RET);
    return mov || pop || far;
}

static bool has_repeat_byte(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->opcode_offset; i++)
        if (insn->bytes[i] == 0xf2 || insn->bytes[i] == 0xf3)
            return true;
    return false;
}

static bool has_gpr_operand(const struct insn *insn)
{
    bool transfer = insn->opcode == 0x6e || insn->opcode == 0x7e || insn->opcode == 0x2a || insn->opcode == 0x22 ||
                    insn->opcode == 0x16;
    return insn->reg_gpr != INSN_NO_REG || insn->rm_gpr != INSN_NO_REG || (transfer && insn->has_mem);
}

static bool allowed(const struct insn *insn)
{
    if (insn->kind == INSN_BRANCH && insn->code_bits == 16 && !insn->branch_relative)
        return false; /* could well hit the code of another case */
    if (insn->kind == INSN_BRANCH && insn->has_osize)
        return false; /* vendors differ */
    if (insn->map == 1 && insn->opcode == 0x0d && !insn->has_mem)
        return false; /* likewise */
    if (insn->vex_length == 3 && insn->code_bits != 64 && (insn->bytes[insn->vex_offset + 2] & 0x80) && has_gpr_operand(insn))
        return false; /* likewise: ignored or #UD */
    if (insn->kind == INSN_BRANCH && insn->opcode >= 0xe0 && insn->opcode <= 0xe1 && has_repeat_byte(insn))
        return false; /* likewise: some CPUs take rep and repne as the condition */
    if (stores_pointers(insn) && !pointers_comparable)
        return false;
    return mnemonic_allowed(insn) && !saves_components(insn) && !touches_segment_register(insn);
}

/* Aims a 32-bit displacement at the data pages, by the registers' initial values. */
static void aim(struct insn *insn, const struct diff_state *state, uint64_t rip, uint64_t *rng)
{
    if (!insn->has_mem || insn->disp_bytes < 2 || insn->mem_bit_string || chance(rng, 5))
        return;
    uint64_t base = insn->mem_rip ? rip + insn->length : 0;
    if (insn->mem_base != INSN_NO_REG)
        base += state->gpr[insn->mem_base];
    if (insn->mem_index != INSN_NO_REG && insn->kind == INSN_PLAIN)
        base += state->gpr[insn->mem_index] * insn->mem_scale;
    if (insn->code_bits == 64 && insn->mem_segment == SEG_FS)
        base += state->fs_base;
    if (insn->code_bits == 64 && insn->mem_segment == SEG_GS)
        base += state->gs_base;
    uint64_t target = data_pointer(rng);
    int64_t disp = (int64_t)((insn->code_bits == 16 ? target - DIFF_DATA : target) - base);
    if (insn->code_bits != 64)
        disp = (int32_t)disp;
    if (insn->disp_bytes == 2)
        store_le16(insn->bytes + insn->disp_offset, (uint16_t)disp);
    else if (insn->disp_bytes == 4 && disp == (int32_t)disp)
        store_le32(insn->bytes + insn->disp_offset, (uint32_t)disp);
}

/* Relative branches go to the next instruction; some skip it once its length is known. */
static void bind_branch(struct insn *insn)
{
    if (insn->branch_relative)
        memset(insn->bytes + insn->imm_offset, 0, insn->imm_bytes);
}

static void append(struct diff_case *c, const uint8_t *bytes, unsigned length, uint16_t mnemonic)
{
    c->start[c->count] = (uint8_t)c->length;
    c->mnemonic[c->count++] = mnemonic;
    memcpy(c->code + c->length, bytes, length);
    c->length += length;
}

/* Strings get pointers and a small count: mov edi, imm; mov esi, imm; mov ecx, imm. */
static void append_string_setup(struct diff_case *c, uint64_t *rng)
{
    static const uint8_t opcodes[3] = {0xbf, 0xbe, 0xb9};
    if (c->count + 4 > DIFF_INSNS)
        return;
    for (unsigned i = 0; i < 3; i++) {
        uint8_t bytes[5] = {opcodes[i]};
        uint32_t count = chance(rng, 5) ? 0 : chance(rng, 10) ? below(rng, 3000) : below(rng, 24);
        store_le32(bytes + 1, i == 2 ? count : (uint32_t)data_pointer(rng));
        append(c, bytes, c->bits == 16 ? 3 : 5, ZYDIS_MNEMONIC_MOV);
    }
}

/* xsave, xsavec, xsaveopt or xrstor of up to the three components, at a place whose header is zero at first:
 * mov eax, mask; xor edx, edx; insn [DIFF_STATE]. */
static void append_state(struct diff_case *c, uint64_t *rng)
{
    static const uint8_t opcodes[4][3] = {{0x0f, 0xae, 0x20}, {0x0f, 0xc7, 0x20}, {0x0f, 0xae, 0x30}, {0x0f, 0xae, 0x28}};
    static const uint16_t mnemonics[4] = {ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVEC, ZYDIS_MNEMONIC_XSAVEOPT,
                                          ZYDIS_MNEMONIC_XRSTOR};
    if (c->count + 3 > DIFF_INSNS || !pointers_comparable || c->bits == 16)
        return;
    uint8_t bytes[16] = {0xb8, (uint8_t)below(rng, 8)};
    unsigned which = below(rng, 4), wide = c->bits == 64;
    append(c, bytes, 5, ZYDIS_MNEMONIC_MOV);
    append(c, (const uint8_t[]){0x31, 0xd2}, 2, ZYDIS_MNEMONIC_XOR);
    unsigned at = 0;
    if (wide && chance(rng, 50))
        bytes[at++] = 0x48;
    memcpy(bytes + at, opcodes[which], 3);
    bytes[at + 2] |= wide ? 4 : 5; /* [disp32], by SIB in 64-bit code */
    at += 3;
    if (wide)
        bytes[at++] = 0x25;
    store_le32(bytes + at, (uint32_t)DIFF_STATE + (chance(rng, 3) ? below(rng, 5000) : 0));
    append(c, bytes, at + 4, mnemonics[which]);
}

static bool next_insn(struct insn *insn, unsigned bits, uint64_t *rng)
{
    uint8_t bytes[INSN_MAX_BYTES];
    random_bytes(bytes, rng);
    enum insn_status status = insn_decode(bytes, INSN_MAX_BYTES, bits, insn);
    if (status == INSN_OK)
        return allowed(insn);
    bool undefined = insn->mnemonic == ZYDIS_MNEMONIC_UD1 || insn->mnemonic == ZYDIS_MNEMONIC_UD0;
    return undefined && insn->length && chance(rng, 5);
}

/* With EFLAGS.AC set: one instruction that accesses memory, after which AC is cleared. Nothing else is to happen with it: some
 * kernels, those of paravirtual guests, run into alignment checks of their own then. */
static void append_alignment_end(struct diff_case *c)
{
    append(c, (const uint8_t[]){0x9c}, 1, ZYDIS_MNEMONIC_PUSHFQ);
    append(c, (const uint8_t[]){0x81, 0x24, 0x24, 0xff, 0xff, 0xfb, 0xff}, 7, ZYDIS_MNEMONIC_AND);
    append(c, (const uint8_t[]){0x9d}, 1, ZYDIS_MNEMONIC_POPFQ);
}

static bool accesses_memory(const struct insn *insn)
{
    return (insn->has_mem && !insn->mem_is_agen && insn->kind != INSN_BRANCH) || insn->kind == INSN_STRING;
}

void diff_generate_aligned(struct diff_case *c, uint64_t seed, unsigned slot)
{
    uint64_t rng = seed;
    memset(c, 0, sizeof *c);
    c->seed = seed;
    c->bits = 64;
    generate_state(&c->state, &rng, slot);
    c->state.rflags |= FLAG_AC;
    c->state.gpr[RSP] = DIFF_DATA + DIFF_PAGE - 64;
    store_le16(c->state.xsave + 2, load_le16(c->state.xsave + 2) & 0x7f00); /* no x87 exception is pending */
    store_le16(c->state.xsave, 0x37f);
    store_le32(c->state.xsave + 24, 0x1f80);
    struct insn insn;
    do {
        while (!next_insn(&insn, 64, &rng) || insn.kind == INSN_ILLEGAL)
            ;
    } while (!accesses_memory(&insn) || ((insn.gpr_read | insn.gpr_write) >> RSP & 1));
    if (insn.kind == INSN_STRING)
        append_string_setup(c, &rng);
    aim(&insn, &c->state, c->state.rip + c->length, &rng);
    append(c, insn.bytes, insn.length, insn.mnemonic);
    append_alignment_end(c);
    c->code[c->length] = 0x0f;
    c->code[c->length + 1] = 0x0b;
}

void diff_generate(struct diff_case *c, uint64_t seed, unsigned slot, unsigned bits)
{
    uint64_t rng = seed;
    memset(c, 0, sizeof *c);
    c->seed = seed;
    c->bits = bits;
    generate_state(&c->state, &rng, slot);
    if (bits != 64)
        narrow_state(&c->state, bits, &rng);
    unsigned wanted = 1 + below(&rng, 4), skip_from = 0, skip_end = 0;
    for (unsigned tries = 0; c->count < wanted && tries < 1000; tries++) {
        struct insn insn;
        if (chance(&rng, 3) && !skip_from)
            append_state(c, &rng);
        if (c->count == DIFF_INSNS || !next_insn(&insn, bits, &rng))
            continue;
        if (insn.kind == INSN_STRING && chance(&rng, 90))
            append_string_setup(c, &rng);
        aim(&insn, &c->state, c->state.rip + c->length, &rng);
        bind_branch(&insn);
        append(c, insn.bytes, insn.length, insn.mnemonic);
        if (skip_from)
            c->code[skip_from] = (uint8_t)(c->length - skip_end); /* the branch before skips this one */
        skip_from = insn.branch_relative && c->count < wanted && chance(&rng, 50) ? c->start[c->count - 1] + insn.imm_offset : 0;
        skip_end = c->length;
        if (c->count == DIFF_INSNS)
            break;
    }
    if (skip_from)
        c->code[skip_from] = 0;
    c->code[c->length] = 0x0f;
    c->code[c->length + 1] = 0x0b;
}
