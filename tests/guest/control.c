/* Control and debug registers, EFER and other MSRs: what they take, what they refuse, who may touch them. */
#include "lib/guest.h"

#define EFER 0xc0000080u
#define CR4_TSD 4ul
#define CR4_DE 8ul
#define CR4_PAE 0x20ul

static void test_cr0(void)
{
    uint64_t cr0 = read_cr0();
    check_trap(TRAP(write_cr0(cr0 & ~1ul)), GP, 0, "PG without PE");
    check_trap(TRAP(write_cr0(cr0 | 1ul << 29)), GP, 0, "NW without CD");
    check_trap(TRAP(write_cr0(cr0 | 1ul << 32)), GP, 0, "upper half of CR0");
    check_equal(read_cr0(), cr0, "CR0 after refused writes");
    write_cr0(cr0 | 8);
    uint16_t msw;
    __asm__ volatile("smsw %0" : "=r"(msw));
    check_equal(msw & 8, 8, "smsw sees TS");
    __asm__ volatile("clts");
    check_equal(read_cr0(), cr0, "CR0 after clts");
    __asm__ volatile("lmsw %w0" : : "r"((uint16_t)(cr0 & 0xe)));
    check(read_cr0() & 1, "lmsw does not clear PE");
    write_cr0(cr0);
}

static void test_cr4(void)
{
    uint64_t cr4 = read_cr4();
    check_trap(TRAP(write_cr4(cr4 & ~CR4_PAE)), GP, 0, "clearing PAE in long mode");
    check_trap(TRAP(write_cr4(cr4 | 1ul << 31)), GP, 0, "reserved bit of CR4");
    check_trap(TRAP(write_cr4(cr4 | 1ul << 40)), GP, 0, "upper half of CR4");
    check_equal(read_cr4(), cr4, "CR4 after refused writes");
}

static void test_cr8(void)
{
    write_cr8(9);
    check_equal(read_cr8(), 9, "CR8");
    check_trap(TRAP(write_cr8(16)), GP, 0, "CR8 of 16");
    write_cr8(0);
}

static void user_read_cr(void *arg)
{
    (void)arg;
    (void)read_cr3();
}

static void user_rdmsr(void *arg)
{
    (void)arg;
    (void)rdmsr(EFER);
}

static void user_rdtsc(void *arg)
{
    (void)arg;
    (void)rdtsc();
    LEAVE_USER();
}

static void user_cpuid(void *arg)
{
    (void)arg;
    cpuid(0, 0);
    LEAVE_USER();
}

static void user_invlpg(void *arg)
{
    invlpg((uint64_t)arg);
}

static void user_wbinvd(void *arg)
{
    (void)arg;
    __asm__ volatile("wbinvd");
}

static void user_lidt(void *arg)
{
    __asm__ volatile("lidt (%0)" : : "r"(arg));
}

static void test_privilege(void)
{
    check_trap(run_user(user_read_cr, NULL), GP, 0, "mov from cr3 in ring 3");
    check_trap(run_user(user_rdmsr, NULL), GP, 0, "rdmsr in ring 3");
    check_trap(run_user(user_invlpg, NULL), GP, 0, "invlpg in ring 3");
    check_trap(run_user(user_wbinvd, NULL), GP, 0, "wbinvd in ring 3");
    check_trap(run_user(user_lidt, NULL), GP, 0, "lidt in ring 3");
    check_trap(run_user(user_cpuid, NULL), 0x80, 0, "cpuid in ring 3");
    check_trap(run_user(user_rdtsc, NULL), 0x80, 0, "rdtsc in ring 3");
    write_cr4(read_cr4() | CR4_TSD);
    check_trap(run_user(user_rdtsc, NULL), GP, 0, "rdtsc in ring 3 with TSD");
    check_no_trap(TRAP(rdtsc()), "rdtsc in ring 0 with TSD");
    write_cr4(read_cr4() & ~CR4_TSD);
}

