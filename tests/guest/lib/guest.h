/* Runtime of the bare-metal guests: console, checks, exceptions that can be caught, page tables, local APIC, other CPUs.
 *
 * A guest defines guest_main(); the verdict is the count of failed checks. The first 4 GiB are identity-mapped for the
 * supervisor, the first GiB again at USER_ALIAS for user mode: code runs at either place, as it is position-independent.
 * Everything is compiled without vector instructions, so that tests own
 * the vector state. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void guest_main(void);

/* ---- console and verdict ---- */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Counts, and says which one failed. */
void check_at(const char *file, int line, bool ok, const char *format, ...) __attribute__((format(printf, 4, 5)));
#define check(ok, ...) check_at(__FILE__, __LINE__, (ok), __VA_ARGS__)
#define check_equal(got, wanted, what)                                                                       \
    do {                                                                                                     \
        uint64_t got_ = (uint64_t)(got), wanted_ = (uint64_t)(wanted);                                       \
        check(got_ == wanted_, "%s is 0x%lx, not 0x%lx", (what), got_, wanted_);                             \
    } while (0)
/* The guest does not test this here; shown in the result. */
void skip(const char *why);
_Noreturn void finish(void);

/* ---- instructions ---- */
static inline uint64_t rdmsr(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}
#define DEFINE_REGISTER(name)                                                                                \
    static inline uint64_t read_##name(void)                                                                 \
    {                                                                                                        \
        uint64_t v;                                                                                          \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(v) : : "memory");                                      \
        return v;                                                                                            \
    }                                                                                                        \
    static inline void write_##name(uint64_t v) { __asm__ volatile("mov %0, %%" #name : : "r"(v) : "memory"); }
