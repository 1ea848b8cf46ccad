/* Floating point and vector state: saved and restored by every instruction there is for it, and untouched by interrupts,
 * exceptions, port and memory-mapped I/O, halts and CPUID. */
#include "lib/guest.h"

#define CR4_OSXSAVE (1ul << 18)

static bool has_avx;
static uint8_t area[4096] __attribute__((aligned(64)));
struct vectors {
    uint8_t ymm[16][32] __attribute__((aligned(32)));
};

static uint8_t pattern(unsigned reg, unsigned byte, unsigned seed)
{
    return (uint8_t)(reg * 37 + byte * 11 + seed * 101 + 1);
}

static void fill(struct vectors *v, unsigned seed)
{
    for (unsigned r = 0; r < 16; r++)
        for (unsigned b = 0; b < 32; b++)
            v->ymm[r][b] = pattern(r, b, seed);
}

#define EACH(op)                                                                                             \
    op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD_X(n) "movaps 32*" #n "(%0), %%xmm" #n "\n"
#define STORE_X(n) "movaps %%xmm" #n ", 32*" #n "(%0)\n"
#define LOAD_Y(n) "vmovaps 32*" #n "(%0), %%ymm" #n "\n"
#define STORE_Y(n) "vmovaps %%ymm" #n ", 32*" #n "(%0)\n"

static void load(const struct vectors *v)
{
    if (has_avx)
        __asm__ volatile(EACH(LOAD_Y) : : "r"(v) : "memory");
    else
        __asm__ volatile(EACH(LOAD_X) : : "r"(v) : "memory");
}

static void store(struct vectors *v)
{
    if (has_avx)
        __asm__ volatile(EACH(STORE_Y) : : "r"(v) : "memory");
    else
        __asm__ volatile(EACH(STORE_X) : : "r"(v) : "memory");
}

static bool same(unsigned seed, unsigned bytes)
{
    static struct vectors now;
    store(&now);
    for (unsigned r = 0; r < 16; r++)
        for (unsigned b = 0; b < bytes; b++)
            if (now.ymm[r][b] != pattern(r, b, seed))
                return false;
    return true;
}

static void put(unsigned seed)
{
    static struct vectors v;
    fill(&v, seed);
    load(&v);
}

static unsigned width(void)
{
    return has_avx ? 32 : 16;
}

static void set_up_xsave(void)
{
    if (!(cpuid(1, 0).ecx & 1u << 26))
        return;
    check_trap(TRAP(__asm__ volatile("xgetbv" : : "c"(0) : "rax", "rdx")), UD, 0, "xgetbv without OSXSAVE");
    write_cr4(read_cr4() | CR4_OSXSAVE);
    check(cpuid(1, 0).ecx & 1u << 27, "CPUID shows OSXSAVE");
    has_avx = cpuid(1, 0).ecx & 1u << 28;
    uint32_t low = has_avx ? 7 : 3, got;
    __asm__ volatile("xsetbv" : : "a"(low), "d"(0), "c"(0));
    __asm__ volatile("xgetbv" : "=a"(got) : "c"(0) : "rdx");
    check_equal(got, low, "XCR0");
    check_equal(cpuid(0xd, 0).ebx, has_avx ? 832 : 576, "size of the save area");
    check_trap(TRAP(__asm__ volatile("xsetbv" : : "a"(2), "d"(0), "c"(0))), GP, 0, "XCR0 without x87");
    check_trap(TRAP(__asm__ volatile("xsetbv" : : "a"(5), "d"(0), "c"(0))), GP, 0, "AVX without SSE");
    check_trap(TRAP(__asm__ volatile("xsetbv" : : "a"(3), "d"(0x40000000), "c"(0))), GP, 0, "XCR0 bit 62");
    check_trap(TRAP(__asm__ volatile("xsetbv" : : "a"(3), "d"(0), "c"(1))), GP, 0, "XCR1");
}

static bool on_tick(struct trap_frame *frame)
{
    (void)frame;
    apic_eoi();
    return true;
}

static bool skip_ud2(struct trap_frame *frame)
{
    frame->rip += 2;
    return true;
}

static void user_nothing(void *arg)
{
    (void)arg;
    LEAVE_USER();
}