static void test_msrs(void)
{
    check_trap(TRAP(rdmsr(0xdeadbeef)), GP, 0, "rdmsr of one that does not exist");
    check_trap(TRAP(wrmsr(0xdeadbeef, 0)), GP, 0, "wrmsr of one that does not exist");
    uint64_t efer = rdmsr(EFER);
    check_equal(efer & 0x500, 0x500, "LME and LMA");
    check_trap(TRAP(wrmsr(EFER, efer | 1ul << 5)), GP, 0, "reserved bit of EFER");
    check_trap(TRAP(wrmsr(EFER, efer & ~0x100ul)), GP, 0, "clearing LME under paging");
    check_equal(rdmsr(EFER), efer, "EFER after refused writes");
    check_trap(TRAP(wrmsr(0x277, 0x0202020202020202)), GP, 0, "PAT type 2");
    uint64_t pat = rdmsr(0x277);
    wrmsr(0x277, 0x0007010600070106);
    check_equal(rdmsr(0x277), 0x0007010600070106, "PAT");
    wrmsr(0x277, pat);
    static const uint32_t plain[] = {0xc0000081, 0xc0000084, 0x174};
    for (unsigned i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        wrmsr(plain[i], 0x12345678);
        check_equal(rdmsr(plain[i]) & 0xffffffff, 0x12345678, "MSR");
    }
    check_trap(TRAP(wrmsr(0xc0000082, 1ul << 63)), GP, 0, "non-canonical LSTAR");
    check(rdmsr(0x1b) & 1u << 8, "APIC_BASE says bootstrap processor");
}

static void test_tsc(void)
{
    if (cpuid(0x80000001, 0).edx & 1u << 27) {
        uint32_t aux = 0;
        wrmsr(0xc0000103, 0x4242);
        __asm__ volatile("rdtscp" : "=c"(aux) : : "rax", "rdx");
        check_equal(aux, 0x4242, "TSC_AUX by rdtscp");
        if (cpuid(7, 0).ecx & 1u << 22) {
            uint64_t pid = 0;
            __asm__ volatile("rdpid %0" : "=r"(pid));
            check_equal(pid, 0x4242, "TSC_AUX by rdpid");
        }
    }
    uint64_t a = rdtsc(), b = rdtsc();
    check(b > a, "the TSC advances: %lu then %lu", a, b);
    wrmsr(0x10, 1ul << 40);
    uint64_t c = rdtsc();
    check(c >= 1ul << 40 && c < (1ul << 40) + 1000000000ul, "the TSC after it was set: 0x%lx", c);
}

static void test_debug_registers(void)
{
    write_dr0(0x123456789abcdef0);
    write_dr1(1);
    check_equal(read_dr0(), 0x123456789abcdef0, "DR0");
    check_equal(read_dr1(), 1, "DR1");
    write_dr6(0);
    check_equal(read_dr6() & 0xffff0ff0 & ~0x10800ul, 0xffff0ff0 & ~0x10800ul, "fixed bits of DR6");
    write_dr7(0x400);
    check_equal(read_dr7(), 0x400, "DR7");
    check_trap(TRAP(write_dr7(1ul << 32)), GP, 0, "upper half of DR7");
    check_trap(TRAP(write_dr6(1ul << 32)), GP, 0, "upper half of DR6");
    uint64_t alias;
    __asm__ volatile("mov %%dr4, %0" : "=r"(alias));
    check_equal(alias, read_dr6(), "DR4 is DR6 without CR4.DE");
    write_cr4(read_cr4() | CR4_DE);
    check_trap(TRAP(__asm__ volatile("mov %%dr4, %%rax" ::: "rax")), UD, 0, "DR4 with CR4.DE");
    write_cr4(read_cr4() & ~CR4_DE);
}

void guest_main(void)
{
    test_cr0();
    test_cr4();
    test_cr8();
    test_privilege();
    test_msrs();
    test_tsc();
    test_debug_registers();
}
