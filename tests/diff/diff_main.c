/* Compares the engine with the bare CPU over generated cases and reports differences and coverage. See diff.h.
 *     jit_diff [--runner interp|jit] [--bits 64|32|16] [--aligned] [--cases N] [--seed S] [--failures N] [--coverage]
 *              [--jit-opt no-NAME,...]
 * A difference prints the seed of its case; --seed with --cases 1 runs just that one. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/bytes.h"
#include "cpu/jit/translate.h"
#include "cpu/x86.h"
#include "diff.h"

#include <Zydis/Zydis.h>

#define FLAGS_COMPARED (FLAGS_ARITHMETIC | FLAG_DF | FLAG_AC | FLAG_NT)
#define IMAGE_MXCSR 24
#define IMAGE_BV 512

struct options {
    const struct diff_runner *runner;
    uint64_t cases, seed;
    unsigned failures, bits;
    bool coverage, aligned;
    const char *jit_opt;
};

static uint64_t covered[ZYDIS_MNEMONIC_MAX_VALUE + 1], vectors[256], dead;

/* XSTATE_BV says which components are initial whatever the image holds. */
static void normalise(uint8_t *xsave)
{
    uint64_t in_use = load_le64(xsave + IMAGE_BV);
    if (!(in_use & XCR0_X87)) {
        memset(xsave, 0, IMAGE_MXCSR);
        memset(xsave + 32, 0, 128);
        store_le16(xsave, 0x37f);
    }
    if (!(in_use & XCR0_SSE))
        memset(xsave + 160, 0, 256);
    if (!(in_use & XCR0_AVX))
        memset(xsave + 576, 0, 256);
    memset(xsave + 6, 0, IMAGE_MXCSR - 6); /* last opcode, instruction and data pointers */
    memset(xsave + 28, 0, 4);
    for (unsigned i = 0; i < 8; i++)
        memset(xsave + 42 + 16 * i, 0, 6);
}

static bool differs(bool different, const char *what, unsigned index, uint64_t ours, uint64_t cpu, bool print)
{
    if (different && print)
        printf("  %s%d: engine %016lx, CPU %016lx\n", what, (int)index, ours, cpu);
    return different;
}

/* `wide`: registers 8-15 too. */
static bool compare_vectors(struct diff_result *ours, struct diff_result *cpu, bool wide, bool print)
{
    bool different = false;
    uint8_t *a = ours->state.xsave, *b = cpu->state.xsave;
    normalise(a);
    normalise(b);
    different |= differs(load_le16(a) != load_le16(b), "fcw", 0, load_le16(a), load_le16(b), print);
    different |= differs(load_le16(a + 2) != load_le16(b + 2), "fsw", 0, load_le16(a + 2), load_le16(b + 2), print);
    different |= differs(a[4] != b[4], "ftw", 0, a[4], b[4], print);
    different |= differs(load_le32(a + 24) != load_le32(b + 24), "mxcsr", 0, load_le32(a + 24), load_le32(b + 24), print);
    for (unsigned at = 32; at < 160; at += 8)
        different |= differs(load_le64(a + at) != load_le64(b + at), "st, half ", (at - 32) / 8, load_le64(a + at),
                             load_le64(b + at), print);
    for (unsigned at = 160; at < (wide ? 416 : 288); at += 8)
        different |= differs(load_le64(a + at) != load_le64(b + at), "xmm, half ", (at - 160) / 8, load_le64(a + at),
                             load_le64(b + at), print);
    for (unsigned at = 576; at < (wide ? 832 : 704); at += 8)
        different |= differs(load_le64(a + at) != load_le64(b + at), "ymm high, half ", (at - 576) / 8,
                             load_le64(a + at), load_le64(b + at), print);
    return different;
}

/* The kernel shows a present page for faults at its own addresses, whatever is there. */
static bool error_differs(const struct diff_result *ours, const struct diff_result *cpu)
{
    bool kernel = cpu->vector == VEC_PF && (ours->cr2 >> 63 || cpu->cr2 >> 63);
    return (ours->error ^ cpu->error) & ~(kernel ? PF_PRESENT : 0);
}

/* Instructions that the CPU runs as several accesses, in an order of its own: the address of a fault is not compared. */
static bool has_exact_address(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return false;
    default: return true;
    }
}