static void test_untouched(void)
{
    put(1);
    outb(0x80, 1);
    inb(0x64);
    check(same(1, width()), "vectors after port I/O");
    put(2);
    (void)*(volatile uint32_t *)0xfec00000;
    *(volatile uint32_t *)0xfec00000 = 0;
    check(same(2, width()), "vectors after memory-mapped I/O");
    put(3);
    trap_handlers[UD] = skip_ud2;
    __asm__ volatile("ud2");
    trap_handlers[UD] = NULL;
    check(same(3, width()), "vectors after an exception");
    put(4);
    cpuid(0, 0);
    rdmsr(0x1b);
    wrmsr(0x277, rdmsr(0x277));
    write_cr3(read_cr3());
    check(same(4, width()), "vectors after system instructions");
    put(5);
    run_user(user_nothing, NULL);
    check(same(5, width()), "vectors after user mode");
    put(6);
    trap_handlers[0x60] = on_tick;
    apic_enable();
    wrmsr(APIC_TIMER_DIVIDE, 0xb);
    wrmsr(APIC_LVT_TIMER, 0x60);
    for (unsigned i = 0; i < 10; i++) {
        wrmsr(APIC_TIMER_INITIAL, 200000);
        halt();
    }
    check(same(6, width()), "vectors after interrupts and halts");
    put(7);
    print("text while vectors are live\n");
    check(same(7, width()), "vectors after output");
}

static void test_fxsave(void)
{
    uint16_t control = 0x027f, got;
    uint32_t mxcsr = 0x9fc0, got_mxcsr;
    double value = 0;
    put(8);
    __asm__ volatile("fninit; fldcw %0; fldpi; ldmxcsr %1; fxsave64 (%2)" : : "m"(control), "m"(mxcsr), "r"(area) : "memory");
    check_equal(*(uint16_t *)area, 0x027f, "control word in the image");
    check_equal(*(uint32_t *)(area + 24), 0x9fc0, "MXCSR in the image");
    check(area[160 + 16] == pattern(1, 0, 8), "xmm1 in the image");
    uint32_t standard = 0x1f80;
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(standard));
    put(9);
    __asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory");
    check(same(8, 16), "xmm after fxrstor");
    __asm__ volatile("fnstcw %0; stmxcsr %1; fstpl %2" : "=m"(got), "=m"(got_mxcsr), "=m"(value));
    check_equal(got, 0x027f, "control word after fxrstor");
    check_equal(got_mxcsr, 0x9fc0, "MXCSR after fxrstor");
    uint64_t bits;
    memcpy(&bits, &value, 8);
    check_equal(bits, 0x400921fb54442d18, "pi on the x87 stack");
    __asm__ volatile("ldmxcsr %0; fninit" : : "m"(standard));
    check_trap(TRAP(__asm__ volatile("fxsave64 8(%0)" : : "r"(area) : "memory")), GP, 0, "misaligned fxsave");
    *(uint32_t *)(area + 24) = 0xffff0000;
    check_trap(TRAP(__asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory")), GP, 0, "fxrstor of a bad MXCSR");
}

static void test_xsave(void)
{
    if (!(cpuid(1, 0).ecx & 1u << 26)) {
        skip("no XSAVE");
        return;
    }
    uint32_t all = has_avx ? 7 : 3;
    memset(area, 0, sizeof area);
    put(10);
    __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory");
    check_equal(*(uint64_t *)(area + 512) & 6, all & 6, "XSTATE_BV");
    if (has_avx)
        check(area[576 + 16 * 5] == pattern(5, 16, 10), "upper half of ymm5 in the image");
    put(11);
    __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory");
    check(same(10, width()), "vectors after xrstor");
    put(12);
    __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(2), "d"(0) : "memory");
    check(same(10, 16), "xmm after xrstor of SSE alone");
    if (has_avx) {
        put(13);
        *(uint64_t *)(area + 512) &= ~4ul;
        __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory");
        static struct vectors now;
        store(&now);
        check(now.ymm[3][31] == 0 && now.ymm[3][0] == pattern(3, 0, 10), "AVX in its initial state after xrstor");
    }
    *(uint64_t *)(area + 512) = 1ul << 62;
    check_trap(TRAP(__asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory")), GP, 0,
               "xrstor of unknown components");
    check_trap(TRAP(__asm__ volatile("xsave64 16(%0)" : : "r"(area), "a"(all), "d"(0) : "memory")), GP, 0, "misaligned xsave");
    memset(area, 0, sizeof area);
    if (cpuid(0xd, 1).eax & 1) {
        put(14);
        __asm__ volatile("xsaveopt64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory");
        put(15);
        __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(all), "d"(0) : "memory");
        check(same(14, width()), "vectors after xsaveopt and xrstor");
    }
}

