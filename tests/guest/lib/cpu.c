/* Descriptor tables, exceptions, user mode, page tables: what each CPU is set up with. */
#include "guest.h"

#define CPUS 32

extern uint8_t trap_stubs[], guest_end[];
trap_handler *trap_handlers[256];
static struct cpu *cpus[CPUS];

void *memset(void *to, int byte, size_t len)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t len)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(len) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
    const uint8_t *p = a, *q = b;
    for (size_t i = 0; i < len; i++)
        if (p[i] != q[i])
            return p[i] - q[i];
    return 0;
}

void *alloc_pages(unsigned count)
{
    static uint64_t next;
    uint64_t first = ((uint64_t)guest_end + PAGE - 1) & ~(PAGE - 1);
    uint64_t at = __atomic_fetch_add(&next, count * PAGE, __ATOMIC_RELAXED) + first;
    return memset((void *)at, 0, count * PAGE);
}

struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid c;
    __asm__ volatile("cpuid" : "=a"(c.eax), "=b"(c.ebx), "=c"(c.ecx), "=d"(c.edx) : "a"(leaf), "c"(subleaf));
    return c;
}

bool cpu_is_amd(void)
{
    uint32_t ebx = cpuid(0, 0).ebx;
    return ebx == 0x68747541 || ebx == 0x6f677948;
}

/* By the task register's place: it tells CPUs apart without a segment base or the APIC. */
struct cpu *this_cpu(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdtr;
    __asm__ volatile("sgdt %0" : "=m"(gdtr));
    return (struct cpu *)(gdtr.base - offsetof(struct cpu, gdt));
}

void gdt_set(unsigned selector, uint64_t descriptor)
{
    this_cpu()->gdt[selector / 8] = descriptor;
}

static void set_gate(struct cpu *cpu, unsigned vector, uint8_t type, unsigned ist)
{
    uint64_t at = (uint64_t)trap_stubs + vector * 16;
    cpu->idt[vector] = (struct gate){.offset_low = (uint16_t)at,
                                     .selector = SEL_KERNEL,
                                     .ist = (uint8_t)ist,
                                     .type = type,
                                     .offset_middle = (uint16_t)(at >> 16),
                                     .offset_high = (uint32_t)(at >> 32)};
}

void idt_set(unsigned vector, uint8_t type, unsigned ist)
{
    set_gate(this_cpu(), vector, type, ist);
}

static void fill_tables(struct cpu *cpu)
{
    uint64_t tss = (uint64_t)&cpu->tss, limit = sizeof cpu->tss - 1;
    cpu->gdt[SEL_KERNEL / 8] = 0x00af9b000000fffful;
    cpu->gdt[SEL_KDATA / 8] = 0x00cf93000000fffful;
    cpu->gdt[SEL_KERNEL32 / 8] = 0x00cf9b000000fffful;
    cpu->gdt[SEL_USER32 / 8] = 0x00cffb000000fffful;
    cpu->gdt[SEL_UDATA / 8] = 0x00cff3000000fffful;
    cpu->gdt[SEL_USER / 8] = 0x00affb000000fffful;
    cpu->gdt[SEL_TSS / 8] = 0x0000890000000000ul | limit | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56;
    cpu->gdt[SEL_TSS / 8 + 1] = tss >> 32;
    cpu->tss.rsp[0] = (uint64_t)(cpu->trap_stack + sizeof cpu->trap_stack);
    cpu->tss.ist[0] = (uint64_t)(cpu->ist_stack + sizeof cpu->ist_stack);
    cpu->tss.io_base = sizeof cpu->tss;
    for (unsigned i = 0; i < 256; i++)
        set_gate(cpu, i, i == 0x80 || i == BP || i == OF ? 0xee : 0x8e, i == DF ? 1 : 0);
}

static void load_tables(struct cpu *cpu)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdtr = {sizeof cpu->gdt - 1, (uint64_t)cpu->gdt}, idtr = {sizeof cpu->idt - 1,
                                                                                        (uint64_t)cpu->idt};
    __asm__ volatile("lgdt %0" : : "m"(gdtr));
    __asm__ volatile("lidt %0" : : "m"(idtr));
    __asm__ volatile("ltr %w0" : : "r"(SEL_TSS));
}

