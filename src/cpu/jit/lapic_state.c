/* Saving and loading the local APIC as a register page in the xAPIC layout: 16 bytes a register, the first four used, ID in
 * bits 31-24 in every mode (KVM's layout without 32-bit IDs). APIC_BASE and TSC_DEADLINE are MSRs and saved with those.
 * The vCPU is not running. */
#include <stddef.h>

#include "base/bytes.h"
#include "cpu/jit/lapic_impl.h"

/* Registers that are stored as they are: page offset and place in struct lapic. */
static const struct {
    uint16_t offset, field;
} plain_registers[] = {
    {0x080, offsetof(struct lapic, tpr)},        {0x0e0, offsetof(struct lapic, dfr)},
    {0x0f0, offsetof(struct lapic, svr)},        {0x280, offsetof(struct lapic, esr)},
    {0x2f0, offsetof(struct lapic, lvt_cmci)},   {0x300, offsetof(struct lapic, icr_low)},
    {0x310, offsetof(struct lapic, icr_high)},   {0x320, offsetof(struct lapic, lvt_timer)},
    {0x330, offsetof(struct lapic, lvt_thermal)}, {0x340, offsetof(struct lapic, lvt_perf)},
    {0x350, offsetof(struct lapic, lvt_lint0)},  {0x360, offsetof(struct lapic, lvt_lint1)},
    {0x370, offsetof(struct lapic, lvt_error)},  {0x380, offsetof(struct lapic, timer_initial)},
    {0x3e0, offsetof(struct lapic, timer_divide)},
};
#define PLAIN_COUNT (sizeof plain_registers / sizeof plain_registers[0])
#define LAPIC_VERSION 0x00050014u

static void save_bits(uint8_t *page, const uint32_t words[8])
{
    for (unsigned i = 0; i < 8; i++)
        store_le32(page + 16 * i, __atomic_load_n(&words[i], __ATOMIC_RELAXED));
}

static void load_bits(const uint8_t *page, uint32_t words[8])
{
    for (unsigned i = 0; i < 8; i++)
        __atomic_store_n(&words[i], load_le32(page + 16 * i), __ATOMIC_RELAXED);
}

void lapic_save(const struct jit_vcpu *cpu, uint8_t page[1024])
{
    const struct lapic *apic = &cpu->lapic;
    for (unsigned i = 0; i < 1024; i++)
        page[i] = 0;
    for (unsigned i = 0; i < PLAIN_COUNT; i++)
        store_le32(page + plain_registers[i].offset, *(const uint32_t *)((const char *)apic + plain_registers[i].field));
    uint32_t id = apic->id;
    store_le32(page + 0x20, id << 24);
    store_le32(page + 0x30, LAPIC_VERSION);
    store_le32(page + 0xd0, lapic_is_x2apic(cpu) ? (id >> 4) << 16 | 1u << (id & 15) : apic->ldr);
    save_bits(page + 0x100, apic->isr);
    save_bits(page + 0x180, apic->tmr);
    save_bits(page + 0x200, apic->irr);
    store_le32(page + 0x390, lapic_timer_current(cpu));
}

void lapic_load(struct jit_vcpu *cpu, const uint8_t page[1024])
{
    struct lapic *apic = &cpu->lapic;
    for (unsigned i = 0; i < PLAIN_COUNT; i++)
        *(uint32_t *)((char *)apic + plain_registers[i].field) = load_le32(page + plain_registers[i].offset);
    apic->svr &= 0x1ff;
    apic->tpr &= 0xff;
    apic->esr_shadow = 0;
    apic->ldr = load_le32(page + 0xd0);
    load_bits(page + 0x100, apic->isr);
    load_bits(page + 0x180, apic->tmr);
    load_bits(page + 0x200, apic->irr);
    lapic_timer_resume(cpu, load_le32(page + 0x390));
}