/* A task switch by TS: the first vector instruction traps, and the handler brings the right state back. */
static bool restore_lazily(struct trap_frame *frame)
{
    (void)frame;
    __asm__ volatile("clts");
    __asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory");
    return true;
}

static void test_lazy(void)
{
    put(16);
    __asm__ volatile("fxsave64 (%0)" : : "r"(area) : "memory");
    put(17);
    trap_handlers[NM] = restore_lazily;
    write_cr0(read_cr0() | 8);
    check(same(16, 16), "state brought back by #NM");
    check(!(read_cr0() & 8), "TS after the handler");
    trap_handlers[NM] = NULL;
}

static void vectors_on_cpu(void *arg)
{
    (void)arg;
    static struct vectors mine, back;
    fill(&mine, 99);
    __asm__ volatile(EACH(LOAD_X) : : "r"(&mine) : "memory");
    delay_us(2000);
    __asm__ volatile(EACH(STORE_X) : : "r"(&back) : "memory");
    bool good = true;
    for (unsigned r = 0; r < 16; r++)
        good &= !memcmp(mine.ymm[r], back.ymm[r], 16);
    check(good, "vectors on the other CPU");
}

/* One instruction of each extension that CPUID can show: it runs when it is shown, and else raises #UD at most. */
#define EXTENSION(name, text)                                                                                \
    static void name(void *arg)                                                                              \
    {                                                                                                        \
        __asm__ volatile(text : : "b"(arg) : "rax", "rcx", "rdx", "memory", "cc");                           \
    }
EXTENSION(use_ssse3, "pabsb %%xmm0, %%xmm0")
EXTENSION(use_sse42, "crc32b %%al, %%ecx")
EXTENSION(use_popcnt, "popcnt %%eax, %%ecx")
EXTENSION(use_movbe, "movbe (%%rbx), %%ecx")
EXTENSION(use_aes, "aesenc (%%rbx), %%xmm0")
EXTENSION(use_pclmul, "pclmulqdq $0, (%%rbx), %%xmm0")
EXTENSION(use_rdrand, "rdrand %%eax")
EXTENSION(use_fma, "vfmadd132ps (%%rbx), %%ymm1, %%ymm0")
EXTENSION(use_f16c, "vcvtph2ps (%%rbx), %%ymm0")
EXTENSION(use_bmi1, "andn (%%rbx), %%rax, %%rcx")
EXTENSION(use_avx2, "vpaddd (%%rbx), %%ymm1, %%ymm0")
EXTENSION(use_bmi2, "pdep (%%rbx), %%rax, %%rcx")
EXTENSION(use_rdseed, "rdseed %%eax")
EXTENSION(use_adx, "adcx (%%rbx), %%rax; adox (%%rbx), %%rax")
EXTENSION(use_clflushopt, "clflushopt (%%rbx)")
EXTENSION(use_clwb, "clwb (%%rbx)")
EXTENSION(use_sha, "sha256rnds2 %%xmm0, (%%rbx), %%xmm1; sha1msg1 (%%rbx), %%xmm0")
EXTENSION(use_gfni, "gf2p8mulb (%%rbx), %%xmm0; gf2p8affineqb $1, %%xmm1, %%xmm0")
EXTENSION(use_gfni_avx, "vgf2p8mulb (%%rbx), %%ymm1, %%ymm0; vgf2p8affineinvqb $1, %%ymm1, %%ymm0, %%ymm0")
EXTENSION(use_vaes, "vaesenc (%%rbx), %%ymm1, %%ymm0")
EXTENSION(use_vpclmul, "vpclmulqdq $0, (%%rbx), %%ymm1, %%ymm0")
EXTENSION(use_rdpid, "rdpid %%rax")
EXTENSION(use_vnni, "%{vex%} vpdpbusd (%%rbx), %%ymm1, %%ymm0; %{vex%} vpdpwssds %%xmm2, %%xmm1, %%xmm0")
EXTENSION(use_lzcnt, "lzcnt %%eax, %%ecx")
EXTENSION(use_xsavec, "mov $7, %%eax; xor %%edx, %%edx; xsavec (%%rbx)")