void cpu_set_up(unsigned index);
void cpu_set_up(unsigned index)
{
    struct cpu *cpu = alloc_pages((sizeof *cpu + PAGE - 1) / PAGE);
    cpu->apic_id = index;
    cpus[index] = cpu;
    fill_tables(cpu);
    load_tables(cpu);
}

/* ---- exceptions ---- */

static void die(const struct trap_frame *frame)
{
    check(false, "unexpected vector %lu error 0x%lx at 0x%lx:0x%lx rflags 0x%lx rsp 0x%lx cr2 0x%lx", frame->vector,
          frame->error, frame->cs, frame->rip, frame->rflags, frame->rsp, read_cr2());
    finish();
}

void trap_dispatch(struct trap_frame *frame);
void trap_dispatch(struct trap_frame *frame)
{
    struct cpu *cpu = this_cpu();
    if (trap_handlers[frame->vector] && trap_handlers[frame->vector](frame))
        return;
    if (!cpu->catching)
        die(frame);
    struct context *context = cpu->catching;
    cpu->catching = NULL;
    cpu->trap = (struct trap){.hit = true, .cr2 = read_cr2(), .frame = *frame};
    context_restore(context);
}

struct trap catch_trap(void (*fn)(void *arg), void *arg)
{
    struct cpu *cpu = this_cpu();
    struct context context, *before = cpu->catching;
    if (context_save(&context) == 0) {
        cpu->trap.hit = false;
        cpu->catching = &context;
        fn(arg);
        cpu->trap.hit = false;
    }
    cpu->catching = before;
    return cpu->trap;
}

void check_trap_at(const char *file, int line, const struct trap *trap, unsigned vector, uint64_t error, const char *what)
{
    if (!trap->hit)
        check_at(file, line, false, "%s: no exception, but vector %u was due", what, vector);
    else
        check_at(file, line, trap->frame.vector == vector && trap->frame.error == error,
                 "%s: vector %lu error 0x%lx (rip 0x%lx cr2 0x%lx), but vector %u error 0x%lx was due", what,
                 trap->frame.vector, trap->frame.error, trap->frame.rip, trap->cr2, vector, error);
}

struct user_call {
    void (*fn)(void *arg);
    void *arg;
    uint64_t rflags, cs;
};

static void go_user(void *arg)
{
    static uint8_t stacks[CPUS][8192] __attribute__((aligned(16)));
    const struct user_call *call = arg;
    uint8_t *stack = stacks[this_cpu()->apic_id % CPUS];
    enter_user(((uint64_t)call->fn + USER_ALIAS), (uint64_t)AS_USER(stack + sizeof stacks[0] - 8), call->rflags, call->cs,
               (uint64_t)call->arg);
}

struct trap run_user_flags(void (*fn)(void *arg), void *arg, uint64_t rflags, uint64_t cs)
{
    return catch_trap(go_user, &(struct user_call){fn, arg, rflags, cs});
}

struct trap run_user(void (*fn)(void *arg), void *arg)
{
    return run_user_flags(fn, arg, 0x2, SEL_USER);
}

/* ---- page tables ---- */

uint64_t *page_entry(uint64_t va, unsigned level)
{
    uint64_t *table = (uint64_t *)(read_cr3() & ~0xffful);
    for (unsigned at = 4;; at--) {
        uint64_t *entry = &table[va >> (3 + 9 * at) & 511];
        if (at == level)
            return entry;
        if (!(*entry & P_PRESENT))
            *entry = (uint64_t)alloc_pages(1) | P_PRESENT | P_WRITE | P_USER;
        table = (uint64_t *)(*entry & 0x000ffffffffff000ul);
    }
}

void map_page(uint64_t va, uint64_t pa, unsigned level, uint64_t flags)
{
    *page_entry(va, level) = pa | flags | (level > 1 ? P_LARGE : 0);
    invlpg(va);
}