static unsigned mnemonic_at(const struct diff_case *c, uint64_t rip)
{
    for (unsigned i = 0; i < c->count; i++)
        if (c->state.rip + c->start[i] == rip)
            return c->mnemonic[i];
    return 0;
}

static bool is_memory_fault(const struct diff_result *result)
{
    return result->vector == VEC_PF || result->vector == VEC_GP || result->vector == VEC_AC;
}

/* Which of its two operands faults first differs between CPUs. */
static bool is_compare_of_strings(unsigned mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_CMPSB || mnemonic == ZYDIS_MNEMONIC_CMPSW || mnemonic == ZYDIS_MNEMONIC_CMPSD ||
           mnemonic == ZYDIS_MNEMONIC_CMPSQ;
}

static bool compare_fault(const struct diff_case *c, const struct diff_result *ours, const struct diff_result *cpu, bool print)
{
    unsigned mnemonic = mnemonic_at(c, cpu->state.rip);
    if (ours->state.rip == cpu->state.rip && is_compare_of_strings(mnemonic) && is_memory_fault(ours) && is_memory_fault(cpu))
        return false;
    uint64_t mask = has_exact_address(mnemonic) ? UINT64_MAX : 0;
    bool different = differs(ours->vector != cpu->vector, "vector", 0, ours->vector, cpu->vector, print);
    different |= differs(ours->state.rip != cpu->state.rip, "rip", 0, ours->state.rip, cpu->state.rip, print);
    if (ours->vector == VEC_PF && cpu->vector == VEC_PF)
        different |= differs((ours->cr2 & mask) != (cpu->cr2 & mask), "cr2 ", 0, ours->cr2, cpu->cr2, print);
    if (ours->vector == VEC_PF || ours->vector == VEC_GP)
        different |= differs(error_differs(ours, cpu), "error", 0, ours->error, cpu->error, print);
    return different;
}

/* The place where cases save state: x87 pointers, and what XSTATE_BV says is initial, may differ. Equal images are made the same. */
static void forgive_state(struct diff_result *ours, struct diff_result *cpu, bool wide)
{
    uint64_t at = DIFF_STATE - DIFF_DATA;
    uint8_t *a = ours->data[at / DIFF_PAGE], *b = cpu->data[at / DIFF_PAGE], copies[2][DIFF_XSAVE];
    memcpy(copies[0], a, DIFF_XSAVE);
    memcpy(copies[1], b, DIFF_XSAVE);
    normalise(copies[0]);
    normalise(copies[1]);
    for (unsigned i = 0; i < 2; i++) {
        bool compact = copies[i][IMAGE_BV + 15] & 0x80;
        if (compact && !(copies[i][IMAGE_BV] & XCR0_SSE))
            store_le32(copies[i] + IMAGE_MXCSR, 0x1f80);
        memset(copies[i] + IMAGE_BV, 0, 8);
        memset(copies[i] + 288, 0, wide ? 0 : 128); /* registers 8-15 */
        memset(copies[i] + 704, 0, wide ? 0 : 128);
    }
    if (!memcmp(copies[0], copies[1], DIFF_XSAVE))
        memcpy(a, b, DIFF_XSAVE);
}

static bool compare_memory(const struct diff_result *ours, const struct diff_result *cpu, bool print)
{
    bool different = false;
    for (unsigned page = 0; page < DIFF_DATA_PAGES; page++) {
        if (diff_pages[page] == DIFF_HOLE || !memcmp(ours->data[page], cpu->data[page], DIFF_PAGE))
            continue;
        different = true;
        for (unsigned at = 0, shown = 0; at < DIFF_PAGE && shown < 4; at += 8)
            shown += differs(load_le64(ours->data[page] + at) != load_le64(cpu->data[page] + at), "memory ",
                             page * DIFF_PAGE + at, load_le64(ours->data[page] + at), load_le64(cpu->data[page] + at), print);
    }
    return different;
}

/* What may differ in the flags of a translator (diff_runner.loose_flags). */
struct loose {
    uint64_t flags;
    bool everything; /* an instruction read an undefined flag */
};