static void test_extensions(void)
{
    static const struct {
        uint32_t leaf, subleaf, word, bit;
        void (*use)(void *arg);
        const char *name;
    } cases[] = {
        {1, 0, 2, 9, use_ssse3, "SSSE3"},      {1, 0, 2, 20, use_sse42, "SSE4.2"},     {1, 0, 2, 23, use_popcnt, "POPCNT"},
        {1, 0, 2, 22, use_movbe, "MOVBE"},     {1, 0, 2, 25, use_aes, "AES"},          {1, 0, 2, 1, use_pclmul, "PCLMULQDQ"},
        {1, 0, 2, 30, use_rdrand, "RDRAND"},   {1, 0, 2, 12, use_fma, "FMA"},          {1, 0, 2, 29, use_f16c, "F16C"},
        {7, 0, 1, 3, use_bmi1, "BMI1"},        {7, 0, 1, 5, use_avx2, "AVX2"},         {7, 0, 1, 8, use_bmi2, "BMI2"},
        {7, 0, 1, 18, use_rdseed, "RDSEED"},   {7, 0, 1, 19, use_adx, "ADX"},          {7, 0, 1, 23, use_clflushopt, "CLFLUSHOPT"},
        {7, 0, 1, 24, use_clwb, "CLWB"},       {7, 0, 1, 29, use_sha, "SHA"},          {7, 0, 2, 8, use_gfni, "GFNI"},
        {7, 0, 2, 9, use_vaes, "VAES"},        {7, 0, 2, 10, use_vpclmul, "VPCLMULQDQ"}, {7, 0, 2, 22, use_rdpid, "RDPID"},
        {7, 1, 0, 4, use_vnni, "AVX-VNNI"},    {0xd, 1, 0, 1, use_xsavec, "XSAVEC"},   {0x80000001, 0, 2, 5, use_lzcnt, "LZCNT"},
        {7, 0, 2, 8, use_gfni_avx, "GFNI with AVX"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cpuid leaf = cpuid(cases[i].leaf, cases[i].subleaf);
        const uint32_t words[] = {leaf.eax, leaf.ebx, leaf.ecx, leaf.edx};
        bool shown = words[cases[i].word] >> cases[i].bit & 1;
        struct trap trap = catch_trap(cases[i].use, area);
        if (shown)
            check(!trap.hit, "%s is shown and raises vector %lu", cases[i].name, trap.frame.vector);
        else
            check(!trap.hit || trap.frame.vector == UD, "%s is not shown and raises vector %lu", cases[i].name, trap.frame.vector);
    }
}

enum { SLEDS = 64, SLED_BYTES = 1024, GATHERS = 48, GATHER_BYTES = 11 };

/* Blocks of nothing but gathers, of many sizes, so that some meet the end of what a translator has set aside for its code. */
static void test_gathers(void)
{
    /* vpgatherdd %ymm2, %fs:0(%r15, %ymm1, 4), %ymm0 */
    static const uint8_t gather[GATHER_BYTES] = {0x64, 0xc4, 0xc2, 0x6d, 0x90, 0x84, 0x8f, 0, 0, 0, 0};
    if (!has_avx || cpuid(0, 0).eax < 7 || !(cpuid(7, 0).ebx & 1u << 5))
        return;
    uint8_t *sleds = alloc_pages(SLEDS * SLED_BYTES / PAGE);
    for (unsigned i = 0; i < SLEDS; i++) {
        uint8_t *at = sleds + i * SLED_BYTES;
        for (unsigned j = 0; j < GATHERS; j++, at += GATHER_BYTES)
            memcpy(at, gather, GATHER_BYTES);
        *at = 0xc3; /* ret */
    }
    unsigned wrong = 0;
    for (unsigned round = 0; round < GATHERS; round++)
        for (unsigned i = 0; i < SLEDS; i++) {
            unsigned start = (round + i * i) % (i % 3 ? 8 : GATHERS);
            uint32_t masks = 1;
            __asm__ volatile("vpxor %%ymm2, %%ymm2, %%ymm2; call *%1; vmovmskps %%ymm2, %0"
                             : "=r"(masks) : "r"(sleds + i * SLED_BYTES + start * GATHER_BYTES) : "memory", "cc");
            wrong += masks != 0;
        }
    check_equal(wrong, 0, "gathers of nothing that left a mask");
}

void guest_main(void)
{
    set_up_xsave();
    test_gathers();
    test_extensions();
    test_untouched();
    test_fxsave();
    test_xsave();
    test_lazy();
    if (cpu_count() > 1) {
        smp_start();
        put(20);
        smp_call(1, vectors_on_cpu, NULL);
        delay_us(3000);
        smp_wait(1);
        check(same(20, width()), "vectors of this CPU meanwhile");
    }
}
