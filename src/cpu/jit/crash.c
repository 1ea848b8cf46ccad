/* Async-signal-safe: no printf, no locks, one write(). Compiled for general registers only. */
#include "cpu/jit/crash.h"

#include <stdint.h>
#include <ucontext.h>
#include <unistd.h>

#include "cpu/jit/translate.h"
#include "cpu/jit/vcpu.h"

struct line {
    char text[256];
    size_t length;
};

static void add(struct line *line, const char *text)
{
    while (*text && line->length < sizeof line->text - 1)
        line->text[line->length++] = *text++;
}

static void add_number(struct line *line, uint64_t value, unsigned base)
{
    char digits[21];
    unsigned at = sizeof digits;
    digits[--at] = '\0';
    do
        digits[--at] = "0123456789abcdef"[value % base];
    while (value /= base);
    add(line, base == 16 ? "0x" : "");
    add(line, digits + at);
}

static bool in_guest_memory(const struct jit_vcpu *cpu, const void *address)
{
    return cpu && mem_gpa_of(cpu->mem, address) != UINT64_MAX;
}

static bool in_translated_code(const struct jit_vcpu *cpu, uint64_t pc)
{
    const struct translator *tr = cpu ? cpu->translator : NULL;
    return tr && pc - (uint64_t)(uintptr_t)tr->mcode.exec < tr->mcode.size;
}

void crash_report(const struct jit_vcpu *cpu, int signal, const siginfo_t *info, const void *context)
{
    if (info->si_code <= 0)
        return;
    uint64_t pc = (uint64_t)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    struct line line = {.length = 0};
    add(&line, "polder-vmm: jit: signal ");
    add_number(&line, (uint64_t)signal, 10);
    add(&line, " at address ");
    add_number(&line, (uint64_t)(uintptr_t)info->si_addr, 16);
    add(&line, in_translated_code(cpu, pc) ? ", in translated code at " : ", at ");
    add_number(&line, pc, 16);
    if (cpu) {
        add(&line, ", vCPU ");
        add_number(&line, cpu->base.index, 10);
    }
    if (signal == SIGBUS && in_guest_memory(cpu, info->si_addr))
        add(&line, ": the host has lost guest memory (no huge page left, or a memory error)\n");
    else
        add(&line, ": a bug of polder-vmm, please report it\n");
    if (write(STDERR_FILENO, line.text, line.length) < 0)
        return;
}