/* Flags that an instruction leaves undefined stay so until one writes them. A branch may have skipped that one. */
static struct loose find_undefined(const struct diff_case *c, uint64_t end)
{
    struct loose loose = {0};
    bool branched = false;
    for (unsigned i = 0; i < c->count && c->start[i] < end; i++) {
        struct insn insn;
        insn_decode(c->code + c->start[i], INSN_MAX_BYTES, c->bits, &insn);
        loose.everything |= loose.flags & insn.flags_read & (uint16_t)~insn.flags_undefined;
        loose.everything |= insn.kind == INSN_STACK && loose.flags && insn.flags_read;
        if (!branched)
            loose.flags &= ~(uint64_t)insn.flags_write;
        loose.flags |= insn.flags_undefined;
        branched |= insn.kind == INSN_BRANCH;
    }
    return loose;
}

/* Flags that code from `rip` on reads before it is overwritten, on any path; branches go forward only. */
static uint64_t live_at(const struct diff_case *c, uint64_t rip)
{
    unsigned i = 0;
    while (i < c->count && c->state.rip + c->start[i] != rip)
        i++;
    struct insn insn;
    if (i == c->count || insn_decode(c->code + c->start[i], INSN_MAX_BYTES, c->bits, &insn) != INSN_OK)
        return FLAGS_ARITHMETIC;
    uint64_t next = rip + insn.length, after = 0;
    bool direct = insn.map == 0 && (insn.opcode == 0xe8 || insn.opcode == 0xe9 || insn.opcode == 0xeb);
    if (insn.kind == INSN_BRANCH && !insn.branch_relative)
        return FLAGS_ARITHMETIC;
    if (insn.kind == INSN_BRANCH)
        after = live_at(c, next + (uint64_t)insn.imm);
    if (insn.kind != INSN_BRANCH || !direct)
        after |= live_at(c, next);
    return liveness_reads(&insn) | (after & ~(uint64_t)liveness_kills(&insn));
}

static struct loose find_loose(const struct diff_case *c, const struct diff_result *cpu)
{
    struct loose loose = find_undefined(c, cpu->state.rip - c->state.rip);
    loose.flags |= FLAGS_ARITHMETIC & ~live_at(c, cpu->state.rip);
    return loose;
}

/* An operand of several accesses that passes the segment limit: whether that or the first page faults first is the CPU's affair. */
static bool is_wrap(const struct diff_case *c, const struct diff_result *cpu)
{
    uint64_t limit = c->bits == 32 ? UINT32_MAX : DIFF_DATA + UINT16_MAX;
    return c->bits != 64 && cpu->vector == VEC_PF && cpu->cr2 >= limit - 512 && cpu->cr2 <= limit;
}

/* Returns of the kernel to a 16-bit stack spoil the upper half of esp. */
static uint64_t gpr_mask(const struct diff_case *c, unsigned gpr)
{
    return c->bits == 64 ? UINT64_MAX : c->bits == 16 && gpr == RSP ? UINT16_MAX : UINT32_MAX;
}

/* int with a vector that the architecture reserves: paravirtual host kernels have hypercalls there. */
static bool is_host_call(const struct diff_case *c, uint64_t rip)
{
    struct insn insn;
    for (unsigned i = 0; i < c->count; i++)
        if (c->state.rip + c->start[i] == rip && c->mnemonic[i] == ZYDIS_MNEMONIC_INT)
            return insn_decode(c->code + c->start[i], INSN_MAX_BYTES, c->bits, &insn) == INSN_OK && (insn.imm & 0xff) >= 22 &&
                   (insn.imm & 0xff) < 32;
    return false;
}

static bool compare(const struct diff_case *c, struct diff_result *ours, struct diff_result *cpu, bool loose_flags, bool print)
{
    struct loose loose = {0};
    if (loose_flags)
        loose = find_loose(c, cpu);
    if (is_wrap(c, cpu) || is_host_call(c, ours->state.rip) || loose.everything)
        return false;
    bool different = compare_fault(c, ours, cpu, print);
    unsigned at = cpu->vector == VEC_PF ? mnemonic_at(c, cpu->state.rip) : 0;
    bool partial = at == ZYDIS_MNEMONIC_POPA || at == ZYDIS_MNEMONIC_POPAD; /* some CPUs keep what they popped */
    for (unsigned i = 0; !partial && i < (c->bits == 64 ? 16 : 8); i++)
        different |= differs((ours->state.gpr[i] ^ cpu->state.gpr[i]) & gpr_mask(c, i), "gpr", i, ours->state.gpr[i],
                             cpu->state.gpr[i], print);
    uint64_t compared = FLAGS_COMPARED & ~loose.flags;
    uint64_t a = ours->state.rflags & compared, b = cpu->state.rflags & compared;
    different |= differs(a != b, "rflags", 0, a, b, print);
    different |= differs(ours->state.fs_base != cpu->state.fs_base, "fs base", 0, ours->state.fs_base, cpu->state.fs_base, print);
    different |= differs(ours->state.gs_base != cpu->state.gs_base, "gs base", 0, ours->state.gs_base, cpu->state.gs_base, print);
    different |= compare_vectors(ours, cpu, c->bits == 64, print);
    forgive_state(ours, cpu, c->bits == 64);
    different |= compare_memory(ours, cpu, print);
    return different;
}

