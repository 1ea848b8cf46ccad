/* IRET and far transfers in all their forms: same ring, to ring 3, to 32-bit code, refused ones. */
#include "lib/guest.h"

#define FLAG_NT (1ul << 14)
#define FLAG_IF 0x200ul
#define FLAG_RF 0x10000ul
#define CODE32 0x40000000ul /* where 32-bit code sees a page of its own, user and supervisor */

struct iret_frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

static void do_iret(void *arg)
{
    __asm__ volatile("mov %0, %%rsp; iretq" : : "r"(arg) : "memory");
}

/* IRET's frame at the top of a stack of its own: a fault is delivered below it. */
static struct iret_frame *frame_on_stack(void)
{
    return (struct iret_frame *)((uint64_t)alloc_pages(3) + 3 * PAGE - sizeof(struct iret_frame));
}

extern uint8_t iret_landing[];
static uint64_t landed_rsp, landed_flags, landed_ss;

/* Goes to iret_landing by the frame, records where it got, and returns here. */
static void iret_same_ring(uint64_t rflags, uint64_t ss, uint64_t stack)
{
    struct iret_frame *frame = frame_on_stack();
    *frame = (struct iret_frame){(uint64_t)iret_landing, SEL_KERNEL, rflags, stack, ss};
    uint64_t flags, selector, rsp;
    __asm__ volatile("mov %%rsp, %%rbx; mov %3, %%rsp; iretq\n"
                     ".globl iret_landing\niret_landing: mov %%rsp, %%rax; mov %%rbx, %%rsp; pushfq; popq %%rcx;"
                     "mov %%ss, %%edx; mov %4, %%esi; mov %%esi, %%ss; push $2; popfq"
                     : "=a"(rsp), "=c"(flags), "=d"(selector) : "D"(frame), "i"(SEL_KDATA) : "rbx", "rsi", "memory");
    landed_rsp = rsp, landed_flags = flags, landed_ss = selector;
}

static void test_same_ring(void)
{
    uint64_t stack = (uint64_t)alloc_pages(1) + PAGE - 16;
    iret_same_ring(0x2 | 0x1, SEL_KDATA, stack);
    check_equal(landed_rsp, stack, "rsp after iretq");
    check_equal(landed_flags & 0xfff, 0x3, "flags after iretq");
    check_equal(landed_ss, SEL_KDATA, "ss after iretq");
    iret_same_ring(0x2 | 0xcd5, 0, stack);
    check_equal(landed_flags & 0xcd5, 0xcd5, "all arithmetic flags");
    check_equal(landed_ss, 0, "null ss is fine in ring 0");
}

static void test_refused(void)
{
    struct iret_frame *frame = frame_on_stack();
    uint64_t stack = (uint64_t)alloc_pages(1) + PAGE - 16;
    *frame = (struct iret_frame){1ul << 47, SEL_KERNEL, 2, stack, SEL_KDATA};
    check_trap(catch_trap(do_iret, frame), GP, 0, "iretq to a non-canonical rip");
    *frame = (struct iret_frame){(uint64_t)iret_landing, 0, 2, stack, SEL_KDATA};
    check_trap(catch_trap(do_iret, frame), GP, 0, "iretq to a null cs");
    frame->cs = SEL_KDATA;
    check_trap(catch_trap(do_iret, frame), GP, SEL_KDATA, "iretq to a data segment");
    frame->cs = 0x400;
    check_trap(catch_trap(do_iret, frame), GP, 0x400, "iretq beyond the GDT");
    frame->cs = SEL_USER;
    frame->ss = 0;
    check_trap(catch_trap(do_iret, frame), GP, 0, "iretq to ring 3 with a null ss");
    frame->ss = SEL_KDATA;
    check_trap(catch_trap(do_iret, frame), GP, SEL_KDATA, "iretq to ring 3 with ring 0's ss");
    gdt_set(SEL_SPARE, 0x00af7b000000fffful); /* code of ring 3, not present */
    frame->cs = SEL_SPARE | 3;
    frame->ss = SEL_UDATA;
    check_trap(catch_trap(do_iret, frame), NP, SEL_SPARE, "iretq to a segment not present");
    gdt_set(SEL_SPARE, 0x00cf73000000fffful); /* data of ring 3, not present */
    frame->cs = SEL_USER;
    frame->ss = SEL_SPARE | 3;
    check_trap(catch_trap(do_iret, frame), SS, SEL_SPARE, "iretq to a stack not present");
    *frame = (struct iret_frame){(uint64_t)iret_landing, SEL_KERNEL, 2, stack, SEL_KDATA};
    check_trap(TRAP(__asm__ volatile("pushfq; orq %0, (%%rsp); popfq; mov %1, %%rsp; iretq"
                                     : : "i"(FLAG_NT), "r"(frame) : "memory")),
               GP, 0, "iretq with NT");
    __asm__ volatile("push $2; popfq" ::: "cc");
}

