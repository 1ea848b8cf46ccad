/* SYSCALL and SYSRET in both sizes, SYSENTER and SYSEXIT by vendor, SWAPGS. */
#include "lib/guest.h"

#define EFER 0xc0000080u
#define STAR 0xc0000081u
#define LSTAR 0xc0000082u
#define SFMASK 0xc0000084u
#define FS_BASE 0xc0000100u
#define GS_BASE 0xc0000101u
#define KERNEL_GS_BASE 0xc0000102u
#define SYSENTER_CS 0x174u
#define SYSENTER_ESP 0x175u
#define SYSENTER_EIP 0x176u

/* Named by the assembly below. */
uint64_t seen_rcx, seen_r11, seen_rsp, seen_flags, seen_cs, seen_ss, kernel_rsp;
extern uint8_t syscall_entry[], syscall_return[], user_code[], after_syscall[];

/* The entry records what it finds and leaves by int 0x81 in ring 0, or goes back by sysret when r8 says so. */
__asm__(".text\n"
        "syscall_entry: mov %rsp, seen_rsp(%rip)\n mov %rcx, seen_rcx(%rip)\n mov %r11, seen_r11(%rip)\n"
        "mov kernel_rsp(%rip), %rsp\n pushfq\n popq seen_flags(%rip)\n"
        "mov %cs, %eax\n mov %eax, seen_cs(%rip)\n mov %ss, %eax\n mov %eax, seen_ss(%rip)\n"
        "cmp $1, %r8d\n je 1f\n int $0x81\n"
        "1: mov $0, %r8d\n mov seen_rsp(%rip), %rsp\n sysretq\n"
        "user_code: mov $0xcd7, %edx\n push %rdx\n popfq\n mov $1, %r8d\n syscall\n"
        "after_syscall: pushfq\n popq %rdx\n mov %cs, %ebx\n mov %ss, %esi\n int $0x80\n");

static void set_up(void)
{
    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, (uint64_t)(SEL_USER32 & ~3) << 48 | (uint64_t)SEL_KERNEL << 32);
    wrmsr(LSTAR, (uint64_t)syscall_entry);
    wrmsr(SFMASK, 0x600);
    kernel_rsp = (uint64_t)alloc_pages(2) + 2 * PAGE;
}

static void test_syscall(void)
{
    struct trap trap = run_user((void (*)(void *))user_code, NULL);
    check_trap(trap, 0x80, 0, "syscall and back");
    check_equal(seen_rcx, (uint64_t)after_syscall + USER_ALIAS, "rcx is the return address");
    check_equal(seen_r11 & 0xcd7, 0xcd7, "r11 holds the flags");
    check_equal(seen_flags & 0x600, 0, "flags that SFMASK clears");
    check_equal(seen_flags & 0xd5, 0xd5 & 0xcd7, "flags that it does not");
    check_equal(seen_cs & 0xffff, SEL_KERNEL, "kernel cs");
    check_equal(seen_ss & 0xffff, SEL_KDATA, "kernel ss");
    check_equal(trap.frame.rdx & 0xcd7, 0xcd7, "flags after sysret");
    check_equal(trap.frame.rbx & 0xffff, SEL_USER, "user cs");
    check_equal(trap.frame.rsi & 0xffff, SEL_UDATA, "user ss");
}

static void user_syscall(void *arg)
{
    (void)arg;
    __asm__ volatile("xor %%r8d, %%r8d; syscall" ::: "rcx", "r11", "r8");
}

static void test_refused(void)
{
    check_trap(run_user(user_syscall, NULL), 0x81, 0, "syscall that does not return");
    wrmsr(EFER, rdmsr(EFER) & ~1ul);
    check_trap(run_user(user_syscall, NULL), UD, 0, "syscall without EFER.SCE");
    check_trap(TRAP(__asm__ volatile("sysretq" ::: "rcx", "r11")), UD, 0, "sysret without EFER.SCE");
    wrmsr(EFER, rdmsr(EFER) | 1);
    check_trap(TRAP(wrmsr(LSTAR, 1ul << 47)), GP, 0, "non-canonical LSTAR");
}

/* AMD completes the instruction; Intel refuses it in ring 0. */
static void test_sysret_to_non_canonical(void)
{
    struct trap trap = TRAP(__asm__ volatile("mov $0x202, %%r11d; sysretq" : : "c"(1ul << 47) : "r11"));
    check_trap(trap, GP, 0, "sysret to non-canonical");
    check_equal(trap.frame.cs & 3, cpu_is_amd() ? 3 : 0, "ring that sysret to non-canonical faults in");
}

