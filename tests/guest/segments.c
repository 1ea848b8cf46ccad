/* Segment bases and limits, descriptor queries, the table registers. */
#include "lib/guest.h"

#define FS_BASE 0xc0000100u
#define GS_BASE 0xc0000101u
#define CR4_FSGSBASE (1ul << 16)
#define CR4_UMIP (1ul << 11)

static uint64_t words[512];

static uint64_t read_fs(uint64_t offset)
{
    uint64_t v;
    __asm__ volatile("mov %%fs:(%1), %0" : "=r"(v) : "r"(offset));
    return v;
}

static uint64_t read_gs(uint64_t offset)
{
    uint64_t v;
    __asm__ volatile("mov %%gs:(%1), %0" : "=r"(v) : "r"(offset));
    return v;
}

static void test_bases(void)
{
    for (unsigned i = 0; i < 512; i++)
        words[i] = i;
    wrmsr(FS_BASE, (uint64_t)&words[100]);
    wrmsr(GS_BASE, (uint64_t)&words[200]);
    check_equal(read_fs(0), 100, "fs:0");
    check_equal(read_gs(16), 202, "gs:16");
    check_equal(read_fs(-8ul), 99, "fs:-8");
    __asm__ volatile("movq $77, %%gs:8" ::: "memory");
    check_equal(words[201], 77, "store through gs");
    uint64_t address;
    __asm__ volatile(".byte 0x64; lea 24, %0" : "=r"(address));
    check_equal(address, 24, "lea has no base");
    __asm__ volatile("mov $3, %%ecx; cld; rep movsq %%fs:(%%rsi), %%es:(%%rdi)"
                     : : "S"(8ul), "D"(&words[400]) : "rcx", "memory");
    check_equal(words[402], 103, "string source through fs");
    check_trap(TRAP(wrmsr(FS_BASE, 1ul << 47)), GP, 0, "non-canonical FS base");
    check_trap(TRAP(read_fs(1ul << 46 | 1ul << 47)), GP, 0, "base + offset is not canonical");
    __asm__ volatile("mov %w0, %%fs" : : "r"(0));
    gdt_set(SEL_SPARE, 0x00cf93000000fffful | ((uint64_t)&words[50] & 0xffffff) << 16 |
                           ((uint64_t)&words[50] >> 24 & 0xff) << 56);
    __asm__ volatile("mov %w0, %%fs" : : "r"(SEL_SPARE));
    check_equal(read_fs(0), 50, "fs with a descriptor's base");
    check_equal(rdmsr(FS_BASE), (uint64_t)&words[50], "FS base from a descriptor");
    __asm__ volatile("mov %w0, %%fs" : : "r"(0));
}

static void test_fsgsbase(void)
{
    if (!(cpuid(7, 0).ebx & 1)) {
        skip("no FSGSBASE");
        return;
    }
    uint64_t v;
    write_cr4(read_cr4() & ~CR4_FSGSBASE);
    check_trap(TRAP(__asm__ volatile("rdfsbase %%rax" ::: "rax")), UD, 0, "rdfsbase without CR4.FSGSBASE");
    write_cr4(read_cr4() | CR4_FSGSBASE);
    __asm__ volatile("wrfsbase %0" : : "r"(&words[10]));
    check_equal(read_fs(8), 11, "fs after wrfsbase");
    __asm__ volatile("rdfsbase %0" : "=r"(v));
    check_equal(v, (uint64_t)&words[10], "rdfsbase");
    __asm__ volatile("wrgsbase %0" : : "r"(0xffff800000001234ul));
    __asm__ volatile("rdgsbase %0" : "=r"(v));
    check_equal(v, 0xffff800000001234ul, "rdgsbase");
    __asm__ volatile("wrgsbase %k0" : : "r"(0xffffffff12345678ul));
    check_equal(rdmsr(GS_BASE), 0x12345678, "wrgsbase of 32 bits");
    check_trap(TRAP(__asm__ volatile("wrfsbase %0" : : "r"(1ul << 47))), GP, 0, "non-canonical wrfsbase");
}

static bool zero_flag_after_lar(uint64_t selector, uint32_t *ret)
{
    bool zf;
    __asm__ volatile("lar %2, %k0" : "=r"(*ret), "=@ccz"(zf) : "r"((uint32_t)selector));
    return zf;
}