static void print_code(const struct diff_case *c)
{
    ZydisDisassembledInstruction insn;
    for (unsigned at = 0; at < c->length; at += insn.info.length) {
        ZydisMachineMode mode = c->bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
                                : c->bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                                : ZYDIS_MACHINE_MODE_LEGACY_16;
        if (!ZYAN_SUCCESS(ZydisDisassembleIntel(mode, c->state.rip + at, c->code + at, c->length - at, &insn)))
            insn.info.length = 1;
        printf("    %lx:", c->state.rip + at);
        for (unsigned i = 0; i < insn.info.length; i++)
            printf(" %02x", c->code[at + i]);
        printf("  %s\n", insn.text);
    }
}

static void report(const struct diff_case *c, struct diff_result *ours, struct diff_result *cpu, bool loose_flags)
{
    printf("DIFFERENT seed %lu: engine vector %u at +%ld, CPU vector %u at +%ld\n", c->seed, ours->vector,
           (long)(ours->state.rip - c->state.rip), cpu->vector, (long)(cpu->state.rip - c->state.rip));
    if (cpu->vector == VEC_PF || ours->vector == VEC_PF)
        printf("  engine cr2 %lx error %x, CPU cr2 %lx error %x\n", ours->cr2, ours->error, cpu->cr2, cpu->error);
    print_code(c);
    compare(c, ours, cpu, loose_flags, true);
    for (unsigned i = 0; i < 16; i++)
        printf("  in %u: %016lx%s", i, c->state.gpr[i], i % 4 == 3 ? "\n" : "");
    printf("  in rflags %lx fs %lx gs %lx mxcsr %x fcw %x fsw %x\n", c->state.rflags, c->state.fs_base, c->state.gs_base,
           load_le32(c->state.xsave + 24), load_le16(c->state.xsave), load_le16(c->state.xsave + 2));
}

/* Counts the instructions that retired, by where the sequence ended. */
static void count_coverage(const struct diff_case *c, const struct diff_result *cpu)
{
    uint64_t end = cpu->state.rip - c->state.rip;
    for (unsigned i = 0; i < c->count; i++)
        if (c->start[i] < end)
            covered[c->mnemonic[i]]++;
    vectors[cpu->vector & 0xff]++;
}

