/* Fuzz target: the IOAPIC's registers, lines and ends of interrupt. One access sends a message a pin at most. */
#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus_script.h"
#include "dev/ioapic.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void send(void *arg, struct msi msi)
{
    unsigned *sent = arg;
    assert(msi.address >> 20 == 0xfee && msi.data <= 0xffff);
    assert(++*sent <= IOAPIC_PINS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bus *memory;
    struct ioapic *ioapic;
    unsigned sent = 0;
    if (bus_create(&memory) < 0)
        return 0;
    if (ioapic_create(memory, (struct irq_sink){&sent, send}, &ioapic) == 0) {
        struct bus_step step;
        while (bus_step_next(&data, &size, &step)) {
            static const uint16_t registers[] = {0, 0x10, 0x40};
            uint64_t address = IOAPIC_BASE + (step.choice & 1 ? step.address & 0xff0 : registers[step.address % 3]);
            sent = 0;
            if (step.action & 8)
                ioapic_set_line(ioapic, step.choice % IOAPIC_PINS, step.value & 1);
            else if (step.action & 4)
                ioapic_eoi(ioapic, step.choice);
            else if (step.action & 2)
                bus_read(memory, address, step.size);
            else
                bus_write(memory, address, step.value, step.size);
        }
        ioapic_free(ioapic);
    }
    bus_free(memory);
    return 0;
}