DEFINE_REGISTER(cr0)
DEFINE_REGISTER(cr2)
DEFINE_REGISTER(cr3)
DEFINE_REGISTER(cr4)
DEFINE_REGISTER(cr8)
DEFINE_REGISTER(dr0)
DEFINE_REGISTER(dr1)
DEFINE_REGISTER(dr6)
DEFINE_REGISTER(dr7)
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}
static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline void outl(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint32_t inl(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline void invlpg(uint64_t address) { __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static inline void pause_cpu(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void enable_interrupts(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void disable_interrupts(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void halt(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }
struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};
struct cpuid cpuid(uint32_t leaf, uint32_t subleaf);
bool cpu_is_amd(void);

/* ---- exceptions and interrupts ---- */
/* As pushed by the stubs; what a handler changes takes effect on return. */
struct trap_frame {
    uint64_t rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};
/* True: handled, go on; false: as if there were no handler. */
typedef bool trap_handler(struct trap_frame *frame);
extern trap_handler *trap_handlers[256];

/* Where an exception inside catch() ended up. */
struct trap {
    bool hit;
    uint64_t cr2;
    struct trap_frame frame;
};
/* Calls fn(arg); an exception without a handler ends it and is returned. Interrupts are as before. */
struct trap catch_trap(void (*fn)(void *arg), void *arg);
#define TRAP(statement)                                                                                      \
    ({                                                                                                       \
        void fn_(void *unused_) { (void)unused_; statement; }                                                \
        catch_trap(fn_, NULL);                                                                               \
    })
void check_trap_at(const char *file, int line, const struct trap *trap, unsigned vector, uint64_t error, const char *what);
/* The trap is `vector` with `error` (0 where there is none). */
#define check_trap(caught, vector, error, what)                                                                \
    do {                                                                                                     \
        struct trap trap_ = (caught);                                                                        \
        check_trap_at(__FILE__, __LINE__, &trap_, (vector), (error), (what));                                \
    } while (0)
#define check_no_trap(caught, what)                                                                            \
    do {                                                                                                     \
        struct trap trap_ = (caught);                                                                        \
        check(!trap_.hit, "%s: vector %lu error 0x%lx cr2 0x%lx", (what), trap_.frame.vector, trap_.frame.error,  \
              trap_.cr2);                                                                                    \
    } while (0)

enum { DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13, PF = 14,
       MF = 16, AC = 17, XM = 19 };

/* ---- segments: one GDT, TSS and IDT a CPU ---- */
#define SEL_KERNEL 0x08
#define SEL_KDATA 0x10
#define SEL_KERNEL32 0x18
#define SEL_USER32 (0x20 | 3)
#define SEL_UDATA (0x28 | 3)
#define SEL_USER (0x30 | 3)
#define SEL_TSS 0x38
#define SEL_SPARE 0x48 /* four descriptors for tests */
struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, zero;
};
struct tss {
    uint32_t reserved0;
    uint64_t rsp[3], reserved1, ist[7], reserved2;
    uint16_t reserved3, io_base;
    uint8_t io_bitmap[8192 + 1];
} __attribute__((packed));
struct cpu {
    uint32_t apic_id;
    uint64_t gdt[16];
    struct gate idt[256];
    struct tss tss;
    struct context *catching;
    struct trap trap;
    uint8_t trap_stack[8192] __attribute__((aligned(16)));
    uint8_t ist_stack[8192] __attribute__((aligned(16)));
};
struct cpu *this_cpu(void);
void gdt_set(unsigned selector, uint64_t descriptor);
/* Gate type 0x8e interrupt, 0x8f trap, | 0x60 for DPL 3, & ~0x80 for not present. */
void idt_set(unsigned vector, uint8_t type, unsigned ist);

#define USER_ALIAS 0x8000000000ul
/* Where user mode sees an object of the guest. */
#define AS_USER(pointer) ((__typeof__(&(pointer)[0]))((uint64_t)(pointer) + USER_ALIAS))
/* Runs fn(arg) in ring 3, at its alias (`arg` is passed as it is), on its own stack until it traps: `int $0x80` is the clean way out. */
struct trap run_user(void (*fn)(void *arg), void *arg);
struct trap run_user_flags(void (*fn)(void *arg), void *arg, uint64_t rflags, uint64_t cs);
#define LEAVE_USER() __asm__ volatile("int $0x80" ::: "memory")

struct context {
    uint64_t rip, rsp, rbx, rbp, r12, r13, r14, r15, rflags;
};
int context_save(struct context *context) __attribute__((returns_twice));
_Noreturn void context_restore(const struct context *context);
_Noreturn void enter_user(uint64_t rip, uint64_t rsp, uint64_t rflags, uint64_t cs, uint64_t arg);

/* ---- memory and page tables ---- */
void *memset(void *to, int byte, size_t len);
void *memcpy(void *to, const void *from, size_t len);
int memcmp(const void *a, const void *b, size_t len);
void *alloc_pages(unsigned count); /* zeroed, never freed */
#define PAGE 4096ul
#define P_PRESENT 1ul
#define P_WRITE 2ul
#define P_USER 4ul
#define P_ACCESSED 0x20ul
#define P_DIRTY 0x40ul
#define P_LARGE 0x80ul
#define P_GLOBAL 0x100ul
#define P_NX (1ul << 63)
/* The entry that maps `va` at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB, 4: PML4) in the tables of CR3; tables above are made as
 * needed, with all permissions. */
uint64_t *page_entry(uint64_t va, unsigned level);
void map_page(uint64_t va, uint64_t pa, unsigned level, uint64_t flags);

/* ---- local APIC, x2APIC mode after apic_enable ---- */
void apic_enable(void);
#define APIC_ID 0x802
#define APIC_VERSION 0x803
#define APIC_TPR 0x808
#define APIC_EOI 0x80b
#define APIC_SPURIOUS 0x80f
#define APIC_ISR 0x810
#define APIC_IRR 0x820
#define APIC_ICR 0x830
#define APIC_LVT_TIMER 0x832
#define APIC_TIMER_INITIAL 0x838
#define APIC_TIMER_CURRENT 0x839
#define APIC_TIMER_DIVIDE 0x83e
#define APIC_SELF_IPI 0x83f
#define TSC_DEADLINE 0x6e0
static inline void apic_eoi(void) { wrmsr(APIC_EOI, 0); }
void send_ipi(uint32_t apic_id, uint32_t command);

/* ---- other CPUs ---- */
unsigned cpu_count(void); /* from the command line, cpus=N */
void smp_start(void);     /* all of them; they then wait for work */
/* Runs fn(arg) on another CPU; smp_wait returns when it has finished. */
void smp_call(unsigned cpu, void (*fn)(void *arg), void *arg);
void smp_wait(unsigned cpu);
const char *command_line(void);
/* Waits about that long by the TSC. */
void delay_us(uint64_t us);
uint64_t tsc_khz(void);