static void print_coverage(bool all)
{
    unsigned mnemonics = 0;
    for (unsigned i = 1; i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        mnemonics += covered[i] != 0;
    printf("coverage: %u mnemonics retired; ends by vector:", mnemonics);
    for (unsigned i = 0; i < 256; i++)
        if (vectors[i])
            printf(" %u:%lu", i, vectors[i]);
    printf("\n");
    for (unsigned i = 1; all && i <= ZYDIS_MNEMONIC_MAX_VALUE; i++)
        if (covered[i])
            printf("%s %lu\n", ZydisMnemonicGetString((ZydisMnemonic)i), covered[i]);
}

static void generate_batch(const struct options *options, struct diff_batch *batch, uint64_t first, unsigned count)
{
    batch->count = count;
    diff_generate_data(batch->data, 0); /* the same for all, so that a seed says everything */
    for (unsigned i = 0; i < count; i++) {
        unsigned slot = (unsigned)((first + i) % DIFF_BATCH);
        if (options->aligned)
            diff_generate_aligned(&batch->cases[i], first + i, slot);
        else
            diff_generate(&batch->cases[i], first + i, slot, options->bits);
    }
}

/* Some virtual hosts now and then give user code an exception out of nothing: what differs is asked again. */
static bool differs_again(const struct options *options, struct diff_native *native, struct diff_batch *batch, unsigned i,
                          struct diff_result *ours)
{
    unsigned at;
    if (diff_native_run(native, &at) < 0 || compare(&batch->cases[i], ours, &batch->results[i], options->runner->loose_flags, false))
        return true;
    printf("seed %lu: the CPU took its first answer back\n", batch->cases[i].seed);
    return false;
}

static unsigned run_batch(const struct options *options, struct diff_native *native, struct diff_batch *batch)
{
    static struct diff_result ours;
    unsigned failures = 0;
    bool loose = options->runner->loose_flags;
    options->runner->load(batch);
    for (unsigned i = 0; i < batch->count; i++) {
        options->runner->run(batch, i, &ours);
        count_coverage(&batch->cases[i], &batch->results[i]);
        if (!compare(&batch->cases[i], &ours, &batch->results[i], loose, false) ||
            !differs_again(options, native, batch, i, &ours))
            continue;
        report(&batch->cases[i], &ours, &batch->results[i], loose);
        failures++;
    }
    return failures;
}

/* Some kernels run 64-bit code only: a lone ud2 tells. */
static bool cpu_runs(const struct options *options, struct diff_native *native, struct diff_batch *batch)
{
    unsigned at;
    generate_batch(options, batch, 0, 1);
    batch->cases[0].state.rflags &= ~(uint64_t)FLAG_AC;
    batch->cases[0].count = batch->cases[0].length = 0;
    memcpy(batch->cases[0].code, "\x0f\x0b", 2);
    return diff_native_run(native, &at) == 0 && batch->results[0].vector == VEC_UD;
}

static int run_all(const struct options *options)
{
    struct diff_batch *batch = mmap(NULL, sizeof *batch, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct diff_native *native = batch == MAP_FAILED ? NULL : diff_native_start(batch);
    unsigned failures = 0;
    uint64_t done = 0;
    diff_generate_init();
    if (!native || options->runner->create(options->runner, options->jit_opt))
        return 2;
    if (!cpu_runs(options, native, batch)) {
        printf("SKIP: this host's kernel runs no %u-bit code\n", options->bits);
        diff_native_stop(native);
        return 77;
    }
    while (done < options->cases && failures < options->failures) {
        unsigned count = options->cases - done < DIFF_BATCH ? (unsigned)(options->cases - done) : DIFF_BATCH, at;
        generate_batch(options, batch, options->seed + done, count);
        done += count;
        if (diff_native_run(native, &at) < 0) {
            printf("the child died in seed %lu:\n", batch->cases[at].seed);
            print_code(&batch->cases[at]);
            dead++;
            continue;
        }
        failures += run_batch(options, native, batch);
    }
    diff_native_stop(native);
    printf("%s%s%s: %lu cases from seed %lu, %u different, %lu batches lost\n", options->runner->name,
           options->jit_opt ? " " : "", options->jit_opt ? options->jit_opt : "", done, options->seed, failures, dead);
    print_coverage(options->coverage);
    return failures || dead ? 1 : 0;
}

static bool parse_options(int argc, char **argv, struct options *options)
{
    static const struct option names[] = {{"runner", 1, NULL, 'r'},   {"cases", 1, NULL, 'n'},
                                          {"seed", 1, NULL, 's'},     {"bits", 1, NULL, 'b'},       {"failures", 1, NULL, 'f'},
                                          {"coverage", 0, NULL, 'c'}, {"aligned", 0, NULL, 'a'},   {"jit-opt", 1, NULL, 'o'},
                                          {0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'r': options->runner = strcmp(optarg, "jit") ? &diff_runner_interp : &diff_runner_jit; break;
        case 'n': options->cases = strtoull(optarg, NULL, 0); break;
        case 's': options->seed = strtoull(optarg, NULL, 0); break;
        case 'f': options->failures = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'b': options->bits = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'c': options->coverage = true; break;
        case 'a': options->aligned = true; break;
        case 'o': options->jit_opt = optarg; break;
        default: return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options options = {.runner = &diff_runner_interp, .cases = 20000, .failures = 20, .bits = 64,
                              .seed = (uint64_t)time(NULL) << 20};
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!parse_options(argc, argv, &options)) {
        fprintf(stderr, "usage: jit_diff [--runner interp|jit] [--bits 64|32|16] [--aligned] [--cases N] [--seed S] [--failures N] "
                        "[--coverage] [--jit-opt no-NAME,...]\n");
        return 2;
    }
    return run_all(&options);
}