static void test_queries(void)
{
    uint32_t value = 0;
    bool zf;
    check(zero_flag_after_lar(SEL_KERNEL, &value), "lar of a code segment");
    check_equal(value, 0x00af9b00 & 0xf0ff00, "what lar gives");
    check(!zero_flag_after_lar(0x400, &value), "lar beyond the GDT");
    check(!zero_flag_after_lar(0, &value), "lar of the null selector");
    __asm__ volatile("lsl %2, %k0" : "=r"(value), "=@ccz"(zf) : "r"((uint32_t)SEL_KDATA));
    check(zf && value == 0xffffffff, "lsl gives 0x%x", value);
    __asm__ volatile("verr %w1" : "=@ccz"(zf) : "r"(SEL_KDATA));
    check(zf, "verr of data");
    __asm__ volatile("verw %w1" : "=@ccz"(zf) : "r"(SEL_KERNEL));
    check(!zf, "verw of code");
    uint16_t tr = 0, ldtr = 1;
    __asm__ volatile("str %0; sldt %1" : "=r"(tr), "=r"(ldtr));
    check_equal(tr, SEL_TSS, "str");
    check_equal(ldtr, 0, "sldt");
}

static void test_ldt(void)
{
    static uint64_t ldt[4];
    uint64_t base = (uint64_t)ldt;
    ldt[1] = 0x00cf93000000fffful;
    gdt_set(SEL_SPARE, (sizeof ldt - 1) | (base & 0xffffff) << 16 | 0x0000820000000000ul | (base >> 24 & 0xff) << 56);
    gdt_set(SEL_SPARE + 8, base >> 32);
    __asm__ volatile("lldt %w0" : : "r"(SEL_SPARE));
    check_no_trap(TRAP(__asm__ volatile("mov %w0, %%ds" : : "r"(0xc))), "ds from the LDT");
    check_trap(TRAP(__asm__ volatile("mov %w0, %%ds" : : "r"(0x24))), GP, 0x24, "selector beyond the LDT");
    __asm__ volatile("mov %w0, %%ds; lldt %w1" : : "r"(SEL_KDATA), "r"(0));
}

static void user_sgdt(void *arg)
{
    __asm__ volatile("sgdt (%0)" : : "r"(arg) : "memory");
    LEAVE_USER();
}

static void user_str(void *arg)
{
    (void)arg;
    uint64_t v;
    __asm__ volatile("str %0" : "=r"(v));
    LEAVE_USER();
}

static void test_umip(void)
{
    void *arg = AS_USER(words);
    check_trap(run_user(user_sgdt, arg), 0x80, 0, "sgdt in ring 3");
    if (!(cpuid(7, 0).ecx & 4)) {
        skip("no UMIP");
        return;
    }
    write_cr4(read_cr4() | CR4_UMIP);
    check_trap(run_user(user_sgdt, arg), GP, 0, "sgdt in ring 3 with UMIP");
    check_trap(run_user(user_str, arg), GP, 0, "str in ring 3 with UMIP");
    check_no_trap(TRAP(__asm__ volatile("sgdt (%0)" : : "r"(words) : "memory")), "sgdt in ring 0 with UMIP");
    write_cr4(read_cr4() & ~CR4_UMIP);
}

/* 32-bit code has limits: one byte beyond faults, and so does a write through a read-only segment. */
#define CODE32 0x40000000ul
static void test_limits(void)
{
    static const uint8_t code[] = {0x8e, 0xd8,             /* mov %eax, %ds */
                                   0xa0, 0xff, 0x0f, 0, 0, /* mov 0xfff, %al: the last byte */
                                   0x88, 0x03,             /* mov %al, (%ebx) */
                                   0xcd, 0x80};
    uint64_t page = ((uint64_t)alloc_pages(1024) + 0x1fffff) & ~0x1ffffful;
    map_page(CODE32, page, 2, P_PRESENT | P_WRITE | P_USER);
    memcpy((void *)page, code, sizeof code);
    /* Base CODE32, limit 0xfff, byte granular, ring 3. */
    gdt_set(SEL_SPARE, 0x4040f20000000ffful);
    static struct {
        uint64_t rip, cs, rflags, rsp, ss;
    } frame;
    frame.rip = CODE32, frame.cs = SEL_USER32, frame.rflags = 2, frame.rsp = CODE32 + 0x8000, frame.ss = SEL_UDATA;
    for (unsigned i = 0; i < 3; i++) {
        uint64_t ebx = i == 0 ? 0x800 : i == 1 ? 0x1000 : 0xffffffff;
        struct trap trap = TRAP(__asm__ volatile("mov %0, %%rsp; iretq" : : "r"(&frame), "a"(SEL_SPARE | 3), "b"(ebx)
                                                 : "memory"));
        check_trap(trap, i == 0 ? 0x80 : GP, 0, i == 0 ? "within the limit" : "beyond the limit");
    }
    gdt_set(SEL_SPARE, 0x4040f00000000ffful); /* read-only */
    check_trap(TRAP(__asm__ volatile("mov %0, %%rsp; iretq" : : "r"(&frame), "a"(SEL_SPARE | 3), "b"(0x10) : "memory")), GP,
               0, "write through a read-only segment");
}

void guest_main(void)
{
    test_bases();
    test_fsgsbase();
    test_queries();
    test_ldt();
    test_umip();
    test_limits();
}