static void user_registers(void *arg)
{
    (void)arg;
    __asm__ volatile("pushfq; popq %%rax; mov %%cs, %%ecx; mov %%ss, %%edx; mov %%rsp, %%rsi; int $0x80" ::
                         : "rax", "rcx", "rdx", "rsi");
}

static void test_ring_3(void)
{
    struct trap trap = run_user_flags(user_registers, NULL, 0x2 | FLAG_IF | 0x3000, SEL_USER);
    check_trap(trap, 0x80, 0, "ring 3");
    check_equal(trap.frame.rax & 0x3202, 0x3202, "IF and IOPL reach ring 3");
    check_equal(trap.frame.rcx, SEL_USER, "cs");
    check_equal(trap.frame.rdx, SEL_UDATA, "ss");
    check_equal(trap.frame.rsi, trap.frame.rsp, "saved rsp");
    check_equal(trap.frame.cs, SEL_USER, "saved cs");
    check_equal(trap.frame.rflags & 0x3200, 0x3200, "saved flags");
    check(!(trap.frame.rflags & FLAG_RF), "RF is not set by int");
}

/* Privileged instructions of ring 1, to which interrupts must not be given away: each faults where it stands. */
extern uint8_t ring1_cli[], ring1_swapgs[], ring1_cr3[], ring1_sysret[];
__asm__(".text\nring1_cli: cli\n ud2\nring1_swapgs: swapgs\n ud2\nring1_cr3: mov %cr3, %rax\n ud2\nring1_sysret: sysretq\n ud2\n");

static void test_ring_1(void)
{
    static const struct {
        uint8_t *code;
        const char *what;
    } cases[] = {{ring1_cli, "cli in ring 1"}, {ring1_swapgs, "swapgs in ring 1"}, {ring1_cr3, "mov from cr3 in ring 1"},
                 {ring1_sysret, "sysret in ring 1"}};
    struct iret_frame *frame = frame_on_stack();
    uint64_t stack = (uint64_t)alloc_pages(1) + PAGE - 16;
    gdt_set(SEL_SPARE, 0x00afbb000000fffful);
    gdt_set(SEL_SPARE + 8, 0x00cfb3000000fffful);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        for (unsigned turn = 0; turn < 3; turn++) { /* warm, too */
            *frame = (struct iret_frame){(uint64_t)cases[i].code, SEL_SPARE | 1, 2 | FLAG_IF, stack, (SEL_SPARE + 8) | 1};
            struct trap trap = catch_trap(do_iret, frame);
            check_trap(trap, GP, 0, cases[i].what);
            check_equal(trap.frame.rip, (uint64_t)cases[i].code, cases[i].what);
            check_equal(trap.frame.cs, SEL_SPARE | 1, cases[i].what);
        }
}

/* 32-bit code: registers wrap at 32 bits, `inc` is one byte, stacks are 4 bytes wide. */
extern uint8_t code32[], code32_end[], code32_fault[], code32_ud[];
__asm__(".text\n.code32\n"
        "code32: mov $0xffffffff, %eax\n .byte 0x40\n push %eax\n mov $0x12345678, %ecx\n push %ecx\n pop %edx\n"
        "mov %esp, %esi\n mov $7, %edi\n bound %edi, (%esi)\n"
        "int $0x80\n"
        "code32_fault: mov (0x30000000), %eax\n"
        "code32_ud: .byte 0x0f, 0x05\n" /* syscall: not from 32-bit code on Intel */
        "code32_end: .code64\n");

static uint64_t map_code32(void)
{
    static uint64_t page;
    if (!page) {
        uint64_t raw = (uint64_t)alloc_pages(1024);
        page = (raw + 0x1fffff) & ~0x1ffffful;
        map_page(CODE32, page, 2, P_PRESENT | P_WRITE | P_USER);
        memcpy((void *)page, code32, (size_t)(code32_end - code32));
    }
    return page;
}