static void user_sysret(void *arg)
{
    (void)arg;
    __asm__ volatile("sysretq");
}

/* sysret to 32-bit code, where `inc` is one byte. */
#define CODE32 0x40000000ul
static void test_sysret_32(void)
{
    static const uint8_t code[] = {0xb8, 0xff, 0xff, 0xff, 0xff, 0x40, 0x40, 0xcd, 0x80};
    uint64_t page = ((uint64_t)alloc_pages(1024) + 0x1fffff) & ~0x1ffffful;
    map_page(CODE32, page, 2, P_PRESENT | P_WRITE | P_USER);
    memcpy((void *)page, code, sizeof code);
    struct trap trap = TRAP(__asm__ volatile("mov %0, %%rsp; mov %1, %%rcx; mov $0x202, %%r11d; sysretl"
                                             : : "r"(CODE32 + 0x8000), "r"(CODE32) : "rcx", "r11", "memory"));
    check_trap(trap, 0x80, 0, "sysret to 32-bit code");
    check_equal(trap.frame.rax, 1, "what it computed");
    check_equal(trap.frame.cs, SEL_USER32, "cs");
    check_trap(run_user(user_sysret, NULL), GP, 0, "sysret in ring 3");
}

extern uint8_t sysenter_entry[];
__asm__(".text\nsysenter_entry: mov %cs, %eax\n mov %ss, %ebx\n mov %rsp, %rcx\n int $0x82\n");

static void user_sysenter(void *arg)
{
    (void)arg;
    __asm__ volatile("sysenter");
}

extern uint8_t sysexit_user[];
__asm__(".text\nsysexit_user: mov %cs, %ebx\n mov %ss, %esi\n mov %rsp, %rdi\n int $0x80\n");

static void test_sysenter(void)
{
    wrmsr(SYSENTER_CS, SEL_KERNEL);
    wrmsr(SYSENTER_ESP, kernel_rsp);
    wrmsr(SYSENTER_EIP, (uint64_t)sysenter_entry);
    struct trap trap = run_user(user_sysenter, NULL);
    if (cpu_is_amd()) {
        check_trap(trap, UD, 0, "sysenter in long mode on AMD");
        check_trap(TRAP(__asm__ volatile("rex.w sysexit" ::: "rcx", "rdx")), UD, 0, "sysexit in long mode on AMD");
        return;
    }
    check_trap(trap, 0x82, 0, "sysenter");
    check_equal(trap.frame.rax & 0xffff, SEL_KERNEL, "cs after sysenter");
    check_equal(trap.frame.rbx & 0xffff, SEL_KDATA, "ss after sysenter");
    check_equal(trap.frame.rcx, kernel_rsp, "rsp after sysenter");
    wrmsr(SYSENTER_CS, 0);
    check_trap(run_user(user_sysenter, NULL), GP, 0, "sysenter with a null cs");
    /* sysexit takes cs + 32 for 64-bit code: SEL_KERNEL32 - 8 + 32 = SEL_USER. */
    wrmsr(SYSENTER_CS, SEL_KDATA);
    trap = TRAP(__asm__ volatile("rex.w sysexit" : : "c"(kernel_rsp + USER_ALIAS),
                                 "d"((uint64_t)sysexit_user + USER_ALIAS) : "memory"));
    check_trap(trap, 0x80, 0, "sysexit");
    check_equal(trap.frame.rbx & 0xffff, SEL_USER, "cs after sysexit");
}

static void user_swapgs(void *arg)
{
    (void)arg;
    __asm__ volatile("swapgs");
}

static void test_swapgs(void)
{
    wrmsr(GS_BASE, 0x1111000);
    wrmsr(KERNEL_GS_BASE, 0x2222000);
    __asm__ volatile("swapgs");
    check_equal(rdmsr(GS_BASE), 0x2222000, "GS base after swapgs");
    check_equal(rdmsr(KERNEL_GS_BASE), 0x1111000, "kernel GS base after swapgs");
    __asm__ volatile("swapgs");
    check_equal(rdmsr(GS_BASE), 0x1111000, "GS base after two");
    check_trap(run_user(user_swapgs, NULL), GP, 0, "swapgs in ring 3");
}

void guest_main(void)
{
    set_up();
    test_syscall();
    test_refused();
    test_sysret_32();
    test_sysret_to_non_canonical();
    test_sysenter();
    test_swapgs();
}