/* Segments that ring 3 may not have would be emptied by the return. */
static void do_iret_with_user_data(void *arg)
{
    __asm__ volatile("mov %1, %%ds; mov %1, %%es; mov %0, %%rsp; iretq" : : "r"(arg), "r"(SEL_UDATA) : "memory");
}

static struct trap enter32(const uint8_t *where, uint64_t cs)
{
    struct iret_frame *frame = frame_on_stack();
    *frame = (struct iret_frame){CODE32 + (uint64_t)(where - code32), cs, 2, CODE32 + 0x10000, SEL_UDATA};
    return catch_trap(do_iret_with_user_data, frame);
}

static void test_compatibility(void)
{
    uint64_t page = map_code32();
    *(uint32_t *)(page + 0x10000 - 4) = 0;
    *(uint32_t *)(page + 0x10000) = 100;
    struct trap trap = enter32(code32, SEL_USER32);
    check_trap(trap, 0x80, 0, "32-bit code of ring 3");
    check_equal(trap.frame.rax, 0, "eax after inc wraps");
    check_equal(trap.frame.rdx, 0x12345678, "edx");
    check_equal(trap.frame.rsp, CODE32 + 0x10000 - 4, "esp");
    check_equal(trap.frame.cs, SEL_USER32, "saved cs");
    *(uint32_t *)(page + 0x10000) = 3;
    check_trap(enter32(code32, SEL_USER32), BR, 0, "bound beyond its range");
    trap = enter32(code32_fault, SEL_USER32);
    check_trap(trap, PF, 5, "32-bit code reads supervisor memory");
    check_equal(trap.cr2, 0x30000000, "CR2");
    if (!cpu_is_amd())
        check_trap(enter32(code32_ud, SEL_USER32), UD, 0, "syscall in 32-bit code");
}

static uint64_t far_seen;

static void test_far(void)
{
    struct {
        uint64_t rip;
        uint16_t cs;
    } __attribute__((packed)) target;
    uint64_t seen = 0;
    __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, %0; movw %2, 8+%0; rex.w ljmp *%0; ud2; 1: mov $1, %1"
                     : "=m"(target), "=r"(seen) : "i"(SEL_KERNEL) : "rax", "memory");
    check_equal(seen, 1, "jmp far indirect");
    __asm__ volatile("lea 1f(%%rip), %%rax; push %2; push %%rax; lretq; ud2; 1: mov $2, %1"
                     : "=m"(target), "=r"(seen) : "i"(SEL_KERNEL) : "rax", "memory");
    check_equal(seen, 2, "far return");
    __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, %0; movw %2, 8+%0; rex.w lcall *%0; mov $3, %1; jmp 2f;"
                     "1: lretq; 2:"
                     : "=m"(target), "=r"(seen) : "i"(SEL_KERNEL) : "rax", "memory");
    check_equal(seen, 3, "call far and return");
    check_trap(TRAP(target.cs = SEL_KDATA; __asm__ volatile("rex.w ljmp *%0" : : "m"(target))), GP, SEL_KDATA,
               "jmp far to a data segment");
    far_seen = seen;
}

/* 64-bit ring 0 to 32-bit ring 0 and back, by far jumps in low memory. */
extern uint8_t low32[], low32_end[];
__asm__(".text\n.code32\n"
        "low32: mov %cs, %eax\n mov $0x80000000, %ebx\n add %ebx, %ebx\n adc $0, %eax\n"
        "ljmp $0x08, $0x40020040\n"
        "low32_end: .code64\n");

static void test_kernel32(void)
{
    uint64_t page = map_code32(), eax = 0, seen = 0;
    static const uint8_t back[] = {0xff, 0xe7}; /* jmp *%rdi */
    memcpy((void *)(page + 0x20000), low32, (size_t)(low32_end - low32));
    memcpy((void *)(page + 0x20040), back, sizeof back);
    struct {
        uint64_t rip;
        uint16_t cs;
    } __attribute__((packed)) target = {CODE32 + 0x20000, SEL_KERNEL32};
    __asm__ volatile("lea 1f(%%rip), %%rdi; rex.w ljmp *%2; 1: mov $4, %1"
                     : "=&a"(eax), "=&d"(seen) : "m"(target) : "rdi", "rbx", "memory");
    check_equal(seen, 4, "back from 32-bit code");
    check_equal(eax, SEL_KERNEL32 + 1, "what it computed");
}

void guest_main(void)
{
    test_same_ring();
    test_refused();
    test_ring_3();
    test_ring_1();
    test_compatibility();
    test_far();
    test_kernel32();
}
